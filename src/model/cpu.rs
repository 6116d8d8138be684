//! The kernels: the only SIMD in the tree. What they compute is written once (`kernel.rs`) for any kind of vector
//! register (`lanes.rs`); each instruction set is a small file; this file chooses at run time. It starts no threads.
#![expect(
    unsafe_code,
    reason = "vector loads take raw pointers, and calling code for another CPU is a promise"
)]

mod disjoint;
mod elementwise;
mod kernel;
mod lanes;
mod matmul;
mod panels;
mod portable;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use disjoint::Disjoint;
pub(crate) use elementwise::{exp, rms_norm, silu_times};
use lanes::Element;
pub(crate) use matmul::{Operand, matmul};
pub(crate) use panels::{LANES, Rows, RowsMut};
pub(crate) use softmax::{KEY_BLOCK, Slope, Sums, View};

use super::number::Slice;

/// An instruction set the kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What every CPU of the architecture has.
    Portable,
    /// AVX2, FMA and F16C: 8 numbers at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512F: 16 numbers at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 4 numbers at a time.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// A level this CPU was seen to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    level: Level,
}

impl Kernels {
    /// The best level of this CPU.
    pub(crate) fn detect() -> Self {
        let best = Self::available().pop();
        best.unwrap_or(Self { level: Level::Portable })
    }

    /// The instruction set in use, for people.
    pub(crate) fn name(self) -> &'static str {
        match self.level {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "NEON",
        }
    }

    /// Whether there are faster kernels than the portable ones for this CPU.
    pub(crate) fn are_fast(self) -> bool {
        self.level != Level::Portable
    }

    /// Every level of this CPU, the best last.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Level::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                levels.push(Level::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Level::Neon);
        levels.into_iter().map(|level| Self { level }).collect()
    }

    /// Rows of weights times a few vectors: `out[r][m] = Σ_c weights[r][c] · x[m][c]`, for as many rows as `out` has.
    /// `weights` is `[rows, cols]`, `x` is `[m, cols]`, `out` is `[rows, m]`. Each weight is read from memory once.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub(crate) fn dot_rows(self, weights: Slice<'_>, cols: usize, x: &[f32], out: &mut [f32]) {
        match weights {
            Slice::F32(weights) => self.dot_rows_of(weights, cols, x, out),
            Slice::Bf16(weights) => self.dot_rows_of(weights, cols, x, out),
            Slice::F16(weights) => self.dot_rows_of(weights, cols, x, out),
            Slice::I8(_) => unreachable!("weights are not i8"),
        }
    }

    fn dot_rows_of<E: Element>(self, weights: &[E], cols: usize, x: &[f32], out: &mut [f32]) {
        if out.is_empty() || x.is_empty() {
            return out.fill(0.0);
        }
        let tokens = x.len() / cols;
        assert_eq!(x.len(), tokens * cols, "x is not whole vectors");
        assert_eq!(
            weights.len() * tokens,
            out.len() * cols,
            "weights, x and out do not fit together"
        );
        assert_eq!(out.len() % tokens, 0, "out is not whole rows");
        match self.level {
            Level::Portable => portable::dot_rows(weights, cols, x, out),
            // SAFETY: `available` saw the features; the lengths were checked above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::dot_rows_avx2(weights, cols, x, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { x86::dot_rows_avx512(weights, cols, x, out) },
        }
    }

    /// Weighted sums of rows: `out[m][c] += Σ_t share[t][m] · rows[t][c]`. `rows` is `[t, cols]`, `share` is `[t, m]`,
    /// `out` is `[m, cols]`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub(crate) fn add_weighted(self, rows: Slice<'_>, cols: usize, share: &[f32], out: &mut [f32]) {
        match rows {
            Slice::F32(rows) => self.add_weighted_of(rows, cols, share, out),
            Slice::Bf16(rows) => self.add_weighted_of(rows, cols, share, out),
            Slice::F16(rows) => self.add_weighted_of(rows, cols, share, out),
            Slice::I8(_) => unreachable!("values are not i8"),
        }
    }

    fn add_weighted_of<E: Element>(self, rows: &[E], cols: usize, share: &[f32], out: &mut [f32]) {
        if out.is_empty() || share.is_empty() {
            return;
        }
        let sums = out.len() / cols;
        assert_eq!(out.len(), sums * cols, "out is not whole vectors");
        assert_eq!(
            rows.len() * sums,
            share.len() * cols,
            "rows, shares and out do not fit together"
        );
        assert_eq!(share.len() % sums, 0, "shares are not whole rows");
        match self.level {
            Level::Portable => portable::add_weighted(rows, cols, share, out),
            // SAFETY: `available` saw the features; the lengths were checked above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::add_weighted_avx2(rows, cols, share, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { x86::add_weighted_avx512(rows, cols, share, out) },
        }
    }
}

#[cfg(test)]
mod tests;
