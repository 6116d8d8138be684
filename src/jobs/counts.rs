//! What a worker counts of its jobs.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::queue::Key;
use crate::metrics::Family;

/// The counts of one worker. They only grow, but for what waits and runs.
#[derive(Debug)]
pub struct Counts {
    model: String,
    offered: AtomicU64,
    claimed: AtomicU64,
    taken_over: AtomicU64,
    ended: [AtomicU64; ENDS.len()],
    open: AtomicUsize,
}

/// How a job can end here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was delivered.
    Done,
    /// It could not be done.
    Failed,
    /// It was not begun: no room, or not of this worker.
    Refused,
    /// Nobody wanted it any more.
    Stopped,
}

const ENDS: [(End, &str); 4] = [
    (End::Done, "done"),
    (End::Failed, "failed"),
    (End::Refused, "refused"),
    (End::Stopped, "stopped"),
];

impl Counts {
    /// Of a worker on jobs of `model`, by its name in the DHT.
    pub(super) fn new(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            offered: AtomicU64::default(),
            claimed: AtomicU64::default(),
            taken_over: AtomicU64::default(),
            ended: Default::default(),
            open: AtomicUsize::default(),
        }
    }

    pub(super) fn offered(&self) {
        self.offered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn claimed(&self) {
        self.claimed.fetch_add(1, Ordering::Relaxed);
    }

    /// A job was given to this worker; a later attempt has been somebody else's, or this worker's, before.
    pub(super) fn assigned(&self, key: &Key) {
        if key.attempt > 0 {
            self.taken_over.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn ended(&self, how: End) {
        if let Some(at) = ENDS.iter().position(|(end, _)| *end == how) {
            self.ended[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So many jobs wait or run now.
    pub(super) fn now(&self, open: usize) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// The model, by its name in the DHT.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Jobs that wait or run.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Jobs that came here after another attempt at them.
    pub fn taken_over(&self) -> u64 {
        self.taken_over.load(Ordering::Relaxed)
    }

    /// Jobs that ended: done, failed, refused, stopped.
    pub fn ends(&self) -> [u64; 4] {
        self.ended.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// All of it.
    pub fn families(&self) -> Vec<Family> {
        let model = ("model", self.model.as_str());
        let counter =
            |name, help, count: &AtomicU64| Family::counter(name, help).of(&[model], count.load(Ordering::Relaxed));
        let ended = Family::counter("sepal_jobs_ended", "Jobs that came to an end here, by how");
        let ended = ENDS.iter().zip(&self.ended).fold(ended, |family, ((_, end), count)| {
            family.of(&[model, ("end", end)], count.load(Ordering::Relaxed))
        });
        vec![
            counter("sepal_jobs_offered", "Offers of jobs that were heard", &self.offered),
            counter("sepal_jobs_claimed", "Offers that were claimed", &self.claimed),
            counter(
                "sepal_jobs_taken_over",
                "Jobs that came here after another attempt at them",
                &self.taken_over,
            ),
            ended,
            Family::gauge("sepal_jobs_open", "Jobs that wait or run").of(&[model], self.open.load(Ordering::Relaxed)),
        ]
    }
}
