//! Matrices of bf16 that are kept in 12 bits a weight, as `panels/coded.rs` draws them: whether that is possible, how they are
//! packed, and their products.

use std::{
    borrow::Cow,
    cmp::Reverse,
    io,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use half::bf16;

use super::{
    Engine, Kernels, LANES, Rows, RowsMut,
    dense::{Interleaved, can_be_paired, multiply_parts, multiply_rows, pack_panels},
    memory::{Buffer, Memory},
    panels::{
        CodedPairs, CodedPanel, Exception, GROUP, GROUP_BYTES, HALF, STRIDE, TABLE, TABLES_BYTES, TOGETHER, dispatch,
        dispatch_pairs, place_of,
    },
};

/// Of so many weights one may be an exception. Trained ones have fewer by far; with more, they would take noticeable time.
const PER_EXCEPTION: usize = 2048;

/// Bits of a weight, tables and exceptions apart.
pub(super) const CODED_BITS: f64 = (8 * GROUP_BYTES) as f64 / (GROUP * LANES) as f64;

/// The code of a high byte that has none.
const NO_CODE: u8 = 0x80;

/// Gives rows of bf16, one after the other.
pub(crate) type Rounded<'a> = dyn Fn(Range<usize>) -> Cow<'a, [bf16]> + Sync + 'a;

/// Weights `[rows, cols]` in panels of 16 rows, what is missing to whole panels that lie together filled up with anything.
#[derive(Debug)]
pub(crate) struct Coded {
    n_panels: usize,
    cols: usize,
    /// Whether it is multiplied in pairs.
    pairs: bool,
    memory: Memory,
    /// Those of each panel, k ascending.
    exceptions: Vec<Exception>,
    /// Where those of each panel begin, and the end.
    starts: Vec<usize>,
}

impl Coded {
    /// `source` gives some of the rows, `[rows, cols]`; it is asked for all of them, by several threads. `None` if too many of
    /// these weights would be exceptions, or one of them cannot be.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn pack([rows, cols]: [usize; 2], source: &Rounded<'_>, engine: &Engine) -> io::Result<Option<Self>> {
        Self::pack_with(rows * cols / PER_EXCEPTION, [rows, cols], source, engine)
    }

    /// With so many exceptions at most.
    fn pack_with(
        most: usize,
        [rows, cols]: [usize; 2],
        source: &Rounded<'_>,
        engine: &Engine,
    ) -> io::Result<Option<Self>> {
        let n_panels = rows.div_ceil(LANES);
        if n_panels == 0 || cols == 0 || u32::try_from(cols.next_multiple_of(GROUP) * LANES).is_err() {
            return Ok(None);
        }
        let bytes = bytes_of(n_panels, cols);
        let mut memory = Memory::zeroed(bytes)?;
        let together = memory.numbers_mut::<u8>(bytes).chunks_exact_mut(together_bytes(cols));
        let lists: Vec<Mutex<Vec<Exception>>> = (0..n_panels).map(|_| Mutex::default()).collect();
        let found = AtomicUsize::new(0);
        pack_panels(engine, together, |number, out| {
            for i in (number * TOGETHER..n_panels).take(TOGETHER) {
                if found.load(Relaxed) > most {
                    return;
                }
                let weights = source(i * LANES..rows.min((i + 1) * LANES));
                let exceptions = encode(&weights, cols, (&mut *out, i % TOGETHER));
                found.fetch_add(exceptions.as_ref().map_or(most + 1, Vec::len), Relaxed);
                *lists[i].lock().unwrap_or_else(PoisonError::into_inner) = exceptions.unwrap_or_default();
            }
        });
        let found = found.into_inner();
        if found > most {
            return Ok(None);
        }
        let (mut exceptions, mut starts) = (Vec::with_capacity(found), vec![0]);
        for list in lists {
            exceptions.append(&mut list.into_inner().unwrap_or_else(PoisonError::into_inner));
            starts.push(exceptions.len());
        }
        Ok(Some(Self {
            n_panels,
            cols,
            pairs: false,
            memory,
            exceptions,
            starts,
        }))
    }

    /// Has it multiplied in pairs from now on, if it can be.
    pub(crate) fn pair(&mut self, kernels: Kernels) {
        self.pairs = can_be_paired(kernels, self.cols);
    }

    /// Whether x is to be in pairs.
    pub(crate) fn in_pairs(&self) -> bool {
        self.pairs
    }

    /// Words of x that a token has.
    fn words(&self) -> usize {
        if self.pairs { self.cols / 2 } else { self.cols }
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        bytes_of(self.n_panels, self.cols) + size_of_val(&*self.exceptions) + size_of_val(&*self.starts)
    }

    /// What panel `i` lies in together with another.
    fn together(&self, i: usize) -> &[u8] {
        let bytes = together_bytes(self.cols);
        let all = self.memory.numbers::<u8>(bytes_of(self.n_panels, self.cols));
        &all[i / TOGETHER * bytes..][..bytes]
    }

    /// The exceptions of panel `i`.
    fn exceptions(&self, i: usize) -> &[Exception] {
        &self.exceptions[self.starts[i]..self.starts[i + 1]]
    }

    /// Writes a column, as many numbers as there are rows.
    pub(crate) fn widen_column(&self, column: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let (tables, groups) = self.together(i).split_at(TABLES_BYTES);
            let table = &tables[i % TOGETHER * TABLE..][..TABLE];
            let group = &groups[column / GROUP * STRIDE + i % TOGETHER * GROUP_BYTES..][..GROUP_BYTES];
            let (low, codes) = group.split_at(GROUP_BYTES / 3 * 2);
            let upper = column % GROUP / HALF;
            for (lane, out) in out.iter_mut().enumerate() {
                let place = place_of(column, lane);
                let high = table[usize::from((codes[place] >> (4 * upper)) & 0xf)];
                let low = low[upper * codes.len() + place];
                *out = bf16::from_le_bytes([low, high]).to_f32();
            }
            let (first, exceptions) = (column * LANES, self.exceptions(i));
            let behind = exceptions.partition_point(|exception| (exception.at as usize) < first);
            for exception in &exceptions[behind..] {
                match out.get_mut(exception.at as usize - first) {
                    Some(out) => *out += exception.rest,
                    None => break,
                }
            }
        }
    }

    /// Products of some of the panels with all of `x`, `[tokens, cols]` or pairs of these: `out` is `[tokens, 16 · panels]`.
    pub(crate) fn multiply(&self, kernels: Kernels, panels: Range<usize>, x: &[f32], out: &mut [f32]) {
        let words = self.words();
        // SAFETY: the panels have all columns, and all else was checked.
        if self.pairs {
            let panel = |i| CodedPairs(self.panel_at(i, 0));
            multiply_rows(
                kernels,
                (panels.clone(), &panel),
                (x, words),
                out,
                |product, stride| unsafe {
                    dispatch_pairs!(kernels, multiply(product, stride));
                },
            );
        } else {
            let panel = |i| self.panel_at(i, 0);
            multiply_rows(
                kernels,
                (panels.clone(), &panel),
                (x, words),
                out,
                |product, stride| unsafe {
                    dispatch!(kernels, multiply(product, stride));
                },
            );
        }
        self.each_with_exceptions(panels, out, |exceptions, out| {
            let x_rows = Rows { data: x, stride: words };
            kernels.add_exceptions((exceptions, self.cols, self.pairs), x_rows, out, x.len() / words);
        });
    }

    /// The same numbers, bit for bit, for many tokens. `widened` is memory that is used again.
    ///
    /// # Panics
    /// As [`super::Dense::multiply_many`].
    pub(crate) fn multiply_many(
        &self,
        kernels: Kernels,
        panels: Range<usize>,
        x: &Interleaved,
        (widened, out): (&mut Buffer, &mut [f32]),
    ) {
        // Parts begin at whole groups, also those of pairs. SAFETY: as above.
        if self.pairs {
            let panel = |i, part: &Range<usize>| CodedPairs(self.panel_at(i, part.start * 2 / GROUP));
            let products = (widened, &mut *out);
            multiply_parts(
                kernels,
                (panels.clone(), &panel),
                (x, self.words()),
                products,
                |product, to| unsafe {
                    dispatch_pairs!(kernels, multiply_many(product, to));
                },
            );
        } else {
            let panel = |i, part: &Range<usize>| self.panel_at(i, part.start / GROUP);
            let products = (widened, &mut *out);
            multiply_parts(
                kernels,
                (panels.clone(), &panel),
                (x, self.words()),
                products,
                |product, to| unsafe {
                    dispatch!(kernels, multiply_many(product, to));
                },
            );
        }
        self.each_with_exceptions(panels, out, |exceptions, out| {
            kernels.add_exceptions_many((exceptions, self.cols, self.pairs), x.all(), out, x.tokens());
        });
    }

    /// Calls `add` with the exceptions of each of these panels that has some, and with its part of their products.
    fn each_with_exceptions(
        &self,
        panels: Range<usize>,
        out: &mut [f32],
        mut add: impl FnMut(&[Exception], RowsMut<'_>),
    ) {
        let width = panels.len() * LANES;
        for i in panels.clone() {
            let exceptions = self.exceptions(i);
            if !exceptions.is_empty() {
                let data = &mut out[(i - panels.start) * LANES..];
                add(exceptions, RowsMut { data, stride: width });
            }
        }
    }

    fn panel_at(&self, i: usize, first_group: usize) -> CodedPanel {
        CodedPanel::new(self.together(i), i % TOGETHER, first_group)
    }
}

/// Bytes of panels that lie together.
fn together_bytes(cols: usize) -> usize {
    TABLES_BYTES + cols.div_ceil(GROUP) * STRIDE
}

/// Bytes of all panels.
fn bytes_of(n_panels: usize, cols: usize) -> usize {
    n_panels.div_ceil(TOGETHER) * together_bytes(cols)
}

/// Writes a panel of these rows, no more than 16, as one of those that lie together in `out`, and returns its exceptions; `None`
/// if no codes do for these weights.
fn encode(rows: &[bf16], cols: usize, (out, i): (&mut [u8], usize)) -> Option<Vec<Exception>> {
    let mut table = most_frequent(rows);
    Encoder::new(table).encode(rows, cols, (&mut *out, i)).or_else(|| {
        // All that is to be added to a zero is the weight itself.
        table[TABLE - 1] = 0;
        Encoder::new(table).encode(rows, cols, (out, i))
    })
}

/// How the weights of a panel are encoded.
struct Encoder {
    /// What codes mean.
    table: [u8; TABLE],
    /// Of each high byte.
    codes: [u8; 256],
}

impl Encoder {
    fn new(table: [u8; TABLE]) -> Self {
        let mut codes = [NO_CODE; 256];
        for (code, high) in (0..).zip(table) {
            codes[usize::from(high)] = code;
        }
        Self { table, codes }
    }

    /// `None` if some weight is no sum of one that has a code and another number.
    fn encode(&self, rows: &[bf16], cols: usize, (out, i): (&mut [u8], usize)) -> Option<Vec<Exception>> {
        const PLACES: usize = HALF * LANES;
        let (tables, groups) = out.split_at_mut(TABLES_BYTES);
        tables[i * TABLE..][..TABLE].copy_from_slice(&self.table);
        let mut exceptions = Vec::new();
        let groups = groups.chunks_exact_mut(GROUP_BYTES).skip(i).step_by(TOGETHER);
        for (first, group) in (0..cols).step_by(GROUP).zip(groups) {
            let columns = first..cols.min(first + GROUP);
            let mut weights = [[bf16::ZERO; PLACES]; 2];
            let mut all = 0;
            for (lane, row) in rows.chunks_exact(cols).enumerate() {
                for (k, weight) in row[columns.clone()].iter().enumerate() {
                    all |= self.codes[high(*weight)];
                    weights[k / HALF][place_of(k, lane)] = *weight;
                }
            }
            if all & NO_CODE != 0 {
                for k in columns {
                    for lane in 0..rows.len() / cols {
                        let weight = &mut weights[k % GROUP / HALF][place_of(k, lane)];
                        if self.codes[high(*weight)] == NO_CODE {
                            let (base, rest) = self.split(*weight)?;
                            *weight = base;
                            let at = (k * LANES + lane) as u32;
                            exceptions.push(Exception { at, rest });
                        }
                    }
                }
            }
            let (low, codes) = group.split_at_mut(2 * PLACES);
            for (low, weight) in low.iter_mut().zip(weights.as_flattened()) {
                *low = weight.to_bits() as u8;
            }
            let [lower, upper] = weights;
            for ((to, lower), upper) in codes.iter_mut().zip(lower).zip(upper) {
                // What has no code now is in no row or no column.
                *to = (self.codes[high(lower)] & 0xf) | (self.codes[high(upper)] << 4);
            }
        }
        Some(exceptions)
    }

    /// A weight that has a code, the smallest that does, and what a weight that has none is more than that, exactly. Only zeros
    /// lose anything, their sign.
    fn split(&self, weight: bf16) -> Option<(bf16, f32)> {
        let bases = self.table.iter().map(|high| bf16::from_le_bytes([0, *high]));
        let splits = bases.filter_map(|base| {
            let (wide, base_wide) = (weight.to_f32(), base.to_f32());
            let rest = wide - base_wide;
            // A rest that was rounded still gives the larger of both numbers, but never the smaller one. Infinities lose
            // nothing to a number, and leave nothing of it.
            let is_exact = base_wide + rest == wide && (wide - rest == base_wide || rest.is_infinite());
            is_exact.then_some((base, rest))
        });
        splits.min_by(|(a, _), (b, _)| a.to_f32().abs().total_cmp(&b.to_f32().abs()))
    }
}

fn high(weight: bf16) -> usize {
    usize::from(weight.to_bits() >> 8)
}

/// The most frequent high bytes, as many as have codes.
fn most_frequent(weights: &[bf16]) -> [u8; TABLE] {
    // Several counters each, or each weight would wait for the one before it, which is likely to have the same byte.
    let mut counts = [[0_u32; 256]; 4];
    let chunks = weights.chunks_exact(4);
    for weight in chunks.remainder() {
        counts[0][high(*weight)] += 1;
    }
    for chunk in chunks {
        for (counts, weight) in counts.iter_mut().zip(chunk) {
            counts[high(*weight)] += 1;
        }
    }
    let mut bytes: [u8; 256] = std::array::from_fn(|byte| byte as u8);
    let count = |byte: u8| counts.iter().map(|counts| counts[usize::from(byte)]).sum::<u32>();
    bytes.sort_by_key(|byte| Reverse(count(*byte)));
    std::array::from_fn(|code| bytes[code])
}

#[cfg(test)]
mod tests;
