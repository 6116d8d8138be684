//! The two kernels, written once for every register width and number type. They are inlined into the functions of an
//! instruction set and trust the lengths that `cpu.rs` checked.

use super::lanes::{Element, Lanes};

/// Rows of weights multiplied together: four streams keep memory busy where one does not (measured: 95 % against
/// 60 % of its bandwidth).
const ROWS: usize = 4;

/// How far ahead of the multiplication weights are asked for, in bytes of one row.
const PREFETCH_BYTES: usize = 1024;

/// `out[r][m] = Σ_c weights[r][c] · x[m][c]`
///
/// # Safety
/// The CPU has the instructions of `L`; with `m = x.len() / cols > 0`, `x` is `m · cols` and `weights` is
/// `out.len() / m · cols` long.
#[inline(always)]
pub(super) unsafe fn dot_rows<L: Lanes, E: Element>(weights: &[E], cols: usize, x: &[f32], out: &mut [f32]) {
    let tokens = x.len() / cols;
    let whole = out.len() / (ROWS * tokens) * ROWS * tokens;
    let (groups, rest) = out.split_at_mut(whole);
    let rest_at = whole / tokens * cols;
    // SAFETY: group i covers rows 4i to 4i + 3 of `weights`, which exist by the lengths promised.
    unsafe {
        for (group, out) in groups.chunks_exact_mut(ROWS * tokens).enumerate() {
            row_group::<L, E, ROWS>(weights.as_ptr().add(group * ROWS * cols), cols, x, out);
        }
        for (row, out) in rest.chunks_exact_mut(tokens).enumerate() {
            row_group::<L, E, 1>(weights.as_ptr().add(rest_at + row * cols), cols, x, out);
        }
    }
}

/// `R` rows with all tokens, a few tokens at a time; the rows stay in the cache between.
#[inline(always)]
unsafe fn row_group<L: Lanes, E: Element, const R: usize>(weights: *const E, cols: usize, x: &[f32], out: &mut [f32]) {
    let tokens = x.len() / cols;
    let mut token = 0;
    while token < tokens {
        let left = tokens - token;
        // SAFETY: token + the tokens of the tile <= tokens.
        unsafe {
            let x = x.as_ptr().add(token * cols);
            let out = out.as_mut_ptr().add(token);
            if left >= 4 && L::TOKENS >= 4 {
                tile::<L, E, R, 4>(weights, cols, x, out, tokens);
                token += 4;
            } else if left >= 2 {
                tile::<L, E, R, 2>(weights, cols, x, out, tokens);
                token += 2;
            } else {
                tile::<L, E, R, 1>(weights, cols, x, out, tokens);
                token += 1;
            }
        }
    }
}

/// `R` rows with `M` tokens, sums in registers. `out` is the first of `R` rows that are `stride` apart.
#[inline(always)]
unsafe fn tile<L: Lanes, E: Element, const R: usize, const M: usize>(
    weights: *const E,
    cols: usize,
    x: *const f32,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: c + WIDTH <= cols inside the loop; rows < R and tokens < M exist by the caller's promise. Prefetch
    // addresses may lie behind the weights.
    unsafe {
        let mut sums = [[L::splat(0.0); M]; R];
        let mut c = 0;
        while c + L::WIDTH <= cols {
            let mut row = [L::splat(0.0); R];
            for (r, row) in row.iter_mut().enumerate() {
                let at = weights.add(r * cols + c);
                L::prefetch(at.cast::<u8>().wrapping_add(PREFETCH_BYTES));
                *row = E::load::<L>(at);
            }
            for t in 0..M {
                let x = L::load_f32(x.add(t * cols + c));
                for (row, sums) in row.iter().zip(&mut sums) {
                    sums[t] = row.mul_add(x, sums[t]);
                }
            }
            c += L::WIDTH;
        }
        for (r, sums) in sums.iter().enumerate() {
            for (t, sum) in sums.iter().enumerate() {
                let mut sum = sum.sum();
                for c in c..cols {
                    sum += (*weights.add(r * cols + c)).to_f32() * *x.add(t * cols + c);
                }
                *out.add(r * stride + t) = sum;
            }
        }
    }
}

/// `out[m][c] += Σ_t share[t][m] · rows[t][c]`
///
/// # Safety
/// The CPU has the instructions of `L`; with `m = out.len() / cols > 0`, `share` is `t · m` and `rows` is `t · cols`
/// long for one `t`.
#[inline(always)]
pub(super) unsafe fn add_weighted<L: Lanes, E: Element>(rows: &[E], cols: usize, share: &[f32], out: &mut [f32]) {
    let sums = out.len() / cols;
    let mut first = 0;
    while first < sums {
        // SAFETY: first + the sums of the tile <= sums.
        unsafe {
            let share = share.as_ptr().add(first);
            let out = out.as_mut_ptr().add(first * cols);
            if sums - first >= 4 {
                weigh::<L, E, 4>(rows, cols, share, out, sums);
                first += 4;
            } else {
                weigh::<L, E, 1>(rows, cols, share, out, sums);
                first += 1;
            }
        }
    }
}

/// `M` of the sums; `share` is the first of rows of shares that are `stride` apart.
#[inline(always)]
unsafe fn weigh<L: Lanes, E: Element, const M: usize>(
    rows: &[E],
    cols: usize,
    share: *const f32,
    out: *mut f32,
    stride: usize,
) {
    let n_rows = rows.len() / cols;
    // SAFETY: c + WIDTH <= cols inside the loop; `out` has M vectors of cols, `share` M values in each of n_rows rows.
    unsafe {
        let mut c = 0;
        while c + L::WIDTH <= cols {
            let mut sums = [L::splat(0.0); M];
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = L::load_f32(out.add(m * cols + c));
            }
            for t in 0..n_rows {
                let row = E::load::<L>(rows.as_ptr().add(t * cols + c));
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = row.mul_add(L::splat(*share.add(t * stride + m)), *sum);
                }
            }
            for (m, sum) in sums.iter().enumerate() {
                sum.store(out.add(m * cols + c));
            }
            c += L::WIDTH;
        }
        for c in c..cols {
            for t in 0..n_rows {
                let value = (*rows.as_ptr().add(t * cols + c)).to_f32();
                for m in 0..M {
                    *out.add(m * cols + c) += value * *share.add(t * stride + m);
                }
            }
        }
    }
}
