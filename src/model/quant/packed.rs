//! A matrix in a quantised format: made from rows of f32 or from codes that a file has, and widened again. There is one
//! copy of the weights, in the panels that the kernels read.

use std::{
    fmt, io,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use super::{
    WeightFormat,
    encode::{Column, MAX_GROUP, decode, encode},
    row::PanelRow,
};
use crate::model::cpu::{Engine, Memory, quant::QuantPanels};

/// Rows of a panel.
const PANEL: usize = super::PANEL_ROWS;

/// Weights `[rows, cols]` in panels of 16 rows.
pub(crate) struct QuantMatrix {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    memory: Memory,
}

impl QuantMatrix {
    /// Quantises what `source` writes: it is given a range of rows and room for them, `[rows, cols]`, by several threads.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn pack(
        format: WeightFormat,
        [rows, cols]: [usize; 2],
        source: &(dyn Fn(Range<usize>, &mut [f32]) + Sync),
        engine: &Engine,
    ) -> io::Result<Self> {
        Self::filled(format, [rows, cols], engine, &|range, panel| {
            let mut numbers = vec![0.0; range.len() * cols];
            source(range, &mut numbers);
            engine.quant.vectorise(|| encode_panel(format, &numbers, cols, panel));
        })
    }

    /// Codes and scales as they are: `write` puts those of a row to their place, for several rows at a time.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn lay_out(
        format: WeightFormat,
        shape: [usize; 2],
        write: &(dyn Fn(usize, &mut PanelRow<'_>) + Sync),
        engine: &Engine,
    ) -> io::Result<Self> {
        Self::filled(format, shape, engine, &|rows, panel| {
            for (idx, row) in rows.enumerate() {
                write(row, &mut PanelRow::new(format, panel, idx));
            }
        })
    }

    /// Every panel filled by `fill`, which is told its rows, by several threads.
    fn filled(
        format: WeightFormat,
        [rows, cols]: [usize; 2],
        engine: &Engine,
        fill: &(dyn Fn(Range<usize>, &mut [u8]) + Sync),
    ) -> io::Result<Self> {
        let mut matrix = Self::zeros(format, rows, cols)?;
        let panels: Vec<Mutex<&mut [u8]>> = matrix.panels_mut().map(Mutex::new).collect();
        engine.pool.run(panels.len(), &|i| {
            let range = i * PANEL..rows.min((i + 1) * PANEL);
            let mut panel = panels[i].lock().unwrap_or_else(PoisonError::into_inner);
            fill(range, &mut panel);
        });
        Ok(matrix)
    }

    /// Nothing but zeros, to be filled panel by panel.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn zeros(format: WeightFormat, rows: usize, cols: usize) -> io::Result<Self> {
        Ok(Self {
            format,
            rows,
            cols,
            memory: Memory::zeroed(format.bytes(rows, cols))?,
        })
    }

    pub(crate) fn format(&self) -> WeightFormat {
        self.format
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that the weights take.
    pub(crate) fn len(&self) -> usize {
        self.format.bytes(self.rows, self.cols)
    }

    fn panel_bytes(&self) -> usize {
        self.format.bytes(PANEL, self.cols)
    }

    /// The panels one after the other, to be written to; panel p has rows 16 p to 16 p + 15.
    pub(crate) fn panels_mut(&mut self) -> std::slice::ChunksExactMut<'_, u8> {
        let panel = self.panel_bytes().max(1);
        let len = self.len();
        self.memory.numbers_mut::<u8>(len).chunks_exact_mut(panel)
    }

    /// The weights as the kernels multiply by them, row after row.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (panel, out) in out.chunks_mut(PANEL * self.cols.max(1)).enumerate() {
            self.widen_panel(panel, out);
        }
        out
    }

    /// Some columns, `[columns, rows]`, as the kernels multiply by them. The first is one with which a group begins.
    ///
    /// # Panics
    /// If a group begins elsewhere.
    pub(crate) fn widen_columns(&self, columns: Range<usize>, engine: &Engine) -> Vec<f32> {
        let (group, group_bytes) = (self.format.group(), self.format.group_bytes());
        assert!(columns.start.is_multiple_of(group), "a column inside of a group");
        let mut out = vec![0.0; columns.len() * self.rows];
        let parts: Vec<Mutex<&mut [f32]>> = out.chunks_mut((group * self.rows).max(1)).map(Mutex::new).collect();
        engine.pool.run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (mut decoded, at) = ([[0.0; PANEL]; MAX_GROUP], (columns.start / group + i) * group_bytes);
            for panel in 0..self.rows.div_ceil(PANEL) {
                let codes = &self.panels(panel..panel + 1).bytes[at..at + group_bytes];
                decode(self.format, codes, &mut decoded[..group]);
                let rows = panel * PANEL..self.rows.min((panel + 1) * PANEL);
                for (out, column) in part.chunks_exact_mut(self.rows).zip(&decoded) {
                    out[rows.clone()].copy_from_slice(&column[..rows.len()]);
                }
            }
        });
        out
    }

    /// For the kernels: the panels of `panels`.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn panels(&self, panels: Range<usize>) -> QuantPanels<'_> {
        let bytes = self.panel_bytes();
        QuantPanels {
            format: self.format,
            bytes: &self.memory.numbers(self.len())[panels.start * bytes..panels.end * bytes],
            n: panels.len(),
            cols: self.cols,
        }
    }

    /// How many panels there are.
    #[cfg(test)]
    pub(crate) fn n_panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Writes the rows of panel `panel`, `[its rows, cols]`, to `out`: exactly what the kernels multiply by.
    ///
    /// # Panics
    /// If `out` has another size.
    pub(crate) fn widen_panel(&self, panel: usize, out: &mut [f32]) {
        let panels = self.panels(panel..panel + 1);
        let rows = PANEL.min(self.rows - panel * PANEL);
        assert_eq!(out.len(), rows * self.cols, "not the rows of a panel");
        let mut columns = [[0.0; 16]; MAX_GROUP];
        let columns = &mut columns[..self.format.group()];
        for (group_idx, group) in panels.bytes.chunks_exact(self.format.group_bytes()).enumerate() {
            decode(self.format, group, columns);
            let first = group_idx * columns.len();
            for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
                for (out, column) in out[first..].iter_mut().zip(&*columns) {
                    *out = column[row];
                }
            }
        }
    }
}

impl fmt::Debug for QuantMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "QuantMatrix({} [{}, {}])",
            self.format.as_str(),
            self.rows,
            self.cols
        )
    }
}

/// Quantises up to 16 rows, `[rows, cols]`, into a panel.
///
/// # Panics
/// If the lengths do not fit together.
#[inline(always)]
pub(crate) fn encode_panel(format: WeightFormat, rows: &[f32], cols: usize, panel: &mut [u8]) {
    assert!(rows.len() <= PANEL * cols, "more rows than a panel has");
    let mut columns: [Column; MAX_GROUP] = [[0.0; 16]; MAX_GROUP];
    let columns = &mut columns[..format.group()];
    for (group_idx, group) in panel.chunks_exact_mut(format.group_bytes()).enumerate() {
        let first = group_idx * columns.len();
        columns.fill([0.0; 16]);
        for (row, values) in rows.chunks_exact(cols).enumerate() {
            for (column, value) in columns.iter_mut().zip(&values[first..]) {
                column[row] = *value;
            }
        }
        encode(format, columns, group);
    }
}
