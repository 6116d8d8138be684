//! Items of any dtype from and to `f32`, in loops that the compiler turns into vector instructions.
//!
//! All bytes are little-endian. Narrowing rounds to nearest, ties to even, as torch does. Narrowing to integers cuts the
//! fraction and saturates; torch leaves what does not fit undefined. Nothing here checks shapes: `tensor.rs` does.

use bytes::Bytes;
use half::{f16, slice::HalfFloatSliceExt};

use super::DType;

/// Items converted at a time through the stack: large enough to hide the loop, small enough for the first-level cache.
pub(crate) const BLOCK: usize = 1024;

/// Makes the data of `n_items` items of `dtype` from `fill`, which is called for consecutive blocks with the index of
/// the block's first item and the block to write.
pub(crate) fn build(dtype: DType, n_items: usize, mut fill: impl FnMut(usize, &mut [f32])) -> Bytes {
    let mut data = vec![0; n_items * dtype.size()];
    let mut block = [0.0; BLOCK];
    for (i, out) in data.chunks_mut(BLOCK * dtype.size()).enumerate() {
        let block = &mut block[..out.len() / dtype.size()];
        fill(i * BLOCK, block);
        write_f32(dtype, block, out);
    }
    Bytes::from(data)
}

/// Reads whole items of `data` into `values`, as many as both have.
pub(crate) fn read_f32(dtype: DType, data: &[u8], values: &mut [f32]) {
    match dtype {
        DType::F32 => read(data, values, f32::from_le_bytes),
        DType::F16 => read_f16(data, values),
        DType::Bf16 => read(data, values, |item| {
            f32::from_bits(u32::from(u16::from_le_bytes(item)) << 16)
        }),
        DType::F64 => read(data, values, |item| f64::from_le_bytes(item) as f32),
        DType::I64 => read(data, values, |item| i64::from_le_bytes(item) as f32),
        DType::I32 => read(data, values, |item| i32::from_le_bytes(item) as f32),
        DType::I8 => read(data, values, |item| f32::from(i8::from_le_bytes(item))),
        DType::U8 => read(data, values, |[item]| f32::from(item)),
        DType::Bool => read(data, values, |[item]| f32::from(item != 0)),
    }
}

/// Writes `values` as items of `dtype` into `data`, as many as both have room for.
pub(crate) fn write_f32(dtype: DType, values: &[f32], data: &mut [u8]) {
    match dtype {
        DType::F32 => write(values, data, f32::to_le_bytes),
        DType::F16 => write_f16(values, data),
        DType::Bf16 => write(values, data, |value| round_to_bf16(value).to_le_bytes()),
        DType::F64 => write(values, data, |value| f64::from(value).to_le_bytes()),
        DType::I64 => write(values, data, |value| (value as i64).to_le_bytes()),
        DType::I32 => write(values, data, |value| (value as i32).to_le_bytes()),
        DType::I8 => write(values, data, |value| (value as i8).to_le_bytes()),
        DType::U8 => write(values, data, |value| [value as u8]),
        DType::Bool => write(values, data, |value| [u8::from(value != 0.0)]),
    }
}

/// The upper half of a float, rounded to nearest, ties to even; a NaN stays a (quiet) NaN of the same sign.
///
/// Branch-free up to one select, which `half::bf16::from_f32` is not.
fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

fn read<const SIZE: usize>(data: &[u8], values: &mut [f32], item: impl Fn([u8; SIZE]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(data.as_chunks().0) {
        *value = item(*bytes);
    }
}

fn write<const SIZE: usize>(values: &[f32], data: &mut [u8], item: impl Fn(f32) -> [u8; SIZE]) {
    for (value, bytes) in values.iter().zip(data.as_chunks_mut().0) {
        *bytes = item(*value);
    }
}

/// Network buffers start at any address, so the items go through an aligned block on the stack, from which `half` uses
/// the processor's conversion instructions where it has them.
fn read_f16(data: &[u8], values: &mut [f32]) {
    let mut halves = [f16::ZERO; BLOCK];
    for (values, data) in values.chunks_mut(BLOCK).zip(data.chunks(BLOCK * 2)) {
        let items = data.as_chunks::<2>().0;
        let n_items = items.len().min(values.len());
        for (half, bytes) in halves.iter_mut().zip(items) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves[..n_items].convert_to_f32_slice(&mut values[..n_items]);
    }
}

fn write_f16(values: &[f32], data: &mut [u8]) {
    let mut halves = [f16::ZERO; BLOCK];
    for (values, data) in values.chunks(BLOCK).zip(data.chunks_mut(BLOCK * 2)) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        for (half, bytes) in halves.iter().zip(data.as_chunks_mut().0) {
            *bytes = half.to_le_bytes();
        }
    }
}
