//! ggml's blocks, as GGUF files have them, in panels: what there are kernels for is only laid out anew, with the same
//! codes and scales. Nothing is widened here; types that cannot be laid out are (`gguf/tensor.rs`), and then quantised.
//!
//! The layouts are ggml's (`ggml-common.h`).

use candle_core::quantized::GgmlDType;
use half::f16;

use super::{WeightFormat, row::PanelRow};

/// The format that matrices of a type are kept in if none is asked for: their own, or else the next with more bits, so
/// that nothing but rounding is lost and memory stays near the size of the file. `None` for types of single numbers.
///
/// A file that llama.cpp calls Q4_K_M is mostly Q4_K with some Q6_K (6.6 bits), which become q8_0 (8.5 bits).
pub(crate) fn own_format(kind: GgmlDType) -> Option<WeightFormat> {
    match kind {
        GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => None,
        GgmlDType::Q4_0 => Some(WeightFormat::Q4_0),
        GgmlDType::Q2K | GgmlDType::Q3K | GgmlDType::Q4K => Some(WeightFormat::Q4K),
        GgmlDType::Q4_1
        | GgmlDType::Q5_0
        | GgmlDType::Q5_1
        | GgmlDType::Q8_0
        | GgmlDType::Q8_1
        | GgmlDType::Q5K
        | GgmlDType::Q6K
        | GgmlDType::Q8K => Some(WeightFormat::Q8_0),
    }
}

/// Whether [`lay_out`] makes exactly the same weights of them.
pub(crate) fn can_lay_out(kind: GgmlDType, format: WeightFormat) -> bool {
    matches!(
        (kind, format),
        (GgmlDType::Q8_0 | GgmlDType::Q5_0, WeightFormat::Q8_0)
            | (GgmlDType::Q4_0, WeightFormat::Q4_0)
            | (GgmlDType::Q4K, WeightFormat::Q4K)
    )
}

/// Writes a row's blocks to its place, for types and formats of which [`can_lay_out`] says so.
///
/// # Panics
/// If the row is shorter than the blocks.
pub(crate) fn lay_out(kind: GgmlDType, blocks: &[u8], row: &mut PanelRow<'_>) {
    for (idx, block) in blocks.chunks_exact(kind.type_size()).enumerate() {
        match kind {
            GgmlDType::Q8_0 => row.put(idx, half_at(block, 0), |k| block[2 + k].cast_signed()),
            GgmlDType::Q5_0 => row.put(idx, half_at(block, 0), |k| five(&block[2..], k).cast_signed() - 16),
            GgmlDType::Q4_0 => row.put(idx, half_at(block, 0), |k| halves(&block[2..], k).cast_signed() - 8),
            _ => {
                let scales = [half_at(block, 0), half_at(block, 2)];
                let of_sub = |sub| scale_and_minimum(&block[4..16], sub);
                row.put_super_block(idx, scales, of_sub, |k| quarters(&block[16..], k));
            }
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// 4 bits of 32: the lower halves of 16 bytes, then the upper.
fn halves(codes: &[u8], k: usize) -> u8 {
    if k < 16 { codes[k] & 15 } else { codes[k - 16] >> 4 }
}

/// 4 bits of 256, the same way in each 64.
fn quarters(codes: &[u8], k: usize) -> u8 {
    let byte = codes[k / 64 * 32 + k % 32];
    if k % 64 < 32 { byte & 15 } else { byte >> 4 }
}

/// 5 bits of 32: the fifth are the bits of the first 4 bytes.
fn five(codes: &[u8], k: usize) -> u8 {
    let fifth = (codes[k / 8] >> (k % 8)) & 1;
    halves(&codes[4..], k) | fifth << 4
}

/// Scale and minimum of sub-block `sub` out of 12 bytes with 6 bits each.
fn scale_and_minimum(scales: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        return (scales[sub] & 63, scales[sub + 4] & 63);
    }
    (
        (scales[sub + 4] & 15) | (scales[sub - 4] >> 6 << 4),
        (scales[sub + 4] >> 4) | (scales[sub] >> 6 << 4),
    )
}

#[cfg(test)]
mod tests;
