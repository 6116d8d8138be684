//! One tensor of a GGUF file, row by row, with what llama.cpp did to it undone: as its blocks, or as numbers.

use std::borrow::Cow;

use bytes::Bytes;
use candle_core::{
    Device,
    quantized::{GgmlDType, QStorage, QTensor},
};
use safetensors::Dtype;

use super::{GgufError, header::Info, names::Place};

/// A tensor, or an expert's part of one.
#[derive(Debug)]
pub(crate) struct GgufTensor {
    place: Place,
    /// As transformers has it.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: GgmlDType,
    bytes: Bytes,
    /// Bytes of a row, the numbers of the last dimension.
    row_bytes: usize,
}

impl GgufTensor {
    /// The tensor whose bytes, all of `info`, are `bytes`; `None` if it has no such expert.
    ///
    /// # Errors
    /// A shape that llama.cpp does not give such a tensor.
    pub(super) fn new(place: Place, info: &Info, kind: GgmlDType, mut bytes: Bytes) -> Result<Option<Self>, GgufError> {
        let mut shape = info.shape.clone();
        if let Some(expert) = place.expert {
            let n_experts = shape.first().copied().filter(|_| shape.len() == 3).unwrap_or(0);
            if expert >= n_experts {
                return Ok(None);
            }
            let size = bytes.len() / n_experts;
            bytes = bytes.slice(expert * size..(expert + 1) * size);
            shape.remove(0);
        }
        if let Some(heads) = place.interleaved_heads {
            let rows = shape.first().copied().unwrap_or(0);
            if heads == 0 || !rows.is_multiple_of(2 * heads) {
                return Err(GgufError::Damaged("queries or keys are not whole heads"));
            }
        }
        let cols = shape.last().copied().unwrap_or(1);
        Ok(Some(Self {
            row_bytes: cols / kind.block_size() * kind.type_size(),
            place,
            shape,
            kind,
            bytes,
        }))
    }

    /// Whether transformers has the rows as they are in the file, but for their order.
    pub(crate) fn is_verbatim(&self) -> bool {
        !self.place.is_one_more
    }

    /// The bytes of a row of a matrix.
    ///
    /// # Errors
    /// There is no such row.
    pub(crate) fn row(&self, row: usize) -> Result<&[u8], GgufError> {
        let stored = self.stored(row);
        let range = stored * self.row_bytes..(stored + 1) * self.row_bytes;
        self.bytes
            .get(range)
            .ok_or(GgufError::Damaged("a matrix has too few rows"))
    }

    /// Writes the numbers of a row of a matrix to `out`.
    ///
    /// # Errors
    /// There is no such row, or it has another length.
    pub(crate) fn widen_row(&self, row: usize, out: &mut [f32]) -> Result<(), GgufError> {
        let numbers = decode(&self.place, self.kind, self.row(row)?, out.len())?;
        out.copy_from_slice(&numbers);
        if self.place.is_one_more {
            out.iter_mut().for_each(|number| *number -= 1.0);
        }
        Ok(())
    }

    /// All numbers in the usual order: in the file where they are floating-point numbers and lie so, else of their own.
    ///
    /// # Errors
    /// The file is damaged.
    pub(crate) fn numbers(&self) -> Result<(Dtype, Bytes), GgufError> {
        let dtype = match self.kind {
            GgmlDType::F32 => Dtype::F32,
            GgmlDType::F16 => Dtype::F16,
            GgmlDType::BF16 => Dtype::BF16,
            _ => return self.decoded(),
        };
        match self.place.interleaved_heads {
            _ if !self.is_verbatim() => self.decoded(),
            None => Ok((dtype, self.bytes.clone())),
            Some(_) => {
                let rows = self.shape.first().copied().unwrap_or(0);
                let row_bytes = self.bytes.len() / rows.max(1);
                let ordered = (0..rows).flat_map(|row| {
                    let stored = self.stored(row);
                    self.bytes[stored * row_bytes..(stored + 1) * row_bytes].iter().copied()
                });
                Ok((dtype, ordered.collect()))
            }
        }
    }

    fn decoded(&self) -> Result<(Dtype, Bytes), GgufError> {
        if self.shape.len() < 2 && self.place.interleaved_heads.is_some() {
            return Err(GgufError::Damaged("a bias is written in blocks"));
        }
        let cols = self.shape.last().copied().unwrap_or(1).max(1);
        let mut numbers = vec![0.0; self.shape.iter().product()];
        for (row, out) in numbers.chunks_exact_mut(cols).enumerate() {
            self.widen_row(row, out)?;
        }
        Ok((Dtype::F32, Bytes::from(bytemuck::cast_slice(&numbers).to_vec())))
    }

    /// llama.cpp stores the rows of each head of llama's queries and keys such that the two numbers of a rotated pair are
    /// neighbours (`LlamaModel.permute`); transformers has all first ones before all second ones.
    fn stored(&self, row: usize) -> usize {
        let Some(heads) = self.place.interleaved_heads else {
            return row;
        };
        let dim = self.shape.first().map_or(1, |rows| rows / heads).max(2);
        let (head, half, pair) = (row / dim, row % dim / (dim / 2), row % (dim / 2));
        head * dim + 2 * pair + half
    }
}

/// The numbers of some blocks of any type.
pub(super) fn decode(place: &Place, kind: GgmlDType, bytes: &[u8], numbers: usize) -> Result<Vec<f32>, GgufError> {
    // The decoder panics at anything but whole blocks, as many as there are numbers.
    let whole = numbers.is_multiple_of(kind.block_size())
        && (numbers / kind.block_size()).checked_mul(kind.type_size()) == Some(bytes.len());
    if !whole {
        return Err(GgufError::Damaged("a tensor is not made of whole blocks"));
    }
    let decoded = || {
        // And at blocks that do not begin where their numbers may.
        let mut words;
        let aligned = if bytes.as_ptr().cast::<u32>().is_aligned() {
            bytes
        } else {
            words = vec![0_u32; bytes.len().div_ceil(4)];
            let copy = &mut bytemuck::cast_slice_mut(&mut words)[..bytes.len()];
            copy.copy_from_slice(bytes);
            copy
        };
        let storage = QStorage::from_data(Cow::Borrowed(aligned), &Device::Cpu, kind)?;
        let tensor = QTensor::new(storage, numbers)?;
        tensor.dequantize(&Device::Cpu)?.to_vec1::<f32>()
    };
    decoded().map_err(|source| GgufError::Decode {
        tensor: place.tensor.clone(),
        source,
    })
}
