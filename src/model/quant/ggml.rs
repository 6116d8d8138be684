//! Matrices out of ggml's blocks, as GGUF files have them. What there are kernels for is only laid out anew, bit for
//! bit; the other types of blocks are widened, and become the next format with more bits.
//!
//! The layouts are ggml's (`ggml-common.h`), the numbers of the types GGUF's (`ggml.h`, `enum ggml_type`).

use half::{bf16, f16};

use super::{
    QuantMatrix, WeightFormat,
    encode::{byte_at, put_nibble, put_scale},
    encode_panel,
};
use crate::model::cpu::quant::{Q4_0, Q4K, Q8_0};

/// A type of weights in a GGUF file that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    /// The type of a tensor's header; `None` if it is none that can be read.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// The format that its weights are kept in: its own, or else the next one with more bits.
    pub fn format(self) -> WeightFormat {
        match self {
            Self::F32 => WeightFormat::F32,
            Self::F16 => WeightFormat::F16,
            Self::Bf16 => WeightFormat::Bf16,
            Self::Q4_0 => WeightFormat::Q4_0,
            Self::Q2K | Self::Q3K | Self::Q4K => WeightFormat::Q4K,
            Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Q5K | Self::Q6K => WeightFormat::Q8_0,
        }
    }

    /// Weights and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Bytes of `n` weights; `None` if they are not whole blocks.
    pub fn bytes(self, n: usize) -> Option<usize> {
        let (weights, bytes) = self.block();
        n.is_multiple_of(weights).then(|| n / weights * bytes)
    }

    /// Writes the weights of `blocks` to `out`.
    ///
    /// # Panics
    /// If `blocks` are not those of as many weights.
    pub fn widen(self, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.bytes(out.len()),
            Some(blocks.len()),
            "not the blocks of these weights"
        );
        let (weights, bytes) = self.block();
        for (block, out) in blocks.chunks_exact(bytes).zip(out.chunks_exact_mut(weights)) {
            match self {
                Self::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                Self::F16 => out[0] = half_at(block, 0),
                Self::Bf16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Self::Q4_0 => fill(out, |k| (f32::from(halves(&block[2..], k)) - 8.0) * half_at(block, 0)),
                Self::Q4_1 => fill(out, |k| {
                    f32::from(halves(&block[4..], k)) * half_at(block, 0) + half_at(block, 2)
                }),
                Self::Q5_0 => fill(out, |k| (f32::from(five(&block[2..], k)) - 16.0) * half_at(block, 0)),
                Self::Q5_1 => fill(out, |k| {
                    f32::from(five(&block[4..], k)) * half_at(block, 0) + half_at(block, 2)
                }),
                Self::Q8_0 => fill(out, |k| f32::from(block[2 + k].cast_signed()) * half_at(block, 0)),
                Self::Q2K => fill(out, |k| q2_k(block, k)),
                Self::Q3K => fill(out, |k| q3_k(block, k)),
                Self::Q4K => fill(out, |k| above_minimum(block, k, quarters(&block[16..], k))),
                Self::Q5K => fill(out, |k| {
                    let fifth = (block[16 + k % 32] >> (k / 32)) & 1;
                    above_minimum(block, k, quarters(&block[48..], k) | fifth << 4)
                }),
                Self::Q6K => fill(out, |k| q6_k(block, k)),
            }
        }
    }

    /// Lays one row's blocks out in a panel, for the types whose blocks are those of its format.
    fn lay_out(self, blocks: &[u8], row: usize, panel: &mut [u8]) {
        let (weights, bytes) = self.block();
        let per_group = self.format().group() / weights;
        let groups = panel.chunks_exact_mut(self.format().group_bytes());
        for (blocks, group) in blocks.chunks(bytes * per_group).zip(groups) {
            for (idx, block) in blocks.chunks_exact(bytes).enumerate() {
                match self {
                    Self::Q8_0 => lay_out_q8_0(block, group, row, idx),
                    Self::Q4_0 => lay_out_q4_0(block, group, row, idx),
                    _ => lay_out_q4_k(block, group, row),
                }
            }
        }
    }
}

impl QuantMatrix {
    /// Rows of ggml's blocks, `[rows, cols]`, in the type's [`GgmlType::format`]: exactly the same weights if that is the
    /// type itself. `None` if there are not as many bytes, rows are not whole blocks, or the format is not one of blocks.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader of GGUF files"))]
    pub(crate) fn from_ggml(ggml: GgmlType, blocks: &[u8], rows: usize, cols: usize) -> Option<Self> {
        let format = ggml.format();
        let row_bytes = ggml.bytes(cols)?;
        if format.dtype().is_some() || row_bytes.checked_mul(rows)? != blocks.len() {
            return None;
        }
        let exact = matches!(ggml, GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q4K);
        let mut matrix = Self::zeros(format, rows, cols).ok()?;
        let mut widened = vec![0.0; if exact { 0 } else { 16 * cols }];
        for (panel, blocks) in matrix.panels_mut().zip(blocks.chunks(16 * row_bytes.max(1))) {
            if exact {
                for (row, blocks) in blocks.chunks_exact(row_bytes).enumerate() {
                    ggml.lay_out(blocks, row, panel);
                }
            } else {
                let widened = &mut widened[..blocks.len() / row_bytes * cols];
                ggml.widen(blocks, widened);
                encode_panel(format, widened, cols, panel);
            }
        }
        Some(matrix)
    }
}

fn fill(out: &mut [f32], weight: impl Fn(usize) -> f32) {
    out.iter_mut().enumerate().for_each(|(k, out)| *out = weight(k));
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
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

fn above_minimum(block: &[u8], k: usize, code: u8) -> f32 {
    let (scale, minimum) = scale_and_minimum(&block[4..16], k / 32);
    half_at(block, 0) * f32::from(scale) * f32::from(code) - half_at(block, 2) * f32::from(minimum)
}

/// 2 bits of 256: in each 128, 32 bytes with 4 codes each.
fn two(codes: &[u8], k: usize) -> u8 {
    (codes[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2)) & 3
}

fn q2_k(block: &[u8], k: usize) -> f32 {
    let scales = block[k / 16];
    let minimum = half_at(block, 82) * f32::from(scales >> 4);
    half_at(block, 80) * f32::from(scales & 15) * f32::from(two(&block[16..], k)) - minimum
}

fn q3_k(block: &[u8], k: usize) -> f32 {
    let sub = k / 16;
    let scales = &block[96..108];
    let low = if sub < 8 {
        scales[sub] & 15
    } else {
        scales[sub - 8] >> 4
    };
    let high = (scales[8 + sub % 4] >> (sub / 4 * 2)) & 3;
    let third = (block[k % 32] >> (k / 32)) & 1;
    let code = two(&block[32..], k) | third << 2;
    half_at(block, 108) * (f32::from(low | high << 4) - 32.0) * (f32::from(code) - 4.0)
}

fn q6_k(block: &[u8], k: usize) -> f32 {
    let (half, k) = (k / 128, k % 128);
    let low = block[half * 64 + k % 64];
    let low = if k < 64 { low & 15 } else { low >> 4 };
    let high = (block[128 + half * 32 + k % 32] >> (k / 32 * 2)) & 3;
    let scale = f32::from(block[192 + half * 8 + k / 16].cast_signed());
    half_at(block, 208) * scale * (f32::from(low | high << 4) - 32.0)
}

fn lay_out_q8_0(block: &[u8], group: &mut [u8], row: usize, idx: usize) {
    put_scale(group, idx, row, f16::from_le_bytes([block[0], block[1]]));
    for (k, code) in block[2..].iter().enumerate() {
        group[byte_at(Q8_0::CODES, row, idx * 32 + k)] = code ^ 0x80;
    }
}

fn lay_out_q4_0(block: &[u8], group: &mut [u8], row: usize, idx: usize) {
    put_scale(group, idx, row, f16::from_le_bytes([block[0], block[1]]));
    for k in 0..32 {
        put_nibble(group, Q4_0::CODES, row, idx * 32 + k, halves(&block[2..], k));
    }
}

fn lay_out_q4_k(block: &[u8], group: &mut [u8], row: usize) {
    put_scale(group, 0, row, f16::from_le_bytes([block[0], block[1]]));
    put_scale(group, 1, row, f16::from_le_bytes([block[2], block[3]]));
    for sub in 0..8 {
        let (scale, minimum) = scale_and_minimum(&block[4..16], sub);
        group[Q4K::SCALES + sub * 16 + row] = scale;
        group[Q4K::MINIMA + sub * 16 + row] = minimum;
    }
    for k in 0..256 {
        put_nibble(group, Q4K::CODES, row, k, quarters(&block[16..], k));
    }
}

#[cfg(test)]
mod tests;
