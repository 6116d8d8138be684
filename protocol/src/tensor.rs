//! Tensors as they travel: dtype, shape and little-endian items, whatever the compression on the wire.
//!
//! ```text
//! proto::Tensor ──decode──▶ WireTensor ──to_f32_vec──▶ arithmetic elsewhere
//!       ▲  └─ split / Joiner ─┘   ▲                        │
//!       └────────encode───────────┴───────from_f32─────────┘
//! ```
//!
//! It computes nothing with tensors and knows no model. How each compression lays out its bytes is in `compress`.

mod convert;
mod dtype;
mod error;
mod head;
mod stream;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use self::{
    dtype::DType,
    error::TensorError,
    head::MAX_DIMS,
    stream::{DEFAULT_PART_BYTES, Joiner, split},
};
use crate::{compress, compress::Compression, error::WireError, proto};
pub(crate) use convert::{BLOCK, build, read_f32, write_f32};
pub(crate) use head::Head;

/// A tensor in memory, in C order without padding.
///
/// Cheap to clone: the data is shared. The fields are public because a tensor is plain data; a tensor whose `data` does
/// not fill its `shape` is refused when it is encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireTensor {
    /// What the items are.
    pub dtype: DType,
    /// The dimensions; none for a scalar, which has one item.
    pub shape: Vec<usize>,
    /// The items, uncompressed and little-endian.
    pub data: Bytes,
    /// Torch's flag of the same name. Carried along for its own sake; Petals leaves it false.
    pub requires_grad: bool,
}

impl WireTensor {
    /// A tensor of these bytes.
    ///
    /// # Errors
    /// When the data does not fill the shape, or the shape is too large.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>, data: Bytes) -> Result<WireTensor, WireError> {
        let tensor = WireTensor {
            dtype,
            shape: shape.into(),
            data,
            requires_grad: false,
        };
        tensor.head(Compression::None)?;
        Ok(tensor)
    }

    /// A tensor of these values, rounded to `dtype` (to nearest, ties to even; integers lose the fraction).
    ///
    /// # Errors
    /// When the values do not fill the shape, or the shape is too large.
    pub fn from_f32(values: &[f32], shape: impl Into<Vec<usize>>, dtype: DType) -> Result<WireTensor, WireError> {
        let shape = shape.into();
        check_count(&shape, dtype, values.len())?;
        let mut data = vec![0; values.len() * dtype.size()];
        write_f32(dtype, values, &mut data);
        Ok(WireTensor {
            dtype,
            shape,
            data: Bytes::from(data),
            requires_grad: false,
        })
    }

    /// An `int64` tensor of these values.
    ///
    /// # Errors
    /// When the values do not fill the shape, or the shape is too large.
    pub fn from_i64(values: &[i64], shape: impl Into<Vec<usize>>) -> Result<WireTensor, WireError> {
        let shape = shape.into();
        check_count(&shape, DType::I64, values.len())?;
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(WireTensor {
            dtype: DType::I64,
            shape,
            data: Bytes::from(data),
            requires_grad: false,
        })
    }

    /// Reads a message of any compression. Data that is not compressed is shared with the message, not copied, except
    /// for bfloat16 sent as 4-byte floats.
    ///
    /// # Errors
    /// For an unknown dtype or compression, and whenever lengths and counts disagree. Nothing is allocated that the
    /// length of the message's buffer does not justify: at most 8 bytes for each byte received.
    pub fn decode(message: &proto::Tensor) -> Result<WireTensor, WireError> {
        let head = Head::of(message)?;
        let data = compress::decode(&head, &message.buffer)?;
        Ok(WireTensor {
            dtype: head.dtype,
            shape: head.shape,
            data,
            requires_grad: message.requires_grad,
        })
    }

    /// Writes the tensor as a message.
    ///
    /// The message names another dtype than `self` in one case: bfloat16 under any compression but NONE is labelled
    /// `float32` (see [`Compression::label`]).
    ///
    /// # Errors
    /// When the compression is not defined for the dtype (integers under anything but NONE and BLOCKWISE_8BIT, scalars
    /// under MEANSTD_16BIT), when the data does not fill the shape, or when a dimension exceeds 32 bits.
    pub fn encode(&self, compression: Compression) -> Result<proto::Tensor, WireError> {
        let head = self.head(compression)?;
        let size = head
            .shape
            .iter()
            .map(|dim| u32::try_from(*dim))
            .collect::<Result<_, _>>();
        let unsupported = TensorError::Unsupported {
            compression,
            dtype: self.dtype,
            n_dims: self.shape.len(),
        };
        let label = compression.label(self.dtype).ok_or(unsupported)?;
        Ok(proto::Tensor {
            buffer: compress::encode(&head, &self.data)?,
            size: size.map_err(|_| TensorError::ShapeTooLarge)?,
            requires_grad: self.requires_grad,
            dtype: label.as_str().to_owned(),
            compression: compression.id(),
            chunks: 0,
        })
    }

    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// The items as `f32`; wider types are rounded, booleans are 0 and 1.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.n_items()];
        read_f32(self.dtype, &self.data, &mut values);
        values
    }

    /// The items of an `int64` tensor, `None` for any other dtype.
    pub fn to_i64_vec(&self) -> Option<Vec<i64>> {
        let items = self.data.as_chunks().0.iter();
        (self.dtype == DType::I64).then(|| items.map(|item| i64::from_le_bytes(*item)).collect())
    }

    fn head(&self, compression: Compression) -> Result<Head, TensorError> {
        let n_items = head::n_items(&self.shape, self.dtype)?;
        let in_memory = Head {
            dtype: self.dtype,
            shape: self.shape.clone(),
            n_items,
            compression: Compression::None,
        };
        in_memory.check_length((n_items * self.dtype.size()) as u64, self.data.len())?;
        Ok(Head {
            compression,
            ..in_memory
        })
    }
}

fn check_count(shape: &[usize], dtype: DType, actual: usize) -> Result<(), TensorError> {
    let expected = head::n_items(shape, dtype)?;
    if expected != actual {
        return Err(TensorError::ItemCount { expected, actual });
    }
    Ok(())
}
