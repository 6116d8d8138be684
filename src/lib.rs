//! Sepal: a node of a Petals swarm.
//!
//! A swarm runs a large language model on many machines, none of which could hold it. Each server holds a *span* of
//! transformer blocks; a client embeds the prompt, sends the activations through a *chain* of servers and turns what
//! comes back into text. Servers announce their spans in a Hivemind DHT, and everything on the wire is what Python
//! Petals and Hivemind speak.
//!
//! The layers, from the bottom up (imports only ever go down; `tidy.rs` checks it):
//!
//! ```text
//!                cli            flags to configuration, wires everything together
//!           http    control     the API of OpenAI, the health map · a socket for whoever runs the node
//!          server   client      run blocks for others · generate text through others
//!           swarm   model       who serves what · load and run transformer blocks
//!            dht                Hivemind's Kademlia: records by key, without addresses
//!     jobs, receipt             whole generations, done by one node for another · what was computed, signed
//!            p2p                the libp2p host: connections, named streams, addresses of peers
//!      sepal-protocol           the bytes on the wire
//! ```
//!
//! Two paths through them explain most of the code:
//!
//! - *A step through a server.* [`p2p`]'s router takes a permit for the stream, `server/session.rs` checks the step and
//!   unpacks it (`server/convert.rs`), `server/worker.rs` runs the blocks of [`model`] over it and the session's cache,
//!   and the output is packed once: for the client, and for the next server of the chain (`server/push.rs`).
//! - *A record through the DHT.* `swarm/announce.rs` stores what a server says of itself under each of its blocks;
//!   `dht/traverse.rs` finds the nodes nearest to the key; `swarm/directory.rs` reads all blocks back and
//!   `swarm/route.rs` chooses a chain. Records name peers; addresses of peers are found by [`p2p`] alone.
//!
//! What holds everywhere:
//!
//! - Only the worker thread of a server computes, and it touches no socket. A client's embeddings, head and sampling stay
//!   off the asynchronous threads as well, unless they take less time than handing them over.
//! - No lock is held across compute: a step carries its session's cache with it and brings it back.
//! - Whatever comes from the network is bounded before it is stored: messages, queues, calls, sessions, records.
//! - Tasks are started through [`task::Tasks`] and end with it; dropping a call's future cancels the call.
//! - Nothing below [`cli`] prints or reads the environment.

pub mod task;

pub mod metrics;

pub mod p2p;

pub mod receipt;

pub mod dht;

pub mod swarm;

pub mod model;

pub mod jobs;

pub mod server;

pub mod client;

pub mod http;

pub mod control;

pub mod cli;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tidy;
