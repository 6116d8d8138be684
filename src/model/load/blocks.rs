//! Matrices that a file has in blocks of 8 or 4 bits: laid out as they are where there are kernels for them, else widened
//! row by row and quantised anew, never as a whole in f32.

use std::{ops::Range, path::PathBuf, sync::OnceLock};

use super::{TensorReader, gguf_tensor, in_gguf};
use crate::model::{
    GgufError, LoadError, WeightFormat,
    files::Weights,
    gguf::{Gguf, GgufTensor},
    layout::{Packing, TensorSpec},
    linear::Matrix,
    quant::{
        QuantMatrix,
        ggml::{can_lay_out, lay_out, own_format},
    },
};

/// A tensor in blocks.
pub(super) struct Blocks {
    path: PathBuf,
    tensor: GgufTensor,
    own: WeightFormat,
}

/// The format that a matrix is kept in with [`crate::model::ModelFiles::with_own_formats`]; `None` for one that the file
/// does not have in blocks. `gguf` is the file if it is such.
pub(crate) fn own_format_of(gguf: Option<&Gguf>, spec: &TensorSpec) -> Option<WeightFormat> {
    match spec.packing {
        Packing::Plain => own_format(gguf?.kind(&spec.name)?),
        Packing::Mxfp4 => None,
    }
}

impl TensorReader<'_> {
    /// `None` if the matrix is stored as single numbers.
    pub(super) fn blocks(&self, spec: &TensorSpec) -> Result<Option<Blocks>, LoadError> {
        let Weights::Gguf { path, file } = self.files.weights() else {
            return Ok(None);
        };
        let Some(own) = own_format_of(Some(file), spec) else {
            return Ok(None);
        };
        let tensor = gguf_tensor(path, file, &spec.name, &spec.shape)?;
        let path = path.clone();
        Ok(Some(Blocks { path, tensor, own }))
    }

    pub(super) fn pack_blocks(&self, spec: &TensorSpec, blocks: &Blocks) -> Result<Matrix, LoadError> {
        let format = if self.files.own_formats() {
            blocks.own
        } else {
            self.precision.weights
        };
        let shape = [spec.rows.count, spec.cols];
        let (tensor, failed) = (&blocks.tensor, OnceLock::new());
        // The first failure counts, whichever thread meets it.
        let note = |outcome: Result<(), GgufError>| {
            let _ = outcome.map_err(|error| failed.set(error));
        };
        let packed = if can_lay_out(tensor.kind, format) && tensor.is_verbatim() {
            let packed = QuantMatrix::lay_out(
                format,
                shape,
                &|row, place| {
                    let row = tensor.row(spec.rows.stored(row));
                    note(row.map(|blocks| lay_out(tensor.kind, blocks, place)));
                },
                self.engine,
            );
            packed.map(Matrix::laid_out).map_err(|source| LoadError::Memory {
                bytes: format.bytes(shape[0], shape[1]),
                source,
            })
        } else {
            let source = |rows: Range<usize>, out: &mut [f32]| {
                for (row, out) in rows.zip(out.chunks_exact_mut(spec.cols)) {
                    note(tensor.widen_row(spec.rows.stored(row), out));
                }
            };
            Matrix::pack(format, shape, &source, self.engine)
        };
        match failed.into_inner() {
            Some(error) => Err(in_gguf(&blocks.path)(error)),
            None => packed,
        }
    }
}
