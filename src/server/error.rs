//! Why a request was refused or failed, and how that reads on the wire. Not how it is sent: that is the router's part.
//!
//! Texts are those of Petals (`server/handler.py`, `server/memory_cache.py`, `server/block_functions.py`): there are no
//! error codes on the wire, so people and log searches rely on them. Unary replies carry Python's `repr(exception)`,
//! stream replies `str(exception)`; [`RequestError::unary_text`] and [`RequestError::stream_text`] make both.

use sepal_protocol::WireError;
use thiserror::Error;

use crate::{
    model::{ByteSize, ComputeError},
    p2p::HandlerError,
};

/// A request that this server does not answer, and why.
#[derive(Debug, Error)]
pub enum RequestError {
    /// A block that is not in our span, or an empty uid.
    #[error("Remote peer does not serve {uid}")]
    UnknownBlock {
        /// The uid as the client wrote it.
        uid: String,
    },
    /// A streamed request whose parts name different blocks.
    #[error("Expert uids differ in one request")]
    MixedUids,
    /// `rpc_info` for a block that is not in our span.
    #[error("{uid}")]
    UnknownUid {
        /// The uid as the client wrote it.
        uid: String,
    },
    /// A LoRA adapter that is not loaded.
    #[error("adapter {name} not found")]
    UnknownAdapter {
        /// The adapter's repository name.
        name: String,
    },
    /// `max_length` is missing or not an integer.
    #[error("rpc_inference metadata must contain int max_length, got {got}")]
    NoMaxLength {
        /// What stood there, in Python's spelling.
        got: String,
    },
    /// `points` is neither a number nor absent.
    #[error("{method} should have number of points as number or None, got {got}")]
    BadPoints {
        /// The RPC's name.
        method: &'static str,
        /// What stood there, in Python's spelling.
        got: String,
    },
    /// A session longer than the server allows.
    #[error("Cannot allocate KV cache for {asked} tokens, max = {max}")]
    SessionTooLong {
        /// Tokens the client asked for.
        asked: i64,
        /// `--inference-max-length`, in tokens.
        max: usize,
    },
    /// The cache is full and the client does not wait.
    #[error("Could not allocate {bytes} bytes immediately: out of memory")]
    CacheFull {
        /// Bytes the session needs.
        bytes: u64,
    },
    /// The session is larger than the whole cache.
    #[error("Could not allocate {bytes} bytes, max cache size = {max} bytes")]
    CacheTooSmall {
        /// Bytes the session needs.
        bytes: u64,
        /// Bytes of the whole cache.
        max: u64,
    },
    /// The cache stayed full for as long as the client was willing to wait.
    #[error("Could not allocate {bytes} within {seconds:?} seconds")]
    CacheWaitTimeout {
        /// Bytes the session needs.
        bytes: u64,
        /// Seconds waited.
        seconds: f64,
    },
    /// Two open sessions under one id.
    #[error("session id {id} is not unique")]
    SessionIdTaken {
        /// The id.
        id: String,
    },
    /// A step that does not fit into what the session reserved.
    #[error("Maximum length exceeded: prefix {prefix} + current {current} exceeds pre-allocated maximum {max}")]
    StepTooLong {
        /// Tokens already in the cache.
        prefix: usize,
        /// Tokens of this step.
        current: usize,
        /// Tokens reserved.
        max: usize,
    },
    /// A rollback to where the session has not been yet. Petals accepts it and attends to stale keys; we do not.
    #[error("start_from_position {position} is outside of the {prefix} tokens in the cache")]
    BadPosition {
        /// Where the client wanted to continue.
        position: i64,
        /// Tokens in the cache.
        prefix: usize,
    },
    /// More tokens in one request than the server takes.
    #[error("Task size greater than max_batch_size ({max}), it can't be processed")]
    TooManyTokens {
        /// `--max-batch-size`, in tokens.
        max: usize,
    },
    /// A pass that needs more memory than there is for all of them.
    #[error(
        "a pass of {tokens} tokens through {n_blocks} blocks needs {}, more than the {} that this server keeps for passes; \
         send fewer tokens or blocks at a time",
        ByteSize(*bytes), ByteSize(*max)
    )]
    PassTooLarge {
        /// Rows × tokens.
        tokens: usize,
        /// Blocks of the chain.
        n_blocks: usize,
        /// What it would hold, in bytes.
        bytes: u64,
        /// What all passes together may hold, in bytes.
        max: u64,
    },
    /// A streamed request that goes on after its tensors should have been there.
    #[error("request has more than the {max} bytes that the sizes of its tensors come to")]
    Oversized {
        /// What it could have, in bytes.
        max: usize,
    },
    /// Beam indices of another type.
    #[error("hypo ids must be int64, got torch.{dtype}")]
    BadHypoDtype {
        /// The dtype that came.
        dtype: String,
    },
    /// Beam indices that are not rows of the batch.
    #[error("hypo ids must be {batch} indices from 0 to {batch} (exclusive)")]
    BadHypoIds {
        /// Rows of the session.
        batch: usize,
    },
    /// Fewer tensors than the RPC takes.
    #[error("not enough values to unpack (expected at least {expected}, got {got})")]
    TooFewTensors {
        /// How many the RPC takes.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// The batch has no rows.
    #[error("Batch should contain more than 0 samples")]
    EmptyBatch,
    /// `output_compression` of `rpc_forward` with another number of entries than its one output.
    #[error("output_compression tuple should have 1 element")]
    BadOutputCompression,
    /// `output_compression` of `rpc_backward` with another number of entries than there are gradients.
    #[error("output_compression should have {expected} elements")]
    BadGradientCompression {
        /// Number of gradients.
        expected: usize,
    },
    /// A compression that does not exist.
    #[error("{code} is not a valid CompressionType")]
    UnknownCompression {
        /// The number that came.
        code: i64,
    },
    /// A push without the id of the session it is for.
    #[error("session_id")]
    NoSessionId,
    /// A tensor whose shape does not fit the model or the session.
    #[error("tensor {name} has shape {got:?}, expected {expected}")]
    BadShape {
        /// Which argument.
        name: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What the server expected, as text such as `[1, tokens, 64]`.
        expected: String,
    },
    /// Activations or prompts that are not floating-point numbers.
    #[error("tensor {name} must be floating-point, got torch.{dtype}")]
    NotFloat {
        /// Which argument.
        name: &'static str,
        /// The dtype that came.
        dtype: &'static str,
    },
    /// A pushed step with values that are not numbers.
    #[error("pushed activations contain values that are not finite")]
    NotFinite,
    /// Bytes that are not what they claim to be.
    #[error("malformed request")]
    Malformed(#[source] WireError),
    /// Too many steps are waiting.
    #[error("server is overloaded: {queued} tasks are waiting, the limit is {limit}")]
    Busy {
        /// Waiting tasks.
        queued: usize,
        /// Bound of the queue.
        limit: usize,
    },
    /// The unary request took longer than `--request-timeout`.
    #[error("request took longer than {seconds} seconds")]
    RequestTimeout {
        /// The limit, in seconds.
        seconds: f64,
    },
    /// The server is changing blocks or stopping.
    #[error("server is not serving any blocks right now")]
    NotServing,
    /// The person who runs the server paused it.
    #[error("server takes no new sessions right now")]
    Paused,
    /// The person who runs the server does not want to compute for this peer.
    #[error("server does not compute for this peer")]
    Denied,
    /// The peer has as many sessions as one may have.
    #[error("quota of this peer is used up: it has {max} sessions open, the most that it may have")]
    TooManySessions {
        /// `--max-sessions-per-peer`.
        max: usize,
    },
    /// The peer had as many tokens as one may have.
    #[error("quota of this peer is used up: {max} tokens a minute; there are some again in {seconds} s")]
    TooManyTokensAMinute {
        /// `--max-tokens-per-peer`.
        max: u32,
        /// When that is.
        seconds: u64,
    },
    /// The peer has reserved as much of the cache as one may have.
    #[error("Could not allocate {bytes} bytes: quota of this peer, {max} bytes of the cache, is used up")]
    CacheQuota {
        /// Bytes the session needs.
        bytes: u64,
        /// Bytes that the peer may have in all.
        max: u64,
    },
    /// The blocks themselves failed.
    #[error("computation failed")]
    Compute(#[source] ComputeError),
    /// A block panicked: a defect of this server, logged there.
    #[error("internal error of the server while computing, see its log")]
    Crashed,
    /// The session ran longer than `--session-timeout`. Petals sends an empty text (Python's `TimeoutError()`).
    #[error("")]
    SessionTimeout,
}

impl RequestError {
    /// The exception class Petals raises for the same reason.
    fn python_class(&self) -> &'static str {
        match self {
            Self::UnknownUid { .. } | Self::UnknownAdapter { .. } | Self::NoSessionId => "KeyError",
            Self::NoMaxLength { .. }
            | Self::BadPoints { .. }
            | Self::BadOutputCompression
            | Self::BadGradientCompression { .. }
            | Self::BadPosition { .. }
            | Self::BadHypoDtype { .. }
            | Self::SessionIdTaken { .. } => "AssertionError",
            Self::MixedUids
            | Self::SessionTooLong { .. }
            | Self::StepTooLong { .. }
            | Self::TooManyTokens { .. }
            | Self::Oversized { .. }
            | Self::TooFewTensors { .. }
            | Self::BadShape { .. }
            | Self::BadHypoIds { .. }
            | Self::UnknownCompression { .. }
            | Self::NotFinite
            | Self::NotFloat { .. }
            | Self::Malformed(_) => "ValueError",
            Self::CacheFull { .. }
            | Self::CacheTooSmall { .. }
            | Self::CacheWaitTimeout { .. }
            | Self::CacheQuota { .. }
            | Self::PassTooLarge { .. } => "AllocationFailed",
            Self::Denied => "PermissionError",
            Self::SessionTimeout | Self::RequestTimeout { .. } => "TimeoutError",
            Self::UnknownBlock { .. }
            | Self::EmptyBatch
            | Self::Busy { .. }
            | Self::NotServing
            | Self::Paused
            | Self::TooManySessions { .. }
            | Self::TooManyTokensAMinute { .. }
            | Self::Compute(_)
            | Self::Crashed => "RuntimeError",
        }
    }

    /// The message, with the reason behind it where one error wraps another.
    fn message(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    /// Python's `repr(exception)`, which unary replies carry.
    pub(crate) fn unary_text(&self) -> String {
        let message = self.message();
        let class = self.python_class();
        if message.is_empty() {
            format!("{class}()")
        } else {
            format!("{class}({})", python_repr(&message))
        }
    }

    /// Python's `str(exception)`, which stream replies carry. A `KeyError` prints its argument's `repr`.
    pub(crate) fn stream_text(&self) -> String {
        let message = self.message();
        if self.python_class() == "KeyError" {
            python_repr(&message)
        } else {
            message
        }
    }

    pub(crate) fn into_unary(self) -> HandlerError {
        HandlerError(self.unary_text())
    }

    pub(crate) fn into_stream(self) -> HandlerError {
        HandlerError(self.stream_text())
    }
}

impl From<WireError> for RequestError {
    fn from(error: WireError) -> Self {
        Self::Malformed(error)
    }
}

impl From<ComputeError> for RequestError {
    fn from(error: ComputeError) -> Self {
        Self::Compute(error)
    }
}

/// Python's `repr` of a string: single quotes, unless the text has some and no double quotes.
fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unary_error_reads_like_a_python_repr() {
        let error = RequestError::UnknownBlock {
            uid: "tiny-llama-hf.9".into(),
        };
        assert_eq!(
            error.unary_text(),
            "RuntimeError('Remote peer does not serve tiny-llama-hf.9')"
        );
        let error = RequestError::TooManyTokens { max: 8192 };
        assert_eq!(
            error.unary_text(),
            "ValueError(\"Task size greater than max_batch_size (8192), it can't be processed\")"
        );
        assert_eq!(
            RequestError::UnknownUid {
                uid: "tiny-llama-hf.77".into()
            }
            .unary_text(),
            "KeyError('tiny-llama-hf.77')"
        );
        assert_eq!(RequestError::NoSessionId.unary_text(), "KeyError('session_id')");
        let error = RequestError::BadOutputCompression;
        assert_eq!(
            error.unary_text(),
            "AssertionError('output_compression tuple should have 1 element')"
        );
    }

    #[test]
    fn a_stream_error_reads_like_a_python_str() {
        let error = RequestError::UnknownAdapter { name: "foo".into() };
        assert_eq!(error.stream_text(), "'adapter foo not found'");
        assert_eq!(RequestError::SessionTimeout.stream_text(), "");
        let error = RequestError::CacheWaitTimeout {
            bytes: 25600,
            seconds: 2.0,
        };
        assert_eq!(error.stream_text(), "Could not allocate 25600 within 2.0 seconds");
    }
}
