//! Matrices that a file has in blocks of 8 or 4 bits: laid out as they are where there are kernels for them, else widened
//! row by row and quantised anew, never as a whole in f32.

use std::{ops::Range, path::PathBuf, sync::OnceLock};

use super::{TensorReader, gguf_tensor, grouped::Grouped, in_gguf};
use crate::model::{
    GgufError, LoadError, WeightDType, WeightFormat,
    files::Weights,
    gguf::{Gguf, GgufTensor},
    layout::{Packing, TensorSpec},
    linear::Matrix,
    number::{Buffer, Frozen},
    quant::{
        PanelRow, QuantMatrix,
        ggml::{can_lay_out, lay_out, own_format},
    },
};

/// A matrix in blocks.
pub(super) enum Blocks {
    Gguf {
        path: PathBuf,
        tensor: GgufTensor,
        own: WeightFormat,
    },
    Grouped(Grouped),
}

/// The format that a matrix is kept in with [`crate::model::ModelFiles::with_own_formats`], as far as can be told without
/// its weights; `None` for one that the file does not have in blocks. `gguf` is the file if it is such.
pub(crate) fn own_format_of(gguf: Option<&Gguf>, spec: &TensorSpec) -> Option<WeightFormat> {
    match spec.packing {
        Packing::Plain => own_format(gguf?.kind(&spec.name)?),
        Packing::Mxfp4 => None,
        Packing::Grouped(packing) => Some(packing.own_format()),
    }
}

impl Blocks {
    fn own_format(&self) -> WeightFormat {
        match self {
            Self::Gguf { own, .. } => *own,
            Self::Grouped(grouped) => grouped.own_format(),
        }
    }

    fn can_lay_out(&self, format: WeightFormat) -> bool {
        match self {
            Self::Gguf { tensor, .. } => can_lay_out(tensor.kind, format) && tensor.is_verbatim(),
            Self::Grouped(grouped) => grouped.can_lay_out(format),
        }
    }

    fn lay_out(&self, row: usize, place: &mut PanelRow<'_>) -> Result<(), GgufError> {
        match self {
            Self::Gguf { tensor, .. } => lay_out(tensor.kind, tensor.row(row)?, place),
            Self::Grouped(grouped) => grouped.lay_out(row, place),
        }
        Ok(())
    }

    fn widen_row(&self, row: usize, out: &mut [f32]) -> Result<(), GgufError> {
        match self {
            Self::Gguf { tensor, .. } => tensor.widen_row(row, out),
            Self::Grouped(grouped) => {
                grouped.widen_row(row, out);
                Ok(())
            }
        }
    }
}

/// The numbers of a matrix as `dtype`: no more than a row is ever wider.
pub(super) fn widened(spec: &TensorSpec, tensor: &GgufTensor, dtype: WeightDType) -> Result<Frozen, GgufError> {
    let mut numbers = Buffer::with_capacity(dtype, spec.rows.count * spec.cols);
    let mut wide = vec![0.0; spec.cols];
    for row in 0..spec.rows.count {
        tensor.widen_row(spec.rows.stored(row), &mut wide)?;
        numbers.extend(&wide);
    }
    Ok(Frozen::owned(numbers))
}

impl TensorReader<'_> {
    /// `None` if the matrix is stored as single numbers.
    pub(super) fn blocks(&mut self, spec: &TensorSpec) -> Result<Option<Blocks>, LoadError> {
        if let Packing::Grouped(packing) = spec.packing {
            return self.grouped(spec, packing).map(Blocks::Grouped).map(Some);
        }
        let Weights::Gguf { path, file } = self.files.weights() else {
            return Ok(None);
        };
        let Some(own) = own_format_of(Some(file), spec) else {
            return Ok(None);
        };
        let tensor = gguf_tensor(path, file, &spec.name, &spec.shape)?;
        let path = path.clone();
        Ok(Some(Blocks::Gguf { path, tensor, own }))
    }

    pub(super) fn pack_blocks(&self, spec: &TensorSpec, blocks: &Blocks) -> Result<Matrix, LoadError> {
        let format = if self.files.own_formats() {
            blocks.own_format()
        } else {
            self.precision.weights
        };
        let shape = [spec.rows.count, spec.cols];
        let failed = OnceLock::new();
        // The first failure counts, whichever thread meets it.
        let note = |outcome: Result<(), GgufError>| {
            let _ = outcome.map_err(|error| failed.set(error));
        };
        let packed = if blocks.can_lay_out(format) {
            let write = |row, place: &mut PanelRow<'_>| note(blocks.lay_out(spec.rows.stored(row), place));
            let packed = QuantMatrix::lay_out(format, shape, &write, self.engine);
            packed.map(Matrix::laid_out).map_err(|source| LoadError::Memory {
                bytes: format.bytes(shape[0], shape[1]),
                source,
            })
        } else {
            let source = |rows: Range<usize>, out: &mut [f32]| {
                for (row, out) in rows.zip(out.chunks_exact_mut(spec.cols)) {
                    note(blocks.widen_row(spec.rows.stored(row), out));
                }
            };
            self.pack_from(format, shape, &source, None)
        };
        match (blocks, failed.into_inner()) {
            (Blocks::Gguf { path, .. }, Some(error)) => Err(in_gguf(path)(error)),
            _ => packed,
        }
    }
}
