//! Numbers into the quantised formats and back, 16 rows at a time. All of it is plain arithmetic in a fixed order: the
//! same checkpoint becomes the same bits on every machine.

use half::f16;

use super::{WeightFormat, super_block};
use crate::model::cpu::quant::{Nf4, Q4_0, Q4K, Q8_0};

/// One number of each of a panel's rows.
pub(crate) type Column = [f32; 16];

/// The most columns of a group.
pub(crate) const MAX_GROUP: usize = 256;

/// Quantises a group of columns of a panel into `out`.
///
/// # Panics
/// If the lengths are not those of a group of `format`, or it is not a format of blocks.
#[inline(always)]
pub(crate) fn encode(format: WeightFormat, columns: &[Column], out: &mut [u8]) {
    assert_eq!(columns.len(), format.group(), "not the columns of a group");
    assert_eq!(out.len(), format.group_bytes(), "not the bytes of a group");
    match format {
        WeightFormat::Q8_0 => encode_q8_0(columns, out),
        WeightFormat::Q4_0 => encode_q4_0(columns, out),
        WeightFormat::Q4K => super_block::encode(columns, out),
        WeightFormat::Nf4 => encode_nf4(columns, out),
        WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => not_of_blocks(format),
    }
}

/// The inverse of [`encode`], exactly what the kernels multiply by.
///
/// # Panics
/// As [`encode`].
pub(crate) fn decode(format: WeightFormat, group: &[u8], columns: &mut [Column]) {
    assert_eq!(columns.len(), format.group(), "not the columns of a group");
    assert_eq!(group.len(), format.group_bytes(), "not the bytes of a group");
    for (k, column) in columns.iter_mut().enumerate() {
        for (row, value) in column.iter_mut().enumerate() {
            *value = match format {
                WeightFormat::Q8_0 => {
                    let code = i32::from(group[byte_at(Q8_0::CODES, row, k)]) - 128;
                    scale(group, k / 32, row) * code as f32
                }
                WeightFormat::Q4_0 => {
                    let code = i32::from(nibble(group, Q4_0::CODES, row, k)) - 8;
                    scale(group, k / 32, row) * code as f32
                }
                WeightFormat::Q4K => {
                    let sub = k / 32 * 16 + row;
                    let d = scale(group, 0, row) * f32::from(group[Q4K::SCALES + sub]);
                    let minimum = scale(group, 1, row) * f32::from(group[Q4K::MINIMA + sub]);
                    d * f32::from(nibble(group, Q4K::CODES, row, k)) - minimum
                }
                WeightFormat::Nf4 => {
                    let code = nibble(group, Nf4::CODES, row, k);
                    scale(group, k / 64, row) * Nf4::CODEBOOK[usize::from(code)]
                }
                WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => not_of_blocks(format),
            };
        }
    }
}

fn not_of_blocks(format: WeightFormat) -> ! {
    panic!("{} has no blocks", format.as_str())
}

/// Where the code of 8 bit of a row and a column of a group is.
pub(crate) fn byte_at(codes: usize, row: usize, column: usize) -> usize {
    codes + column / 4 * 64 + row * 4 + column % 4
}

/// The code of 4 bit of a row and a column of a group.
pub(crate) fn nibble(group: &[u8], codes: usize, row: usize, column: usize) -> u8 {
    let byte = group[codes + column / 8 * 64 + row * 4 + column % 4];
    if column % 8 < 4 { byte & 15 } else { byte >> 4 }
}

/// Writes a code of 4 bit into a group whose codes began as zeros.
pub(super) fn put_nibble(group: &mut [u8], codes: usize, row: usize, column: usize, code: u8) {
    let byte = &mut group[codes + column / 8 * 64 + row * 4 + column % 4];
    *byte |= if column % 8 < 4 { code } else { code << 4 };
}

fn scale(group: &[u8], block: usize, row: usize) -> f32 {
    let at = (block * 16 + row) * 2;
    f16::from_le_bytes([group[at], group[at + 1]]).to_f32()
}

/// Writes the `block`th scale of a row.
pub(super) fn put_scale(group: &mut [u8], block: usize, row: usize, scale: f16) {
    let at = (block * 16 + row) * 2;
    group[at..at + 2].copy_from_slice(&scale.to_le_bytes());
}

/// The largest magnitude is 127 (ggml's `quantize_row_q8_0`).
#[inline(always)]
fn encode_q8_0(columns: &[Column], out: &mut [u8]) {
    for (block, columns) in columns.chunks_exact(32).enumerate() {
        let largest = largest(columns).map(f32::abs);
        let inverse = largest.map(|largest| inverse(largest / 127.0));
        for (row, largest) in largest.iter().enumerate() {
            put_scale(out, block, row, f16::from_f32(largest / 127.0));
        }
        for (k, column) in columns.iter().enumerate() {
            for (row, value) in column.iter().enumerate() {
                let code = (value * inverse[row]).round() as i32 + 128;
                out[byte_at(Q8_0::CODES, row, block * 32 + k)] = code.clamp(0, 255) as u8;
            }
        }
    }
}

/// The number of largest magnitude is -8, whichever its sign (ggml's `quantize_row_q4_0`).
#[inline(always)]
fn encode_q4_0(columns: &[Column], out: &mut [u8]) {
    out[Q4_0::CODES..].fill(0);
    for (block, columns) in columns.chunks_exact(32).enumerate() {
        let scales = largest(columns).map(|largest| largest / -8.0);
        let inverse = scales.map(inverse);
        for (row, scale) in scales.iter().enumerate() {
            put_scale(out, block, row, f16::from_f32(*scale));
        }
        for (k, column) in columns.iter().enumerate() {
            for (row, value) in column.iter().enumerate() {
                let code = (value * inverse[row] + 8.5) as u8;
                put_nibble(out, Q4_0::CODES, row, block * 32 + k, code.min(15));
            }
        }
    }
}

/// The nearest of the codebook to each number over the largest magnitude of its block. Unlike bitsandbytes', blocks do
/// not run on from row to row, and their scales are f16: its second quantisation of the scales to 8 bit subtracts a mean
/// whose last bits depend on how a device sums up.
#[inline(always)]
fn encode_nf4(columns: &[Column], out: &mut [u8]) {
    out[Nf4::CODES..].fill(0);
    for (block, columns) in columns.chunks_exact(64).enumerate() {
        let largest = largest(columns).map(f32::abs);
        let inverse = largest.map(inverse);
        for (row, largest) in largest.iter().enumerate() {
            put_scale(out, block, row, f16::from_f32(*largest));
        }
        for (k, column) in columns.iter().enumerate() {
            for (row, value) in column.iter().enumerate() {
                let value = value * inverse[row];
                let below = Nf4::CODEBOOK
                    .windows(2)
                    .filter(|pair| value > (pair[0] + pair[1]) / 2.0)
                    .count();
                put_nibble(out, Nf4::CODES, row, block * 64 + k, below as u8);
            }
        }
    }
}

/// Of each row the number of largest magnitude; the first of them.
#[inline(always)]
fn largest(columns: &[Column]) -> Column {
    columns.iter().fold([0.0; 16], |mut largest: Column, column| {
        for (largest, value) in largest.iter_mut().zip(column) {
            if value.abs() > largest.abs() {
                *largest = *value;
            }
        }
        largest
    })
}

#[inline(always)]
pub(super) fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}
