//! Registers of AVX-512 with VNNI: one register is a panel's row of anything.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_loadu_si256, _mm512_and_si512,
    _mm512_broadcast_i32x4, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_storeu_ps,
};

use super::{
    formats::Format,
    kernel::{self, Work},
    lanes::Lanes,
};

#[derive(Clone, Copy)]
struct Avx512;

impl Lanes for Avx512 {
    const PANELS: usize = 2;
    const TOKENS: usize = 6;
    const UNSIGNED: bool = true;
    type Codes = __m512i;
    type Ints = __m512i;
    type NibbleSums = __m512i;
    type Floats = __m512;
    type Table = __m512i;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: the caller's promise, here and below.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn zero_codes() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn low(codes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(codes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high(codes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(codes), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sums: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn begin_nibbles(offset: i32) -> __m512i {
        unsafe { Self::splat_int(offset) }
    }

    #[inline(always)]
    unsafe fn dot_nibbles(sums: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        unsafe { Self::dot_bytes(sums, codes, x) }
    }

    #[inline(always)]
    unsafe fn end_nibbles(sums: __m512i, _offset: i32) -> __m512i {
        sums
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn to_floats(ints: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_u8(at: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn mul_sub(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn store(values: __m512, at: *mut f32) {
        unsafe { _mm512_storeu_ps(at, values) }
    }

    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> __m512i {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn look_up(table: __m512i, codes: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(table, codes) }
    }
}

/// # Safety
/// As [`kernel::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply<F: Format>(work: Work) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Avx512, F>(work) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn call(task: impl FnOnce()) {
    task();
}
