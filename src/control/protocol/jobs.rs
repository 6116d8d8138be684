//! What a node that works on whole jobs tells of that.

use serde::{Deserialize, Serialize};

/// What a worker did of the jobs of one model, and does now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsRow {
    /// Name of the model in the DHT.
    pub prefix: String,
    /// Jobs that wait or run.
    pub open: usize,
    /// Those that were delivered.
    pub done: u64,
    /// That could not be done.
    pub failed: u64,
    /// That were not begun: no room, or not of this worker.
    pub refused: u64,
    /// That nobody wanted any more.
    pub stopped: u64,
    /// That came here after another attempt at them.
    pub taken_over: u64,
}
