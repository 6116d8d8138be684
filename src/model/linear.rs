//! y = x · Wᵀ + b for any number of tokens, and the parallel regions of a block that are made of it. A token's y are the
//! same bits whatever other tokens it is computed with.

use std::{cell::RefCell, ops::Range};

use super::{
    LoadError, WeightDType, WeightFormat,
    cpu::{
        Dense, Engine, Interleaved, Kernels, LANES, Output, Tile, compute_tiles,
        quant::{Forms, QuantKernels, QuantTokens},
    },
    quant::QuantMatrix,
};

/// Up to here a weight is widened in registers as it comes from memory; more tokens than this are worth an
/// interleaved copy of x and a widened one of each part of the weights.
const FEW_TOKENS: usize = 16;

/// Tokens that are multiplied with a part of the weights while it is in a cache; a multiple of what the kernel
/// interleaves.
const MANY_TOKENS: usize = 384;

/// Panels of a tile, few tokens and many: one group for the kernel, and what leaves x in a second-level cache.
const FEW_PANELS: usize = 4;
const MANY_PANELS: usize = 8;

/// Weights `[rows, cols]`, packed for the kernels.
#[derive(Debug)]
pub(crate) struct Matrix {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    packed: Packed,
}

#[derive(Debug)]
enum Packed {
    Dense(Dense),
    Quantised(QuantMatrix),
}

impl Matrix {
    /// Packs what `source` writes: it is given a range of rows and room for them, `[rows, cols]`, by several threads.
    ///
    /// # Errors
    /// [`LoadError::Memory`].
    pub(crate) fn pack(
        format: impl Into<WeightFormat>,
        [rows, cols]: [usize; 2],
        source: &(dyn Fn(Range<usize>, &mut [f32]) + Sync),
        engine: &Engine,
    ) -> Result<Self, LoadError> {
        let (format, shape) = (format.into(), [rows, cols]);
        let packed = match format.dtype() {
            Some(dtype) => Dense::pack(dtype, shape, source, engine).map(Packed::Dense),
            None => QuantMatrix::pack(format, shape, source, engine).map(Packed::Quantised),
        };
        let packed = packed.map_err(|source| LoadError::Memory {
            bytes: format.bytes(rows, cols),
            source,
        })?;
        Ok(Self {
            format,
            rows,
            cols,
            packed,
        })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The weights row after row.
    #[cfg(test)]
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        match &self.packed {
            Packed::Dense(panels) => {
                let mut out = vec![0.0; self.rows * self.cols];
                let mut column = vec![0.0; self.rows];
                for k in 0..self.cols {
                    panels.widen_column(k, &mut column);
                    let to = out.iter_mut().skip(k).step_by(self.cols);
                    to.zip(&column).for_each(|(to, number)| *to = *number);
                }
                out
            }
            Packed::Quantised(matrix) => matrix.to_f32(),
        }
    }

    /// Few numbers, row after row.
    ///
    /// # Panics
    /// If they are not `rows · cols`, or there is no memory for them.
    pub(crate) fn of_f32([rows, cols]: [usize; 2], numbers: &[f32], engine: &Engine) -> Self {
        assert_eq!(numbers.len(), rows * cols, "a matrix of another size than its numbers");
        let source = |rows: Range<usize>, out: &mut [f32]| {
            out.copy_from_slice(&numbers[rows.start * cols..rows.end * cols]);
        };
        Self::pack(WeightDType::F32, [rows, cols], &source, engine).unwrap_or_else(|error| panic!("{error}"))
    }

    /// `[cols, rows]` in f32.
    ///
    /// # Panics
    /// If there is no memory for it.
    pub(crate) fn transposed(&self, engine: &Engine) -> Self {
        // Single columns of blocks cannot be widened.
        let rows = match &self.packed {
            Packed::Dense(_) => Vec::new(),
            Packed::Quantised(matrix) => matrix.to_f32(),
        };
        let source = |columns: Range<usize>, out: &mut [f32]| {
            for (column, out) in columns.zip(out.chunks_exact_mut(self.rows)) {
                match &self.packed {
                    Packed::Dense(panels) => panels.widen_column(column, out),
                    Packed::Quantised(_) => {
                        let column = rows.iter().skip(column).step_by(self.cols);
                        out.iter_mut().zip(column).for_each(|(out, weight)| *out = *weight);
                    }
                }
            }
        };
        let shape = [self.cols, self.rows];
        Self::pack(WeightDType::F32, shape, &source, engine).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Products of the rows of some panels with all of `x`: `out` is `[tokens, 16 · panels]`.
    fn multiply(
        &self,
        kernels: Kernels,
        panels: Range<usize>,
        x: &Activations<'_>,
        (widened, out): (&mut Vec<f32>, &mut [f32]),
    ) {
        match &self.packed {
            Packed::Dense(dense) => match x.interleaved {
                Some(x) => dense.multiply_many(kernels, panels, x, (widened, out)),
                None => dense.multiply(kernels, panels, x.rows, out),
            },
            Packed::Quantised(matrix) => x.quant.multiply(matrix.panels(panels), x.quantised, out),
        }
    }
}

/// The same x in each form that a matrix of the region takes.
struct Activations<'a> {
    /// `[tokens, cols]`
    rows: &'a [f32],
    interleaved: Option<&'a Interleaved>,
    quant: QuantKernels,
    quantised: &'a QuantTokens,
}

/// A matrix and perhaps a bias of `rows` numbers.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// `x` is `[tokens, cols]`; `out` becomes `[tokens, rows]`.
    ///
    /// # Panics
    /// If `x` is not whole vectors.
    pub(crate) fn apply(&self, engine: &Engine, x: &[f32], out: &mut Vec<f32>) {
        apply_each(engine, [self], x, [out]);
    }

    /// As [`Linear::apply`], in memory of its own.
    ///
    /// # Panics
    /// If `x` is not whole vectors.
    pub(crate) fn applied(&self, engine: &Engine, x: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        self.apply(engine, x, &mut out);
        out
    }

    /// As [`Linear::apply`], then `finish` of every part of what came out.
    ///
    /// # Panics
    /// If `x` is not whole vectors.
    pub(crate) fn apply_then(
        &self,
        engine: &Engine,
        x: &[f32],
        out: &mut Vec<f32>,
        finish: &(dyn Fn(&mut [f32]) + Sync),
    ) {
        region(engine, ([self], &[self]), x, [out], &|x, tile| {
            self.compute(engine.kernels, x, tile.panels, (tile.widened, tile.out));
            finish(tile.out);
        });
    }

    fn compute(
        &self,
        kernels: Kernels,
        x: &Activations<'_>,
        panels: Range<usize>,
        (widened, out): (&mut Vec<f32>, &mut [f32]),
    ) {
        self.weight.multiply(kernels, panels.clone(), x, (widened, out));
        if let Some(bias) = &self.bias {
            let bias = &bias[panels.start * LANES..bias.len().min(panels.end * LANES)];
            for out in out.chunks_exact_mut(panels.len() * LANES) {
                out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// Several matrices times the same `x`, `[tokens, cols]`, in one parallel region: each of `outs` becomes
/// `[tokens, rows]`.
///
/// # Panics
/// If `x` is not whole vectors.
pub(crate) fn apply_each<const N: usize>(engine: &Engine, linears: [&Linear; N], x: &[f32], outs: [&mut Vec<f32>; N]) {
    region(engine, (linears, &linears), x, outs, &|x, tile| {
        linears[tile.output].compute(engine.kernels, x, tile.panels, (tile.widened, tile.out));
    });
}

/// `out = combine(gate(x), up(x))`, in one parallel region. `combine` changes parts of the gate's output, and is given
/// the same part of the other's.
///
/// # Panics
/// If `x` is not whole vectors, or the two have different shapes.
pub(crate) fn apply_gated(
    engine: &Engine,
    [gate, up]: [&Linear; 2],
    x: &[f32],
    out: &mut Vec<f32>,
    combine: &(dyn Fn(&mut [f32], &[f32]) + Sync),
) {
    assert_eq!(gate.weight.rows, up.weight.rows, "gate and up of different shapes");
    assert_eq!(gate.weight.cols, up.weight.cols, "gate and up of different shapes");
    region(engine, ([gate], &[gate, up]), x, [out], &|x, tile| {
        gate.compute(engine.kernels, x, tile.panels.clone(), (tile.widened, tile.out));
        tile.spare.resize(tile.out.len(), 0.0);
        up.compute(engine.kernels, x, tile.panels, (tile.widened, tile.spare));
        combine(tile.out, tile.spare);
    });
}

thread_local! {
    /// Of the thread that begins regions, used again by each.
    static INTERLEAVED: RefCell<Interleaved> = RefCell::default();
    static QUANTISED: RefCell<QuantTokens> = RefCell::default();
}

/// The outputs of `linears` for `x`, tile by tile. `all` are those that are multiplied on the way.
fn region<const N: usize>(
    engine: &Engine,
    (linears, all): ([&Linear; N], &[&Linear]),
    x: &[f32],
    outs: [&mut Vec<f32>; N],
    compute: &(dyn Fn(&Activations<'_>, Tile<'_>) + Sync),
) {
    let cols = linears[0].weight.cols;
    let tokens = x.len() / cols;
    for linear in linears {
        assert_eq!(
            x.len(),
            tokens * linear.weight.cols,
            "activations are not whole vectors"
        );
    }
    let rows = linears.map(|linear| linear.weight.rows);
    let mut lefts = {
        let mut rows = rows.into_iter();
        outs.map(|out| {
            out.resize(tokens * rows.next().unwrap_or(0), 0.0);
            out.as_mut_slice()
        })
    };
    let formats = || all.iter().map(|linear| linear.weight.format);
    let (forms, dense) = (Forms::of(formats()), formats().any(|format| format.dtype().is_some()));
    let (mut interleaved, mut quantised) = (INTERLEAVED.take(), QUANTISED.take());
    for x in x.chunks(tokens_at_a_time(tokens) * cols) {
        let tokens = x.len() / cols;
        let mut i = 0;
        let outputs = lefts.each_mut().map(|left| {
            let (data, after) = std::mem::take(left).split_at_mut(tokens * rows[i]);
            *left = after;
            i += 1;
            Output {
                rows: rows[i - 1],
                data,
            }
        });
        let few = tokens <= FEW_TOKENS;
        if forms.any() {
            quantised.set(engine, forms, x, cols);
        }
        let interleave = dense && !few;
        if interleave {
            interleaved.set(engine, x, cols);
        }
        let activations = Activations {
            rows: x,
            interleaved: interleave.then_some(&interleaved),
            quant: engine.quant,
            quantised: &quantised,
        };
        let max_panels = if few { FEW_PANELS } else { MANY_PANELS };
        compute_tiles(engine, outputs, [tokens, cols], max_panels, &|tile| {
            compute(&activations, tile);
        });
    }
    INTERLEAVED.set(interleaved);
    QUANTISED.set(quantised);
}

/// `tokens` in equal parts of at most [`MANY_TOKENS`].
fn tokens_at_a_time(tokens: usize) -> usize {
    let parts = tokens.div_ceil(MANY_TOKENS).max(1);
    tokens.div_ceil(parts).next_multiple_of(12).max(1)
}

#[cfg(test)]
mod tests;
