//! Functions of single numbers and single rows, written so that loops over them vectorise by themselves.

/// e to the `x`, within 2 units in the last place; 0 below -87.3, infinite above 88.7, NaN for NaN. Unlike the
/// standard library's it has no branch and no call.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // x = n · ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts so that r keeps its bits. Adding 1.5 · 2^23 rounds.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-88.0, 88.8);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let tail = 1.987_569_1e-4;
    let tail = tail * r + 1.398_2e-3;
    let tail = tail * r + 8.333_452e-3;
    let tail = tail * r + 4.166_579_6e-2;
    let tail = tail * r + 1.666_666_5e-1;
    let tail = tail * r + 0.5;
    let power = tail * r * r + r + 1.0;
    // 2^n in two halves, because n = 128 has no exponent of its own.
    let n = (rounded.to_bits() as i32) - (ROUND.to_bits() as i32);
    let half = n >> 1;
    let scale = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let result = power * scale(half) * scale(n - half);
    if x < -87.3 { 0.0 } else { result }
}

/// `gate := silu(gate) · up`, elementwise; `silu(x) = x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu_times(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// The sum of `f` of all numbers, in 16 partial sums: quick, and more exact than one.
#[inline(always)]
pub(crate) fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}

/// `x += y`
#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
