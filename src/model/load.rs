//! Tensors out of safetensors files: mapped into memory, checked, and used in place where type and alignment permit.
//! The map is the one place outside the kernels where `unsafe` is needed. Nothing is downloaded here.

mod blocks;
mod grouped;
mod mxfp4;

use blocks::Blocks;
pub(crate) use blocks::own_format_of;
pub(super) use mxfp4::shapes as mxfp4_shapes;

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use bytemuck::pod_read_unaligned;
use bytes::Bytes;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use safetensors::{
    Dtype, SafeTensorError, SafeTensors,
    tensor::{Metadata, TensorInfo},
};

use super::{
    GgufError, LoadError, ModelFiles, Precision, WeightDType, WeightFormat,
    cpu::Engine,
    files::{INDEX_FILE, Weights},
    gguf::{Gguf, GgufTensor},
    layout::{LinearSpec, Packing, TensorSpec},
    linear::{Linear, Matrix},
    number::{Buffer, Frozen, Number, Slice},
};

/// What error messages call the weights that are part of the program.
const BUILT_IN: &str = "the built-in model.safetensors";

/// Reads tensors of one checkpoint; each file is opened once, when its first tensor is asked for.
#[derive(Debug)]
pub(crate) struct TensorReader<'a> {
    files: &'a ModelFiles,
    precision: Precision,
    /// Whether matrices take fewer bits than wanted where that loses nothing.
    narrow: bool,
    /// Whether what bf16 is multiplied with may be rounded to it.
    rounding: bool,
    engine: &'a Engine,
    packed: Amount,
    open: HashMap<PathBuf, OpenFile>,
}

/// Weights of projections in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amount {
    pub(crate) weights: u64,
    /// That they take.
    pub(crate) bytes: u64,
}

impl Amount {
    fn add(&mut self, matrix: &Matrix) {
        self.weights += (matrix.rows() * matrix.cols()) as u64;
        self.bytes += matrix.bytes() as u64;
    }
}

#[derive(Debug)]
struct OpenFile {
    content: Bytes,
    /// Where the numbers begin.
    data_start: usize,
    metadata: Metadata,
}

/// A tensor as the file has it.
struct Stored {
    dtype: Dtype,
    bytes: Bytes,
    path: PathBuf,
}

impl Stored {
    fn refused(&self, tensor: &str) -> LoadError {
        LoadError::Dtype {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            found: self.dtype,
        }
    }
}

impl<'a> TensorReader<'a> {
    /// Weights will be as `precision` says, whatever the file has.
    pub(crate) fn new(files: &'a ModelFiles, precision: impl Into<Precision>, engine: &'a Engine) -> Self {
        Self {
            files,
            precision: precision.into(),
            narrow: false,
            rounding: false,
            engine,
            packed: Amount::default(),
            open: HashMap::new(),
        }
    }

    /// Leaves matrices in the 16 bits that the file has them in where f32 is wanted, and has bf16 packed into 12 where kernels
    /// are quick enough for it. The processor's kernels widen every weight to f32 before it is multiplied, so that all results
    /// are those of the same weights, with less memory to hold and to read.
    pub(crate) fn narrow(mut self) -> Self {
        self.narrow = true;
        self
    }

    /// Has what is multiplied with weights that are wanted in bf16 rounded to that too, where the processor's kernels are quicker
    /// so. It is what a model cast to that type does, in PyTorch too.
    pub(crate) fn rounding(mut self) -> Self {
        self.rounding = true;
        self
    }

    /// A matrix, packed for the kernels.
    ///
    /// # Errors
    /// Whatever is wrong with the file or the tensor, naming both.
    pub(crate) fn matrix(&mut self, spec: &TensorSpec) -> Result<Matrix, LoadError> {
        if let Some(blocks) = self.blocks(spec)? {
            return self.pack_blocks(spec, &blocks);
        }
        let format = if self.files.own_formats() {
            self.precision.dtype.into()
        } else {
            self.precision.weights
        };
        let numbers = self.numbers(spec, None)?;
        let stored = numbers.as_slice().weight_dtype().map(WeightFormat::from);
        let narrowed = match (format, stored) {
            (WeightFormat::F32, Some(stored)) if self.narrow => stored,
            _ => format,
        };
        let matrix = self.pack(narrowed, spec, numbers.as_slice())?;
        // Where f32 is wanted, what weights are multiplied with stays so too.
        if self.rounding && format == WeightFormat::Bf16 {
            return Ok(matrix.rounding(self.engine));
        }
        Ok(matrix)
    }

    fn pack(&self, format: WeightFormat, spec: &TensorSpec, numbers: Slice<'_>) -> Result<Matrix, LoadError> {
        let (rows, cols) = (spec.rows.count, spec.cols);
        let source = |rows: Range<usize>, out: &mut [f32]| {
            numbers.range(rows.start * cols..rows.end * cols).widen_into(out);
        };
        let rounded = match numbers {
            Slice::Bf16(weights) => Some(weights),
            _ => None,
        };
        self.pack_from(format, [rows, cols], &source, rounded)
    }

    /// Packs what `source` writes, which may be there as bf16, as [`Matrix::pack`] or in codes.
    fn pack_from(
        &self,
        format: WeightFormat,
        [rows, cols]: [usize; 2],
        source: &(dyn Fn(Range<usize>, &mut [f32]) + Sync),
        rounded: Option<&[bf16]>,
    ) -> Result<Matrix, LoadError> {
        if self.narrow && format == WeightFormat::Bf16 && self.engine.codes_bf16() {
            let rounded = |rows: Range<usize>| match rounded {
                Some(weights) => Cow::Borrowed(&weights[rows.start * cols..rows.end * cols]),
                None => {
                    let mut numbers = vec![0.0; rows.len() * cols];
                    source(rows, &mut numbers);
                    let mut weights = vec![bf16::ZERO; numbers.len()];
                    weights.convert_from_f32_slice(&numbers);
                    Cow::Owned(weights)
                }
            };
            if let Some(coded) = Matrix::pack_coded([rows, cols], &rounded, self.engine)? {
                return Ok(coded);
            }
        }
        Matrix::pack(format, [rows, cols], source, self.engine)
    }

    /// What has been packed since this was last asked.
    pub(crate) fn take_packed(&mut self) -> Amount {
        std::mem::take(&mut self.packed)
    }

    /// A matrix of which single rows are read, in place if possible.
    ///
    /// # Errors
    /// As [`TensorReader::matrix`].
    pub(crate) fn table(&mut self, spec: &TensorSpec) -> Result<Frozen, LoadError> {
        self.numbers(spec, Some(self.precision.dtype))
    }

    /// A vector, rounded to the weights' type (as a model cast to that type has it) and widened.
    ///
    /// # Errors
    /// As [`TensorReader::matrix`].
    pub(crate) fn vector(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, LoadError> {
        Ok(self.numbers(spec, Some(self.precision.dtype))?.as_slice().to_f32_vec())
    }

    /// A projection.
    ///
    /// # Errors
    /// As [`TensorReader::matrix`].
    pub(crate) fn linear(&mut self, spec: &LinearSpec) -> Result<Linear, LoadError> {
        let weight = self.matrix(&spec.weight)?;
        self.packed.add(&weight);
        Ok(Linear {
            weight,
            bias: self.bias(spec)?,
        })
    }

    /// A projection whose weights stay f32: the scores of a router decide between experts.
    ///
    /// # Errors
    /// As [`TensorReader::matrix`].
    pub(crate) fn linear_f32(&mut self, spec: &LinearSpec) -> Result<Linear, LoadError> {
        let numbers = self.vector(&spec.weight)?;
        let weight = self.pack(WeightFormat::F32, &spec.weight, Slice::F32(&numbers))?;
        self.packed.add(&weight);
        Ok(Linear {
            weight,
            bias: self.bias(spec)?,
        })
    }

    fn bias(&mut self, spec: &LinearSpec) -> Result<Option<Vec<f32>>, LoadError> {
        spec.bias.as_ref().map(|bias| self.vector(bias)).transpose()
    }

    /// Whether the checkpoint has a tensor of this name, as far as can be told.
    pub(crate) fn exists(&mut self, tensor: &str) -> bool {
        if let Weights::Gguf { file, .. } = self.files.weights() {
            return file.has(tensor);
        }
        match (self.files.weights(), self.path_of(tensor)) {
            (Weights::Shards { .. }, found) => found.is_ok(),
            (_, Ok(path)) => {
                let file = self.open(&path, tensor);
                file.is_ok_and(|file| file.metadata.info(tensor).is_some())
            }
            (_, Err(_)) => false,
        }
    }

    /// As type `dtype`, or as one that holds what the file has.
    fn numbers(&mut self, spec: &TensorSpec, dtype: Option<WeightDType>) -> Result<Frozen, LoadError> {
        match spec.packing {
            Packing::Plain => {
                // A vector is small, and what a file has in blocks are its matrices.
                if spec.shape.len() > 1
                    && let Some(Blocks::Gguf { path, tensor, .. }) = self.blocks(spec)?
                {
                    let dtype = dtype.unwrap_or(WeightDType::F32);
                    return blocks::widened(spec, &tensor, dtype).map_err(in_gguf(&path));
                }
                let stored = self.stored(&spec.name, &spec.shape)?;
                let from = weight_dtype(stored.dtype).ok_or_else(|| stored.refused(&spec.name))?;
                let bytes = rows_of(spec, spec.cols * from.size(), &stored.bytes);
                Ok(convert(from, bytes, dtype.unwrap_or(from)))
            }
            Packing::Mxfp4 => {
                let [blocks, scales] = mxfp4::shapes(&spec.shape);
                let blocks = self.packed(&format!("{}_blocks", spec.name), &blocks)?;
                let scales = self.packed(&format!("{}_scales", spec.name), &scales)?;
                let blocks = rows_of(spec, spec.cols / 2, &blocks);
                let scales = rows_of(spec, spec.cols / mxfp4::BLOCK, &scales);
                let dtype = dtype.unwrap_or(WeightDType::Bf16);
                Ok(Frozen::owned(mxfp4::unpack(&blocks, &scales, dtype)))
            }
            // No tables, vectors or routers are.
            Packing::Grouped(_) => Err(LoadError::Packing {
                tensor: spec.name.clone(),
            }),
        }
    }

    /// A tensor of bytes.
    fn packed(&mut self, tensor: &str, shape: &[usize]) -> Result<Bytes, LoadError> {
        let stored = self.stored(tensor, shape)?;
        if stored.dtype == Dtype::U8 {
            Ok(stored.bytes)
        } else {
            Err(stored.refused(tensor))
        }
    }

    fn stored(&mut self, tensor: &str, shape: &[usize]) -> Result<Stored, LoadError> {
        if let Weights::Gguf { path, file } = self.files.weights() {
            let (dtype, bytes) = gguf_tensor(path, file, tensor, shape)?
                .numbers()
                .map_err(in_gguf(path))?;
            let path = path.clone();
            return Ok(Stored { dtype, bytes, path });
        }
        let path = self.path_of(tensor)?;
        let file = self.open(&path, tensor)?;
        let Some(info) = file.metadata.info(tensor) else {
            return Err(LoadError::MissingTensor {
                path,
                tensor: tensor.to_owned(),
            });
        };
        if info.shape != shape {
            return Err(LoadError::Shape {
                path,
                tensor: tensor.to_owned(),
                expected: shape.to_vec(),
                found: info.shape.clone(),
            });
        }
        match file.bytes_of(info) {
            Some(bytes) => Ok(Stored {
                dtype: info.dtype,
                bytes,
                path,
            }),
            None => Err(damaged(&path, tensor, SafeTensorError::MetadataIncompleteBuffer)),
        }
    }

    fn path_of(&mut self, tensor: &str) -> Result<PathBuf, LoadError> {
        let missing = |path: PathBuf| LoadError::MissingTensor {
            path,
            tensor: tensor.to_owned(),
        };
        match self.files.weights() {
            Weights::Memory(_) => Ok(PathBuf::from(BUILT_IN)),
            Weights::Gguf { path, .. } => Ok(path.clone()),
            Weights::Shards { folder, index } => match index.file_of(tensor) {
                Some(file) => Ok(folder.join(file)),
                None => Err(missing(folder.join(INDEX_FILE))),
            },
            Weights::Files(paths) => {
                for path in paths {
                    if paths.len() == 1 || self.open(path, tensor)?.metadata.info(tensor).is_some() {
                        return Ok(path.clone());
                    }
                }
                Err(missing(paths.first().cloned().unwrap_or_default()))
            }
        }
    }

    fn open(&mut self, path: &Path, tensor: &str) -> Result<&OpenFile, LoadError> {
        if !self.open.contains_key(path) {
            let content = match self.files.weights() {
                Weights::Memory(content) => content.clone(),
                Weights::Files(_) | Weights::Shards { .. } | Weights::Gguf { .. } => map(path)?,
            };
            let (header, metadata) =
                SafeTensors::read_metadata(&content).map_err(|source| damaged(path, tensor, source))?;
            let data_start = header + size_of::<u64>();
            let file = OpenFile {
                content,
                data_start,
                metadata,
            };
            self.open.insert(path.to_owned(), file);
        }
        Ok(&self.open[path])
    }
}

impl OpenFile {
    fn bytes_of(&self, info: &TensorInfo) -> Option<Bytes> {
        let (start, end) = info.data_offsets;
        let start = start.checked_add(self.data_start)?;
        let end = end.checked_add(self.data_start)?;
        (start <= end && end <= self.content.len()).then(|| self.content.slice(start..end))
    }
}

fn damaged(path: &Path, tensor: &str, source: SafeTensorError) -> LoadError {
    LoadError::Damaged {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
        source,
    }
}

/// A file as memory.
///
/// # Errors
/// It cannot be opened or mapped.
pub(super) fn map(path: &Path) -> Result<Bytes, LoadError> {
    let error = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(error)?;
    #[expect(
        unsafe_code,
        reason = "a map is sound while nobody truncates the file, as for every reader of checkpoints"
    )]
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(error)?;
    Ok(Bytes::from_owner(map))
}

/// All tensors of a file of safetensors as bytes.
///
/// # Errors
/// It is damaged.
pub(super) fn tensors_of(path: &Path, content: &Bytes) -> Result<HashMap<String, Bytes>, LoadError> {
    let (header, metadata) = SafeTensors::read_metadata(content).map_err(|source| damaged(path, "", source))?;
    let file = OpenFile {
        content: content.clone(),
        data_start: header + size_of::<u64>(),
        metadata,
    };
    let tensors = file.metadata.tensors().into_iter();
    tensors
        .map(|(name, info)| match file.bytes_of(info) {
            Some(bytes) => Ok((name, bytes)),
            None => Err(damaged(path, &name, SafeTensorError::MetadataIncompleteBuffer)),
        })
        .collect()
}

/// The tensor of a GGUF file, which has to be of this shape.
fn gguf_tensor(path: &Path, file: &Gguf, tensor: &str, shape: &[usize]) -> Result<GgufTensor, LoadError> {
    let (path, tensor) = (path.to_owned(), tensor.to_owned());
    match file.tensor(&tensor) {
        Err(source) => Err(in_gguf(&path)(source)),
        Ok(None) => Err(LoadError::MissingTensor { path, tensor }),
        Ok(Some(found)) if found.shape != shape => Err(LoadError::Shape {
            path,
            tensor,
            expected: shape.to_vec(),
            found: found.shape,
        }),
        Ok(Some(found)) => Ok(found),
    }
}

fn in_gguf(path: &Path) -> impl Fn(GgufError) -> LoadError {
    move |source| LoadError::Gguf {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

/// `None` if it is not a type we read.
fn weight_dtype(dtype: Dtype) -> Option<WeightDType> {
    match dtype {
        Dtype::F32 => Some(WeightDType::F32),
        Dtype::BF16 => Some(WeightDType::Bf16),
        Dtype::F16 => Some(WeightDType::F16),
        _ => None,
    }
}

/// The rows that are asked for, in place if they lie together.
fn rows_of(spec: &TensorSpec, row_bytes: usize, tensor: &Bytes) -> Bytes {
    let mut runs = spec
        .rows
        .runs()
        .map(|(first, len)| first * row_bytes..(first + len) * row_bytes);
    match (runs.next(), runs.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => tensor.slice(only),
        (Some(first), Some(second)) => {
            let mut gathered = Vec::with_capacity(spec.rows.count * row_bytes);
            for run in [first, second].into_iter().chain(runs) {
                gathered.extend_from_slice(&tensor[run]);
            }
            gathered.into()
        }
    }
}

fn convert(from: WeightDType, bytes: Bytes, to: WeightDType) -> Frozen {
    if from == to
        && let Some(in_place) = Frozen::in_place(to, bytes.clone())
    {
        return in_place;
    }
    Frozen::owned(match from {
        WeightDType::F32 => round_from::<f32>(&bytes, to),
        WeightDType::Bf16 => round_from::<bf16>(&bytes, to),
        WeightDType::F16 => round_from::<f16>(&bytes, to),
    })
}

fn round_from<S: Number>(bytes: &[u8], to: WeightDType) -> Buffer {
    match to {
        WeightDType::F32 => Buffer::F32(round::<S, f32>(bytes)),
        WeightDType::Bf16 => Buffer::Bf16(round::<S, bf16>(bytes)),
        WeightDType::F16 => Buffer::F16(round::<S, f16>(bytes)),
    }
}

fn round<S: Number, D: Number>(bytes: &[u8]) -> Vec<D> {
    bytes
        .chunks_exact(size_of::<S>())
        .map(|item| D::from_f32(pod_read_unaligned::<S>(item).to_f32()))
        .collect()
}

#[cfg(test)]
mod tests;
