//! Registers of AVX2 and AVX-512, and the kernels compiled for them.

use std::arch::x86_64::{
    __m256, __m512, _MM_HINT_T0, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps, _mm_prefetch,
    _mm_shuffle_ps, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps, _mm256_slli_epi32,
    _mm256_storeu_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::{bf16, f16};

use super::{
    kernel,
    lanes::{Element, Lanes},
};

#[derive(Clone, Copy)]
struct Avx2(__m256);

impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    /// 4 rows · 2 tokens of sums, 4 weights and an x fit into 16 registers.
    const TOKENS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load_f32(at: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(at) })
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        Self(unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(
                at.cast(),
            ))))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe { _mm256_storeu_ps(at, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

#[derive(Clone, Copy)]
struct Avx512(__m512);

impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    /// 4 rows · 4 tokens of sums, 4 weights and an x fit into 32 registers.
    const TOKENS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load_f32(at: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(at) })
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        Self(unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
                at.cast(),
            ))))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe { _mm512_storeu_ps(at, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// # Safety
/// As [`kernel::dot_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dot_rows_avx2<E: Element>(weights: &[E], cols: usize, x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's promise, here and below.
    unsafe { kernel::dot_rows::<Avx2, E>(weights, cols, x, out) }
}

/// # Safety
/// As [`kernel::add_weighted`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_weighted_avx2<E: Element>(rows: &[E], cols: usize, share: &[f32], out: &mut [f32]) {
    unsafe { kernel::add_weighted::<Avx2, E>(rows, cols, share, out) }
}

/// # Safety
/// As [`kernel::dot_rows`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dot_rows_avx512<E: Element>(weights: &[E], cols: usize, x: &[f32], out: &mut [f32]) {
    unsafe { kernel::dot_rows::<Avx512, E>(weights, cols, x, out) }
}

/// # Safety
/// As [`kernel::add_weighted`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_weighted_avx512<E: Element>(rows: &[E], cols: usize, share: &[f32], out: &mut [f32]) {
    unsafe { kernel::add_weighted::<Avx512, E>(rows, cols, share, out) }
}
