//! The one error of this crate: which message, which field, and what was wrong with it.

/// Bytes from a peer that are not what the wire allows.
///
/// `what` names the message or the record, `field` a part of it. A caller that gets one of these can do nothing but
/// refuse the message: the same bytes fail again.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes end before the thing they encode does.
    #[error("{what} is cut off")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// The bytes go on after the end of the thing they encode.
    #[error("{what} is followed by {extra} bytes that do not belong to it")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// Number of surplus bytes.
        extra: usize,
    },
    /// An announced length is over the limit of its place.
    #[error("{what} has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// What was being read.
        what: &'static str,
        /// Announced size in bytes.
        size: u64,
        /// Largest allowed size in bytes.
        limit: u64,
    },
    /// Containers inside containers, deeper than any real message.
    #[error("{what} is nested deeper than {limit} levels")]
    TooDeep {
        /// What was being read.
        what: &'static str,
        /// Largest allowed depth.
        limit: usize,
    },
    /// More parts than any real message has.
    #[error("{what} has more than {limit} fields")]
    TooManyFields {
        /// Name of the message.
        what: &'static str,
        /// Largest allowed number of fields.
        limit: usize,
    },
    /// The bytes break the rules of their encoding.
    #[error("{what} is malformed: {problem}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// The rule that is broken.
        problem: &'static str,
    },
    /// A part that must be there is not.
    #[error("{what} has no {field}")]
    Missing {
        /// What was being read.
        what: &'static str,
        /// The absent part.
        field: &'static str,
    },
    /// A part is of another type than every reader expects.
    #[error("{field} of {what} is not {expected}")]
    WrongType {
        /// What was being read.
        what: &'static str,
        /// The part.
        field: &'static str,
        /// The type it should have, with its article.
        expected: &'static str,
    },
    /// A part is of the right type and has a value that makes no sense.
    #[error("{field} of {what} is not {expected}")]
    OutOfRange {
        /// What was being read.
        what: &'static str,
        /// The part.
        field: &'static str,
        /// The values it may have.
        expected: &'static str,
    },
    /// A protobuf message does not parse.
    #[error("{what} is not a valid protobuf message")]
    Protobuf {
        /// Name of the message.
        what: &'static str,
        /// What the parser said.
        #[source]
        source: prost::DecodeError,
    },
    /// A value that MessagePack cannot express.
    #[error("{what} cannot be written as MessagePack")]
    Inexpressible {
        /// What was being written.
        what: &'static str,
    },
    /// A tensor message that holds no valid tensor, or a tensor that cannot become a message.
    #[error(transparent)]
    Tensor(#[from] crate::tensor::TensorError),
}
