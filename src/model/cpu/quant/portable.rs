//! The 16 lanes as arrays, for every CPU.

use std::array::from_fn;

use half::f16;

use super::{
    formats::Format,
    kernel::{self, Work},
    lanes::{LANES, Lanes},
};

#[derive(Clone, Copy)]
struct Portable;

impl Lanes for Portable {
    const PANELS: usize = 1;
    const TOKENS: usize = 2;
    const UNSIGNED: bool = false;
    type Codes = [u8; 4 * LANES];
    type Ints = [i32; LANES];
    type NibbleSums = [i32; LANES];
    type Floats = [f32; LANES];
    type Table = [u8; 16];

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}

    #[inline(always)]
    unsafe fn zero_codes() -> Self::Codes {
        [0; 4 * LANES]
    }

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise, here and below.
        unsafe { at.cast::<Self::Codes>().read() }
    }

    #[inline(always)]
    unsafe fn low(codes: Self::Codes) -> Self::Codes {
        codes.map(|code| code & 15)
    }

    #[inline(always)]
    unsafe fn high(codes: Self::Codes) -> Self::Codes {
        codes.map(|code| code >> 4)
    }

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> Self::Ints {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn dot_bytes(sums: Self::Ints, codes: Self::Codes, x: *const i8) -> Self::Ints {
        unsafe { Self::dot_nibbles(sums, codes.map(|code| code ^ 0x80), x) }
    }

    #[inline(always)]
    unsafe fn begin_nibbles(offset: i32) -> Self::NibbleSums {
        [offset; LANES]
    }

    #[inline(always)]
    unsafe fn dot_nibbles(sums: Self::NibbleSums, codes: Self::Codes, x: *const i8) -> Self::NibbleSums {
        let x = unsafe { x.cast::<[i8; 4]>().read() };
        from_fn(|row| {
            let products = (0..4).map(|i| i32::from(codes[row * 4 + i].cast_signed()) * i32::from(x[i]));
            sums[row] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn end_nibbles(sums: Self::NibbleSums, _offset: i32) -> Self::Ints {
        sums
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const u8) -> Self::Floats {
        unsafe { at.cast::<[[u8; 2]; LANES]>().read() }.map(|bytes| f16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    unsafe fn load_u8(at: *const u8) -> Self::Floats {
        unsafe { at.cast::<[u8; LANES]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        from_fn(|i| fused(a[i], b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        from_fn(|i| fused(-a[i], b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn store(values: Self::Floats, at: *mut f32) {
        unsafe { at.cast::<Self::Floats>().write(values) }
    }

    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> Self::Table {
        *bytes
    }

    #[inline(always)]
    unsafe fn look_up(table: Self::Table, codes: Self::Codes) -> Self::Codes {
        codes.map(|code| table[usize::from(code & 15)])
    }
}

/// `a · b + c`, rounded once where that is an instruction and not a call.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// # Safety
/// As [`kernel::multiply`].
pub(super) unsafe fn multiply<F: Format>(work: Work) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Portable, F>(work) }
}
