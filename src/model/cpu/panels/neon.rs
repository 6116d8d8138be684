//! Panels with NEON, which every aarch64 CPU has: 16 values are four registers.

use std::arch::{
    aarch64::{
        float32x4_t, int8x8_t, uint16x4_t, vandq_u8, vandq_u32, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_u8, vdupq_n_u32,
        vfmaq_n_f32, vget_high_s16, vget_low_s16, vld1_s8, vld1_u16, vld1q_f32, vld1q_u8, vmovl_s8, vmovl_s16,
        vqtbl1q_u8, vreinterpretq_f32_u32, vreinterpretq_u32_u8, vshll_n_u16, vshlq_n_u32, vshrq_n_u8, vst1q_f32,
        vzip1q_u8, vzip2q_u8,
    },
    asm,
};

use half::{bf16, f16};

use super::{HALF, Lanes16, Numbers16};

#[derive(Clone, Copy)]
pub(in crate::model::cpu) struct Neon([float32x4_t; 4]);

impl Neon {
    #[inline(always)]
    unsafe fn eight_i8(at: *const i8) -> [float32x4_t; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes: int8x8_t = vld1_s8(at);
            let wide = vmovl_s8(bytes);
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))),
            ]
        }
    }

    /// `FCVTL` belongs to the base architecture; the intrinsic for it asks for a type that is not stable in Rust.
    #[inline(always)]
    unsafe fn four_f16(at: *const f16) -> float32x4_t {
        // SAFETY: the caller's promise; the instruction only reads and writes the two registers.
        unsafe {
            let bits: uint16x4_t = vld1_u16(at.cast());
            let wide: float32x4_t;
            asm!("fcvtl {wide:v}.4s, {bits:v}.4h", wide = lateout(vreg) wide, bits = in(vreg) bits,
                options(pure, nomem, nostack, preserves_flags));
            wide
        }
    }
}

impl Lanes16 for Neon {
    /// 24 of 32 registers; four for weights and two for x are left.
    const SUMS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise, here and below.
        Self([unsafe { vdupq_n_f32(0.0) }; 4])
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        unsafe {
            Self([
                vld1q_f32(at),
                vld1q_f32(at.add(4)),
                vld1q_f32(at.add(8)),
                vld1q_f32(at.add(12)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe {
            vst1q_f32(at, self.0[0]);
            vst1q_f32(at.add(4), self.0[1]);
            vst1q_f32(at.add(8), self.0[2]);
            vst1q_f32(at.add(12), self.0[3]);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: f32, addend: Self) -> Self {
        unsafe {
            Self([
                vfmaq_n_f32(addend.0[0], self.0[0], factor),
                vfmaq_n_f32(addend.0[1], self.0[1], factor),
                vfmaq_n_f32(addend.0[2], self.0[2], factor),
                vfmaq_n_f32(addend.0[3], self.0[3], factor),
            ])
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint, which changes nothing and never faults.
        unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, readonly, preserves_flags)) }
    }
}

impl Numbers16 for Neon {
    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe {
            let at: *const u16 = at.cast();
            Self([
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at.add(4)))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at.add(8)))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at.add(12)))),
            ])
        }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        unsafe {
            Self([
                Self::four_f16(at),
                Self::four_f16(at.add(4)),
                Self::four_f16(at.add(8)),
                Self::four_f16(at.add(12)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self {
        unsafe {
            let [a, b] = Self::eight_i8(at);
            let [c, d] = Self::eight_i8(at.add(8));
            Self([a, b, c, d])
        }
    }

    #[inline(always)]
    unsafe fn load_codes<const SECOND: bool>(low: *const u8, codes: *const u8, table: *const u8) -> [Self; HALF] {
        unsafe {
            let (table, odd) = (vld1q_u8(table), vdupq_n_u32(!0xffff));
            let mut lanes = [[vdupq_n_f32(0.0); 4]; HALF];
            for q in 0..4 {
                let codes = vld1q_u8(codes.add(16 * q));
                let codes = if SECOND {
                    vshrq_n_u8::<4>(codes)
                } else {
                    vandq_u8(codes, vdupq_n_u8(0x0f))
                };
                let (low, high) = (vld1q_u8(low.add(16 * q)), vqtbl1q_u8(table, codes));
                for (i, both) in [vzip1q_u8(low, high), vzip2q_u8(low, high)].into_iter().enumerate() {
                    let both = vreinterpretq_u32_u8(both);
                    lanes[2 * i][q] = vreinterpretq_f32_u32(vshlq_n_u32::<16>(both));
                    lanes[2 * i + 1][q] = vreinterpretq_f32_u32(vandq_u32(both, odd));
                }
            }
            lanes.map(Self)
        }
    }
}

super::entries!(Neon, #[target_feature(enable = "neon")]);
