//! All layers together: servers and clients in a swarm of real nodes on loopback, with the tiny Llama model whose
//! numbers were recorded from transformers and from Petals. What one layer does alone is tested there.

mod api;
mod asking;
mod caller;
mod cancelling;
mod churning;
mod controlling;
mod conversing;
mod drafting;
mod faulty;
mod generating;
mod guarding;
mod limits;
mod losing;
mod malformed;
mod moving;
mod narrow;
mod passes;
mod pipelining;
mod polite;
mod private;
mod pushing;
mod receipts;
mod replay;
mod scripted;
mod setup;
mod several;
mod sharing;
mod speculating;
mod spoiling;
mod standing;
mod steps;
mod swarms;
mod tools;
mod traces;
mod verifying;
