//! What the panel kernel asks of an instruction set: 16 words of 32 bits in one register or several used like one, which
//! number types load into them, and how panels are read.

use half::{bf16, f16};

use super::{Factors, HALF, Keep, LANES, accumulate};
use crate::model::number::Slice;

/// 16 words: f32 values, or pairs of bf16 with sums in f32. Methods are inlined into a function compiled for the instruction
/// set.
///
/// # Safety
/// Every method may only be called where the CPU has the instruction set of the implementation; pointers must be
/// valid for 16 items, but need no alignment beyond that of their type.
pub(in crate::model::cpu) trait Lanes16: Copy {
    /// How many of these, besides a few for weights, the registers hold.
    const SUMS: usize;

    unsafe fn zero() -> Self;
    unsafe fn load(at: *const f32) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// `self · factor + addend`, each addition rounded once where the instruction set can.
    unsafe fn mul_add(self, factor: f32, addend: Self) -> Self;
    /// The same of single f32.
    #[inline(always)]
    unsafe fn mul_add_one(number: f32, factor: f32, addend: f32) -> f32 {
        number.mul_add(factor, addend)
    }
    /// Asks for the cache line of `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
}

/// 16 values of f32, and what else becomes such.
///
/// # Safety
/// As [`Lanes16`].
pub(in crate::model::cpu) trait Numbers16: Lanes16 {
    unsafe fn load_bf16(at: *const bf16) -> Self;
    unsafe fn load_f16(at: *const f16) -> Self;
    unsafe fn load_i8(at: *const i8) -> Self;
    /// Half of a group as `coded.rs` draws it, the first or the second: of the low bytes of that half, the codes of both, and
    /// the 16 high bytes that codes mean.
    unsafe fn load_codes<const SECOND: bool>(low: *const u8, codes: *const u8, table: *const u8) -> [Self; HALF];
}

/// A panel, as tiles read it into registers of `L`: k ascending, some at a time. Where a word is a pair, so is a k here.
pub(in crate::model::cpu) trait Stored<L: Lanes16>: Copy {
    /// How many k are read at a time.
    const STEP: usize;

    /// The most tokens with which four panels are multiplied at a time, if that many sums are in registers.
    const FOUR_PANELS: usize = usize::MAX;

    /// How many panels lie together and come from memory as one stream, 1 or 2.
    const STREAM: usize = 1;

    /// How many are taken at a time when they are asked for, 1 or 2: as many as make chains of sums that keep up with memory.
    const ASKED_STREAM: usize = Self::STREAM;

    /// How far ahead of many tokens a panel is asked for by default, in bytes.
    const MANY_AHEAD: usize = 2048;

    /// The words, if they are in memory as registers take them.
    fn as_words(self) -> Option<*mut f32> {
        None
    }

    /// Asks for what comes `ahead` bytes after the weights of the [`Stored::STEP`] k from `k` on.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`.
    unsafe fn prefetch(&self, k: usize, ahead: usize);

    /// Multiplies k, the first of them a multiple of [`Stored::STEP`] and no more than that, with `M` tokens and adds that
    /// to `sums`.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`; panels and x have these k.
    unsafe fn step<const P: usize, const M: usize>(
        panels: &[Self; P],
        first_and_count: (usize, usize),
        x: Factors,
        keep: &impl Keep<L>,
        sums: &mut [[L; P]; M],
    );
}

/// Single numbers, `[k][16]`: a cache line of each panel at a time.
impl<L: Numbers16, E: Element16> Stored<L> for *const E {
    const STEP: usize = E::PER_LINE;

    const ASKED_STREAM: usize = if E::IS_F32 { 1 } else { 2 };

    #[inline(always)]
    fn as_words(self) -> Option<*mut f32> {
        E::IS_F32.then_some(self.cast_mut().cast())
    }

    #[inline(always)]
    unsafe fn prefetch(&self, k: usize, ahead: usize) {
        // SAFETY: the caller's promise.
        unsafe { L::prefetch(self.wrapping_add(k * LANES).cast::<u8>().wrapping_add(ahead)) }
    }

    #[inline(always)]
    unsafe fn step<const P: usize, const M: usize>(
        panels: &[Self; P],
        (k, n): (usize, usize),
        x: Factors,
        keep: &impl Keep<L>,
        sums: &mut [[L; P]; M],
    ) {
        for i in 0..n {
            // SAFETY: the caller's promise.
            unsafe {
                let mut weights = [L::zero(); P];
                for (p, weights) in weights.iter_mut().enumerate() {
                    // The pointer is to where k 0 would be, which may be before the numbers.
                    *weights = E::load::<L>(panels[p].wrapping_add((k + i) * LANES));
                    keep.keep(p, k + i, *weights);
                }
                accumulate(&weights, x.at.add(i * x.k), x.token, sums);
            }
        }
    }
}

/// Words as registers take them, `[k][16]`.
#[derive(Clone, Copy)]
pub(super) struct Words(pub(super) *const f32);

impl<L: Lanes16> Stored<L> for Words {
    const STEP: usize = 1;

    #[inline(always)]
    fn as_words(self) -> Option<*mut f32> {
        Some(self.0.cast_mut())
    }

    #[inline(always)]
    unsafe fn prefetch(&self, k: usize, ahead: usize) {
        // SAFETY: the caller's promise.
        unsafe { L::prefetch(self.0.wrapping_add(k * LANES).cast::<u8>().wrapping_add(ahead)) }
    }

    #[inline(always)]
    unsafe fn step<const P: usize, const M: usize>(
        panels: &[Self; P],
        (k, n): (usize, usize),
        x: Factors,
        keep: &impl Keep<L>,
        sums: &mut [[L; P]; M],
    ) {
        for i in 0..n {
            // SAFETY: the caller's promise.
            unsafe {
                let mut weights = [L::zero(); P];
                for (p, weights) in weights.iter_mut().enumerate() {
                    *weights = L::load(panels[p].0.wrapping_add((k + i) * LANES));
                    keep.keep(p, k + i, *weights);
                }
                accumulate(&weights, x.at.add(i * x.k), x.token, sums);
            }
        }
    }
}

/// A number type of panels.
pub(in crate::model::cpu) trait Element16: Copy + Send + Sync + 'static {
    /// How many times 16 numbers are a cache line of 64 bytes.
    const PER_LINE: usize = 64 / (16 * size_of::<Self>());

    /// Whether nothing is to be widened.
    const IS_F32: bool = false;

    /// # Panics
    /// If `slice` is of another type.
    fn items(slice: Slice<'_>) -> &[Self];

    /// # Safety
    /// As the methods of [`Lanes16`].
    unsafe fn load<L: Numbers16>(at: *const Self) -> L;
}

impl Element16 for f32 {
    const IS_F32: bool = true;

    fn items(slice: Slice<'_>) -> &[Self] {
        match slice {
            Slice::F32(items) => items,
            _ => panic!("panels of different types"),
        }
    }

    #[inline(always)]
    unsafe fn load<L: Numbers16>(at: *const Self) -> L {
        // SAFETY: the caller's promise, here and below.
        unsafe { L::load(at) }
    }
}

impl Element16 for bf16 {
    fn items(slice: Slice<'_>) -> &[Self] {
        match slice {
            Slice::Bf16(items) => items,
            _ => panic!("panels of different types"),
        }
    }

    #[inline(always)]
    unsafe fn load<L: Numbers16>(at: *const Self) -> L {
        unsafe { L::load_bf16(at) }
    }
}

impl Element16 for f16 {
    fn items(slice: Slice<'_>) -> &[Self] {
        match slice {
            Slice::F16(items) => items,
            _ => panic!("panels of different types"),
        }
    }

    #[inline(always)]
    unsafe fn load<L: Numbers16>(at: *const Self) -> L {
        unsafe { L::load_f16(at) }
    }
}

impl Element16 for i8 {
    fn items(slice: Slice<'_>) -> &[Self] {
        match slice {
            Slice::I8(items) => items,
            _ => panic!("panels of different types"),
        }
    }

    #[inline(always)]
    unsafe fn load<L: Numbers16>(at: *const Self) -> L {
        unsafe { L::load_i8(at) }
    }
}
