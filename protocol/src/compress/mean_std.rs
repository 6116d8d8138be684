//! MEANSTD_16BIT: N × half ‖ R × f32 mean ‖ R × f32 standard deviation, for R rows along the last axis.
//!
//! Torch sums a row in an order of its own, so means and deviations can differ from ours in their last bits; decoding
//! has no sums and is exact.

use bytes::Bytes;

use super::{Head, float16};
use crate::tensor::{DType, TensorError, build, read_f32, write_f32};

/// Least standard deviation sent: the spacing of floats at 1, as in Hivemind. Keeps constant rows divisible.
const MIN_STD: f32 = f32::EPSILON;

/// Most rows encoded for a tensor whose last axis is empty. Such a tensor holds no data but has statistics to send, so
/// that a shape alone, which a peer may have chosen, would make us allocate.
const MAX_EMPTY_ROWS: usize = 4096;

/// The parts of a buffer.
pub(super) struct Parts<'a> {
    halves: &'a [u8],
    means: &'a [u8],
    stds: &'a [u8],
}

pub(super) fn parse<'a>(head: &Head, buffer: &'a [u8]) -> Result<Parts<'a>, TensorError> {
    let n_rows = head.n_rows().ok_or_else(|| scalar(head))?;
    // Both counts are at most isize::MAX items, so the sum fits 128 bits and, once equal to a length, a usize.
    let expected = head.n_items as u128 * 2 + n_rows as u128 * 8;
    head.check_length(u64::try_from(expected).unwrap_or(u64::MAX), buffer.len())?;
    let (halves, stats) = buffer.split_at(head.n_items * 2);
    let (means, stds) = stats.split_at(n_rows * 4);
    Ok(Parts { halves, means, stds })
}

/// Scaling happens in the dtype of the tensor, as torch's in-place operations do: a half tensor is rounded after the
/// multiplication and again after the addition, a double tensor is scaled in doubles.
pub(super) fn decode(head: &Head, buffer: &[u8]) -> Result<Bytes, TensorError> {
    let parts = parse(head, buffer)?;
    let row_items = head.shape.last().copied().unwrap_or(0).max(1);
    if head.dtype == DType::F64 {
        return Ok(decode_f64(&parts, row_items));
    }
    Ok(build(head.dtype, head.n_items, |start, block| {
        read_f32(DType::F16, &parts.halves[start * 2..], block);
        let mut rest = block;
        let mut at = start;
        while !rest.is_empty() {
            let row = at / row_items;
            let (run, after) = rest.split_at_mut(rest.len().min((row + 1) * row_items - at));
            scale(run, float(parts.stds, row), float(parts.means, row), head.dtype);
            at += run.len();
            rest = after;
        }
    }))
}

fn scale(run: &mut [f32], std: f32, mean: f32, dtype: DType) {
    for value in run.iter_mut() {
        *value *= std;
    }
    if dtype == DType::F16 {
        let mut rounded = [0; 64];
        for values in run.chunks_mut(rounded.len() / 2) {
            write_f32(DType::F16, values, &mut rounded);
            read_f32(DType::F16, &rounded, values);
        }
    }
    for value in run {
        *value += mean;
    }
}

fn decode_f64(parts: &Parts<'_>, row_items: usize) -> Bytes {
    let mut data = Vec::with_capacity(parts.halves.len() * 4);
    for (row, halves) in parts.halves.chunks(row_items * 2).enumerate() {
        let (std, mean) = (f64::from(float(parts.stds, row)), f64::from(float(parts.means, row)));
        for half in halves.as_chunks().0 {
            let value = half::f16::from_le_bytes(*half).to_f64() * std + mean;
            data.extend_from_slice(&value.to_le_bytes());
        }
    }
    Bytes::from(data)
}

pub(super) fn encode(head: &Head, data: &[u8]) -> Result<Bytes, TensorError> {
    let n_rows = head.n_rows().ok_or_else(|| scalar(head))?;
    if n_rows > head.n_items.max(MAX_EMPTY_ROWS) {
        return Err(TensorError::ShapeTooLarge);
    }
    let mut values = super::values(head, data);
    let mut buffer = vec![0; head.n_items * 2 + n_rows * 8];
    let (halves, stats) = buffer.split_at_mut(head.n_items * 2);
    let (means, stds) = stats.split_at_mut(n_rows * 4);
    let row_items = head.shape.last().copied().unwrap_or(0).max(1);
    for (row, values) in values.chunks_mut(row_items).enumerate() {
        let (mean, std) = normalize(values);
        means[row * 4..][..4].copy_from_slice(&mean.to_le_bytes());
        stds[row * 4..][..4].copy_from_slice(&std.to_le_bytes());
    }
    write_f32(DType::F16, &values, halves);
    Ok(Bytes::from(buffer))
}

/// Takes mean and standard deviation out of a row and returns them. Sums are in `f64`: nearer to the true value than
/// any order of `f32` additions.
fn normalize(row: &mut [f32]) -> (f32, f32) {
    let n_items = row.len() as f64;
    let mean = (row.iter().map(|value| f64::from(*value)).sum::<f64>() / n_items) as f32;
    let mut squares = 0.0;
    for value in row.iter_mut() {
        *value -= mean;
        squares += f64::from(*value) * f64::from(*value);
    }
    let std = ((squares / n_items).sqrt() as f32).max(MIN_STD);
    for value in row {
        *value = (*value / std).clamp(-float16::MAX, float16::MAX);
    }
    (mean, std)
}

/// Entry `index` of a table of floats; the tables' lengths were checked by `parse`.
fn float(table: &[u8], index: usize) -> f32 {
    let mut value = [0.0];
    read_f32(DType::F32, &table[index * 4..], &mut value);
    value[0]
}

fn scalar(head: &Head) -> TensorError {
    TensorError::Unsupported {
        compression: head.compression,
        dtype: head.dtype,
        n_dims: head.shape.len(),
    }
}
