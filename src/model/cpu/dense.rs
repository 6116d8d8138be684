//! Matrices of f32, bf16 or f16 in panels: how they are packed, and their products with few tokens (limited by memory:
//! widened in registers, each weight read once) and with many (limited by arithmetic: in parts that stay in the caches).

use std::{
    io,
    marker::PhantomData,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{
    Engine, Kernels, LANES, Rows, RowsMut,
    memory::{Buffer, Memory},
    panels::{Element16, MAX_TOKEN_GROUP, PANEL_GROUP, PairPanel, Product, dispatch, dispatch_pairs, parts},
    tiles::Start,
};
use crate::model::{WeightDType, number::Slice};

/// The most panels that are multiplied with many tokens at a time. A part of them takes less than half of the smallest
/// second-level caches, and half of the ways of one if it is where panels of f32 are, a power of two apart.
pub(crate) const MANY_PANELS: usize = 8;

/// Weights `[rows, cols]` in panels of 16 rows, the last one filled up with zeros.
#[derive(Debug)]
pub(crate) struct Dense {
    dtype: WeightDType,
    n_panels: usize,
    cols: usize,
    /// Whether it is multiplied in pairs.
    pairs: bool,
    memory: Memory,
}

/// x of many tokens as the kernel takes it, part of k after part of k, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Interleaved {
    data: Buffer,
    tokens: usize,
    cols: usize,
}

impl Dense {
    /// `source` writes some of the rows, `[rows, cols]`; it is asked for all of them, by several threads.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn pack(
        dtype: WeightDType,
        [rows, cols]: [usize; 2],
        source: &(dyn Fn(Range<usize>, &mut [f32]) + Sync),
        engine: &Engine,
    ) -> io::Result<Self> {
        let n_panels = rows.div_ceil(LANES);
        let panel = LANES * cols;
        let mut memory = Memory::zeroed(n_panels * panel * dtype.size())?;
        let range = |i: usize| i * LANES..rows.min((i + 1) * LANES);
        match dtype {
            WeightDType::F32 => {
                let panels = memory
                    .numbers_mut::<f32>(n_panels * panel)
                    .chunks_exact_mut(panel.max(1));
                pack_panels(engine, panels, |i, out| {
                    read_panel(range(i), cols, source, |k, numbers| {
                        out[k..k + numbers.len()].copy_from_slice(numbers)
                    });
                });
            }
            WeightDType::Bf16 => {
                let panels = memory
                    .numbers_mut::<bf16>(n_panels * panel)
                    .chunks_exact_mut(panel.max(1));
                pack_panels(engine, panels, |i, out| {
                    read_panel(range(i), cols, source, |k, numbers| {
                        out[k..k + numbers.len()].convert_from_f32_slice(numbers);
                    });
                });
            }
            WeightDType::F16 => {
                let panels = memory
                    .numbers_mut::<f16>(n_panels * panel)
                    .chunks_exact_mut(panel.max(1));
                pack_panels(engine, panels, |i, out| {
                    read_panel(range(i), cols, source, |k, numbers| {
                        out[k..k + numbers.len()].convert_from_f32_slice(numbers);
                    });
                });
            }
        }
        Ok(Self {
            dtype,
            n_panels,
            cols,
            pairs: false,
            memory,
        })
    }

    /// Has it multiplied in pairs from now on, if it can be.
    pub(crate) fn pair(&mut self, kernels: Kernels) {
        self.pairs = self.dtype == WeightDType::Bf16 && can_be_paired(kernels, self.cols);
    }

    /// Whether x is to be in pairs.
    pub(crate) fn in_pairs(&self) -> bool {
        self.pairs
    }

    /// Panel `i`, `[cols][16]`.
    pub(crate) fn panel(&self, i: usize) -> Slice<'_> {
        let len = self.n_panels * LANES * self.cols;
        let all = match self.dtype {
            WeightDType::F32 => Slice::F32(self.memory.numbers(len)),
            WeightDType::Bf16 => Slice::Bf16(self.memory.numbers(len)),
            WeightDType::F16 => Slice::F16(self.memory.numbers(len)),
        };
        all.range(i * LANES * self.cols..(i + 1) * LANES * self.cols)
    }

    /// Writes a column, as many numbers as there are rows.
    pub(crate) fn widen_column(&self, column: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let first = column * LANES;
            self.panel(i).range(first..first + out.len()).widen_into(out);
        }
    }

    /// Products of some of the panels with all of `x`, `[tokens, cols]` or pairs of these: `out` is `[tokens, 16 · panels]`.
    pub(crate) fn multiply(&self, kernels: Kernels, panels: Range<usize>, x: &[f32], out: &mut [f32]) {
        if self.pairs {
            let panel = |i| PairPanel(bf16::items(self.panel(i)).as_ptr());
            return multiply_rows(kernels, (panels, &panel), (x, self.cols / 2), out, |product, stride| {
                // SAFETY: the panels have all columns, and all else was checked.
                unsafe { dispatch_pairs!(kernels, multiply(product, stride)) }
            });
        }
        match self.dtype {
            WeightDType::F32 => self.multiply_of::<f32>(kernels, panels, x, out),
            WeightDType::Bf16 => self.multiply_of::<bf16>(kernels, panels, x, out),
            WeightDType::F16 => self.multiply_of::<f16>(kernels, panels, x, out),
        }
    }

    fn multiply_of<E: Element16>(&self, kernels: Kernels, panels: Range<usize>, x: &[f32], out: &mut [f32]) {
        let panel = |i| E::items(self.panel(i)).as_ptr();
        multiply_rows(kernels, (panels, &panel), (x, self.cols), out, |product, stride| {
            // SAFETY: the panels have all columns, and all else was checked.
            unsafe { dispatch!(kernels, multiply(product, stride)) }
        });
    }

    /// The same numbers, bit for bit, for many tokens. `widened` is memory that is used again.
    ///
    /// # Panics
    /// If there are fewer tokens than the largest group, or more than [`MANY_PANELS`].
    pub(crate) fn multiply_many(
        &self,
        kernels: Kernels,
        panels: Range<usize>,
        x: &Interleaved,
        (widened, out): (&mut Buffer, &mut [f32]),
    ) {
        if self.pairs {
            let panel = |i, part: &Range<usize>| {
                let numbers = part.start * 2 * LANES..part.end * 2 * LANES;
                PairPanel(bf16::items(self.panel(i).range(numbers)).as_ptr())
            };
            return multiply_parts(
                kernels,
                (panels, &panel),
                (x, self.cols / 2),
                (widened, out),
                |product, widened| {
                    // SAFETY: the panels have all columns, and all else was checked.
                    unsafe { dispatch_pairs!(kernels, multiply_many(product, widened)) }
                },
            );
        }
        match self.dtype {
            WeightDType::F32 => self.multiply_many_of::<f32>(kernels, panels, x, (widened, out)),
            WeightDType::Bf16 => self.multiply_many_of::<bf16>(kernels, panels, x, (widened, out)),
            WeightDType::F16 => self.multiply_many_of::<f16>(kernels, panels, x, (widened, out)),
        }
    }

    fn multiply_many_of<E: Element16>(
        &self,
        kernels: Kernels,
        panels: Range<usize>,
        x: &Interleaved,
        (widened, out): (&mut Buffer, &mut [f32]),
    ) {
        let panel =
            |i, part: &Range<usize>| E::items(self.panel(i).range(part.start * LANES..part.end * LANES)).as_ptr();
        multiply_parts(
            kernels,
            (panels, &panel),
            (x, self.cols),
            (widened, out),
            |product, widened| {
                // SAFETY: the panels have all columns, and all else was checked.
                unsafe { dispatch!(kernels, multiply_many(product, widened)) }
            },
        );
    }
}

/// Whether a matrix of bf16 can be multiplied in pairs: its columns would have to be some.
pub(super) fn can_be_paired(kernels: Kernels, cols: usize) -> bool {
    kernels.has_pairs() && cols.is_multiple_of(2)
}

/// Products of some panels with the rows `x`, `[tokens, depth]`, by `multiply`, which is given some panels at a time, and how
/// far the rows are apart. All lengths but those of panels are checked.
///
/// # Panics
/// If lengths do not fit together.
pub(super) fn multiply_rows<S: Copy>(
    kernels: Kernels,
    (panels, panel): (Range<usize>, &dyn Fn(usize) -> S),
    (x, depth): (&[f32], usize),
    out: &mut [f32],
    multiply: impl Fn(Product<'_, S>, usize),
) {
    let width = panels.len() * LANES;
    for first in panels.clone().step_by(PANEL_GROUP) {
        let n = PANEL_GROUP.min(panels.end - first);
        let group: [S; PANEL_GROUP] = std::array::from_fn(|i| panel(first + i.min(n - 1)));
        let rows = Rows { data: x, stride: depth };
        let out = RowsMut {
            data: &mut out[(first - panels.start) * LANES..],
            stride: width,
        };
        let shape = Product {
            feed: kernels.feed,
            ..Product::shape((n, depth), rows, out, x.len() / depth, false)
        };
        multiply(shape.group(&group[..n], 0), depth);
    }
}

/// The panel of this number, from the first k of a part on.
pub(super) type PanelAt<'a, S> = &'a dyn Fn(usize, &Range<usize>) -> S;

/// Products of panels of `depth` k with all of `x`, in the parts that it is in, by `multiply`, which is given memory for words
/// besides. All lengths but those of panels are checked.
///
/// # Panics
/// If there are fewer tokens than the largest group, or more than [`MANY_PANELS`].
pub(super) fn multiply_parts<S: Copy>(
    kernels: Kernels,
    (panels, panel): (Range<usize>, PanelAt<'_, S>),
    (x, depth): (&Interleaved, usize),
    (widened, out): (&mut Buffer, &mut [f32]),
    multiply: impl Fn(Product<'_, S>, *mut f32),
) {
    let (n, width) = (panels.len(), panels.len() * LANES);
    assert!(
        x.cols == depth && out.len() == x.tokens * width,
        "x or out of another shape"
    );
    assert!(
        x.tokens >= MAX_TOKEN_GROUP && n <= MANY_PANELS,
        "few tokens or many panels"
    );
    if panels.is_empty() {
        return;
    }
    let longest = parts(depth).map(|part| part.len()).max().unwrap_or(0);
    let widened = widened.numbers(longest * width).as_mut_ptr();
    for part in parts(depth) {
        let at: [S; MANY_PANELS] = std::array::from_fn(|i| panel(panels.start + i.min(n - 1), &part));
        let product = Product {
            panels: &at[..n],
            depth: part.len(),
            tokens: x.tokens,
            x: x.part(&part).as_ptr(),
            out: out.as_mut_ptr(),
            out_stride: width,
            add: part.start > 0,
            feed: kernels.feed,
        };
        multiply(product, widened);
    }
}

impl Interleaved {
    /// Makes room for other tokens.
    pub(super) fn resize(&mut self, tokens: usize, cols: usize) {
        (self.tokens, self.cols) = (tokens, cols);
        self.data.numbers(tokens * cols);
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// All parts of k, as [`parts`] cuts them, one after the other.
    pub(super) fn all(&self) -> &[f32] {
        self.data.as_slice(self.tokens * self.cols)
    }

    /// Some k of all tokens.
    fn part(&self, part: &Range<usize>) -> &[f32] {
        &self.all()[part.start * self.tokens..part.end * self.tokens]
    }

    /// For threads that write to different tokens.
    pub(super) fn writer(&mut self) -> InterleavedWriter<'_> {
        InterleavedWriter {
            start: Start(self.data.numbers(self.tokens * self.cols).as_mut_ptr()),
            tokens: self.tokens,
            cols: self.cols,
            data: PhantomData,
        }
    }
}

/// An [`Interleaved`] that is being written.
pub(super) struct InterleavedWriter<'a> {
    start: Start<f32>,
    tokens: usize,
    cols: usize,
    data: PhantomData<&'a mut [f32]>,
}

impl InterleavedWriter<'_> {
    /// Takes the tokens `x` from number `first` on.
    ///
    /// # Safety
    /// There is room for these tokens, which nobody else writes to. `first` is a multiple of the largest group of tokens, and
    /// there are as many tokens or they are the last: then parts are grouped as the whole is.
    pub(super) unsafe fn write(&self, engine: &Engine, first: usize, x: &[f32]) {
        let n = x.len() / self.cols;
        for part in parts(self.cols) {
            let (rows, stride) = (x[part.start..].as_ptr(), self.cols);
            // SAFETY: the caller's promise; x has that many tokens.
            unsafe {
                let out = self.start.at(part.start * self.tokens + first * part.len());
                dispatch!(engine.kernels, interleave((rows, stride), [n, part.len()], out));
            }
        }
    }
}

/// `pack(i, panel i)` for all of them, on all threads.
pub(super) fn pack_panels<'a, T: Send + 'a>(
    engine: &Engine,
    panels: impl Iterator<Item = &'a mut [T]>,
    pack: impl Fn(usize, &mut [T]) + Sync,
) {
    let panels: Vec<Mutex<&mut [T]>> = panels.map(Mutex::new).collect();
    engine.pool.run(panels.len(), &|i| {
        pack(i, &mut panels[i].lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// Hands out the rows `range` as a panel, in parts `[k][16]` that begin at a number of the panel.
fn read_panel(
    range: Range<usize>,
    cols: usize,
    source: &(dyn Fn(Range<usize>, &mut [f32]) + Sync),
    mut write: impl FnMut(usize, &[f32]),
) {
    const PART: usize = 32;
    let mut rows = vec![0.0; range.len() * cols];
    source(range, &mut rows);
    let mut part = [0.0; PART * LANES];
    for first in (0..cols).step_by(PART) {
        let depth = PART.min(cols - first);
        for (lane, row) in rows.chunks_exact(cols).enumerate() {
            for (k, number) in row[first..first + depth].iter().enumerate() {
                part[k * LANES + lane] = *number;
            }
        }
        write(first * LANES, &part[..depth * LANES]);
    }
}

#[cfg(test)]
mod tests;
