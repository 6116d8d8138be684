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

/// A format that is multiplied by integers: where its numbers are.
pub(super) trait Format {
    /// Blocks of 32 columns in a group.
    const BLOCKS: usize;
    const GROUP_BYTES: usize;
    /// Where the codes of a group begin.
    const CODES: usize;
    /// Whether codes are 4 bit.
    const NIBBLES: bool;
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
    const NIBBLES: bool = false;

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
    const NIBBLES: bool = true;

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
    const NIBBLES: bool = true;

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

/// Multiplied as f32, so not a [`Format`].
pub(crate) struct Nf4;

impl Nf4 {
    /// Blocks of 64 columns in a group.
    pub(super) const BLOCKS: usize = 2;
    pub(super) const GROUP_BYTES: usize = Self::CODES + 128 * LANES / 2;
    pub(crate) const CODES: usize = 2 * SCALES;

    /// The quantiles of QLoRA's appendix E, as bitsandbytes has them (`functional.py`, `get_4bit_type("nf4")`).
    pub(crate) const CODEBOOK: [f32; 16] = [
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ];

    /// # Safety
    /// As [`Format::scale`].
    #[inline(always)]
    pub(super) unsafe fn scale<L: Lanes>(group: *const u8, block: usize) -> L::Floats {
        // SAFETY: as Q8_0.
        unsafe { L::load_f16(group.add(block * SCALES)) }
    }
}
