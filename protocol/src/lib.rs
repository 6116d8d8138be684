//! The bytes that Hivemind and Petals nodes exchange: messages, framings, records and tensors.
//!
//! This crate never opens a socket, reads a clock, draws a random number or computes a layer. It turns bytes into
//! types that cannot be wrong, and types into bytes that Python peers accept.
#![deny(missing_docs)]
