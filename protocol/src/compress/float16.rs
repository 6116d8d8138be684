//! FLOAT16: N × half. Values beyond ±65504 are sent as ±65504, NaN stays NaN.

use bytes::Bytes;

use super::Head;
use crate::tensor::{DType, TensorError, build, read_f32};

/// The largest finite half.
pub(super) const MAX: f32 = 65504.0;

pub(super) fn check(head: &Head, buffer: &[u8]) -> Result<(), TensorError> {
    head.check_length(head.n_items as u64 * 2, buffer.len())
}

pub(super) fn decode(head: &Head, buffer: &Bytes) -> Result<Bytes, TensorError> {
    check(head, buffer)?;
    if head.dtype == DType::F16 {
        return Ok(buffer.clone());
    }
    Ok(build(head.dtype, head.n_items, |start, block| {
        read_f32(DType::F16, &buffer[start * 2..], block)
    }))
}

pub(super) fn encode(head: &Head, data: &[u8]) -> Bytes {
    let item_size = head.dtype.size();
    build(DType::F16, head.n_items, |start, block| {
        read_f32(head.dtype, &data[start * item_size..], block);
        for value in block {
            *value = value.clamp(-MAX, MAX);
        }
    })
}
