//! Panels with arrays, for CPUs without a file of their own. The compiler turns them into what the architecture always
//! has.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use half::{bf16, f16};

use super::{HALF, LANES, Lanes16, Numbers16, TABLE, place_of};
use crate::model::number::Number;

/// Whether a fused multiply-add is an instruction; if not it would be a call of a library, many times slower.
const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

#[derive(Clone, Copy)]
pub(in crate::model::cpu) struct Array([f32; LANES]);

impl Array {
    #[inline(always)]
    unsafe fn widen<N: Number>(at: *const N) -> Self {
        let mut lanes = [0.0; LANES];
        for (lane, value) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *value = unsafe { (*at.add(lane)).to_f32() };
        }
        Self(lanes)
    }
}

impl Lanes16 for Array {
    /// As four registers of four values each, half of what SSE2 has.
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { Self::widen(at) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe { at.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: f32, addend: Self) -> Self {
        let mut sums = addend.0;
        for (sum, weight) in sums.iter_mut().zip(self.0) {
            *sum = unsafe { Self::mul_add_one(weight, factor, *sum) };
        }
        Self(sums)
    }

    #[inline(always)]
    unsafe fn mul_add_one(number: f32, factor: f32, addend: f32) -> f32 {
        if FUSED {
            number.mul_add(factor, addend)
        } else {
            number * factor + addend
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // What every x86-64 has; other architectures are left to themselves.
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which changes nothing and never faults.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _: *const u8 = at;
    }
}

impl Numbers16 for Array {
    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { Self::widen(at) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        unsafe { Self::widen(at) }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self {
        unsafe { Self::widen(at) }
    }

    #[inline(always)]
    unsafe fn load_codes<const SECOND: bool>(low: *const u8, codes: *const u8, table: *const u8) -> [Self; HALF] {
        let (low, codes) = unsafe { (*low.cast::<[u8; 64]>(), *codes.cast::<[u8; 64]>()) };
        let table = unsafe { *table.cast::<[u8; TABLE]>() };
        let number = |k, lane| {
            let place = place_of(k, lane);
            let code = if SECOND { codes[place] >> 4 } else { codes[place] & 0xf };
            f32::from_bits(u32::from_be_bytes([table[usize::from(code)], low[place], 0, 0]))
        };
        std::array::from_fn(|k| Self(std::array::from_fn(|lane| number(k, lane))))
    }
}

super::entries!(Array);
