//! What the panel kernel asks of an instruction set: 16 f32 values in one register or several used like one, and which
//! number types load into them.

use half::{bf16, f16};

use crate::model::number::Slice;

/// 16 values of f32. Methods are inlined into a function compiled for the instruction set.
///
/// # Safety
/// Every method may only be called where the CPU has the instruction set of the implementation; pointers must be
/// valid for 16 items, but need no alignment beyond that of their type.
pub(in crate::model::cpu) trait Lanes16: Copy {
    /// How many of these, besides a few for weights, the registers hold.
    const SUMS: usize;

    unsafe fn zero() -> Self;
    unsafe fn load_f32(at: *const f32) -> Self;
    unsafe fn load_bf16(at: *const bf16) -> Self;
    unsafe fn load_f16(at: *const f16) -> Self;
    unsafe fn load_i8(at: *const i8) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// `self · factor + addend`, rounded once where the instruction set can.
    unsafe fn mul_add(self, factor: f32, addend: Self) -> Self;
    /// Asks for the cache line of `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
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
    unsafe fn load<L: Lanes16>(at: *const Self) -> L;
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
    unsafe fn load<L: Lanes16>(at: *const Self) -> L {
        // SAFETY: the caller's promise, here and below.
        unsafe { L::load_f32(at) }
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
    unsafe fn load<L: Lanes16>(at: *const Self) -> L {
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
    unsafe fn load<L: Lanes16>(at: *const Self) -> L {
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
    unsafe fn load<L: Lanes16>(at: *const Self) -> L {
        unsafe { L::load_i8(at) }
    }
}
