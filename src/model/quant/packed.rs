//! A matrix in a quantised format: made from rows of f32 or from ggml's blocks, and widened again. There is one copy of
//! the weights, in the panels that the kernels read.

use std::{fmt, ops::Range};

use super::{
    WeightFormat,
    encode::{Column, MAX_GROUP, decode, encode},
};
use crate::model::cpu::quant::QuantPanels;

/// Rows of a panel.
const PANEL: usize = super::PANEL_ROWS;

/// Panels start at cache lines, so that no load of a line touches two.
const ALIGNMENT: usize = 64;

/// Weights `[rows, cols]` in panels of 16 rows.
pub(crate) struct QuantMatrix {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    buffer: Vec<u8>,
    /// Where the first panel begins in it.
    start: usize,
}

impl QuantMatrix {
    /// Nothing but zeros, to be filled panel by panel.
    pub(crate) fn zeros(format: WeightFormat, rows: usize, cols: usize) -> Self {
        let buffer = vec![0_u8; format.bytes(rows, cols) + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Self {
            format,
            rows,
            cols,
            buffer,
            start,
        }
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
        let (start, len) = (self.start, self.len());
        self.buffer[start..start + len].chunks_exact_mut(panel)
    }

    /// For the kernels: the panels of `panels`.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn panels(&self, panels: Range<usize>) -> QuantPanels<'_> {
        let bytes = self.panel_bytes();
        QuantPanels {
            format: self.format,
            bytes: &self.buffer[self.start + panels.start * bytes..self.start + panels.end * bytes],
            n: panels.len(),
            cols: self.cols,
        }
    }

    /// How many panels there are.
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

/// Clones are aligned like the original, which `Vec`'s own clone would not be.
impl Clone for QuantMatrix {
    fn clone(&self) -> Self {
        let mut clone = Self::zeros(self.format, self.rows, self.cols);
        let (start, len) = (clone.start, clone.len());
        clone.buffer[start..start + len].copy_from_slice(&self.buffer[self.start..self.start + len]);
        clone
    }
}

/// Quantises up to 16 rows, `[rows, cols]`, into a panel.
///
/// # Panics
/// If the lengths do not fit together.
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
