//! What submitter and worker say to each other on the stream of a job. Both know each other's peer id from the connection,
//! so only the receipt is signed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::message::{MAX_JOB, MAX_MODEL, Settings, VERSION, WorkOffer};
use crate::receipt::Digest;

/// The stream's name.
pub(super) const NAME: &str = "SepalJobs.rpc_work";

/// Longest prompt, bytes.
pub(super) const MAX_PROMPT: usize = 64 * 1024;
/// Longest message on the stream, bytes: a prompt in which every byte is escaped, or an answer of [`MAX_NEW_TOKENS`].
pub(super) const MAX_MESSAGE: usize = 1 << 20;
/// Longest answer, tokens.
pub(super) const MAX_NEW_TOKENS: u32 = 4096;

/// Refusals that are of the moment: the same worker may take the job later.
pub(super) const NO_ROOM: &str = "no room";
pub(super) const HERE_ALREADY: &str = "the job is here already";
pub(super) const GIVEN_AGAIN: &str = "the job was given out again";

/// A job: what the submitter says first (`protocol/schemas/job_order.json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// 1.
    pub version: u32,
    /// Its name.
    pub job: String,
    /// How often it was given to somebody before.
    pub attempt: u32,
    /// DHT prefix of the model.
    pub model: String,
    /// The text to continue.
    pub prompt: String,
    /// How.
    pub settings: Settings,
    /// Of the jobs of a worker, those with more come first.
    pub priority: i32,
}

/// What the worker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Answer {
    /// It is still there; so many tokens are done.
    Beat { tokens: u32 },
    /// It will not do it.
    Refused { why: String },
    /// It is done. The receipt is signed text.
    Result {
        text: String,
        token_ids: Vec<u32>,
        receipt: String,
    },
}

/// Whether a worker that refuses with these words may take the job later; with all others it would refuse it again.
pub(super) fn passes(why: &str) -> bool {
    [NO_ROOM, HERE_ALREADY, GIVEN_AGAIN].contains(&why)
}

impl Order {
    /// A job of a model; the name is by chance.
    pub fn new(model: String, prompt: String, settings: Settings, priority: i32) -> Self {
        Self {
            version: VERSION,
            job: uuid::Uuid::new_v4().to_string(),
            attempt: 0,
            model,
            prompt,
            settings,
            priority,
        }
    }

    /// Why nobody would take it.
    pub(super) fn unfit(&self) -> Option<&'static str> {
        let settings = &self.settings;
        match () {
            () if self.version != VERSION => Some("another version"),
            () if self.job.is_empty() || self.job.len() > MAX_JOB => Some("names of jobs have 1 to 64 bytes"),
            () if self.model.is_empty() || self.model.len() > MAX_MODEL => Some("names of models have 1 to 256 bytes"),
            () if self.prompt.len() > MAX_PROMPT => Some("the prompt is longer than 64 KiB"),
            () if settings.max_new_tokens > MAX_NEW_TOKENS => Some("more than 4096 new tokens"),
            () if settings.temperature_milli > 100_000 => Some("a temperature of more than 100"),
            () => None,
        }
    }

    /// What others are told of it.
    pub(super) fn offer(&self, number: u32) -> WorkOffer {
        WorkOffer {
            version: VERSION,
            job: self.job.clone(),
            number,
            model: self.model.clone(),
            prompt: Digest::of(self.prompt.as_bytes()),
            prompt_bytes: self.prompt.len() as u32,
            settings: self.settings,
            priority: self.priority,
        }
    }
}

/// A message for the stream. All of ours can be written.
pub(super) fn encode<T: Serialize>(message: &T) -> Bytes {
    serde_json::to_vec(message).unwrap_or_default().into()
}
