//! Unpacks MXFP4, in which GPT-OSS publishes its experts: blocks of 32 numbers of 4 bits with a common power of 2
//! (OCP Microscaling Formats 1.0; the order of the nibbles as in transformers `integrations/mxfp4.py`). bfloat16 holds
//! every such number exactly.

use half::{bf16, f16};

use crate::model::{
    WeightDType,
    number::{Buffer, Number},
};

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 32;

/// What the 16 codes mean: a sign, two bits of exponent, one of mantissa.
const CODES: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// Of the scale's exponent.
const BIAS: i32 = 127;

/// The shapes of the tensors of blocks and of scales for numbers of shape `shape`.
pub(in crate::model) fn shapes(shape: &[usize]) -> [Vec<usize>; 2] {
    let (cols, before) = shape.split_last().map_or((0, shape), |(cols, before)| (*cols, before));
    let scales = [before, &[cols / BLOCK]].concat();
    let blocks = [scales.as_slice(), &[BLOCK / 2]].concat();
    [blocks, scales]
}

/// The numbers of `scales.len()` blocks.
pub(super) fn unpack(blocks: &[u8], scales: &[u8], to: WeightDType) -> Buffer {
    match to {
        WeightDType::F32 => Buffer::F32(unpack_as::<f32>(blocks, scales)),
        WeightDType::Bf16 => Buffer::Bf16(unpack_as::<bf16>(blocks, scales)),
        WeightDType::F16 => Buffer::F16(unpack_as::<f16>(blocks, scales)),
    }
}

fn unpack_as<D: Number>(blocks: &[u8], scales: &[u8]) -> Vec<D> {
    let blocks = blocks.chunks_exact(BLOCK / 2).zip(scales);
    let numbers = blocks.flat_map(|(codes, scale)| {
        let scale = 2.0_f32.powi(i32::from(*scale) - BIAS);
        let nibbles = codes.iter().flat_map(|pair| [pair & 0x0f, pair >> 4]);
        nibbles.map(move |code| D::from_f32(CODES[usize::from(code)] * scale))
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unpacked_low_nibble_first_and_scaled_by_their_block() {
        let mut blocks = [0_u8; 32];
        blocks[0] = 0x72;
        blocks[31] = 0x9f;
        let Buffer::F32(numbers) = unpack(&blocks, &[127, 130], WeightDType::F32) else {
            panic!("not f32");
        };
        assert_eq!(numbers.len(), 64);
        assert_eq!(numbers[..3], [1.0, 6.0, 0.0]);
        assert_eq!(numbers[62..], [-48.0, -4.0]);
        assert_eq!(shapes(&[4, 6, 64]), [vec![4, 6, 2, 16], vec![4, 6, 2]]);
    }
}
