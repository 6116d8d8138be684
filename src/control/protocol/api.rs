//! What a node that answers as an API tells of that.

use serde::{Deserialize, Serialize};

/// What an API did so far and does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiRow {
    /// Requests that were answered.
    pub requests: u64,
    /// Those of them that were answered with an error of who asked.
    pub refused: u64,
    /// Those of them that were answered with an error of this side.
    pub failed: u64,
    /// Texts that are generated.
    pub running: usize,
    /// Texts that wait for their turn.
    pub waiting: usize,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Those of them that servers still had in their caches.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub new_tokens: u64,
}
