//! How the quantised formats lie in memory. A panel is 16 rows, column group after column group; a group begins with
//! the scales of its blocks and is whole cache lines.
//!
//! ```text
//! q8_0   64 columns   scales 2·16 f16 │ codes 16 lines, each 4 columns: 16 rows · 4 bytes, weight + 128
//! q4_0   64 columns   scales 2·16 f16 │ codes  8 lines, each 8 columns: 16 rows · 4 bytes, weight + 8
//! q4_k  256 columns   d 16 f16, dmin 16 f16 │ scales 8·16 u8 │ minima 8·16 u8 │ codes 32 lines of 8 columns
//! nf4   128 columns   scales 2·16 f16 │ codes 16 lines of 8 columns, index into the codebook
//! ```
//!
//! A byte of a line of 8 columns holds column `i` in its lower and column `i + 4` in its upper 4 bits.

use super::{
    lanes::{LANES, Lanes},
    tokens::QuantBlock,
};

/// Bytes of 16 f16.
const SCALES: usize = LANES * 2;

/// What the codes of a format are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    /// 8 bit, the weight and something.
    Bytes,
    /// 4 bit, the same.
    Nibbles,
    /// 4 bit, which of 16 numbers the weight is.
    Indices,
}

/// A format: where its numbers are, and what they mean.
pub(super) trait Format {
    /// Blocks of 32 columns in a group.
    const BLOCKS: usize;
    const GROUP_BYTES: usize;
    /// Where the codes of a group begin.
    const CODES: usize;
    const KIND: Codes;
    /// What indices stand for, and 128.
    const TABLE: [u8; 16] = [0; 16];
    /// What the products of a block begin at, so that codes count from zero.
    fn offset<L: Lanes>(x: &QuantBlock) -> i32;
    /// The scales of a block.
    ///
    /// # Safety
    /// `group` is one of this format with more than `block` blocks; the CPU has the instructions of `L`.
    unsafe fn scale<L: Lanes>(group: *const u8, block: usize) -> L::Floats;
    /// What is subtracted from all weights of a block, if anything.
    ///
    /// # Safety
    /// As [`Format::scale`].
    #[inline(always)]
    unsafe fn minimum<L: Lanes>(_group: *const u8, _block: usize) -> Option<L::Floats> {
        None
    }
}

pub(crate) struct Q8_0;

impl Q8_0 {
    pub(crate) const CODES: usize = 2 * SCALES;
}

impl Format for Q8_0 {
    const BLOCKS: usize = 2;
    const GROUP_BYTES: usize = Self::CODES + 64 * LANES;
    const CODES: usize = Self::CODES;
    const KIND: Codes = Codes::Bytes;

    #[inline(always)]
    fn offset<L: Lanes>(x: &QuantBlock) -> i32 {
        if L::UNSIGNED { x.minus_128 } else { 0 }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(group: *const u8, block: usize) -> L::Floats {
        // SAFETY: the scales of all blocks begin the group.
        unsafe { L::load_f16(group.add(block * SCALES)) }
    }
}

pub(crate) struct Q4_0;

impl Q4_0 {
    pub(crate) const CODES: usize = 2 * SCALES;
}

impl Format for Q4_0 {
    const BLOCKS: usize = 2;
    const GROUP_BYTES: usize = Self::CODES + 64 * LANES / 2;
    const CODES: usize = Self::CODES;
    const KIND: Codes = Codes::Nibbles;

    #[inline(always)]
    fn offset<L: Lanes>(x: &QuantBlock) -> i32 {
        x.minus_8
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(group: *const u8, block: usize) -> L::Floats {
        // SAFETY: as Q8_0.
        unsafe { L::load_f16(group.add(block * SCALES)) }
    }
}

pub(crate) struct Q4K;

impl Q4K {
    pub(crate) const D: usize = 0;
    pub(crate) const D_MIN: usize = SCALES;
    pub(crate) const SCALES: usize = 2 * SCALES;
    pub(crate) const MINIMA: usize = Self::SCALES + 8 * LANES;
    pub(crate) const CODES: usize = Self::MINIMA + 8 * LANES;
}

impl Format for Q4K {
    const BLOCKS: usize = 8;
    const GROUP_BYTES: usize = Self::CODES + 256 * LANES / 2;
    const CODES: usize = Self::CODES;
    const KIND: Codes = Codes::Nibbles;

    #[inline(always)]
    fn offset<L: Lanes>(_x: &QuantBlock) -> i32 {
        0
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(group: *const u8, block: usize) -> L::Floats {
        // SAFETY: d is for the whole group, and there are 16 bytes of scales for each block.
        unsafe {
            let d = L::load_f16(group.add(Self::D));
            L::mul(d, L::load_u8(group.add(Self::SCALES + block * LANES)))
        }
    }

    #[inline(always)]
    unsafe fn minimum<L: Lanes>(group: *const u8, block: usize) -> Option<L::Floats> {
        // SAFETY: as above.
        unsafe {
            let d = L::load_f16(group.add(Self::D_MIN));
            Some(L::mul(d, L::load_u8(group.add(Self::MINIMA + block * LANES))))
        }
    }
}

pub(crate) struct Nf4;

impl Nf4 {
    pub(crate) const CODES: usize = 2 * SCALES;

    /// What a code stands for, in 8 bits: the quantiles of QLoRA's appendix E, as bitsandbytes has them
    /// (`functional.py`, `get_4bit_type("nf4")`), in the unit in which such integers come closest to them. That moves
    /// weights by 0.5 % of their usual size, where 16 numbers instead of all have moved them by 9 %.
    const INTEGERS: [i8; 16] = [-124, -86, -65, -49, -35, -23, -11, 0, 10, 20, 31, 42, 55, 70, 90, 124];

    const UNIT: f32 = 1.0 / 124.0;

    /// What a code stands for.
    pub(crate) const CODEBOOK: [f32; 16] = {
        let mut numbers = [0.0; 16];
        let mut i = 0;
        while i < 16 {
            numbers[i] = Self::INTEGERS[i] as f32 * Self::UNIT;
            i += 1;
        }
        numbers
    };
}

impl Format for Nf4 {
    const BLOCKS: usize = 4;
    const GROUP_BYTES: usize = Self::CODES + 128 * LANES / 2;
    const CODES: usize = Self::CODES;
    const KIND: Codes = Codes::Indices;
    const TABLE: [u8; 16] = {
        let mut bytes = [0; 16];
        let mut i = 0;
        while i < 16 {
            bytes[i] = (Self::INTEGERS[i] as i32 + 128) as u8;
            i += 1;
        }
        bytes
    };

    #[inline(always)]
    fn offset<L: Lanes>(x: &QuantBlock) -> i32 {
        if L::UNSIGNED { x.minus_128 } else { 0 }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(group: *const u8, block: usize) -> L::Floats {
        // SAFETY: there is one for each 64 columns.
        unsafe { L::mul(L::load_f16(group.add(block / 2 * SCALES)), L::splat(Self::UNIT)) }
    }
}
