//! Projections there and back: the frozen weights and, where the request wants one, its adapter. Both go piece by piece, so
//! that others can compute in between, and only a part of a matrix is f32 at a time.

use crate::model::{
    ComputeError,
    cpu::Engine,
    linear::Linear,
    lora::{BlockAdapter, Buffers, Target},
};

/// What is called between two pieces of a pass: others may compute meanwhile. An error ends the pass.
pub(crate) type Breath<'a> = dyn FnMut() -> Result<(), ComputeError> + 'a;

/// Multiply-adds of a piece, roughly: some dozen milliseconds on few cores.
const PIECE: usize = 1 << 32;

/// Fewer tokens in a piece would only read the weights more often; more win nothing.
const TOKENS: [usize; 2] = [32, 512];

/// Weights that are f32 at a time, roughly.
const PART: usize = 8 << 20;

/// Parts of a matrix begin at multiples of so many columns, which all formats' groups divide.
const GROUP: usize = 256;

/// How projections are computed in one pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Through<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) adapter: Option<&'a BlockAdapter>,
}

impl Through<'_> {
    /// `[tokens, cols]` to `[tokens, rows]`.
    ///
    /// # Errors
    /// Those of `breath`.
    pub(super) fn apply(
        &self,
        target: Target,
        linear: &Linear,
        x: &[f32],
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        let [rows, cols] = [linear.weight.rows(), linear.weight.cols()];
        let mut out = Vec::with_capacity(x.len() / cols * rows);
        let update = self.adapter.and_then(|adapter| adapter.get(target));
        for x in x.chunks(tokens_at_a_time(rows * cols) * cols) {
            let mut product = linear.applied(self.engine, x);
            if let Some(update) = update {
                update.add(self.engine, x, &mut product, &mut Buffers::default());
            }
            out.append(&mut product);
            breath()?;
        }
        Ok(out)
    }

    /// The gradient by a projection's input, `[tokens, cols]`, from that by its output, `[tokens, rows]`.
    ///
    /// # Errors
    /// Those of `breath`.
    pub(super) fn back(
        &self,
        target: Target,
        linear: &Linear,
        by_out: &[f32],
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        let mut by_x = self.back_frozen(linear, by_out, breath)?;
        if let Some(update) = self.adapter.and_then(|adapter| adapter.get(target)) {
            let by_inner = self.back_frozen(&update.b, by_out, breath)?;
            let by_x_of_update = self.back_frozen(&update.a, &by_inner, breath)?;
            for (by_x, more) in by_x.iter_mut().zip(by_x_of_update) {
                *by_x += update.scale * more;
            }
        }
        Ok(by_x)
    }

    /// Without the adapter. The one place where weights become f32: some columns at a time, gone when the next ones come.
    ///
    /// # Errors
    /// Those of `breath`.
    pub(super) fn back_frozen(
        &self,
        linear: &Linear,
        by_out: &[f32],
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        let at_a_time = columns_at_a_time(linear.weight.rows());
        self.back_columns(linear, by_out, at_a_time, breath)
    }

    /// Some columns at a time, a multiple of [`GROUP`].
    pub(super) fn back_columns(
        &self,
        linear: &Linear,
        by_out: &[f32],
        at_a_time: usize,
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        let [rows, cols] = [linear.weight.rows(), linear.weight.cols()];
        let mut by_x = vec![0.0; by_out.len() / rows * cols];
        for first in (0..cols).step_by(at_a_time) {
            let columns = first..cols.min(first + at_a_time);
            let weight = linear.weight.transposed(columns.clone(), self.engine);
            let part = Linear { weight, bias: None };
            let tokens = tokens_at_a_time(rows * columns.len());
            let chunks = by_out.chunks(tokens * rows).zip(by_x.chunks_mut(tokens * cols));
            for (by_out, by_x) in chunks {
                let product = part.applied(self.engine, by_out);
                let each = product.chunks_exact(columns.len()).zip(by_x.chunks_exact_mut(cols));
                each.for_each(|(product, by_x)| by_x[columns.clone()].copy_from_slice(product));
                breath()?;
            }
        }
        Ok(by_x)
    }
}

/// Bytes that multiplying by a matrix `[rows, cols]` on the way back takes for its weights: of some columns, as they are
/// widened and as they are laid out.
pub(crate) fn bytes_on_the_way_back([rows, cols]: [usize; 2]) -> u64 {
    2 * (columns_at_a_time(rows).min(cols) * rows * size_of::<f32>()) as u64
}

/// Of a matrix with so many rows.
fn columns_at_a_time(rows: usize) -> usize {
    (PART / rows.max(1)).next_multiple_of(GROUP)
}

/// Of a product with so many weights.
fn tokens_at_a_time(weights: usize) -> usize {
    (PIECE / weights.max(1)).clamp(TOKENS[0], TOKENS[1])
}

/// `[rows, cols]` to `[cols, rows]`, in tiles that fit the nearest cache.
pub(super) fn transposed(numbers: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; numbers.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_col in (0..cols).step_by(TILE) {
            for col in first_col..(first_col + TILE).min(cols) {
                for row in first_row..(first_row + TILE).min(rows) {
                    out[col * rows + row] = numbers[row * cols + col];
                }
            }
        }
    }
    out
}
