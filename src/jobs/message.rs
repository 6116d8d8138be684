//! What is gossiped about jobs: signed JSON of version 1, as `protocol/schemas/job_message.json` has it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    p2p::{Identity, PeerId},
    receipt::{Digest, Signed, SignedError},
};

/// The purpose that is signed for.
const WHAT: &str = "job message";

/// Longest message that is read, bytes.
pub(super) const MAX_BYTES: usize = 8 * 1024;
/// Longest name of a job.
pub(super) const MAX_JOB: usize = 64;
/// Longest name of a model.
pub(super) const MAX_MODEL: usize = 256;

/// The version of all messages here. Others are not understood.
pub(super) const VERSION: u32 = 1;

/// A message about jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// A worker is there.
    Announce(Announce),
    /// There is something to do.
    WorkOffer(WorkOffer),
    /// A worker would do it.
    JobClaim(JobClaim),
    /// It is this worker's now.
    JobAssign(JobAssign),
    /// It is done.
    Receipt(JobReceipt),
}

/// What a worker can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announce {
    /// 1.
    pub version: u32,
    /// DHT prefix of the model.
    pub model: String,
    /// Format of its weights.
    pub weights: String,
    /// Jobs that it has, the one that runs included.
    pub jobs: u32,
    /// Jobs that it takes at most.
    pub room: u32,
    /// Longest answer.
    pub max_new_tokens: u32,
    /// Messages of this kind before this one, so that no two are the same.
    pub number: u32,
}

/// A job that somebody would like to have done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkOffer {
    /// 1.
    pub version: u32,
    /// Names it, among the jobs of the signer.
    pub job: String,
    /// How often it was offered before.
    pub number: u32,
    /// DHT prefix of the model.
    pub model: String,
    /// Hash of the prompt.
    pub prompt: Digest,
    /// Its length.
    pub prompt_bytes: u32,
    /// How to generate.
    pub settings: Settings,
    /// Of the jobs of a worker, those with more come first.
    pub priority: i32,
}

/// How a text is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Longest answer.
    pub max_new_tokens: u32,
    /// The temperature in thousandths; 0 always takes the most probable token.
    pub temperature_milli: u32,
    /// What draws depend on.
    pub seed: u32,
}

/// A worker that would do a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobClaim {
    /// 1.
    pub version: u32,
    /// Peer id of whoever offers it.
    pub submitter: String,
    /// Its name there.
    pub job: String,
    /// Number of the offer that this answers.
    pub number: u32,
    /// Jobs that the worker has already.
    pub jobs: u32,
}

/// Who does a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobAssign {
    /// 1.
    pub version: u32,
    /// Which job of the signer.
    pub job: String,
    /// How often it was given to somebody before.
    pub attempt: u32,
    /// Peer id.
    pub worker: String,
}

/// What a worker says that it did. The texts are only with worker and submitter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobReceipt {
    /// 1.
    pub version: u32,
    /// Peer id of the worker, the signer.
    pub worker: String,
    /// Peer id of whoever submitted it.
    pub submitter: String,
    /// Its name there.
    pub job: String,
    /// As in the assignment.
    pub attempt: u32,
    /// DHT prefix of the model.
    pub model: String,
    /// Format of the weights.
    pub weights: String,
    /// How it was generated.
    pub settings: Settings,
    /// Hash of the prompt.
    pub prompt: Digest,
    /// Its tokens.
    pub prompt_tokens: u32,
    /// New tokens.
    pub new_tokens: u32,
    /// Hash of the new tokens, four bytes each, the lowest first.
    pub tokens: Digest,
    /// Hash of the new text.
    pub text: Digest,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

/// Why a message is not read.
#[derive(Debug, Error)]
pub enum MessageError {
    /// Longer than any of ours.
    #[error("{0} bytes are too many")]
    TooLong(usize),
    /// Not signed, or by somebody else.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// A version or a name that will not do.
    #[error("a {0} that will not do")]
    Unfit(&'static str),
}

impl Message {
    /// Signs it. `None` if the key of the node cannot sign.
    pub fn sign(&self, identity: &Identity) -> Option<String> {
        Signed::new(WHAT, self, identity)?.to_line()
    }

    /// Reads a message and says who signed it.
    ///
    /// # Errors
    /// A message that is too long, of another form, or forged.
    pub fn parse(text: &[u8]) -> Result<(PeerId, Self), MessageError> {
        if text.len() > MAX_BYTES {
            return Err(MessageError::TooLong(text.len()));
        }
        let (signer, message) = Signed::parse(text)?.open::<Self>(WHAT)?;
        message.check(&signer)?;
        Ok((signer, message))
    }

    fn check(&self, signer: &PeerId) -> Result<(), MessageError> {
        let (version, job, model) = match self {
            Self::Announce(it) => (it.version, None, Some(&it.model)),
            Self::WorkOffer(it) => (it.version, Some(&it.job), Some(&it.model)),
            Self::JobClaim(it) => (it.version, Some(&it.job), None),
            Self::JobAssign(it) => (it.version, Some(&it.job), None),
            Self::Receipt(it) => (it.version, Some(&it.job), Some(&it.model)),
        };
        if version != VERSION {
            return Err(MessageError::Unfit("version"));
        }
        if job.is_some_and(|job| job.is_empty() || job.len() > MAX_JOB) {
            return Err(MessageError::Unfit("name of a job"));
        }
        if model.is_some_and(|model| model.is_empty() || model.len() > MAX_MODEL) {
            return Err(MessageError::Unfit("name of a model"));
        }
        match self {
            Self::Receipt(it) if it.worker != signer.to_string() => Err(MessageError::Unfit("worker")),
            _ => Ok(()),
        }
    }
}
