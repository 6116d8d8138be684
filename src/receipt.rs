//! Receipts: what a node says, under the signature of its identity, that it computed. Made by servers, kept and checked by
//! clients, checked again later by whoever has the file. It opens no connection.
//!
//! | file | what |
//! |---|---|
//! | `signed.rs` | JSON with a signature, which jobs use as well |
//! | `step.rs` | the receipt of one step of a session: the server's chain of them, the client's check |
//! | `keep.rs` | appends them to a file |
//! | `audit.rs` | checks such a file by itself |
//!
//! A receipt proves that the holder of a key signed it. It does not prove that the numbers are right: whoever signs a wrong
//! output has signed something that can be held against them.

mod audit;
mod digest;
mod keep;
#[cfg(test)]
pub(crate) mod schemas;
mod signed;
mod step;
#[cfg(test)]
mod tests;

pub(crate) use self::step::{Asked, Chain, Computed, Expectation};
pub use self::{
    audit::{Audit, PeerSummary, WrongLine},
    digest::Digest,
    keep::{KeepError, Keeper},
    signed::{Signed, SignedError},
    step::{FalseReceipt, StepReceipt, TensorDigest},
};
