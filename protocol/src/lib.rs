//! The bytes that Hivemind and Petals nodes exchange: messages, framings, records and tensors.
//!
//! This crate never opens a socket, reads a clock, draws a random number or computes a layer. It turns bytes into
//! types that cannot be wrong, and types into bytes that Python peers accept. What a peer sent never makes it panic,
//! and never makes it allocate more than a small multiple of the bytes that were received.
//!
//! The modules in reading order: what calls are named ([`names`]), how they are framed ([`frame`], [`unary`]), what
//! the messages are ([`proto`], read with
//! [`message`]), what is inside their `bytes` fields ([`msgpack`], [`value`], [`record`],
//! [`metadata`], [`descriptor`]), tensors ([`tensor`], [`compress`]), and the two kinds of id ([`dht_id`],
//! [`peer_id`]). `README.md` tells the wire in prose.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub use prost::Message;

pub mod names;

pub mod frame;

pub mod unary;

/// The protobuf messages, generated from `protocol/proto`; `scripts/gen-proto.sh` rewrites them.
pub mod proto {
    include!("generated/wire.rs");
}

pub mod message;

pub mod msgpack;

pub mod value;

pub mod record;

pub mod metadata;

pub mod descriptor;

pub mod tensor;

pub mod compress;

pub mod dht_id;

pub mod peer_id;

pub mod error;

pub use error::WireError;

mod fields;

#[cfg(test)]
mod proto_tests;
#[cfg(test)]
mod testing;
