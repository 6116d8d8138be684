//! What a Petals swarm is here: who serves which blocks, how to route through them, which blocks to serve.
//!
//! ```text
//!   a server                            the DHT                            a client
//!   placement ── which blocks?                                             directory ── reads the records of all blocks
//!   announce ─── PREFIX.0 … PREFIX.n ──▶ record per block and peer ──────▶ spans ────── who serves from where to where
//!   ping ─────── next_pings             _petals.models: the registry       route ────── the cheapest chain of spans
//!   reachability: can this peer be dialed?                                 ping ─────── round trips to candidates
//!   standing ─── can we, and what follows from it
//! ```
//!
//! It moves no tensors and runs no blocks. [`spans`], [`hygiene`], [`route`], [`placement`] and the estimates of [`ping`]
//! are pure: time and randomness are arguments. [`directory`], [`announce`], [`reachability`], [`standing`] and [`speed`] talk to the
//! DHT and to peers; [`health`] does, to show how all of it is.
//!
//! One word per thing, here and in the layers above:
//!
//! | word | meaning |
//! |---|---|
//! | block | one transformer layer; blocks of a model are numbered from 0 |
//! | span | contiguous blocks on one peer |
//! | chain | spans, clipped to hops, that cover the blocks a client wants |
//! | record | what the DHT stores: here a server's description of itself, one per block |
//! | session | one client's cache on one server |
//! | step | new tokens through a span |
//! | push | a server hands its output to the next server |
//! | lease | reserved cache memory |
//! | peer | a libp2p identity ([`PeerId`](crate::p2p::PeerId)) |
//! | node | a participant of the DHT; its id is a `DhtId`, not a `PeerId` |
//! | prefix | the name of a model in the DHT; block 3 has the key `PREFIX.3` |

pub mod spans;

pub mod signature;

pub mod hygiene;

pub mod route;

pub mod placement;

pub mod ping;

pub mod speed;

pub mod lan;

pub mod models;

pub mod reachability;

pub mod standing;

pub mod monitor;

pub mod directory;

pub mod announce;

pub mod health;

mod node;

#[cfg(test)]
pub(crate) mod testing;

pub use directory::Directory;
pub use node::{JoinError, Node};
pub use spans::{AdapterGap, Snapshot, Span};
