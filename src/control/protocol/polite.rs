//! Rows about what a node keeps to for the sake of its owner: who waits, who was refused, why it is paused.

use serde::{Deserialize, Serialize};

/// Steps and requests that wait or are computed, of all models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRow {
    /// Steps of own sessions, which come first.
    pub own: usize,
    /// Steps of other sessions.
    pub sessions: usize,
    /// Passes over whole sequences.
    pub passes: usize,
    /// How many of all there may be for each model.
    pub limit: usize,
}

/// Requests and sessions that were refused since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRow {
    /// Too many steps were waiting.
    pub overloaded: u64,
    /// The node was paused.
    pub paused: u64,
    /// Nothing is computed for the peer.
    pub denied: u64,
    /// The peer had too many sessions.
    pub sessions: u64,
    /// The peer had too many tokens in a minute.
    pub tokens: u64,
    /// The peer had too much of the cache.
    pub cache: u64,
}

/// Why no new sessions are taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PauseRow {
    /// `schedule`, or `person` for `sepal pause` and `sepal drain`.
    pub by: String,
    /// When the hours of the schedule begin or end the next time.
    pub until_s: Option<f64>,
}
