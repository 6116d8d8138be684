//! What the kernels ask of a vector register, and of a number type they can load into one.

use half::{bf16, f16};

use crate::model::number::Number;

/// A register of `WIDTH` f32 values. Methods are inlined into a function compiled for the instruction set.
///
/// # Safety
/// Every method may only be called where the CPU has the instruction set of the implementation; pointers must be
/// valid for `WIDTH` items, but need no alignment beyond that of their type.
pub(super) trait Lanes: Copy {
    /// f32 values per register.
    const WIDTH: usize;
    /// Vectors to multiply with four rows of weights at once: as many as leave the sums in registers.
    const TOKENS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_f32(at: *const f32) -> Self;
    unsafe fn load_bf16(at: *const bf16) -> Self;
    unsafe fn load_f16(at: *const f16) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// `self · factor + addend`
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The sum of all lanes.
    unsafe fn sum(self) -> f32;
    /// Asks for the cache line of `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
}

/// A number type that loads into registers.
pub(super) trait Element: Number {
    /// # Safety
    /// As the methods of [`Lanes`].
    unsafe fn load<L: Lanes>(at: *const Self) -> L;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f32(at) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16(at) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(at) }
    }
}
