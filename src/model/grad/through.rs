//! Projections there and back: the frozen weights and, where the request wants one, its adapter.

use crate::model::{
    cpu::Engine,
    linear::Linear,
    lora::{BlockAdapter, Buffers, Target},
};

/// How projections are computed in one pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Through<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) adapter: Option<&'a BlockAdapter>,
}

impl Through<'_> {
    /// `[tokens, cols]` to `[tokens, rows]`.
    pub(super) fn apply(&self, target: Target, linear: &Linear, x: &[f32]) -> Vec<f32> {
        let mut out = linear.applied(self.engine, x);
        if let Some(update) = self.adapter.and_then(|adapter| adapter.get(target)) {
            update.add(self.engine, x, &mut out, &mut Buffers::default());
        }
        out
    }

    /// The gradient by a projection's input, `[tokens, cols]`, from that by its output, `[tokens, rows]`.
    pub(super) fn back(&self, target: Target, linear: &Linear, by_out: &[f32]) -> Vec<f32> {
        let mut by_x = self.back_frozen(linear, by_out);
        if let Some(update) = self.adapter.and_then(|adapter| adapter.get(target)) {
            let by_x_of_update = self.back_frozen(&update.a, &self.back_frozen(&update.b, by_out));
            for (by_x, more) in by_x.iter_mut().zip(by_x_of_update) {
                *by_x += update.scale * more;
            }
        }
        by_x
    }

    /// Without the adapter. The one place where weights become f32; they are gone when it returns.
    pub(super) fn back_frozen(&self, linear: &Linear, by_out: &[f32]) -> Vec<f32> {
        let weight = linear.weight.transposed(self.engine);
        Linear { weight, bias: None }.applied(self.engine, by_out)
    }
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
