//! One row of a panel, into which codes and scales go as somebody else chose them: the exact counterpart of `encode.rs`,
//! which chooses them.

use half::f16;

use super::{
    WeightFormat,
    encode::{byte_at, put_nibble, put_scale},
};
use crate::model::cpu::quant::{Q4_0, Q4K, Q8_0};

/// Weights of a block with one scale.
const BLOCK: usize = 32;

/// A row that is all zeros until it is written to.
#[derive(Debug)]
pub(crate) struct PanelRow<'a> {
    format: WeightFormat,
    panel: &'a mut [u8],
    /// Of the panel's 16.
    row: usize,
}

impl<'a> PanelRow<'a> {
    pub(super) fn new(format: WeightFormat, panel: &'a mut [u8], row: usize) -> Self {
        Self { format, panel, row }
    }

    /// The `block`th 32 weights are `scale · code`, the codes those of 8 bit of q8_0 or from -8 to 7 of q4_0.
    ///
    /// # Panics
    /// If the row is shorter, or of another format.
    pub(crate) fn put(&mut self, block: usize, scale: f16, code: impl Fn(usize) -> i8) {
        let (format, row) = (self.format, self.row);
        let (group, first, idx) = self.group_of(block * BLOCK);
        match format {
            WeightFormat::Q8_0 => {
                put_scale(group, idx, row, scale);
                for k in 0..BLOCK {
                    group[byte_at(Q8_0::CODES, row, first + k)] = code(k).cast_unsigned() ^ 0x80;
                }
            }
            WeightFormat::Q4_0 => {
                put_scale(group, idx, row, scale);
                for k in 0..BLOCK {
                    let code = code(k).clamp(-8, 7) + 8;
                    put_nibble(group, Q4_0::CODES, row, first + k, code.cast_unsigned());
                }
            }
            other => panic!("{} has no single blocks", other.as_str()),
        }
    }

    /// The `idx`th 256 weights of q4_k: `d · scale · code - d_min · minimum`, scale and minimum those of each 32.
    ///
    /// # Panics
    /// If the row is shorter, or of another format.
    pub(crate) fn put_super_block(
        &mut self,
        idx: usize,
        [d, d_min]: [f16; 2],
        scale_and_minimum: impl Fn(usize) -> (u8, u8),
        code: impl Fn(usize) -> u8,
    ) {
        assert_eq!(self.format, WeightFormat::Q4K, "not a format of super-blocks");
        let row = self.row;
        let (group, ..) = self.group_of(idx * self.format.group());
        put_scale(group, 0, row, d);
        put_scale(group, 1, row, d_min);
        for sub in 0..8 {
            let (scale, minimum) = scale_and_minimum(sub);
            group[Q4K::SCALES + sub * 16 + row] = scale;
            group[Q4K::MINIMA + sub * 16 + row] = minimum;
        }
        for k in 0..256 {
            put_nibble(group, Q4K::CODES, row, k, code(k));
        }
    }

    /// The group of a column, the column in it, and its block in it.
    fn group_of(&mut self, column: usize) -> (&mut [u8], usize, usize) {
        let (columns, bytes) = (self.format.group(), self.format.group_bytes());
        let (group, first) = (column / columns, column % columns);
        (
            &mut self.panel[group * bytes..(group + 1) * bytes],
            first,
            first / BLOCK,
        )
    }
}
