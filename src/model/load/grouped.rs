//! Matrices as GPTQ and AWQ publish them: codes of 4 bits, and for each group of columns a scale and a zero, so that a
//! weight is `scale · (code - zero)` (auto-gptq `qlinear_cuda.py`, AutoAWQ `packing_utils.py`).

use bytes::Bytes;
use half::{bf16, f16};
use safetensors::Dtype;

use super::{LoadError, TensorReader};
use crate::model::{
    WeightFormat,
    config::packed::{PackedWeights, PackingMethod},
    layout::TensorSpec,
    quant::PanelRow,
};

/// Codes in a word, and columns of our blocks.
const WORD: usize = 8;
const BLOCK: usize = 32;

/// Which 4 bits of a word are row `r` of eight in AWQ's order.
const AWQ_PLACES: [usize; WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A matrix `[rows, cols]`.
pub(super) struct Grouped {
    method: PackingMethod,
    rows: usize,
    cols: usize,
    codes: Bytes,
    /// Of each column.
    group_of: Vec<usize>,
    /// `[groups, rows]`
    scales: Vec<f32>,
    /// `[groups, rows]`
    zeros: Vec<u8>,
    /// Columns that belong to one block of ours belong to one group, and scales are f16.
    has_blocks: bool,
}

impl TensorReader<'_> {
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub(super) fn grouped(&mut self, spec: &TensorSpec, packing: PackedWeights) -> Result<Grouped, LoadError> {
        let [rows, cols] = spec.shape[..] else {
            return Err(LoadError::Packing {
                tensor: spec.name.clone(),
            });
        };
        let size = packing.group_size.unwrap_or(cols);
        if size == 0 || !cols.is_multiple_of(WORD) || !rows.is_multiple_of(WORD) {
            return Err(LoadError::Packing {
                tensor: spec.name.clone(),
            });
        }
        let n_groups = cols.div_ceil(size);
        let stem = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
        let codes_shape = match packing.method {
            PackingMethod::Gptq { .. } => [cols / WORD, rows],
            PackingMethod::Awq => [cols, rows / WORD],
        };
        let codes = self.words(&format!("{stem}.qweight"), &codes_shape)?;
        let zeros = self.words(&format!("{stem}.qzeros"), &[n_groups, rows / WORD])?;
        let (scales, exact) = self.scales(&format!("{stem}.scales"), &[n_groups, rows])?;
        let group_of = match packing.method {
            PackingMethod::Gptq { .. } => self.groups(&format!("{stem}.g_idx"), cols, size)?,
            PackingMethod::Awq => (0..cols).map(|column| column / size).collect(),
        };
        if group_of.iter().any(|group| *group >= n_groups) {
            return Err(LoadError::Packing {
                tensor: spec.name.clone(),
            });
        }
        let of_zero = |i: usize| {
            let (group, row) = (i / rows, i % rows);
            match packing.method {
                PackingMethod::Gptq { less } => nibble(&zeros, group * (rows / WORD) + row / WORD, row % WORD) + less,
                PackingMethod::Awq => nibble(&zeros, group * (rows / WORD) + row / WORD, AWQ_PLACES[row % WORD]),
            }
        };
        let in_one_group = |columns: &[usize]| columns.iter().all(|group| *group == columns[0]);
        Ok(Grouped {
            method: packing.method,
            rows,
            cols,
            codes,
            has_blocks: exact && group_of.chunks(BLOCK).all(in_one_group),
            group_of,
            scales,
            zeros: (0..n_groups * rows).map(of_zero).collect(),
        })
    }

    fn words(&mut self, tensor: &str, shape: &[usize]) -> Result<Bytes, LoadError> {
        let stored = self.stored(tensor, shape)?;
        match stored.dtype {
            Dtype::I32 | Dtype::U32 => Ok(stored.bytes),
            _ => Err(stored.refused(tensor)),
        }
    }

    /// And whether f16 holds each of them.
    fn scales(&mut self, tensor: &str, shape: &[usize]) -> Result<(Vec<f32>, bool), LoadError> {
        let stored = self.stored(tensor, shape)?;
        let halves = || stored.bytes.chunks_exact(2).map(|half| [half[0], half[1]]);
        let scales: Vec<f32> = match stored.dtype {
            Dtype::F16 => halves().map(|half| f16::from_le_bytes(half).to_f32()).collect(),
            Dtype::BF16 => halves().map(|half| bf16::from_le_bytes(half).to_f32()).collect(),
            Dtype::F32 => stored.bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
            _ => return Err(stored.refused(tensor)),
        };
        let exact = scales.iter().all(|scale| f16::from_f32(*scale).to_f32() == *scale);
        Ok((scales, exact))
    }

    /// The group of each column: where columns were sorted by their importance (`desc_act`) it is any.
    fn groups(&mut self, tensor: &str, cols: usize, size: usize) -> Result<Vec<usize>, LoadError> {
        if !self.exists(tensor) {
            return Ok((0..cols).map(|column| column / size).collect());
        }
        let groups = self.words(tensor, &[cols])?;
        let groups = groups.chunks_exact(4).map(bytemuck::pod_read_unaligned::<u32>);
        Ok(groups.map(|group| group as usize).collect())
    }
}

impl Grouped {
    /// The format with the same weights, or q8_0 if there is none: its steps are small beside those of 4 bits.
    pub(super) fn own_format(&self) -> WeightFormat {
        if self.can_lay_out(WeightFormat::Q4_0) {
            WeightFormat::Q4_0
        } else {
            WeightFormat::Q8_0
        }
    }

    pub(super) fn can_lay_out(&self, format: WeightFormat) -> bool {
        match format {
            WeightFormat::Q8_0 => self.has_blocks,
            WeightFormat::Q4_0 => self.has_blocks && self.zeros.iter().all(|zero| *zero == 8),
            _ => false,
        }
    }

    /// # Panics
    /// If there is no such row, or [`Grouped::can_lay_out`] says no.
    pub(super) fn lay_out(&self, row: usize, place: &mut PanelRow<'_>) {
        for (block, columns) in self.group_of.chunks(BLOCK).enumerate() {
            let of_group = columns[0] * self.rows + row;
            let code = |k: usize| {
                let code = (k < columns.len()).then(|| self.code(row, block * BLOCK + k));
                code.map_or(0, |code| code.cast_signed() - self.zeros[of_group].cast_signed())
            };
            place.put(block, f16::from_f32(self.scales[of_group]), code);
        }
    }

    /// # Panics
    /// If there is no such row.
    pub(super) fn widen_row(&self, row: usize, out: &mut [f32]) {
        for (column, (out, group)) in out.iter_mut().zip(&self.group_of).enumerate() {
            let of_group = group * self.rows + row;
            let code = f32::from(self.code(row, column)) - f32::from(self.zeros[of_group]);
            *out = self.scales[of_group] * code;
        }
    }

    fn code(&self, row: usize, column: usize) -> u8 {
        debug_assert!(row < self.rows && column < self.cols, "outside of the matrix");
        match self.method {
            PackingMethod::Gptq { .. } => nibble(&self.codes, column / WORD * self.rows + row, column % WORD),
            PackingMethod::Awq => nibble(
                &self.codes,
                column * (self.rows / WORD) + row / WORD,
                AWQ_PLACES[row % WORD],
            ),
        }
    }
}

/// 4 bits of a little-endian word, place 0 the lowest.
fn nibble(words: &[u8], word: usize, place: usize) -> u8 {
    let byte = words[word * 4 + place / 2];
    if place.is_multiple_of(2) { byte & 15 } else { byte >> 4 }
}

#[cfg(test)]
mod tests;
