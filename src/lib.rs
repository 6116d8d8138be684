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
//!          server   client      run blocks for others · generate text through others
//!           swarm   model       who serves what · load and run transformer blocks
//!            dht                Hivemind's Kademlia: records by key, without addresses
//!            p2p                the libp2p host: connections, named streams, addresses of peers
//!      sepal-protocol           the bytes on the wire
//! ```

pub mod task;

pub mod p2p;

pub mod dht;

pub mod swarm;

pub mod model;

pub mod server;

pub mod client;

pub mod cli;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tidy;
