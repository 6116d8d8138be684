//! Counts of what a server did since it started. Nothing is measured here and nothing is exported.

use std::sync::atomic::{AtomicU64, Ordering};

/// A reading of the counts. They only grow, also when the server moves to other blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Steps of inference sessions that were computed.
    pub steps: u64,
    /// Outputs that were handed to the next server, and that it took.
    pub pushes_sent: u64,
    /// Steps that came from the server before us.
    pub pushes_received: u64,
    /// Those of them that were computed, before the client's own copy came.
    pub pushes_used: u64,
    /// Requests and sessions that ended with an error.
    pub rejected: u64,
}

/// One count.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The running counts behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) steps: Counter,
    pub(crate) pushes_sent: Counter,
    pub(crate) pushes_received: Counter,
    pub(crate) pushes_used: Counter,
    pub(crate) rejected: Counter,
}

impl Counters {
    pub(crate) fn read(&self) -> Stats {
        Stats {
            steps: self.steps.get(),
            pushes_sent: self.pushes_sent.get(),
            pushes_received: self.pushes_received.get(),
            pushes_used: self.pushes_used.get(),
            rejected: self.rejected.get(),
        }
    }
}
