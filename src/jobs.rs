//! Jobs: whole generations, each done by one node that holds all of a small model, for whoever submits them.
//!
//! ```text
//! submitter                              everyone on the topic                               worker
//!   work_offer (hash of the prompt) ─────────▶ gossip ─────────────────────────────────────▶ room?
//!   one is chosen  ◀───────────────────────── gossip ◀──────────────────────────── job_claim ┘
//!   job_assign ──────────────────────────────▶ gossip ──▶ the others forget it
//!   a stream to the worker: the prompt ──────────────────────────────────────▶ queue by priority
//!        ◀──── a beat each second; silence for a lease ends it, on both sides ◀──── runs it
//!        ◀──── the text and its receipt ◀────────────────────────────────────────────┘
//!   checked; else, or without a beat, another worker                 receipt ──▶ gossip
//! ```
//!
//! The submitter decides who does a job, so there is no vote and nothing to agree on: at any time one stream is open, and
//! what comes over another one is not read. A worker that is cut off stops by itself. Prompts and texts go from node to node
//! and are not gossiped; their hashes are.
//!
//! `submission.rs` and `queue.rs` are the rules of both sides, without network and clock; `submit.rs` and `serve.rs` drive
//! them; `message.rs` and `order.rs` are what is said (`protocol/schemas`). What a job runs on is the caller's business.

mod check;
mod counts;
mod message;
mod order;
mod queue;
mod serve;
mod submission;
mod submit;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::p2p::GossipConfig;

pub use self::{
    check::{Delivery, FalseDelivery},
    counts::Counts,
    message::{JobReceipt, Message, Settings},
    order::Order,
    serve::{Executor, Output, Place, Running, serve},
    submit::{JobError, submit},
};

/// How often a worker says that it is still there, and a submitter that it still waits.
const BEAT: Duration = Duration::from_secs(1);

/// Silence after which a worker is taken for dead, and a submitter for gone.
const LEASE: Duration = Duration::from_secs(5);

/// The topic of the jobs of a model.
pub fn topic(model: &str) -> String {
    format!("/sepal/jobs/1/{model}")
}

/// What a node listens to that works on jobs of these models, or submits them.
pub fn gossip(models: &[&str]) -> GossipConfig {
    GossipConfig {
        topics: models.iter().map(|model| topic(model)).collect(),
        admits: |text| Message::parse(text).is_ok(),
    }
}
