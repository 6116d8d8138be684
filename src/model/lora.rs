//! LoRA adapters: small updates of some projections of a block, `y += scale · B(A x)`, that each sequence of a batch asks
//! for or not. Reading them from files is `lora/load.rs`.

mod error;
mod load;

use std::ops::Range;

pub use error::AdapterError;
pub use load::Adapter;

use super::{
    block::Segment,
    cpu::{AT_A_TIME, Engine, for_parts},
    linear::{Linear, Matrix},
};

/// The projections that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

impl Target {
    const COUNT: usize = 7;

    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];
}

/// One of the adapters that were loaded with some blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterId(pub(crate) usize);

/// The update of one projection. Its matrices are f32, as peft computes with them.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `[rank, cols]`
    pub(crate) a: Linear,
    /// `[rows, rank]`
    pub(crate) b: Linear,
    pub(crate) scale: f32,
}

impl LowRank {
    /// Adds the update for `x`, `[tokens, cols]`, to `y`, `[tokens, rows]`.
    pub(crate) fn add(&self, engine: &Engine, x: &[f32], y: &mut [f32], buffers: &mut Buffers) {
        let Buffers { inner, update } = buffers;
        self.a.apply(engine, x, inner);
        self.b.apply(engine, inner, update);
        for_parts(&engine.pool, y.len(), (y, AT_A_TIME), &|i, y| {
            for (y, update) in y.iter_mut().zip(&update[i * AT_A_TIME..]) {
                *y += self.scale * *update;
            }
        });
    }
}

/// Memory of updates that is used again.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    inner: Vec<f32>,
    update: Vec<f32>,
}

/// A projection `[rows, cols]` of f32 weights, without a bias.
pub(crate) fn f32_linear(shape: [usize; 2], numbers: &[f32], engine: &Engine) -> Linear {
    Linear {
        weight: Matrix::of_f32(shape, numbers, engine),
        bias: None,
    }
}

/// What one adapter changes in one block: by [`Target`].
#[derive(Debug, Default)]
pub(crate) struct BlockAdapter {
    updates: [Option<LowRank>; Target::COUNT],
}

impl BlockAdapter {
    pub(crate) fn get(&self, target: Target) -> Option<&LowRank> {
        self.updates[target as usize].as_ref()
    }

    fn set(&mut self, target: Target, update: LowRank) {
        self.updates[target as usize] = Some(update);
    }
}

/// Which tokens of a batch go through which adapter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Updates<'a> {
    adapters: &'a [BlockAdapter],
    tokens: &'a [(Range<usize>, usize)],
}

impl<'a> Updates<'a> {
    /// Those of `segments`, whose tokens lie one behind the other. Segments side by side that want the same are one.
    /// `tokens` is memory that is used again.
    pub(crate) fn new(
        adapters: &'a [BlockAdapter],
        segments: &[Segment<'_>],
        tokens: &'a mut Vec<(Range<usize>, usize)>,
    ) -> Self {
        tokens.clear();
        let mut first = 0;
        for segment in segments {
            let range = first..first + segment.tokens;
            first = range.end;
            let wanted = segment.adapter.map(|AdapterId(idx)| idx);
            let Some(idx) = wanted.filter(|idx| *idx < adapters.len()) else {
                continue;
            };
            match tokens.last_mut() {
                Some((last, same)) if last.end == range.start && *same == idx => last.end = range.end,
                _ => tokens.push((range, idx)),
            }
        }
        Self { adapters, tokens }
    }

    /// Whether any token wants an update of any of `targets`.
    pub(crate) fn change(&self, targets: &[Target]) -> bool {
        let wants = |adapter: &BlockAdapter| targets.iter().any(|target| adapter.get(*target).is_some());
        self.tokens.iter().any(|(_, idx)| wants(&self.adapters[*idx]))
    }

    /// Adds to `y`, the projections of all tokens `x`, the updates of those that want any.
    pub(crate) fn add(&self, target: Target, engine: &Engine, (x, y): (&[f32], &mut [f32]), buffers: &mut Buffers) {
        for (tokens, idx) in self.tokens {
            let Some(update) = self.adapters[*idx].get(target) else {
                continue;
            };
            let (cols, rows) = (update.a.weight.cols(), update.b.weight.rows());
            let x = &x[tokens.start * cols..tokens.end * cols];
            update.add(engine, x, &mut y[tokens.start * rows..tokens.end * rows], buffers);
        }
    }
}

#[cfg(test)]
mod tests;
