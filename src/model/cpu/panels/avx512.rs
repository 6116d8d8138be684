//! Panels with AVX-512F, and BW to look codes up: one register of 16 values.

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_loadu_si256, _mm512_and_si512, _mm512_broadcast_i32x4,
    _mm512_castsi512_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_shuffle_epi8, _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps,
    _mm512_unpackhi_epi8, _mm512_unpacklo_epi8,
};

use half::{bf16, f16};

use super::{HALF, Lanes16, Numbers16};

#[derive(Clone, Copy)]
pub(in crate::model::cpu) struct Avx512(__m512);

impl Lanes16 for Avx512 {
    /// Of 32 registers; 4 for weights and one for x are left.
    const SUMS: usize = 24;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise, here and below.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(at) })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe { _mm512_storeu_ps(at, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: f32, addend: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, _mm512_set1_ps(factor), addend.0) })
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

impl Numbers16 for Avx512 {
    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: the caller's promise, here and below.
        Self(unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) })
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_codes<const SECOND: bool>(low: *const u8, codes: *const u8, table: *const u8) -> [Self; HALF] {
        unsafe {
            let codes = _mm512_loadu_si512(codes.cast());
            let codes = if SECOND { _mm512_srli_epi16::<4>(codes) } else { codes };
            let codes = _mm512_and_si512(codes, _mm512_set1_epi8(0x0f));
            let high = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.cast())), codes);
            let low = _mm512_loadu_si512(low.cast());
            let even = |both| Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)));
            let odd = |both| Self(_mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(!0xffff))));
            let (first, second) = (_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high));
            [even(first), odd(first), even(second), odd(second)]
        }
    }
}

super::entries!(Avx512, #[target_feature(enable = "avx512f,avx512bw")]);
