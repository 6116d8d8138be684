//! What can be wrong with a tensor message. It is not about sockets or framing: those errors belong to their callers.

use crate::{compress::Compression, tensor::DType};

/// Longest part of an unknown dtype name that an error keeps; the rest of a hostile name is dropped.
const KEPT_NAME_CHARS: usize = 32;

/// A tensor that cannot be read from, or written to, the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The dtype is not one that Hivemind sends.
    #[error("unknown tensor dtype {name:?}")]
    UnknownDType {
        /// The name as received, cut to 32 characters.
        name: Box<str>,
    },
    /// The compression number is none of Hivemind's six.
    #[error("unknown tensor compression {id}")]
    UnknownCompression {
        /// The number as received.
        id: i32,
    },
    /// More dimensions than any tensor library allows.
    #[error("tensor has {n_dims} dimensions, at most {max} are accepted")]
    TooManyDims {
        /// Dimensions of the message.
        n_dims: usize,
        /// The limit, [`super::MAX_DIMS`].
        max: usize,
    },
    /// The number of items, or of their bytes, does not fit this machine; or a dimension does not fit the wire.
    #[error("tensor shape is too large")]
    ShapeTooLarge,
    /// The data is not as long as dtype, shape and compression say.
    #[error("{dtype} tensor with compression {compression} should hold {expected} bytes but holds {actual}")]
    Length {
        /// How the data is compressed; `NONE` for a tensor in memory.
        compression: Compression,
        /// What the items are.
        dtype: DType,
        /// Bytes that shape and header ask for.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// A table size in the header of an 8-bit tensor is negative or larger than its buffer.
    #[error("header of a {compression} tensor claims a table of {claimed} entries")]
    Header {
        /// Which codec's header.
        compression: Compression,
        /// The number of entries as received.
        claimed: i64,
    },
    /// A BLOCKWISE_8BIT tensor does not bring one scale for each of its blocks.
    #[error("blockwise tensor brings {actual} scales for {expected} blocks")]
    ScaleCount {
        /// Blocks that the shape has.
        expected: usize,
        /// Scales in the buffer.
        actual: usize,
    },
    /// An 8-bit item points outside the codebook that came with it.
    #[error("item {index} is outside the codebook of {size} values")]
    OutsideCodebook {
        /// The largest item of the tensor.
        index: u8,
        /// Values in the codebook.
        size: usize,
    },
    /// This compression is not defined for tensors of this dtype, or of this shape.
    #[error("compression {compression} does not support {dtype} tensors of {n_dims} dimensions")]
    Unsupported {
        /// The compression asked for.
        compression: Compression,
        /// Dtype of the tensor.
        dtype: DType,
        /// Its number of dimensions.
        n_dims: usize,
    },
    /// A number of values that does not fill the shape given with them.
    #[error("{actual} values do not fill a shape of {expected} items")]
    ItemCount {
        /// Items of the shape.
        expected: usize,
        /// Values given.
        actual: usize,
    },
    /// A stream of parts starts in the middle of a tensor: its first part names no dtype.
    #[error("stream of tensor parts starts without a tensor")]
    NoTensorOpen,
    /// A stream of parts brings more bytes than its reader accepts.
    #[error("streamed tensors exceed {max} bytes")]
    TooManyBytes {
        /// The budget of the whole stream, in bytes.
        max: usize,
    },
    /// A stream of parts brings more tensors than its reader accepts.
    #[error("more than {max} streamed tensors")]
    TooManyTensors {
        /// The limit.
        max: usize,
    },
    /// A streamed tensor ended before all of its announced parts had come.
    #[error("streamed tensor {tensor} ended after {parts} of {announced} parts")]
    Truncated {
        /// Which tensor of the stream, from 0.
        tensor: usize,
        /// Parts received.
        parts: usize,
        /// Parts that its first part announced.
        announced: usize,
    },
    /// A streamed tensor is wrong in itself.
    #[error("streamed tensor {tensor} is not valid")]
    Streamed {
        /// Which tensor of the stream, from 0.
        tensor: usize,
        /// What is wrong with it.
        #[source]
        source: Box<TensorError>,
    },
}

impl TensorError {
    pub(crate) fn unknown_dtype(name: &str) -> TensorError {
        TensorError::UnknownDType {
            name: name.chars().take(KEPT_NAME_CHARS).collect(),
        }
    }
}
