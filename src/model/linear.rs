//! y = x · Wᵀ + b for any number of tokens, and the parallel regions of a block that are made of it. A token's y are the
//! same bits whatever other tokens it is computed with.

mod limit;

use std::{
    cell::RefCell,
    ops::{Range, RangeInclusive},
};

pub use limit::measure_gemm;

use super::{
    LoadError, WeightDType, WeightFormat,
    cpu::{
        Buffer, Coded, Dense, Engine, Input, Interleaved, Kernels, LANES, MANY_PANELS, Output, PANEL_GROUP, Rounded,
        Source, Tile, Wanted, compute_tiles,
        quant::{QuantKernels, QuantTokens},
    },
    number::Slice,
    quant::QuantMatrix,
};

/// Numbers of tokens at which another way of multiplying begins.
struct Limits {
    /// So few are multiplied with a few panels at a time.
    few: usize,
    /// For so many weights are read at a time; a multiple of what the kernel interleaves.
    many: usize,
}

/// More than a few tokens are worth an interleaved copy of x, and one in f32 of each part of the weights. They are no
/// fewer than the largest group of the kernel.
const DENSE: Limits = Limits { few: 11, many: 576 };

/// So many tokens stay in a second-level cache.
const QUANTISED: Limits = Limits { few: 32, many: 384 };

/// Bytes of the weights of a tile of few tokens, the least and the most: beginning one takes about as long as some dozen KiB come
/// from memory.
const TILE_BYTES: [usize; 2] = [256 << 10, 2 << 20];

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
    /// Bf16 in 12 bits.
    Coded(Coded),
    Quantised(QuantMatrix),
}

/// 16 rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Panel<'a> {
    /// `[cols][16]`
    Dense(Slice<'a>),
    /// Groups of columns, as `cpu/quant/formats.rs` draws them.
    Quantised(&'a [u8]),
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

    /// Packs bf16 into 12 bits without loss: products of the same weights from three quarters of the memory, a few of which are
    /// summed in another order. `None` if these weights are none that codes are for.
    ///
    /// # Errors
    /// [`LoadError::Memory`].
    pub(crate) fn pack_coded(
        [rows, cols]: [usize; 2],
        source: &Rounded<'_>,
        engine: &Engine,
    ) -> Result<Option<Self>, LoadError> {
        let format = WeightFormat::Bf16;
        let coded = Coded::pack([rows, cols], source, engine).map_err(|source| LoadError::Memory {
            bytes: format.bytes(rows, cols),
            source,
        })?;
        Ok(coded.map(|coded| Self {
            format,
            rows,
            cols,
            packed: Packed::Coded(coded),
        }))
    }

    /// Has bf16 multiplied in pairs where the processor is quicker at that, which rounds what it is multiplied with to bf16.
    pub(crate) fn rounding(mut self, engine: &Engine) -> Self {
        match &mut self.packed {
            Packed::Dense(dense) => dense.pair(engine.kernels),
            Packed::Coded(coded) => coded.pair(engine.kernels),
            Packed::Quantised(_) => {}
        }
        self
    }

    /// Whether it takes what it is multiplied with in pairs, if it is dense.
    fn in_pairs(&self) -> Option<bool> {
        match &self.packed {
            Packed::Dense(dense) => Some(dense.in_pairs()),
            Packed::Coded(coded) => Some(coded.in_pairs()),
            Packed::Quantised(_) => None,
        }
    }

    /// Of codes and scales that are in their places.
    pub(crate) fn laid_out(matrix: QuantMatrix) -> Self {
        Self {
            format: matrix.format(),
            rows: matrix.rows(),
            cols: matrix.cols(),
            packed: Packed::Quantised(matrix),
        }
    }

    pub(crate) fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes that the weights take.
    pub(crate) fn bytes(&self) -> usize {
        match &self.packed {
            Packed::Dense(_) | Packed::Quantised(_) => self.format.bytes(self.rows, self.cols),
            Packed::Coded(coded) => coded.bytes(),
        }
    }

    /// Rows 16 i and after as they are in memory, for whoever lays them out in another way.
    ///
    /// # Panics
    /// If it is [in codes](Matrix::pack_coded).
    pub(crate) fn panel(&self, i: usize) -> Panel<'_> {
        match &self.packed {
            Packed::Dense(dense) => Panel::Dense(dense.panel(i)),
            Packed::Coded(_) => panic!("codes are for the processor"),
            Packed::Quantised(matrix) => Panel::Quantised(matrix.panels(i..i + 1).bytes),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The weights row after row.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        if let Packed::Quantised(matrix) = &self.packed {
            return matrix.to_f32();
        }
        let mut out = vec![0.0; self.rows * self.cols];
        let mut column = vec![0.0; self.rows];
        for k in 0..self.cols {
            self.widen_column(k, &mut column);
            let to = out.iter_mut().skip(k).step_by(self.cols);
            to.zip(&column).for_each(|(to, number)| *to = *number);
        }
        out
    }

    /// Writes a column, as many numbers as there are rows.
    ///
    /// # Panics
    /// If the weights are in blocks, of which single columns cannot be widened.
    fn widen_column(&self, column: usize, out: &mut [f32]) {
        match &self.packed {
            Packed::Dense(dense) => dense.widen_column(column, out),
            Packed::Coded(coded) => coded.widen_column(column, out),
            Packed::Quantised(_) => panic!("a column of blocks"),
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

    /// Some columns as rows, `[columns, rows]`, in f32. The first is one with which a group of the format begins.
    ///
    /// # Panics
    /// If there is no memory for it, or a group begins elsewhere.
    pub(crate) fn transposed(&self, columns: Range<usize>, engine: &Engine) -> Self {
        let shape = [columns.len(), self.rows];
        if let Packed::Quantised(matrix) = &self.packed {
            return Self::of_f32(shape, &matrix.widen_columns(columns, engine), engine);
        }
        let source = |rows: Range<usize>, out: &mut [f32]| {
            for (row, out) in rows.zip(out.chunks_exact_mut(self.rows)) {
                self.widen_column(columns.start + row, out);
            }
        };
        Self::pack(WeightDType::F32, shape, &source, engine).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Products of the rows of some panels with all of `x`: `out` is `[tokens, 16 · panels]`.
    fn multiply(
        &self,
        kernels: Kernels,
        panels: Range<usize>,
        x: &Activations<'_>,
        (widened, out): (&mut Buffer, &mut [f32]),
    ) {
        let (rows, interleaved) = match self.in_pairs() {
            Some(true) => (x.pairs, x.interleaved_pairs),
            _ => (x.rows, x.interleaved),
        };
        match &self.packed {
            Packed::Dense(dense) => match interleaved {
                Some(x) => dense.multiply_many(kernels, panels, x, (widened, out)),
                None => dense.multiply(kernels, panels, rows, out),
            },
            Packed::Coded(coded) => match interleaved {
                Some(x) => coded.multiply_many(kernels, panels, x, (widened, out)),
                None => coded.multiply(kernels, panels, rows, out),
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
    /// `[tokens, cols / 2]`
    pairs: &'a [f32],
    interleaved_pairs: Option<&'a Interleaved>,
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
        apply_each(engine, [self], Source::Ready(x), [out]);
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

    /// Adds what [`Linear::apply`] gives to `out`.
    ///
    /// # Panics
    /// If `x` is not whole vectors, or `out` has another shape.
    pub(crate) fn add_to(&self, engine: &Engine, x: &[f32], out: &mut [f32]) {
        region(
            engine,
            ([self], &[self]),
            Source::Ready(x),
            [Out::Add(out)],
            &|x, tile| {
                self.compute(engine.kernels, x, tile.panels, (tile.widened, tile.out));
            },
        );
    }

    /// As [`Linear::apply`], then `finish` of every part of what came out.
    ///
    /// # Panics
    /// If `x` is not whole vectors.
    pub(crate) fn apply_then(
        &self,
        engine: &Engine,
        x: Source<'_>,
        out: &mut Vec<f32>,
        finish: &(dyn Fn(&mut [f32]) + Sync),
    ) {
        region(engine, ([self], &[self]), x, [Out::Set(out)], &|x, tile| {
            self.compute(engine.kernels, x, tile.panels, (tile.widened, tile.out));
            engine.quant.vectorise(|| finish(tile.out));
        });
    }

    fn compute(
        &self,
        kernels: Kernels,
        x: &Activations<'_>,
        panels: Range<usize>,
        (widened, out): (&mut Buffer, &mut [f32]),
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
pub(crate) fn apply_each<const N: usize>(
    engine: &Engine,
    linears: [&Linear; N],
    x: Source<'_>,
    outs: [&mut Vec<f32>; N],
) {
    region(engine, (linears, &linears), x, outs.map(Out::Set), &|x, tile| {
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
    x: Source<'_>,
    out: &mut Vec<f32>,
    combine: &(dyn Fn(&mut [f32], &[f32]) + Sync),
) {
    assert_eq!(gate.weight.rows, up.weight.rows, "gate and up of different shapes");
    assert_eq!(gate.weight.cols, up.weight.cols, "gate and up of different shapes");
    region(engine, ([gate], &[gate, up]), x, [Out::Set(out)], &|x, tile| {
        gate.compute(engine.kernels, x, tile.panels.clone(), (tile.widened, tile.out));
        let spare = tile.spare.numbers(tile.out.len());
        up.compute(engine.kernels, x, tile.panels, (tile.widened, spare));
        engine.quant.vectorise(|| combine(tile.out, spare));
    });
}

/// Where products go.
enum Out<'a> {
    /// It gets their size.
    Set(&'a mut Vec<f32>),
    /// They are added to what is there.
    Add(&'a mut [f32]),
}

thread_local! {
    /// Of the thread that begins regions, used again by each.
    static INPUT: RefCell<Input> = RefCell::default();
}

/// The outputs of `linears` for `x`, tile by tile. `all` are those that are multiplied on the way.
fn region<const N: usize>(
    engine: &Engine,
    (linears, all): ([&Linear; N], &[&Linear]),
    mut x: Source<'_>,
    outs: [Out<'_>; N],
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
    let mut i = 0;
    let mut lefts = outs.map(|out| {
        let rows = linears[i].weight.rows;
        i += 1;
        let (data, add) = match out {
            Out::Set(out) => {
                out.resize(tokens * rows, 0.0);
                (out.as_mut_slice(), false)
            }
            Out::Add(out) => (out, true),
        };
        Output { rows, data, add }
    });
    let wanted = wanted_by(all);
    let mut input = INPUT.take();
    let limits = if wanted.numbers || wanted.pairs {
        DENSE
    } else {
        QUANTISED
    };
    let step = tokens_at_a_time(tokens, limits.many);
    for first in (0..tokens).step_by(step) {
        let n_tokens = step.min(tokens - first);
        let outputs = lefts.each_mut().map(|left| {
            let (data, after) = std::mem::take(&mut left.data).split_at_mut(n_tokens * left.rows);
            left.data = after;
            Output {
                rows: left.rows,
                data,
                add: left.add,
            }
        });
        let few = n_tokens <= limits.few;
        let wanted = Wanted { few, ..wanted };
        let rows = input.set(engine, wanted, x.tokens(first..first + n_tokens, cols), cols);
        let activations = Activations {
            rows,
            interleaved: (!few).then_some(&input.interleaved),
            pairs: input.pairs(),
            interleaved_pairs: (!few).then_some(&input.interleaved_pairs),
            quant: engine.quant,
            quantised: &input.quantised,
        };
        let tile = panels_of_tile(few, all);
        compute_tiles(engine, outputs, [n_tokens, cols], tile, &|tile| {
            compute(&activations, tile);
        });
    }
    INPUT.set(input);
}

/// Panels of a tile, the least and the most.
fn panels_of_tile(few: bool, linears: &[&Linear]) -> RangeInclusive<usize> {
    if !few {
        return MANY_PANELS..=MANY_PANELS;
    }
    let panel_bytes = |linear: &&Linear| linear.weight.bytes() / linear.weight.rows.div_ceil(LANES).max(1);
    let of_panel = linears.iter().map(panel_bytes).max().unwrap_or(0).max(1);
    let [least, most] = TILE_BYTES.map(|bytes| (bytes / of_panel).max(PANEL_GROUP));
    least..=most
}

/// The forms that these multiply x in.
fn wanted_by(linears: &[&Linear]) -> Wanted {
    let any = |in_pairs| linears.iter().any(|linear| linear.weight.in_pairs() == in_pairs);
    Wanted {
        numbers: any(Some(false)),
        pairs: any(Some(true)),
        few: true,
        blocks: any(None),
    }
}

/// `tokens` in equal parts of at most `most`.
fn tokens_at_a_time(tokens: usize, most: usize) -> usize {
    let parts = tokens.div_ceil(most).max(1);
    tokens.div_ceil(parts).next_multiple_of(12).max(1)
}

#[cfg(test)]
mod tests;
