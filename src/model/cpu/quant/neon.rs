//! Registers of NEON, four to a panel, with and without the dot products of ARMv8.2.

use std::arch::{
    aarch64::{
        float32x4_t, int8x16_t, int32x4_t, uint8x16_t, uint16x4_t, vaddq_s32, vandq_u8, vcvtq_f32_s32, vcvtq_f32_u32,
        vdupq_n_f32, vdupq_n_s32, vdupq_n_u8, veorq_u8, vfmaq_f32, vfmsq_f32, vget_high_s8, vget_low_s8, vget_low_u16,
        vld1_u8, vld1_u16, vld1q_u8, vmovl_u8, vmovl_u16, vmull_s8, vmulq_f32, vpaddlq_s16, vpaddq_s32, vqtbl1q_u8,
        vreinterpretq_s8_s32, vreinterpretq_s8_u8, vshrq_n_u8, vst1q_f32,
    },
    asm,
};

use super::{
    formats::Format,
    kernel::{self, Work},
    lanes::Lanes,
};

/// The same for each register of a panel. Not a closure: what is not inlined is compiled without the instructions.
macro_rules! each {
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
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
        ]
    };
}

/// `DOT`: with `sdot`.
#[derive(Clone, Copy)]
struct Neon<const DOT: bool>;

impl<const DOT: bool> Lanes for Neon<DOT> {
    const PANELS: usize = 1;
    const TOKENS: usize = 2;
    const UNSIGNED: bool = false;
    type Codes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type NibbleSums = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];
    type Table = uint8x16_t;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint; the address need not exist.
        unsafe {
            asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    unsafe fn zero_codes() -> Self::Codes {
        // SAFETY: the caller's promise, here and below.
        unsafe { [vdupq_n_u8(0); 4] }
    }

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self::Codes {
        unsafe { each!(i => vld1q_u8(at.add(i * 16))) }
    }

    #[inline(always)]
    unsafe fn low(codes: Self::Codes) -> Self::Codes {
        unsafe { each!(i => vandq_u8(codes[i], vdupq_n_u8(15))) }
    }

    #[inline(always)]
    unsafe fn high(codes: Self::Codes) -> Self::Codes {
        unsafe { each!(i => vshrq_n_u8::<4>(codes[i])) }
    }

    #[inline(always)]
    unsafe fn splat_int(value: i32) -> Self::Ints {
        unsafe { [vdupq_n_s32(value); 4] }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sums: Self::Ints, codes: Self::Codes, x: *const i8) -> Self::Ints {
        unsafe {
            let signed = each!(i => veorq_u8(codes[i], vdupq_n_u8(0x80)));
            Self::dot_nibbles(sums, signed, x)
        }
    }

    #[inline(always)]
    unsafe fn begin_nibbles(offset: i32) -> Self::NibbleSums {
        unsafe { Self::splat_int(offset) }
    }

    #[inline(always)]
    unsafe fn dot_nibbles(sums: Self::NibbleSums, codes: Self::Codes, x: *const i8) -> Self::NibbleSums {
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            each!(i => {
                let codes = vreinterpretq_s8_u8(codes[i]);
                if DOT {
                    dot(sums[i], codes, x)
                } else {
                    vaddq_s32(sums[i], dot_of_pairs(codes, x))
                }
            })
        }
    }

    #[inline(always)]
    unsafe fn end_nibbles(sums: Self::NibbleSums, _offset: i32) -> Self::Ints {
        sums
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        unsafe { each!(i => vcvtq_f32_s32(ints[i])) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const u8) -> Self::Floats {
        unsafe { each!(i => widen(vld1_u16(at.add(i * 8).cast()))) }
    }

    #[inline(always)]
    unsafe fn load_u8(at: *const u8) -> Self::Floats {
        unsafe {
            each!(i => {
                let four = at.add(i * 4).cast::<u32>().read_unaligned();
                let wide = vmovl_u8(vld1_u8(u64::from(four).to_ne_bytes().as_ptr()));
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)))
            })
        }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        unsafe { each!(i => vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        unsafe { each!(i => vfmaq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        unsafe { each!(i => vfmsq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn store(values: Self::Floats, at: *mut f32) {
        unsafe {
            for (i, values) in values.into_iter().enumerate() {
                vst1q_f32(at.add(i * 4), values);
            }
        }
    }

    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> Self::Table {
        unsafe { vld1q_u8(bytes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn look_up(table: Self::Table, codes: Self::Codes) -> Self::Codes {
        unsafe { each!(i => vqtbl1q_u8(table, codes[i])) }
    }
}

/// The intrinsic for it is not stable in Rust.
#[inline(always)]
unsafe fn dot(sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: the instruction only reads and writes the three registers; the caller knows that the CPU has it.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {sums:v}.4s, {codes:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums, codes = in(vreg) codes, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

#[inline(always)]
unsafe fn dot_of_pairs(codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: every aarch64 CPU has these.
    unsafe {
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(x)));
        let high = vpaddlq_s16(vmull_s8(vget_high_s8(codes), vget_high_s8(x)));
        vpaddq_s32(low, high)
    }
}

/// `FCVTL` belongs to the base architecture; the intrinsic for it asks for a type that is not stable in Rust.
#[inline(always)]
unsafe fn widen(bits: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: the instruction only reads and writes the two registers.
    unsafe {
        asm!("fcvtl {wide:v}.4s, {bits:v}.4h", wide = lateout(vreg) wide, bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// # Safety
/// As [`kernel::multiply`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply<F: Format>(work: Work) {
    // SAFETY: the caller's promise, here and below.
    unsafe { kernel::multiply::<Neon<false>, F>(work) }
}

/// # Safety
/// As [`kernel::multiply`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn multiply_dot<F: Format>(work: Work) {
    unsafe { kernel::multiply::<Neon<true>, F>(work) }
}
