//! Models in GGUF files (the format of ggml and llama.cpp): what such a file says of itself becomes a `config.json` and a
//! `tokenizer.json`, and its tensors are found by the names that checkpoints of transformers give them.
//!
//! ```text
//! GGUF file ──▶ header (metadata, where which tensor is) ──▶ config ───▶ ModelConfig
//!                                              │        └──▶ tokenizer ▶ tokenizer.json
//!                                              └──────────▶ names ────▶ tensor by its usual name, decoded
//! ```
//!
//! Format: `docs/gguf.md` of ggml; names and the order of rows: `gguf-py` and `convert_hf_to_gguf.py` of llama.cpp.

mod config;
mod header;
mod names;
mod tokenizer;

use std::{borrow::Cow, path::Path};

use bytes::Bytes;
use candle_core::{
    Device,
    quantized::{GgmlDType, QStorage},
};
pub(crate) use header::{Header, Value};
use names::Place;
use safetensors::Dtype;
use thiserror::Error;

/// A GGUF file that cannot be used.
#[derive(Debug, Error)]
pub enum GgufError {
    /// Another format, or a version that nobody writes any more.
    #[error("it is no GGUF file of version 2 or 3")]
    NotGguf,
    /// It ends before what it announces, or announces what no file can have.
    #[error("it is damaged or incomplete: {0}")]
    Damaged(&'static str),
    /// One of several that belong together.
    #[error("it is part of a model in {count} files: put them together with llama-gguf-split --merge")]
    Split {
        /// How many there are.
        count: u64,
    },
    /// A model of a kind we have no blocks for.
    #[error(
        "its architecture \"{architecture}\" is not supported (supported: {})",
        config::SUPPORTED
    )]
    Architecture {
        /// As the file says.
        architecture: String,
    },
    /// Something that every such file says is not said.
    #[error("it does not say {key}")]
    Missing {
        /// The metadata key.
        key: String,
    },
    /// Rotary frequencies of a kind that configurations cannot express.
    #[error("its rope_freqs are not those of Llama 3")]
    RopeFactors,
    /// A tokenizer that we cannot build.
    #[error(
        "its tokenizer is of kind \"{kind}\", which is not supported: put the model's tokenizer.json beside the file"
    )]
    Tokenizer {
        /// `tokenizer.ggml.model` or `tokenizer.ggml.pre`.
        kind: String,
    },
    /// Numbers in a format that is not read.
    #[error(
        "tensor {tensor} is of type {kind}, which is not read: use a file with Q8_0, Q6_K, Q5_K, Q5_0, Q4_K, Q4_0 or floating-point tensors"
    )]
    Kind {
        /// As in the file.
        tensor: String,
        /// ggml's name for it.
        kind: String,
    },
    /// The decoder refuses.
    #[error("tensor {tensor} cannot be decoded")]
    Decode {
        /// As in the file.
        tensor: String,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
}

/// A GGUF file whose header has been read.
#[derive(Debug)]
pub(crate) struct Gguf {
    header: Header,
    content: Bytes,
    names: names::Names,
}

impl Gguf {
    /// Reads the header of a mapped file.
    ///
    /// # Errors
    /// It is damaged, or holds no model that we have blocks for.
    pub(crate) fn read(content: Bytes) -> Result<Self, GgufError> {
        let header = Header::read(&content)?;
        if let Some(count) = header.integer("split.count").filter(|count| *count > 1) {
            return Err(GgufError::Split { count });
        }
        Ok(Self {
            names: names::Names::new(&header)?,
            header,
            content,
        })
    }

    /// The text of a `config.json` that says the same.
    ///
    /// # Errors
    /// It lacks what such a model needs.
    pub(crate) fn config_json(&self) -> Result<Vec<u8>, GgufError> {
        config::json(self).map(|config| config.to_string().into_bytes())
    }

    /// The text of a `tokenizer.json` that does the same.
    ///
    /// # Errors
    /// The file has no tokenizer, or one of a kind that we cannot build.
    pub(crate) fn tokenizer_json(&self) -> Result<Vec<u8>, GgufError> {
        tokenizer::json(&self.header).map(|tokenizer| tokenizer.to_string().into_bytes())
    }

    /// What its makers call the model, as part of a name; `None` if they do not.
    pub(crate) fn title(&self) -> Option<String> {
        let name = self.header.text("general.name")?;
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        };
        let title: String = name.chars().map(plain).collect();
        Some(title.trim_matches('-').to_owned()).filter(|title| !title.is_empty())
    }

    /// Whether there is a tensor that transformers calls `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names
            .place(name)
            .is_some_and(|place| self.header.tensors.contains_key(&place.tensor))
    }

    /// The shape of the tensor that transformers calls `name`, its type, and its numbers, row after row; in the file where
    /// they are floating-point numbers in the usual order, else decoded to f32. `None` if there is no such tensor.
    ///
    /// # Errors
    /// [`GgufError::Kind`], or the file is damaged.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<(Vec<usize>, Dtype, Bytes)>, GgufError> {
        let Some(place) = self.names.place(name) else {
            return Ok(None);
        };
        let Some(info) = self.header.tensors.get(&place.tensor) else {
            return Ok(None);
        };
        let kind = header::kind(info.kind).ok_or_else(|| GgufError::Kind {
            tensor: place.tensor.clone(),
            kind: header::kind_name(info.kind),
        })?;
        let mut shape = info.shape.clone();
        let mut bytes = self.header.bytes(info, kind, &self.content)?;
        if let Some(expert) = place.expert {
            let n_experts = shape.first().copied().filter(|_| shape.len() == 3).unwrap_or(0);
            if expert >= n_experts {
                return Ok(None);
            }
            let size = bytes.len() / n_experts;
            bytes = bytes.slice(expert * size..(expert + 1) * size);
            shape.remove(0);
        }
        let numbers = shape.iter().product::<usize>();
        let (dtype, mut bytes) = match kind {
            GgmlDType::F32 => (Dtype::F32, bytes),
            GgmlDType::F16 => (Dtype::F16, bytes),
            GgmlDType::BF16 => (Dtype::BF16, bytes),
            kind => (Dtype::F32, decode(&place, kind, &bytes, numbers)?),
        };
        if let Some(heads) = place.interleaved_heads {
            bytes = uninterleaved(&bytes, &shape, heads)?;
        }
        if place.is_one_more {
            let floats = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>);
            let less: Vec<f32> = floats.map(|weight| weight - 1.0).collect();
            bytes = Bytes::from(bytemuck::cast_slice(&less).to_vec());
        }
        Ok(Some((shape, dtype, bytes)))
    }
}

fn decode(place: &Place, kind: GgmlDType, bytes: &[u8], numbers: usize) -> Result<Bytes, GgufError> {
    // The decoder panics at anything but whole blocks, as many as there are numbers.
    let whole = numbers.is_multiple_of(kind.block_size())
        && (numbers / kind.block_size()).checked_mul(kind.type_size()) == Some(bytes.len());
    if !whole {
        return Err(GgufError::Damaged("a tensor is not made of whole blocks"));
    }
    let decoded = || {
        // And at blocks that do not begin where 16-bit numbers may.
        let mut words;
        let aligned = if bytes.as_ptr().cast::<u16>().is_aligned() {
            bytes
        } else {
            words = vec![0_u16; bytes.len().div_ceil(2)];
            let copy = &mut bytemuck::cast_slice_mut(&mut words)[..bytes.len()];
            copy.copy_from_slice(bytes);
            copy
        };
        let storage = QStorage::from_data(Cow::Borrowed(aligned), &Device::Cpu, kind)?;
        let tensor = candle_core::quantized::QTensor::new(storage, numbers)?;
        tensor.dequantize(&Device::Cpu)?.to_vec1::<f32>()
    };
    let numbers = decoded().map_err(|source| GgufError::Decode {
        tensor: place.tensor.clone(),
        source,
    })?;
    Ok(Bytes::from(bytemuck::cast_slice(&numbers).to_vec()))
}

/// llama.cpp stores the rows of each head of llama's queries and keys such that the two numbers of a rotated pair are
/// neighbours (`LlamaModel.permute`); transformers has all first ones before all second ones.
fn uninterleaved(bytes: &Bytes, shape: &[usize], heads: usize) -> Result<Bytes, GgufError> {
    let rows = shape.first().copied().unwrap_or(0);
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(GgufError::Damaged("queries or keys are not whole heads"));
    }
    let (row_bytes, dim) = (bytes.len() / rows.max(1), rows / heads);
    let mut ordered = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, half, pair) = (row / dim, row % dim / (dim / 2), row % (dim / 2));
        let stored = head * dim + 2 * pair + half;
        ordered.extend_from_slice(&bytes[stored * row_bytes..(stored + 1) * row_bytes]);
    }
    Ok(ordered.into())
}

/// Whether the name is that of a GGUF file.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
