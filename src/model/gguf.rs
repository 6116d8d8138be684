//! Models in GGUF files (the format of ggml and llama.cpp): what such a file says of itself becomes a `config.json` and a
//! `tokenizer.json`, and its tensors are found by the names that checkpoints of transformers give them.
//!
//! ```text
//! GGUF file ──▶ header (metadata, where which tensor is) ──▶ config ───▶ ModelConfig
//!                                              │        └──▶ tokenizer ▶ tokenizer.json
//!                                              └──────────▶ names ────▶ tensor by its usual name ──▶ blocks or numbers
//! ```
//!
//! Format: `docs/gguf.md` of ggml; names and the order of rows: `gguf-py` and `convert_hf_to_gguf.py` of llama.cpp.

mod chat;
mod config;
mod header;
mod names;
mod tensor;
mod tokenizer;

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use candle_core::quantized::GgmlDType;
pub(crate) use header::{Header, Value};
pub(crate) use tensor::GgufTensor;
use thiserror::Error;

use super::hub::Tensors;

/// What the header of a file is called among its tensors.
pub(crate) const HEADER: &str = "";
/// Where the addresses in files lead, whatever mirror is used.
const USUAL_HUB: &str = "https://huggingface.co";

/// What a file is made of, in its order: its header, called [`HEADER`], and the tensors by their names in it, each with what lies
/// before the next.
pub(crate) type Spans = Vec<(String, Range<u64>)>;

/// A GGUF file that cannot be used.
#[derive(Debug, Error)]
pub enum GgufError {
    /// Another format, or a version that nobody writes any more.
    #[error("it is no GGUF file of version 2 or 3")]
    NotGguf,
    /// It ends before what it announces, or announces what no file can have.
    #[error("it is damaged or incomplete: {0}")]
    Damaged(&'static str),
    /// Lists longer than those of any model.
    #[error(
        "its {key} is too long: all its lists together have at most {} items",
        header::MAX_ITEMS
    )]
    TooLong {
        /// The metadata key.
        key: String,
    },
    /// One of several that belong together, without the others.
    #[error(
        "it is part of a model in {count} files: name the one that ends in -00001-of-{count:05}.gguf, with the others beside it, \
         or put them together with llama-gguf-split --merge"
    )]
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
    #[error("its tokenizer is of kind \"{kind}\", which is not supported")]
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

/// A GGUF file, or several that belong together, whose headers have been read.
#[derive(Clone, Debug)]
pub(crate) struct Gguf {
    header: Arc<Header>,
    /// From where each tensor that is here begins; there may be more behind it.
    tensors: HashMap<String, Bytes>,
    names: names::Names,
}

impl Gguf {
    /// Reads the headers of all mapped files of a model. The first has the metadata.
    ///
    /// # Errors
    /// One is damaged, or they hold no model that we have blocks for, or not all of one.
    pub(crate) fn read(contents: Vec<Bytes>) -> Result<Self, GgufError> {
        let mut file = Self::without_tensors(&contents)?;
        let tensors = file.header.tensors.iter().filter_map(|(name, info)| {
            let content = contents.get(info.part)?;
            let start = content.len().min(usize::try_from(info.offset).ok()?);
            Some((name.clone(), content.slice(start..)))
        });
        file.tensors = tensors.collect();
        Ok(file)
    }

    /// The model whose files begin so.
    ///
    /// # Errors
    /// As [`Gguf::read`].
    pub(crate) fn without_tensors(beginnings: &[Bytes]) -> Result<Self, GgufError> {
        let mut header = Header::read(beginnings.first().ok_or(GgufError::NotGguf)?)?;
        let count = header.integer("split.count").unwrap_or(1).max(1);
        let is_part = |header: &Header, part: usize| header.integer("split.no").unwrap_or(0) == part as u64;
        if count != beginnings.len() as u64 || !is_part(&header, 0) {
            return Err(GgufError::Split { count });
        }
        for (part, content) in beginnings.iter().enumerate().skip(1) {
            let other = Header::read(content)?;
            if !is_part(&other, part) {
                return Err(GgufError::Split { count });
            }
            header.join(other, part);
        }
        Ok(Self {
            names: names::Names::new(&header)?,
            header: Arc::new(header),
            tensors: HashMap::new(),
        })
    }

    /// The same model with these tensors, by their names in the file.
    #[must_use]
    pub(crate) fn with_tensors(&self, tensors: HashMap<String, Bytes>) -> Self {
        Self {
            tensors,
            ..self.clone()
        }
    }

    /// Which of the model's files have some of `tensors`, by their names in the file.
    pub(crate) fn parts_with(&self, tensors: &Tensors) -> BTreeSet<usize> {
        let all = self.header.tensors.iter();
        all.filter(|(name, _)| tensors.has(name))
            .map(|(_, info)| info.part)
            .collect()
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

    /// The repository on `endpoint`, or on the usual hub, of the model that this one was made of, if the file says so.
    pub(crate) fn base_repo(&self, endpoint: &str) -> Option<&str> {
        let url = self.header.text("general.base_model.0.repo_url")?;
        let hubs = [endpoint, USUAL_HUB];
        let name = hubs
            .iter()
            .find_map(|hub| url.strip_prefix(hub.trim_end_matches('/')))?;
        Some(name.trim_matches('/'))
    }

    /// Whether there is a tensor that transformers calls `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names
            .place(name)
            .is_some_and(|place| self.header.tensors.contains_key(&place.tensor))
    }

    /// The tensor that transformers calls `name`; `None` if there is none.
    ///
    /// # Errors
    /// [`GgufError::Kind`], or the file is damaged.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<GgufTensor>, GgufError> {
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
        let bytes = self.bytes(&place.tensor, info, kind)?;
        GgufTensor::new(place, info, kind, bytes)
    }

    fn bytes(&self, tensor: &str, info: &header::Info, kind: GgmlDType) -> Result<Bytes, GgufError> {
        Header::bytes(info, kind, self.tensors.get(tensor).unwrap_or(&Bytes::new()))
    }

    /// How the tensor that transformers calls `name` is written, if it is one that can be read.
    pub(crate) fn kind(&self, name: &str) -> Option<GgmlDType> {
        let place = self.names.place(name)?;
        header::kind(self.header.tensors.get(&place.tensor)?.kind)
    }
}

/// What a file of `size` bytes is made of that begins with `first`; `None` if more of it has to be seen.
///
/// # Errors
/// No GGUF file of that size begins so.
pub(crate) fn spans(first: &[u8], size: u64) -> Result<Option<Spans>, GgufError> {
    match Header::read(first) {
        Ok(header) => header.spans(size).map(Some),
        // A header that is cut off looks like a damaged one.
        Err(GgufError::Damaged(_)) if (first.len() as u64) < size => Ok(None),
        Err(error) => Err(error),
    }
}

/// The tensors that a server of `span` needs, block by block, by their names in the file.
pub(crate) fn groups_of_span(span: Range<u32>) -> Vec<(String, Tensors)> {
    let group = |block| {
        (
            format!("block-{block}"),
            Tensors::Starting(vec![format!("blk.{block}.")]),
        )
    };
    span.map(group).collect()
}

/// Those that a client needs.
pub(crate) fn group_of_ends() -> (String, Tensors) {
    let names = ["token_embd.", "output_norm.", "output."];
    ("ends".to_owned(), Tensors::Starting(names.map(str::to_owned).to_vec()))
}

/// The header, and what else of a file its configuration is read from.
pub(crate) fn group_of_header() -> (String, Tensors) {
    let names = [HEADER].into_iter().chain(config::TENSORS);
    ("header".to_owned(), Tensors::Named(names.map(str::to_owned).collect()))
}

/// Whether the name is that of a GGUF file.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"))
}

/// The name without its end, the number and the count, of a file that is named as one of several (`llama-gguf-split`).
fn part_of(file: &str) -> Option<(&str, u32, u32)> {
    let number = |digits: &str| digits.parse().ok().filter(|_| digits.len() == 5);
    let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (name, no) = rest.rsplit_once('-')?;
    Some((name, number(no)?, number(count)?))
}

/// All files of the model of which this is the one, or the first by its name.
pub(crate) fn parts(file: &str) -> Vec<String> {
    match part_of(file) {
        Some((name, 1, count)) => {
            let part = |no| format!("{name}-{no:05}-of-{count:05}.gguf");
            (1..=count).map(part).collect()
        }
        _ => vec![file.to_owned()],
    }
}

/// Whether another file of the same model comes before this one.
pub(crate) fn is_later_part(path: &Path) -> bool {
    path.to_str().and_then(part_of).is_some_and(|(_, no, _)| no != 1)
}

#[cfg(test)]
mod recorded;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
