//! The softmax of attention, one block of keys at a time: scores become shares, and what was summed before is made
//! comparable. A key that a query does not see counts for nothing, exactly; so what else is in the block does not show.

use super::{Kernels, Level};

/// Keys of a block. Blocks start at multiples of it, whoever asks.
pub(crate) const KEY_BLOCK: usize = 64;

/// Partial sums and maxima of a row. They are joined in one order.
const LANES: usize = 16;

/// What queries see of a block of keys, and how scores are changed before the softmax.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// Position of the block's first key.
    pub(crate) first_key: usize,
    /// Position of the first query; `group` queries have the same one.
    pub(crate) position: usize,
    pub(crate) group: usize,
    /// Keys that a query sees, its own included.
    pub(crate) window: usize,
    /// What the scores and the values of each key are to be multiplied with; empty for nothing.
    pub(crate) key_scales: &'a [f32],
    pub(crate) value_scales: &'a [f32],
    /// `cap · tanh(score / cap)` in place of scores.
    pub(crate) softcap: Option<f32>,
    /// What is added to scores, per query of a group.
    pub(crate) slopes: &'a [Slope],
}

/// A bias that grows with the position of the key (ALiBi).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Slope {
    pub(crate) per_token: f32,
    /// What the bias is multiplied with, after it was rounded.
    pub(crate) scale: f32,
    /// Whether the position and the bias are rounded to bf16, as Falcon's are.
    pub(crate) rounded: bool,
}

/// Weighted sums over the keys so far, relative to the largest score so far.
#[derive(Debug)]
pub(crate) struct Sums<'a> {
    /// `[queries]`
    pub(crate) max: &'a mut [f32],
    /// `[queries]`
    pub(crate) total: &'a mut [f32],
    /// `[queries, width]`
    pub(crate) out: &'a mut [f32],
}

impl View<'_> {
    /// Which keys of the block query `row` sees.
    fn keys(&self, row: usize) -> (usize, usize) {
        let position = self.position + row / self.group;
        let end = (position + 1).saturating_sub(self.first_key).min(KEY_BLOCK);
        let start = (position + 1)
            .saturating_sub(self.window)
            .saturating_sub(self.first_key)
            .min(KEY_BLOCK);
        (start, end)
    }
}

impl Kernels {
    /// Replaces `scores`, `[queries][KEY_BLOCK]`, by the exponentials that values are to be multiplied with, zero where
    /// a key is not seen, and adds them to `sums`, whose weighted sums are rescaled.
    pub(crate) fn softmax_block(self, view: &View<'_>, scores: &mut [f32], sums: Sums<'_>) {
        match self.level {
            // SAFETY: `available` saw the features.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { softmax_avx2(view, scores, sums) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => unsafe { softmax_avx512(view, scores, sums) },
            #[cfg(target_arch = "aarch64")]
            Level::Neon => softmax::<false>(view, scores, sums),
            Level::Portable => softmax::<false>(view, scores, sums),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn softmax_avx2(view: &View<'_>, scores: &mut [f32], sums: Sums<'_>) {
    softmax::<true>(view, scores, sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn softmax_avx512(view: &View<'_>, scores: &mut [f32], sums: Sums<'_>) {
    softmax::<true>(view, scores, sums);
}

#[inline(always)]
fn softmax<const FMA: bool>(view: &View<'_>, scores: &mut [f32], sums: Sums<'_>) {
    let (rows, _) = scores.as_chunks_mut::<KEY_BLOCK>();
    let width = sums.out.len() / rows.len().max(1);
    for (row_idx, scores) in rows.iter_mut().enumerate() {
        let (start, end) = view.keys(row_idx);
        if start >= end {
            scores.fill(0.0);
            continue;
        }
        bias::<FMA>(view, row_idx, scores);
        if end - start < KEY_BLOCK {
            replace_unseen(scores, (start, end), f32::NEG_INFINITY);
        }
        let old = sums.max[row_idx];
        let max = largest(scores, old);
        sums.max[row_idx] = max;
        // If all scores are minus infinity there is nothing to compare with.
        let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let shrink = exp::<FMA>(old - base);
        let sum = exponentials::<FMA>(scores, base);
        sums.total[row_idx] = sums.total[row_idx] * shrink + sum;
        if shrink != 1.0 {
            for out in &mut sums.out[row_idx * width..(row_idx + 1) * width] {
                *out *= shrink;
            }
        }
        if !view.value_scales.is_empty() {
            multiply(scores, view.value_scales);
            if end - start < KEY_BLOCK {
                // The scale of a key that is not seen may be anything.
                replace_unseen(scores, (start, end), 0.0);
            }
        }
    }
}

#[inline(always)]
fn bias<const FMA: bool>(view: &View<'_>, row: usize, scores: &mut [f32; KEY_BLOCK]) {
    if !view.key_scales.is_empty() {
        multiply(scores, view.key_scales);
    }
    if let Some(cap) = view.softcap {
        for score in scores.iter_mut() {
            *score = cap * tanh::<FMA>(*score / cap);
        }
    }
    if let Some(slope) = view.slopes.get(row % view.group) {
        for (i, score) in scores.iter_mut().enumerate() {
            let position = (view.first_key + i) as f32;
            let bias = if slope.rounded {
                round_to_bf16(slope.per_token * round_to_bf16(position))
            } else {
                slope.per_token * position
            };
            *score += bias * slope.scale;
        }
    }
}

#[inline(always)]
fn multiply(scores: &mut [f32; KEY_BLOCK], scales: &[f32]) {
    for (score, scale) in scores.iter_mut().zip(scales) {
        *score *= scale;
    }
}

#[inline(always)]
fn replace_unseen(scores: &mut [f32; KEY_BLOCK], (start, end): (usize, usize), value: f32) {
    for (i, score) in scores.iter_mut().enumerate() {
        *score = if i >= start && i < end { *score } else { value };
    }
}

/// The largest of `scores` and `first`; what is no number is not compared.
#[inline(always)]
fn largest(scores: &[f32; KEY_BLOCK], first: f32) -> f32 {
    let mut lanes = [first; LANES];
    for chunk in scores.chunks_exact(LANES) {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *lane = if *score > *lane { *score } else { *lane };
        }
    }
    lanes
        .into_iter()
        .fold(first, |max, lane| if lane > max { lane } else { max })
}

/// Replaces `scores` by `e^(score - base)`; their sum.
#[inline(always)]
fn exponentials<const FMA: bool>(scores: &mut [f32; KEY_BLOCK], base: f32) -> f32 {
    for score in scores.iter_mut() {
        *score = exp::<FMA>(*score - base);
    }
    let mut lanes = [0.0_f32; LANES];
    for chunk in scores.chunks_exact(LANES) {
        for (lane, share) in lanes.iter_mut().zip(chunk) {
            *lane += share;
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// e to the `x` for `x` of at most 0; 0 below -87.3, NaN for NaN. Cheaper than the general one.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.3 { -87.3 } else { x };
    let rounded = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, clamped));
    let tail = fma::<FMA>(1.987_569_1e-4, r, 1.398_2e-3);
    let tail = fma::<FMA>(tail, r, 8.333_452e-3);
    let tail = fma::<FMA>(tail, r, 4.166_579_6e-2);
    let tail = fma::<FMA>(tail, r, 1.666_666_5e-1);
    let tail = fma::<FMA>(tail, r, 0.5);
    let power = fma::<FMA>(tail * r, r, r + 1.0);
    let scale = f32::from_bits(((rounded.to_bits() as i32) << 23).wrapping_add(0x3f80_0000) as u32);
    if x < -87.3 { 0.0 } else { power * scale }
}

/// `1 - 2 / (e^2x + 1)`, by the exponential of what is not positive.
#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> f32 {
    let small = exp::<FMA>(-2.0 * x.abs());
    ((1.0 - small) / (1.0 + small)).copysign(x)
}

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}
