//! Panels with AVX2, FMA and F16C: 16 values are two registers.

use std::arch::x86_64::{
    __m128i, __m256, _MM_HINT_T0, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi16, _mm256_storeu_ps,
    _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
};

use half::{bf16, f16};

use super::{HALF, Lanes16, Numbers16};

#[derive(Clone, Copy)]
pub(in crate::model::cpu) struct Avx2(__m256, __m256);

impl Avx2 {
    /// Eight lanes, as [`Numbers16::load_codes`].
    #[inline(always)]
    unsafe fn eight_codes<const SECOND: bool>(low: *const u8, codes: *const u8, table: *const u8) -> [__m256; HALF] {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = _mm256_loadu_si256(codes.cast());
            let codes = if SECOND { _mm256_srli_epi16::<4>(codes) } else { codes };
            let codes = _mm256_and_si256(codes, _mm256_set1_epi8(0x0f));
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast()));
            let (low, high) = (_mm256_loadu_si256(low.cast()), _mm256_shuffle_epi8(table, codes));
            let even = |both| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both));
            let odd = |both| _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(!0xffff)));
            let (first, second) = (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high));
            [even(first), odd(first), even(second), odd(second)]
        }
    }
}

impl Lanes16 for Avx2 {
    /// 12 of 16 registers; two for weights and one for x are left.
    const SUMS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe {
            _mm256_storeu_ps(at, self.0);
            _mm256_storeu_ps(at.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: f32, addend: Self) -> Self {
        unsafe {
            let factor = _mm256_set1_ps(factor);
            Self(
                _mm256_fmadd_ps(self.0, factor, addend.0),
                _mm256_fmadd_ps(self.1, factor, addend.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

impl Numbers16 for Avx2 {
    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(8).cast())));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
            Self(low, _mm256_cvtph_ps(_mm_loadu_si128(at.add(8).cast())))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self {
        unsafe {
            let low = _mm_loadl_epi64(at.cast::<__m128i>());
            let high = _mm_loadl_epi64(at.add(8).cast::<__m128i>());
            Self(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_codes<const SECOND: bool>(low: *const u8, codes: *const u8, table: *const u8) -> [Self; HALF] {
        unsafe {
            let left = Self::eight_codes::<SECOND>(low, codes, table);
            let right = Self::eight_codes::<SECOND>(low.add(32), codes.add(32), table);
            std::array::from_fn(|k| Self(left[k], right[k]))
        }
    }
}

super::entries!(Avx2, #[target_feature(enable = "avx2,fma,f16c")]);
