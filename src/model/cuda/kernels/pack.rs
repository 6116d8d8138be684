//! How weights lie on a card, and how they get from the CPU's panels into that order: codes and scales are the same, only
//! their places are others. A row is chunks, each what one lane of a warp loads at once; after all codes come the scales.
//!
//! ```text
//! f32         chunk 4 columns, 16 bytes
//! bf16, f16   chunk 8 columns, 16 bytes; of each 256 columns lane l has 4 l.. and 128 + 4 l.. (so that it reads x in whole
//!             lines), and of what is left at the end 4 l.. and the same of the second half
//! q8_0        chunk 16 columns, 16 bytes, signed                             │ per 32 columns an f16
//! q4_0        chunk 32 columns, 16 bytes: column i below, 16 + i above        │ per 32 columns an f16
//! q4_k        as q4_0       │ per 32 columns scale and minimum, a byte each   │ per 256 columns two f16
//! nf4         chunk 16 columns, 8 bytes: of each 512 columns lane l has 4 l.. of each 128
//!                                                                             │ per 64 columns an f16, by lanes
//! ```
//!
//! Rows are filled up to a multiple of 16, columns to whole chunks of what a warp or a format takes together, with zeros.

use bytemuck::cast_slice;

use crate::model::{
    WeightFormat,
    cpu::quant::{Nf4, Q4_0, Q4K, Q8_0},
    linear::Panel,
    number::Slice,
    quant::{byte_at, nibble},
};

/// Rows of a panel of the CPU.
pub(super) const PANEL: usize = 16;

/// Lanes of a warp.
#[cfg(test)]
const LANES: usize = 32;

/// Columns that a warp takes together of 16 bits, and of nf4.
const DENSE_GROUP: usize = 256;
const NF4_GROUP: usize = 512;

/// Sizes of a matrix on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) format: WeightFormat,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Columns of a row, with what it is filled up with.
    pub(super) stride: usize,
    /// Chunks of a row.
    pub(super) chunks: usize,
    /// Bytes of a row: codes, scales, and what scales are scaled by.
    pub(super) row_bytes: [usize; 3],
}

impl Layout {
    pub(super) fn new(format: WeightFormat, rows: usize, cols: usize) -> Self {
        let (multiple, per_chunk) = match format {
            WeightFormat::F32 => (8, 4),
            WeightFormat::Bf16 | WeightFormat::F16 => (8, 8),
            WeightFormat::Q8_0 => (64, 16),
            WeightFormat::Q4_0 => (64, 32),
            WeightFormat::Q4K => (256, 32),
            WeightFormat::Nf4 => (NF4_GROUP, 16),
        };
        let stride = cols.next_multiple_of(multiple);
        let chunks = stride / per_chunk;
        let row_bytes = match format {
            WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => [chunks * 16, 0, 0],
            WeightFormat::Q8_0 | WeightFormat::Q4_0 => [chunks * 16, stride / 32 * 2, 0],
            WeightFormat::Q4K => [chunks * 16, stride / 32 * 2, stride / 256 * 4],
            WeightFormat::Nf4 => [chunks * 8, stride / 64 * 2, 0],
        };
        Self {
            format,
            rows,
            cols,
            stride,
            chunks,
            row_bytes,
        }
    }

    /// Rows in memory.
    pub(super) fn padded_rows(self) -> usize {
        self.rows.next_multiple_of(PANEL)
    }

    /// Where the three parts begin, and how many bytes there are: parts begin at multiples of 16 bytes.
    pub(super) fn parts(self) -> [usize; 4] {
        let mut at = [0; 4];
        for (i, bytes) in self.row_bytes.into_iter().enumerate() {
            at[i + 1] = at[i] + (bytes * self.padded_rows()).next_multiple_of(16);
        }
        at
    }

    /// Writes a panel to the three parts of its rows, which begin as zeros.
    ///
    /// # Panics
    /// If it is no panel of such a matrix.
    pub(super) fn pack(self, panel: Panel<'_>, [codes, scales, factors]: [&mut [u8]; 3]) {
        match panel {
            Panel::Dense(Slice::F32(numbers)) => self.dense(numbers, 4, codes),
            Panel::Dense(Slice::Bf16(numbers)) => self.dense(cast_slice::<_, u16>(numbers), 8, codes),
            Panel::Dense(Slice::F16(numbers)) => self.dense(cast_slice::<_, u16>(numbers), 8, codes),
            Panel::Dense(Slice::I8(_)) => panic!("weights are no single bytes"),
            Panel::Quantised(bytes) => {
                let (n, group_bytes) = (self.format.group(), self.format.group_bytes());
                for (i, group) in bytes.chunks_exact(group_bytes).enumerate() {
                    self.group((group, i * n), codes, scales);
                    if self.format == WeightFormat::Q4K {
                        self.factors(group, i, factors);
                    }
                }
            }
        }
    }

    fn dense<N: bytemuck::Pod>(self, panel: &[N], per_chunk: usize, out: &mut [u8]) {
        let size = size_of::<N>();
        for (row, out) in out.chunks_exact_mut(self.row_bytes[0]).enumerate() {
            for column in 0..self.cols {
                let place = match per_chunk {
                    8 => place_of(column, self.stride),
                    _ => column,
                };
                out[place * size..(place + 1) * size].copy_from_slice(bytemuck::bytes_of(&panel[column * PANEL + row]));
            }
        }
    }

    /// Codes and scales of a group of columns, the first of which is column `first`.
    fn group(self, (group, first): (&[u8], usize), codes: &mut [u8], scales: &mut [u8]) {
        let columns = first..first + self.format.group();
        for row in 0..PANEL {
            let codes = &mut codes[row * self.row_bytes[0]..][..self.row_bytes[0]];
            let scales = &mut scales[row * self.row_bytes[1]..][..self.row_bytes[1]];
            for (k, column) in columns.clone().enumerate() {
                self.put_code((group, row, k), column, codes);
            }
            match self.format {
                WeightFormat::Q4K => {
                    for sub in 0..8 {
                        let scale = group[Q4K::SCALES + sub * PANEL + row];
                        let minimum = group[Q4K::MINIMA + sub * PANEL + row];
                        scales[(first / 32 + sub) * 2..][..2].copy_from_slice(&[scale, minimum]);
                    }
                }
                WeightFormat::Nf4 => {
                    for block in 0..2 {
                        let place = nf4_scale_place(first / 64 + block);
                        scales[place * 2..][..2].copy_from_slice(f16_at(group, block, row));
                    }
                }
                _ => {
                    for block in 0..2 {
                        scales[(first / 32 + block) * 2..][..2].copy_from_slice(f16_at(group, block, row));
                    }
                }
            }
        }
    }

    fn put_code(self, (group, row, k): (&[u8], usize, usize), column: usize, codes: &mut [u8]) {
        let mut put_nibble = |place: usize, code: u8| codes[place / 2] |= code << (place % 2 * 4);
        match self.format {
            // From the CPU's codes, which count from -128.
            WeightFormat::Q8_0 => codes[column] = group[byte_at(Q8_0::CODES, row, k)] ^ 0x80,
            WeightFormat::Q4_0 => put_nibble(q4_place(column), nibble(group, Q4_0::CODES, row, k)),
            WeightFormat::Q4K => put_nibble(q4_place(column), nibble(group, Q4K::CODES, row, k)),
            _ => put_nibble(nf4_place(column), nibble(group, Nf4::CODES, row, k)),
        }
    }

    fn factors(self, group: &[u8], group_idx: usize, factors: &mut [u8]) {
        for row in 0..PANEL {
            let out = &mut factors[row * self.row_bytes[2] + group_idx * 4..][..4];
            out[..2].copy_from_slice(f16_at(group, 0, row));
            out[2..].copy_from_slice(f16_at(group, 1, row));
        }
    }
}

fn f16_at(group: &[u8], block: usize, row: usize) -> &[u8] {
    &group[(block * PANEL + row) * 2..][..2]
}

/// Where a column of numbers of 16 bits is in a row of `stride` columns.
pub(super) fn place_of(column: usize, stride: usize) -> usize {
    let group = column / DENSE_GROUP * DENSE_GROUP;
    let half = DENSE_GROUP.min(stride - group) / 2;
    let inside = column - group;
    let (quad, lane) = (inside / half, inside % half / 4);
    group + lane * 8 + quad * 4 + inside % 4
}

/// Which half byte of a row has the code of a column.
fn q4_place(column: usize) -> usize {
    let inside = column % 32;
    column / 32 * 32 + inside % 16 * 2 + inside / 16
}

fn nf4_place(column: usize) -> usize {
    let inside = column % NF4_GROUP;
    let (part, lane) = (inside / 128, inside % 128 / 4);
    column / NF4_GROUP * NF4_GROUP + lane * 16 + part * 4 + inside % 4
}

/// Which scale of a row is that of a block of 64 columns: those of the lanes below 16 first.
fn nf4_scale_place(block: usize) -> usize {
    let per_group = NF4_GROUP / 64;
    let inside = block % per_group;
    block / per_group * per_group + inside % 2 * (per_group / 2) + inside / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_a_place_of_its_own() {
        for stride in [8, 64, 248, 256, 264, 520, 1024] {
            let mut places: Vec<usize> = (0..stride).map(|column| place_of(column, stride)).collect();
            places.sort_unstable();
            assert_eq!(places, (0..stride).collect::<Vec<_>>());
        }
        for place in [q4_place, nf4_place] {
            let mut places: Vec<usize> = (0..2048).map(place).collect();
            places.sort_unstable();
            assert_eq!(places, (0..2048).collect::<Vec<_>>());
        }
        assert_eq!([0, 1, 2, 7, 8].map(nf4_scale_place), [0, 4, 1, 7, 8]);
        assert_eq!(place_of(128, 256), 4);
        assert_eq!(place_of(4, 256), LANES / 4);
    }
}
