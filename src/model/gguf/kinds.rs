//! How ggml writes numbers: the kinds that are read, and what they mean as f32. Layouts and formulas: `ggml-common.h` and
//! `ggml-quants.c` (`dequantize_row_*`) of ggml.

use half::f16;

/// A kind of numbers that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q5_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// ggml's numbers and names of its kinds (`enum ggml_type`), with what we read of them.
const KINDS: [(u32, &str, Option<Kind>); 27] = [
    (0, "F32", Some(Kind::F32)),
    (1, "F16", Some(Kind::F16)),
    (2, "Q4_0", Some(Kind::Q4_0)),
    (3, "Q4_1", None),
    (6, "Q5_0", Some(Kind::Q5_0)),
    (7, "Q5_1", None),
    (8, "Q8_0", Some(Kind::Q8_0)),
    (9, "Q8_1", None),
    (10, "Q2_K", None),
    (11, "Q3_K", None),
    (12, "Q4_K", Some(Kind::Q4K)),
    (13, "Q5_K", Some(Kind::Q5K)),
    (14, "Q6_K", Some(Kind::Q6K)),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", None),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (29, "IQ1_M", None),
    (30, "BF16", Some(Kind::Bf16)),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
];

impl Kind {
    pub(super) fn of_number(number: u32) -> Option<Self> {
        KINDS.iter().find(|(known, ..)| *known == number)?.2
    }

    /// Numbers that are written together.
    pub(super) fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q5_0 => 22,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The numbers of whole blocks; `None` for kinds that are not packed.
    pub(super) fn unpack(self, blocks: &[u8]) -> Option<Vec<f32>> {
        let unpack: fn(&[u8], &mut [f32]) = match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 => q4_0,
            Self::Q5_0 => q5_0,
            Self::Q8_0 => q8_0,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        let mut numbers = vec![0.0; blocks.len() / self.bytes() * self.block()];
        let outs = numbers.chunks_exact_mut(self.block());
        for (block, out) in blocks.chunks_exact(self.bytes()).zip(outs) {
            unpack(block, out);
        }
        Some(numbers)
    }
}

/// For error texts.
pub(super) fn name(number: u32) -> String {
    let known = KINDS.iter().find(|(known, ..)| *known == number);
    known.map_or_else(|| format!("number {number}"), |(_, name, _)| (*name).to_owned())
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Scale; then 16 bytes with the first half of the numbers in their lower bits.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block);
    for (i, byte) in block[2..].iter().enumerate() {
        out[i] = f32::from((byte & 15) as i8 - 8) * scale;
        out[i + 16] = f32::from((byte >> 4) as i8 - 8) * scale;
    }
}

/// As Q4_0 with a fifth bit of each number before.
fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block);
    for (i, byte) in block[6..].iter().enumerate() {
        let fifth = |i: usize| block[2 + i / 8] >> (i % 8) << 4 & 16;
        out[i] = f32::from((byte & 15 | fifth(i)) as i8 - 16) * scale;
        out[i + 16] = f32::from((byte >> 4 | fifth(i + 16)) as i8 - 16) * scale;
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block);
    for (out, byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(*byte as i8) * scale;
    }
}

/// Scale and minimum of the part `i` of 8, of 6 bits each, in 12 bytes.
fn scale_and_minimum(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, minimum) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        let upper = |at: usize| packed[at] >> 6 << 4;
        (packed[i + 4] & 15 | upper(i - 4), packed[i + 4] >> 4 | upper(i))
    };
    (scale.into(), minimum.into())
}

/// Scale of scales, scale of minima, both for 8 parts, then the numbers, two parts to 32 bytes.
fn q4_k(block: &[u8], out: &mut [f32]) {
    fours(block, &block[16..], out, |_, _| 0);
}

/// As Q4_K with the fifth bits of the numbers before them: those of part `i` are bits `i`.
fn q5_k(block: &[u8], out: &mut [f32]) {
    fours(block, &block[48..], out, |part, i| block[16 + i] >> part << 4 & 16);
}

fn fours(block: &[u8], numbers: &[u8], out: &mut [f32], fifth: impl Fn(usize, usize) -> u8) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (own_scale, own_minimum) = scale_and_minimum(&block[4..16], part);
        let (scale, minimum) = (scale * own_scale, minimum * own_minimum);
        for (i, out) in out.iter_mut().enumerate() {
            let four = numbers[part / 2 * 32 + i] >> (part % 2 * 4) & 15;
            *out = scale * f32::from(four | fifth(part, i)) - minimum;
        }
    }
}

/// 128 bytes of lower bits, 64 of upper ones, 16 scales for 16 numbers each, and a scale of scales.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (lower, rest) = block.split_at(128);
    let (upper, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(16);
    let scale = half(scale);
    for (i, out) in out.iter_mut().enumerate() {
        // Halves of 128, in each four parts of 32.
        let (half, part, at) = (i / 128, i % 128 / 32, i % 32);
        let four = lower[half * 64 + part % 2 * 32 + at] >> (part / 2 * 4) & 15;
        let two = upper[half * 32 + at] >> (part * 2) & 3;
        let number = (four | two << 4) as i8 - 32;
        *out = scale * f32::from(scales[i / 16] as i8) * f32::from(number);
    }
}
