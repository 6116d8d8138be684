//! y = x · Wᵀ + b for a handful of tokens (limited by memory: our kernels) or many (limited by arithmetic: widened
//! panel by panel for `gemm`), shared out over threads by rows of W.

use rayon::prelude::*;

use super::{
    cpu::{Kernels, Operand, matmul},
    number::{Frozen, Slice},
};

/// Up to here our kernels win: `gemm` first packs the weights, which only many tokens pay for (measured crossover: 64
/// to 100 tokens).
const FEW_TOKENS: usize = 64;

/// Multiplications below which waking other threads costs more than it saves (some 20 µs of one core).
pub(crate) const WORTH_THREADS: usize = 1 << 18;

/// Rows of weights given to a thread at a time; a multiple of the kernel's four.
const MIN_ROWS: usize = 32;

/// f32 numbers of a widened panel: 4 MiB, so that it stays in the cache between being written and multiplied.
const PANEL: usize = 1 << 20;

/// Weights `[rows, cols]`, row after row.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    rows: usize,
    cols: usize,
    numbers: Frozen,
}

impl Matrix {
    /// # Panics
    /// If `numbers` are not `rows · cols`.
    pub(crate) fn new(rows: usize, cols: usize, numbers: Frozen) -> Self {
        assert_eq!(
            numbers.as_slice().len(),
            rows * cols,
            "a matrix of another size than its numbers"
        );
        Self { rows, cols, numbers }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn as_slice(&self) -> Slice<'_> {
        self.numbers.as_slice()
    }

    fn row_range(&self, first: usize, rows: usize) -> Slice<'_> {
        self.as_slice().range(first * self.cols..(first + rows) * self.cols)
    }
}

/// A matrix and perhaps a bias of `rows` numbers.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// `x` is `[tokens, cols]`; returns `[tokens, rows]`.
    ///
    /// # Panics
    /// If `x` is not whole vectors.
    pub(crate) fn apply(&self, kernels: Kernels, x: &[f32]) -> Vec<f32> {
        let tokens = x.len() / self.weight.cols;
        assert_eq!(x.len(), tokens * self.weight.cols, "activations are not whole vectors");
        let mut out = if tokens <= FEW_TOKENS {
            self.apply_to_few(kernels, x, tokens)
        } else {
            self.apply_to_many(x, tokens)
        };
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(bias.len()) {
                for (out, bias) in row.iter_mut().zip(bias) {
                    *out += bias;
                }
            }
        }
        out
    }

    fn apply_to_few(&self, kernels: Kernels, x: &[f32], tokens: usize) -> Vec<f32> {
        let Matrix { rows, cols, .. } = self.weight;
        let mut by_row = vec![0.0; rows * tokens];
        let multiply = |first: usize, out: &mut [f32]| {
            let weights = self.weight.row_range(first, out.len() / tokens);
            kernels.dot_rows(weights, cols, x, out);
        };
        if rows * cols * tokens < WORTH_THREADS {
            multiply(0, &mut by_row);
        } else {
            let shares = rayon::current_num_threads() * 4;
            let share = rows.div_ceil(shares).next_multiple_of(MIN_ROWS);
            by_row
                .par_chunks_mut(share * tokens)
                .enumerate()
                .for_each(|(i, out)| multiply(i * share, out));
        }
        if tokens == 1 {
            by_row
        } else {
            transpose(&by_row, tokens)
        }
    }

    fn apply_to_many(&self, x: &[f32], tokens: usize) -> Vec<f32> {
        let Matrix { rows, cols, .. } = self.weight;
        let mut out = vec![0.0; tokens * rows];
        let parallel = rows * cols * tokens >= WORTH_THREADS;
        let panel_rows = (PANEL / cols).clamp(1, rows);
        let mut panel = Vec::new();
        for first in (0..rows).step_by(panel_rows) {
            let n = panel_rows.min(rows - first);
            let weights = match self.weight.row_range(first, n) {
                Slice::F32(weights) => weights,
                narrow => {
                    panel.resize(panel_rows * cols, 0.0);
                    widen(narrow, &mut panel[..n * cols]);
                    &panel[..n * cols]
                }
            };
            matmul(
                Operand::new(&mut out[first..], tokens, n, rows),
                Operand::new(x, tokens, cols, cols),
                Operand::new(weights, n, cols, cols).transposed(),
                false,
                parallel,
            );
        }
        out
    }
}

fn widen(numbers: Slice<'_>, out: &mut [f32]) {
    const SHARE: usize = 1 << 15;
    out.par_chunks_mut(SHARE).enumerate().for_each(|(i, out)| {
        let start = i * SHARE;
        numbers.range(start..start + out.len()).widen_into(out);
    });
}

/// `[rows, tokens]` to `[tokens, rows]`.
fn transpose(by_row: &[f32], tokens: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(by_row.len());
    for token in 0..tokens {
        out.extend(by_row.iter().skip(token).step_by(tokens));
    }
    out
}
