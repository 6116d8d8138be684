//! Why a generation could not go on, by what the person can do about it.

use std::time::Duration;

use sepal_protocol::WireError;
use thiserror::Error;

use super::{constraint::ConstraintError, local::LocalError, text::TextError};
use crate::{
    model::{ComputeError, LoadError, ResolveError, SampleError},
    p2p::{OpenError, PeerId, StreamError},
    receipt::FalseReceipt,
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
        /// What the last server that was tried for them did.
        #[source]
        last: Option<Box<RemoteError>>,
    },
    /// The servers do not take what this client asks for, and others would not either.
    #[error("the request is refused by {peer}")]
    Refused {
        /// The last server that refused.
        peer: PeerId,
        /// Its reason.
        #[source]
        source: Box<RemoteError>,
    },
    /// Every route that was tried failed.
    #[error("gave up after {attempts} failures, the last one was {peer} for blocks {start}:{end}")]
    RetriesExhausted {
        /// How often servers failed during one step.
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
    /// All servers of some blocks are well, but have no room for the session.
    #[error("blocks {start}:{end}: the caches of all servers are full, that of {peer} too; try again later")]
    Full {
        /// The one that was asked last.
        peer: PeerId,
        /// First block.
        start: u32,
        /// One past the last block.
        end: u32,
        /// What the last of them said.
        #[source]
        source: Box<RemoteError>,
    },
    /// Servers answered a step differently, and there is nobody else to decide who is right.
    #[error(
        "{} answer differently for blocks {start}:{end}, and nobody else has these to tell who is right",
        peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Disputed {
        /// First block of the step.
        start: u32,
        /// One past the last block.
        end: u32,
        /// Who answered.
        peers: Vec<PeerId>,
    },
    /// The step does not fit into what the session reserved.
    #[error("the session holds {max_length} tokens, {wanted} are needed: start a new session or raise its length")]
    SessionFull {
        /// Tokens reserved.
        max_length: usize,
        /// Tokens that position and step come to.
        wanted: usize,
    },
    /// An earlier step failed, or was not waited for: what the servers hold is not known any more.
    #[error("the session ended with an earlier error; start a new one")]
    SessionEnded,
    /// The client's own arithmetic failed.
    #[error("computing embeddings or logits failed")]
    Compute(#[source] ComputeError),
    /// No token could be chosen.
    #[error("cannot choose a token")]
    Sample(#[from] SampleError),
    /// What the output should be like cannot be kept.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// Tokens that are no text.
    #[error("cannot turn tokens into text")]
    Text(#[from] TextError),
    /// The blocks that the client holds itself cannot be had, or fail.
    #[error(transparent)]
    Local(Box<LocalError>),
    /// The draft model cannot be had.
    #[error("cannot hold the draft model")]
    Draft(#[source] Box<LocalError>),
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

impl ClientError {
    /// Whether servers refuse the session for what they have reserved already, or for what it wants to reserve.
    pub(super) fn lacks_room(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::RetriesExhausted { source, .. } => source.lacks_room(),
            _ => false,
        }
    }
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
    /// No answer for much longer than usual; by then another server had been brought to where it was.
    #[error("silent for {0:?}")]
    Silent(Duration),
    /// Answers that come, but much later than they did.
    #[error("slow: steps take {now:?}, others promise {there:?}")]
    Slow {
        /// What its steps take.
        now: Duration,
        /// What they are expected to take elsewhere.
        there: Duration,
    },
    /// Bytes that are no answer.
    #[error("malformed answer")]
    Malformed(#[source] WireError),
    /// An answer of another shape than the question.
    #[error("answer of shape {got:?} to a step of shape {expected:?}")]
    WrongShape {
        /// `[batch, tokens, hidden]` sent.
        expected: Vec<usize>,
        /// Shape received.
        got: Vec<usize>,
    },
    /// More or fewer tensors than an answer has.
    #[error("answer of {0} tensors, one was expected")]
    TensorCount(usize),
    /// The answer to the step before once more, though this step is another one.
    #[error("the answer is that to the step before")]
    Repeated,
    /// An answer of the right shape that is no activations.
    #[error("the answer is no activations")]
    NotActivations(#[source] ComputeError),
    /// Other servers with the same blocks agree on something else.
    #[error("wrong activations: others agree on different ones")]
    Wrong,
    /// A receipt that is not that of the step.
    #[error("the receipt is false")]
    FalseReceipt(#[source] Box<FalseReceipt>),
    /// A receipt of another step than the one that was sent, where the server before may have pushed one.
    #[error("another step than the one that was sent was computed: the server before pushed it, or this one lies")]
    OtherStep(#[source] Box<FalseReceipt>),
    /// Not-a-number or infinity in the activations.
    #[error("the answer contains values that are not finite")]
    NotFinite,
}

/// Whose fault an error is, and so what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server's: avoid it for a while.
    Theirs,
    /// Nobody's, as far as one knows: the server is full or moving, others may be free.
    NotNow,
    /// This client's: it asks for something that no server would do.
    Ours,
}

/// How refusals to reserve memory begin.
const NO_ROOM: &str = "Could not allocate";
/// What they say if there may be room, but never for this session, or not for this client.
const NOT_FULL: [&str; 2] = ["max cache size", "quota of this peer"];
/// Beginnings of the texts with which servers, Petals' and ours, refuse what no server would do. There are no error
/// codes on the wire.
const OUR_FAULT: [&str; 4] = [
    "Maximum length exceeded",
    "Cannot allocate KV cache for",
    "Task size greater than",
    "rpc_inference metadata must",
];
/// The same for servers that are well, but not for us now.
const NOT_NOW: [&str; 7] = [
    NO_ROOM,
    "Remote peer does not serve",
    "server is not serving",
    "server is overloaded",
    "server takes no new sessions",
    "quota of this peer is used up",
    "busy:",
];

impl RemoteError {
    /// The error and all its causes, in one line.
    pub(crate) fn reason(&self) -> String {
        let mut reason = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            cause = error.source();
        }
        reason
    }

    /// Whether the server refuses to reserve memory for the session.
    pub(super) fn lacks_room(&self) -> bool {
        matches!(self, Self::Stream(StreamError::Remote { text }) if text.starts_with(NO_ROOM))
    }

    /// Whether it does so for what others have reserved.
    pub(super) fn is_full(&self) -> bool {
        let reason = self.reason();
        self.lacks_room() && !NOT_FULL.iter().any(|other| reason.contains(other))
    }

    /// Whether the server is well and only cannot do it now: it is full, or moving.
    pub(crate) fn is_passing(&self) -> bool {
        self.fault() == Fault::NotNow
    }

    /// Whose fault this is.
    pub(crate) fn fault(&self) -> Fault {
        let begins = |starts: &[&str], text: &str| starts.iter().any(|start| text.starts_with(start));
        match self {
            Self::Stream(StreamError::Remote { text }) if begins(&OUR_FAULT, text) => Fault::Ours,
            Self::Stream(StreamError::Remote { text }) if begins(&NOT_NOW, text) => Fault::NotNow,
            Self::Stream(StreamError::TooLarge { .. }) => Fault::Ours,
            Self::Open(OpenError::Busy) | Self::OtherStep(_) => Fault::NotNow,
            _ => Fault::Theirs,
        }
    }
}

impl From<LocalError> for ClientError {
    fn from(error: LocalError) -> Self {
        Self::Local(Box::new(error))
    }
}

impl From<WireError> for RemoteError {
    fn from(error: WireError) -> Self {
        Self::Malformed(error)
    }
}
