//! Into q4_K: for each 32 weights the scale and minimum that lose least, and these in 6 bit of their largest among 8.
//! The search is llama.cpp's (`make_qkx2_quants`), done for the 16 rows of a panel side by side.

use half::f16;

use super::encode::{Column, inverse, put_nibble, put_scale};
use crate::model::cpu::quant::{Q4K, round};

/// Weights of a sub-block.
const SUB: usize = 32;

/// How many largest codes are tried, from 14 to 16 by tenths; codes above 15 become 15.
const TRIALS: u8 = 21;

/// What a sub-block is about: `weight ≈ scale · code - minimum`, both at least 0.
#[derive(Clone, Copy)]
struct Fit {
    scale: Column,
    minimum: Column,
}

/// Quantises 256 columns of a panel.
#[inline(always)]
pub(super) fn encode(columns: &[Column], out: &mut [u8]) {
    let fits: Vec<Fit> = columns.chunks_exact(SUB).map(fit).collect();
    out[Q4K::CODES..].fill(0);
    for row in 0..16 {
        let largest = |of: fn(&Fit) -> &Column| fits.iter().fold(0.0, |max: f32, fit| max.max(of(fit)[row]));
        let (scale, minimum) = (largest(|fit| &fit.scale), largest(|fit| &fit.minimum));
        let (d, d_min) = (f16::from_f32(scale / 63.0), f16::from_f32(minimum / 63.0));
        put_scale(out, 0, row, d);
        put_scale(out, 1, row, d_min);
        let (per_scale, per_minimum) = (63.0 * inverse(scale), 63.0 * inverse(minimum));
        for (sub, fit) in fits.iter().enumerate() {
            let scale = six_bits(fit.scale[row] * per_scale);
            let minimum = six_bits(fit.minimum[row] * per_minimum);
            out[Q4K::SCALES + sub * 16 + row] = scale;
            out[Q4K::MINIMA + sub * 16 + row] = minimum;
            // Codes anew, for what scale and minimum have become.
            let per_code = inverse(d.to_f32() * f32::from(scale));
            let minimum = d_min.to_f32() * f32::from(minimum);
            for k in 0..SUB {
                let k = sub * SUB + k;
                put_nibble(
                    out,
                    Q4K::CODES,
                    row,
                    k,
                    code((columns[k][row] + minimum) * per_code) as u8,
                );
            }
        }
    }
}

#[inline(always)]
fn six_bits(value: f32) -> u8 {
    round(value).clamp(0, 63) as u8
}

#[inline(always)]
#[expect(clippy::manual_clamp, reason = "`clamp` keeps NaN, which must become a code, too")]
fn code(value: f32) -> f32 {
    // Clamped before it is rounded, so that no value is too large to round.
    round(value.max(0.0).min(15.0)) as f32
}

/// Least squares for the codes of each trial; kept is what leaves the least error, weighed by magnitude.
#[inline(always)]
fn fit(columns: &[Column]) -> Fit {
    let lowest = fold(columns, 0.0, f32::min);
    let highest = fold(columns, f32::MIN, f32::max);
    let weights = weights(columns);
    let mut best = Fit {
        scale: std::array::from_fn(|row| ((highest[row] - lowest[row]) / 15.0).max(0.0)),
        minimum: lowest.map(|lowest| -lowest),
    };
    let range: Column = std::array::from_fn(|row| inverse((highest[row] - lowest[row]).max(0.0)));
    let mut best_error = error(columns, &weights, range.map(|range| 15.0 * range), lowest, best);
    for trial in 0..TRIALS {
        let per_code = range.map(|range| (14.0 + 0.1 * f32::from(trial)) * range);
        let fit = least_squares(columns, &weights, per_code, lowest);
        let found = error(columns, &weights, per_code, lowest, fit);
        for row in 0..16 {
            let better = found[row] < best_error[row];
            best_error[row] = if better { found[row] } else { best_error[row] };
            best.scale[row] = if better { fit.scale[row] } else { best.scale[row] };
            best.minimum[row] = if better { fit.minimum[row] } else { best.minimum[row] };
        }
    }
    best
}

/// Large weights matter more: magnitude over the root of the mean square.
#[inline(always)]
fn weights(columns: &[Column]) -> [Column; SUB] {
    let squares = columns.iter().fold([0.0; 16], |mut sums: Column, column| {
        sums.iter_mut().zip(column).for_each(|(sum, x)| *sum += x * x);
        sums
    });
    let mean = squares.map(|sum| (sum / SUB as f32).sqrt());
    std::array::from_fn(|k| std::array::from_fn(|row| mean[row] + columns[k][row].abs()))
}

#[inline(always)]
fn least_squares(columns: &[Column], weights: &[Column; SUB], per_code: Column, lowest: Column) -> Fit {
    let [mut w, mut x, mut l, mut ll, mut xl] = [[0.0; 16]; 5];
    for (column, weight) in columns.iter().zip(weights) {
        for row in 0..16 {
            let code = code(per_code[row] * (column[row] - lowest[row]));
            let weighed = weight[row] * code;
            w[row] += weight[row];
            x[row] += weight[row] * column[row];
            l[row] += weighed;
            ll[row] += weighed * code;
            xl[row] += weighed * column[row];
        }
    }
    let mut fit = Fit {
        scale: [0.0; 16],
        minimum: [0.0; 16],
    };
    for row in 0..16 {
        let determinant = w[row] * ll[row] - l[row] * l[row];
        let scale = (w[row] * xl[row] - x[row] * l[row]) / determinant;
        let minimum = (ll[row] * x[row] - l[row] * xl[row]) / determinant;
        // Minima are stored without a sign.
        let above = minimum > 0.0;
        let scale = if above { xl[row] / ll[row] } else { scale };
        let solvable = determinant > 0.0;
        // An error that is not a number is never the least.
        fit.scale[row] = if solvable { scale } else { f32::NAN };
        fit.minimum[row] = if above { 0.0 } else { -minimum };
    }
    fit
}

#[inline(always)]
fn error(columns: &[Column], weights: &[Column; SUB], per_code: Column, lowest: Column, fit: Fit) -> Column {
    let mut errors = [0.0; 16];
    for (column, weight) in columns.iter().zip(weights) {
        for row in 0..16 {
            let code = code(per_code[row] * (column[row] - lowest[row]));
            let difference = fit.scale[row] * code - fit.minimum[row] - column[row];
            errors[row] += weight[row] * difference * difference;
        }
    }
    errors
}

#[inline(always)]
fn fold(columns: &[Column], start: f32, of: fn(f32, f32) -> f32) -> Column {
    columns.iter().fold([start; 16], |mut sums, column| {
        sums.iter_mut().zip(column).for_each(|(sum, x)| *sum = of(*sum, *x));
        sums
    })
}
