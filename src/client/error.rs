//! Why a generation could not go on, by what the person can do about it.

use std::time::Duration;

use sepal_protocol::WireError;
use thiserror::Error;

use super::text::TextError;
use crate::{
    model::{ComputeError, LoadError, ResolveError, SampleError},
    p2p::{OpenError, PeerId, StreamError},
    swarm::route::MissingBlocks,
};

/// A generation or a session that cannot go on.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Some blocks are served by nobody, and waiting did not help.
    #[error("{missing}")]
    MissingBlocks {
        /// Which blocks, and who serves the others.
        missing: MissingBlocks,
    },
    /// Every route that was tried failed.
    #[error("gave up after {attempts} failed servers, the last one was {peer} for blocks {start}:{end}")]
    RetriesExhausted {
        /// Servers tried for this span.
        attempts: usize,
        /// The last of them.
        peer: PeerId,
        /// First block it was asked for.
        start: u32,
        /// One past the last block.
        end: u32,
        /// What it did.
        #[source]
        source: Box<RemoteError>,
    },
    /// The step does not fit into what the session reserved.
    #[error("the session holds {max_length} tokens, {wanted} are needed: start a new session or raise its length")]
    SessionFull {
        /// Tokens reserved.
        max_length: usize,
        /// Tokens that position and step come to.
        wanted: usize,
    },
    /// The client's own arithmetic failed.
    #[error("computing embeddings or logits failed")]
    Compute(#[source] ComputeError),
    /// No token could be chosen.
    #[error("cannot choose a token")]
    Sample(#[from] SampleError),
    /// Tokens that are no text.
    #[error("cannot turn tokens into text")]
    Text(#[from] TextError),
    /// The process is shutting down.
    #[error("interrupted")]
    Interrupted,
    /// The prompt has no tokens.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// Embeddings or head could not be found or fetched.
    #[error("cannot get the client's part of the model")]
    Fetch(#[source] Box<ResolveError>),
    /// Embeddings or head could not be loaded.
    #[error("cannot load the client's part of the model")]
    Load(#[source] Box<LoadError>),
}

/// What one server did wrong.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// No stream to it.
    #[error("cannot reach the server")]
    Open(#[source] OpenError),
    /// The stream broke, or the server answered with an error.
    #[error("the session failed")]
    Stream(#[source] StreamError),
    /// The stream ended where an answer was due.
    #[error("the server closed the session")]
    Closed,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Bytes that are no answer.
    #[error("malformed answer")]
    Malformed(#[source] WireError),
    /// An answer of another shape than the question.
    #[error("answer of shape {got:?} to a step of shape {expected:?}")]
    WrongShape {
        /// `[batch, tokens, hidden]` sent.
        expected: [usize; 3],
        /// Shape received.
        got: Vec<usize>,
    },
    /// Not-a-number or infinity in the activations.
    #[error("the answer contains values that are not finite")]
    NotFinite,
}

impl From<WireError> for RemoteError {
    fn from(error: WireError) -> Self {
        Self::Malformed(error)
    }
}
