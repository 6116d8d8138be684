//! Pairs of bf16 with AVX-512 BF16: one register of 16 pairs, or of 16 sums.

use std::{
    arch::x86_64::{
        __m256bh, __m256i, __m512, __m512bh, __m512i, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm256_storeu_si256,
        _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtneps_pbh,
        _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutexvar_epi16, _mm512_set1_epi8,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_storeu_ps,
        _mm512_unpackhi_epi8, _mm512_unpacklo_epi8,
    },
    mem::transmute,
};

use half::bf16;

use super::{
    Exception, Factors, LANES, Lanes16, Product, Stored,
    pairs::{PAIRS, Pairs16},
};

#[derive(Clone, Copy)]
pub(in crate::model::cpu) struct Avx512Pairs(__m512);

impl Lanes16 for Avx512Pairs {
    /// Of 32 registers; the rest is for weights and one of x.
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
        Self(unsafe { _mm512_dpbf16_ps(addend.0, pairs(self.0), pairs(_mm512_set1_ps(factor))) })
    }

    /// Into the second-level cache, where more can be on its way at a time: on Zen 4 codes come a quarter quicker so.
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

impl Pairs16 for Avx512Pairs {
    #[inline(always)]
    unsafe fn load_pairs(at: *const bf16) -> Self {
        /// Row after row, the number of each k.
        const PLACES: [u16; 32] = {
            let mut places = [0; 32];
            let mut i = 0;
            while i < 32 {
                places[i] = (i % 2 * LANES + i / 2) as u16;
                i += 1;
            }
            places
        };
        // SAFETY: the caller's promise, here and below.
        Self(unsafe {
            let places = _mm512_loadu_si512(PLACES.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, _mm512_loadu_si512(at.cast())))
        })
    }

    #[inline(always)]
    unsafe fn load_code_pairs<const SECOND: bool>(low: *const u8, codes: *const u8, table: *const u8) -> [Self; PAIRS] {
        unsafe {
            let codes = _mm512_loadu_si512(codes.cast());
            let codes = if SECOND { _mm512_srli_epi16::<4>(codes) } else { codes };
            let codes = _mm512_and_si512(codes, _mm512_set1_epi8(0x0f));
            let high = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.cast())), codes);
            let low = _mm512_loadu_si512(low.cast());
            [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
                .map(|both| Self(_mm512_castsi512_ps(both)))
        }
    }
}

/// The same bits.
#[inline(always)]
unsafe fn pairs(words: __m512) -> __m512bh {
    // SAFETY: both are 512 bits.
    unsafe { transmute::<__m512i, __m512bh>(_mm512_castps_si512(words)) }
}

/// # Safety
/// The CPU has the instructions of this file, and as [`super::few::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::model::cpu) unsafe fn multiply<S: Stored<Avx512Pairs>>(product: Product<'_, S>, stride: usize) {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        if product.is_streamed() {
            stream(product, stride);
        } else {
            tiles(product, stride);
        }
    }
}

/// # Safety
/// The CPU has the instructions of this file, and as [`super::few::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tiles<S: Stored<Avx512Pairs>>(product: Product<'_, S>, stride: usize) {
    unsafe { super::few::multiply::<Avx512Pairs, S>(product, stride) }
}

/// # Safety
/// The CPU has the instructions of this file, and as [`super::few::stream`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn stream<S: Stored<Avx512Pairs>>(product: Product<'_, S>, stride: usize) {
    unsafe { super::few::stream::<Avx512Pairs, S>(product, stride) }
}

/// # Safety
/// The CPU has the instructions of this file, and as [`super::many::multiply_many`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::model::cpu) unsafe fn multiply_many<S: Stored<Avx512Pairs>>(product: Product<'_, S>, widened: *mut f32) {
    unsafe { super::many::multiply_many::<Avx512Pairs, S>(product, widened) }
}

/// # Safety
/// The CPU has the instructions of this file, and as [`super::coded::add_exceptions`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::model::cpu) unsafe fn add_exceptions(
    exceptions: &[Exception],
    x: Factors,
    out: (*mut f32, usize),
    tokens: usize,
) {
    unsafe { super::coded::add_exceptions::<Avx512Pairs, true>(exceptions, x, out, tokens) }
}

/// # Safety
/// The CPU has the instructions of this file, and as [`super::coded::add_exceptions_many`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::model::cpu) unsafe fn add_exceptions_many(
    exceptions: &[Exception],
    x: (*const f32, usize),
    out: (*mut f32, usize),
    tokens: usize,
) {
    unsafe { super::coded::add_exceptions_many::<Avx512Pairs, true>(exceptions, x, out, tokens) }
}

/// Two numbers of `x` a word of `out`.
///
/// # Safety
/// The CPU has the instructions of this file, and `out` half as many words as `x` has numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::model::cpu) unsafe fn round(x: &[f32], out: &mut [f32]) {
    let (whole, rest) = x.as_chunks::<LANES>();
    let (out_whole, out_rest) = out.as_chunks_mut::<{ LANES / 2 }>();
    for (x, out) in whole.iter().zip(out_whole) {
        // SAFETY: these are 16 numbers and as many halves of words.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), transmute::<__m256bh, __m256i>(rounded));
        }
    }
    let (rest, _) = rest.as_chunks::<2>();
    for ([first, second], out) in rest.iter().zip(out_rest) {
        let [first, second] = [first, second].map(|x| u32::from(bf16::from_f32(*x).to_bits()));
        *out = f32::from_bits(second << 16 | first);
    }
}
