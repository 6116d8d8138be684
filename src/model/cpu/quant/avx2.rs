//! Registers of AVX2, two to a panel, and the same with AVX-VNNI's integer products.

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch, _mm256_abs_epi8, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
    _mm256_cvtph_ps, _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_sign_epi8, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_xor_si256,
};

use super::{
    formats::Format,
    kernel::{self, Work},
    lanes::Lanes,
};

/// The same for each register of a panel. Not a closure: what is not inlined is compiled without the instructions.
macro_rules! both {
    ($i:ident => $value:expr) => {
        [
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
        ]
    };
}

/// `VNNI`: with the products of AVX-VNNI.
#[derive(Clone, Copy)]
struct Avx2<const VNNI: bool>;

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    const PANELS: usize = 1;
    const TOKENS: usize = 2;
    const UNSIGNED: bool = VNNI;
    type Codes = [__m256i; 2];
    type Ints = [__m256i; 2];
    /// 16 bit without VNNI: 8 columns of 2 · 15 · 127 stay below 2^15.
    type NibbleSums = [__m256i; 2];
    type Floats = [__m256; 2];
    type Table = __m256i;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: the caller's promise, here and below.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn zero_codes() -> Self::Codes {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self::Codes {
        unsafe { both!(i => _mm256_loadu_si256(at.add(i * 32).cast())) }
    }

    #[inline(always)]
    unsafe fn low(codes: Self::Codes) -> Self::Codes {
        unsafe { both!(i => _mm256_and_si256(codes[i], _mm256_set1_epi8(15))) }
    }

    #[inline(always)]
    unsafe fn high(codes: Self::Codes) -> Self::Codes {
        unsafe { both!(i => _mm256_and_si256(_mm256_srli_epi16::<4>(codes[i]), _mm256_set1_epi8(15))) }
    }

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> Self::Ints {
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sums: Self::Ints, codes: Self::Codes, x: *const i8) -> Self::Ints {
        unsafe {
            let x = four(x);
            both!(i => {
                if VNNI {
                    _mm256_dpbusd_avx_epi32(sums[i], codes[i], x)
                } else {
                    // |w| · (x with w's sign): at most 2 · 128 · 127, which 16 bit hold.
                    let weights = _mm256_xor_si256(codes[i], _mm256_set1_epi8(-128));
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
                    _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                }
            })
        }
    }

    #[inline(always)]
    unsafe fn begin_nibbles(offset: i32) -> Self::NibbleSums {
        unsafe { Self::splat_int(if VNNI { offset } else { 0 }) }
    }

    #[inline(always)]
    unsafe fn dot_nibbles(sums: Self::NibbleSums, codes: Self::Codes, x: *const i8) -> Self::NibbleSums {
        unsafe {
            let x = four(x);
            both!(i => {
                if VNNI {
                    _mm256_dpbusd_avx_epi32(sums[i], codes[i], x)
                } else {
                    _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(codes[i], x))
                }
            })
        }
    }

    #[inline(always)]
    unsafe fn end_nibbles(sums: Self::NibbleSums, offset: i32) -> Self::Ints {
        if VNNI {
            return sums;
        }
        unsafe {
            both!(i => { let sums = sums[i]; {
                let sums = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
                _mm256_add_epi32(sums, _mm256_set1_epi32(offset))
            } })
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        unsafe { both!(i => _mm256_cvtepi32_ps(ints[i])) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const u8) -> Self::Floats {
        unsafe { both!(i => _mm256_cvtph_ps(_mm_loadu_si128(at.add(i * 16).cast()))) }
    }

    #[inline(always)]
    unsafe fn load_u8(at: *const u8) -> Self::Floats {
        unsafe { both!(i => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.add(i * 8).cast())))) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        unsafe { both!(i => _mm256_mul_ps(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        unsafe { both!(i => _mm256_fmadd_ps(a[i], b[i], c[i])) }
    }

    #[inline(always)]
    unsafe fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        unsafe { both!(i => _mm256_fnmadd_ps(a[i], b[i], c[i])) }
    }

    #[inline(always)]
    unsafe fn store(values: Self::Floats, at: *mut f32) {
        unsafe {
            _mm256_storeu_ps(at, values[0]);
            _mm256_storeu_ps(at.add(8), values[1]);
        }
    }

    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> Self::Table {
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn look_up(table: Self::Table, codes: Self::Codes) -> Self::Codes {
        unsafe { both!(i => _mm256_shuffle_epi8(table, codes[i])) }
    }
}

/// 4 bytes for every row.
#[inline(always)]
unsafe fn four(x: *const i8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// # Safety
/// As [`kernel::multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<F: Format>(work: Work) {
    // SAFETY: the caller's promise, here and below.
    unsafe { kernel::multiply::<Avx2<false>, F>(work) }
}

/// # Safety
/// As [`kernel::multiply`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn multiply_vnni<F: Format>(work: Work) {
    unsafe { kernel::multiply::<Avx2<true>, F>(work) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn call(task: impl FnOnce()) {
    task();
}
