//! Registers made of arrays, for CPUs without a file of their own. The compiler turns them into what the architecture
//! always has (SSE2, NEON).

use half::{bf16, f16};

use super::{
    kernel,
    lanes::{Element, Lanes},
};
use crate::model::number::Number;

const WIDTH: usize = 8;

#[derive(Clone, Copy)]
struct Array([f32; WIDTH]);

impl Array {
    #[inline(always)]
    unsafe fn load<N: Number>(at: *const N) -> Self {
        // SAFETY: the caller's promise.
        Self(std::array::from_fn(|lane| unsafe { (*at.add(lane)).to_f32() }))
    }
}

impl Lanes for Array {
    const WIDTH: usize = WIDTH;
    const TOKENS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; WIDTH])
    }

    #[inline(always)]
    unsafe fn load_f32(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::load(at) }
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::load(at) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::load(at) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[f32; WIDTH]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            self.0[lane] * factor.0[lane] + addend.0[lane]
        }))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let half: [f32; WIDTH / 2] = std::array::from_fn(|lane| self.0[lane] + self.0[lane + WIDTH / 2]);
        (half[0] + half[2]) + (half[1] + half[3])
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

pub(super) fn dot_rows<E: Element>(weights: &[E], cols: usize, x: &[f32], out: &mut [f32]) {
    // SAFETY: needs no instructions; `cpu.rs` checked the lengths.
    unsafe { kernel::dot_rows::<Array, E>(weights, cols, x, out) }
}

pub(super) fn add_weighted<E: Element>(rows: &[E], cols: usize, share: &[f32], out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { kernel::add_weighted::<Array, E>(rows, cols, share, out) }
}
