//! The description of a tensor message without its data: read and checked before anything is allocated for it.

use crate::{
    compress::Compression,
    proto,
    tensor::{DType, TensorError},
};

/// Most dimensions accepted. Torch's own kernels stop at 64; more would only be a way to make us hold a long shape.
pub const MAX_DIMS: usize = 64;

/// A checked description: the item count and its bytes in memory fit a `usize`, the codec and dtype are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) n_items: usize,
    pub(crate) compression: Compression,
}

impl Head {
    pub(crate) fn of(message: &proto::Tensor) -> Result<Head, TensorError> {
        let dtype = DType::from_name(&message.dtype).ok_or_else(|| TensorError::unknown_dtype(&message.dtype))?;
        let id = message.compression;
        let compression = Compression::from_id(id).ok_or(TensorError::UnknownCompression { id })?;
        check_n_dims(message.size.len())?;
        let shape: Vec<usize> = message.size.iter().map(|dim| *dim as usize).collect();
        let n_items = n_items(&shape, dtype)?;
        Ok(Head {
            dtype,
            shape,
            n_items,
            compression,
        })
    }

    /// Rows along the last axis, each with statistics of its own in MEANSTD_16BIT; `None` for a scalar.
    ///
    /// Counted without the last axis, so a tensor whose last axis is empty has rows all the same.
    pub(crate) fn n_rows(&self) -> Option<usize> {
        self.shape.split_last().map(|(_, outer)| outer.iter().product())
    }

    /// Checks the length of the data: `expected` must be what the message brings.
    pub(crate) fn check_length(&self, expected: u64, actual: usize) -> Result<(), TensorError> {
        if expected == actual as u64 {
            return Ok(());
        }
        Err(self.length_error(expected, actual))
    }

    pub(crate) fn length_error(&self, expected: u64, actual: usize) -> TensorError {
        TensorError::Length {
            compression: self.compression,
            dtype: self.dtype,
            expected,
            actual: actual as u64,
        }
    }
}

/// Items of a shape. Fails when any part of the product, zero dimensions aside, would overflow: readers multiply some of
/// the dimensions for purposes of their own, and those products must be safe too.
pub(crate) fn n_items(shape: &[usize], dtype: DType) -> Result<usize, TensorError> {
    check_n_dims(shape.len())?;
    shape
        .iter()
        .try_fold(dtype.size(), |product, dim| product.checked_mul((*dim).max(1)))
        .filter(|n_bytes| isize::try_from(*n_bytes).is_ok())
        .ok_or(TensorError::ShapeTooLarge)?;
    Ok(shape.iter().product())
}

fn check_n_dims(n_dims: usize) -> Result<(), TensorError> {
    if n_dims > MAX_DIMS {
        return Err(TensorError::TooManyDims { n_dims, max: MAX_DIMS });
    }
    Ok(())
}
