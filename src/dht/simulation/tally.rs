//! What was counted in a simulation, and the report it becomes.

use super::Scenario;

/// How a read went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trip {
    /// There was something under the key.
    pub(super) found_key: bool,
    /// The record of the very node that was looked for was among it.
    pub(super) found_entry: bool,
    /// Length of the chain of answers that led to the node that had it; 0 if it was here.
    pub(super) hops: usize,
    /// Questions asked.
    pub(super) calls: usize,
    /// Virtual duration, milliseconds.
    pub(super) took_ms: u64,
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    messages: u64,
    bytes: u64,
    pub(super) timed_out: u64,
    pub(super) trips: Vec<Trip>,
    pub(super) joined: usize,
    pub(super) vanished: usize,
    pub(super) refused: usize,
}

impl Tally {
    pub(super) fn sent(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
    }

    pub(super) fn report(&self, scenario: &Scenario, nodes: usize, table: f64) -> Report {
        let node_minutes = nodes as f64 * scenario.measured.as_secs_f64() / 60.0;
        let share = |what: fn(&Trip) -> bool| {
            self.trips.iter().filter(|trip| what(trip)).count() as f64 / self.trips.len().max(1) as f64
        };
        Report {
            nodes,
            reads: self.trips.len(),
            found: share(|trip| trip.found_entry),
            found_key: share(|trip| trip.found_key),
            hops: Spread::of(self.trips.iter().map(|trip| trip.hops as f64)),
            calls: Spread::of(self.trips.iter().map(|trip| trip.calls as f64)),
            seconds: Spread::of(self.trips.iter().map(|trip| trip.took_ms as f64 / 1000.0)),
            messages: self.messages as f64 / node_minutes,
            bytes: self.bytes as f64 / node_minutes,
            timed_out: self.timed_out as f64 / node_minutes,
            table,
            joined: self.joined,
            vanished: self.vanished,
            refused: self.refused,
        }
    }
}

/// A mean, and what 99 of 100 do not exceed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let Some(last) = values.len().checked_sub(1) else {
            return Self::default();
        };
        Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p99: values[(last as f64 * 0.99).ceil() as usize],
        }
    }
}

/// What was measured in a swarm. Reads are those of records whose owner was alive and had stored them.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Nodes at the end.
    pub nodes: usize,
    /// Number of reads.
    pub reads: usize,
    /// Share of the reads that found the record of the node that was looked for.
    pub found: f64,
    /// Share of the reads that found anything under the key.
    pub found_key: f64,
    /// Length of the chain of answers that led to the node that had the record.
    pub hops: Spread,
    /// Questions of one read.
    pub calls: Spread,
    /// Duration of one read, in virtual seconds.
    pub seconds: Spread,
    /// Requests and answers that a node sent in a minute; it got as many.
    pub messages: f64,
    /// Bytes that a node sent in a minute; it got as many.
    pub bytes: f64,
    /// Calls of a node without an answer, in a minute.
    pub timed_out: f64,
    /// Nodes in the table of a node at the end.
    pub table: f64,
    /// Nodes that joined.
    pub joined: usize,
    /// Nodes that vanished.
    pub vanished: usize,
    /// Nodes that were not let in, because of their clocks.
    pub refused: usize,
}
