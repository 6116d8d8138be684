//! Counts of what a server did since it started, and how long its last steps took. Nothing is exported here.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use super::{error::RequestError, waiting::Waits};
use crate::model::CacheCounts;

/// Times that are remembered for [`Quantiles`]. Enough that one in a hundred means something.
const REMEMBERED_TIMES: usize = 1024;

/// A reading of the counts. They only grow, also when the server moves to other blocks; the queue, the cache and the times
/// are those of now.
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
    /// Receipts for steps that were signed.
    pub receipts: u64,
    /// Times that one block was run for steps of sessions.
    pub block_runs: u64,
    /// Tokens that went through those blocks; divided by the runs, the size of a batch.
    pub block_tokens: u64,
    /// Tokens of sessions that were not computed because their prefix was known.
    pub reused_tokens: u64,
    /// Requests and sessions that the person who runs the node did not want.
    pub refusals: Refusals,
    /// Steps and requests that wait or are computed.
    pub queued: usize,
    /// The same, class by class.
    pub by_class: Waits,
    /// Pages of the caches of all spans that are loaded.
    pub cache: CacheCounts,
    /// How long the last steps waited before they were begun.
    pub waits: Quantiles,
    /// How long the last steps took on the compute thread, waiting included.
    pub step_times: Quantiles,
}

/// Requests and sessions that were refused for what the person who runs the node wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Too many steps were waiting.
    pub overloaded: u64,
    /// No new sessions were taken.
    pub paused: u64,
    /// The peer is on the list of those that are denied, or not on the one of those that are allowed.
    pub denied: u64,
    /// The peer had too many sessions.
    pub sessions: u64,
    /// The peer had too many tokens in a minute.
    pub tokens: u64,
    /// The peer had too much of the cache.
    pub cache: u64,
}

/// How long something usually takes, and how long at worst; zero while nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    /// Half of the times are below.
    pub p50: Duration,
    /// One in a hundred is above.
    pub p99: Duration,
}

/// One count.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The last times of something, without a lock. One thread writes.
#[derive(Debug)]
pub(crate) struct Times {
    /// In microseconds.
    recent: Box<[AtomicU32]>,
    n: AtomicUsize,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            recent: (0..REMEMBERED_TIMES).map(|_| AtomicU32::new(0)).collect(),
            n: AtomicUsize::new(0),
        }
    }
}

impl Times {
    pub(crate) fn add(&self, time: Duration) {
        let microseconds = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let n = self.n.fetch_add(1, Ordering::Relaxed);
        self.recent[n % REMEMBERED_TIMES].store(microseconds, Ordering::Relaxed);
    }

    fn read(&self) -> Quantiles {
        let n = self.n.load(Ordering::Relaxed).min(REMEMBERED_TIMES);
        let times = self.recent[..n].iter().map(|time| time.load(Ordering::Relaxed));
        let mut times: Vec<u32> = times.collect();
        times.sort_unstable();
        let at = |per_cent: usize| {
            let time = times.get(n * per_cent / 100).copied();
            Duration::from_micros(time.unwrap_or_default().into())
        };
        Quantiles {
            p50: at(50),
            p99: at(99),
        }
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
    pub(crate) refusals: RefusalCounts,
    pub(crate) receipts: Counter,
    pub(crate) block_runs: Counter,
    pub(crate) block_tokens: Counter,
    pub(crate) reused_tokens: Counter,
    pub(crate) waits: Times,
    pub(crate) step_times: Times,
}

/// The running counts behind [`Refusals`].
#[derive(Debug, Default)]
pub(crate) struct RefusalCounts([Counter; 6]);

impl RefusalCounts {
    /// Counts an error if it is a refusal of this kind.
    pub(crate) fn note(&self, error: &RequestError) {
        let which = match error {
            RequestError::Busy { .. } => 0,
            RequestError::Paused => 1,
            RequestError::Denied => 2,
            RequestError::TooManySessions { .. } => 3,
            RequestError::TooManyTokensAMinute { .. } => 4,
            RequestError::CacheQuota { .. } => 5,
            _ => return,
        };
        self.0[which].add();
    }

    pub(crate) fn read(&self) -> Refusals {
        let [overloaded, paused, denied, sessions, tokens, cache] = self.0.each_ref().map(Counter::get);
        Refusals {
            overloaded,
            paused,
            denied,
            sessions,
            tokens,
            cache,
        }
    }
}

impl Counters {
    /// `by_class` is what waits or runs now, `cache` how the caches are used.
    pub(crate) fn read(&self, by_class: Waits, cache: CacheCounts) -> Stats {
        Stats {
            steps: self.steps.get(),
            pushes_sent: self.pushes_sent.get(),
            pushes_received: self.pushes_received.get(),
            pushes_used: self.pushes_used.get(),
            rejected: self.rejected.get(),
            receipts: self.receipts.get(),
            block_runs: self.block_runs.get(),
            block_tokens: self.block_tokens.get(),
            reused_tokens: self.reused_tokens.get(),
            refusals: self.refusals.read(),
            queued: by_class.total(),
            by_class,
            cache,
            waits: self.waits.read(),
            step_times: self.step_times.read(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_last_steps() {
        let times = Times::default();
        assert_eq!(times.read(), Quantiles::default());
        times.add(Duration::from_secs(1_000_000));
        assert_eq!(times.read().p99, Duration::from_micros(u32::MAX.into()));
        (0..REMEMBERED_TIMES as u64).for_each(|time| times.add(Duration::from_micros(time)));
        let expected = [512, 1013].map(Duration::from_micros);
        assert_eq!([times.read().p50, times.read().p99], expected);
    }
}
