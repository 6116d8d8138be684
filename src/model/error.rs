//! What can go wrong with a checkpoint or a computation, by what the caller can do about it. Sources are kept, not
//! repeated in the text.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{CudaError, GgufError};

/// A `config.json` that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON, or a field of another type than in every published model.
    #[error("config.json is not valid")]
    Json(#[source] serde_json::Error),
    /// A model of a family we have no blocks for.
    #[error("model_type \"{model_type}\" is not supported (supported: {supported})")]
    UnknownModelType {
        /// As written in the file, empty if absent.
        model_type: String,
        /// The types there are.
        supported: String,
    },
    /// A rotary scaling we do not know.
    #[error("rope_scaling type \"{rope_type}\" is not supported (supported: {supported})")]
    UnknownRopeType {
        /// As written in the file.
        rope_type: String,
        /// The kinds there are.
        supported: &'static str,
    },
    /// A required field is absent.
    #[error("config.json has no {field}")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// The checkpoint holds packed numbers of a kind that is not read.
    #[error(
        "config.json: the weights are quantised with \"{method}\", which is not read: use the repository of the model with \
         its weights as they were before, or a GGUF file of it"
    )]
    Quantization {
        /// `quant_method` of `quantization_config`.
        method: String,
    },
    /// A field has a value that no such model can have.
    #[error("config.json: {field} {problem}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// What is wrong, to be read after the name.
        problem: &'static str,
    },
}

/// A checkpoint that cannot be loaded. Each variant names the file and, where one is concerned, the tensor.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The cache is allocated as a whole.
    #[error("there is no memory for an attention cache of {bytes} bytes; --attn-cache-tokens makes it smaller")]
    CacheMemory {
        /// Its size.
        bytes: u64,
    },
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `config.json` was read but is of no use.
    #[error("{} cannot be used", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The system gives no threads to compute with.
    #[error("cannot start the threads that compute")]
    Threads(#[source] std::io::Error),
    /// There is not enough memory for a tensor.
    #[error("no memory for {bytes} bytes of weights")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder has no weights we read.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json nor a .gguf file", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A GGUF file is of no use.
    #[error("{} cannot be used", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<GgufError>,
    },
    /// Packed codes and scales that do not belong together.
    #[error("tensor {tensor} is packed in 4 bits, but not in words and groups of its size")]
    Packing {
        /// The matrix.
        tensor: String,
    },
    /// Only weights that are programs.
    #[error(
        "{model} has no safetensors weights, only {file}: reading that file would run code that it brings, so it is \
         refused; save the model with safe_serialization=True, or use a repository that has it as safetensors"
    )]
    PickleOnly {
        /// The folder or repository.
        model: String,
        /// The file there is.
        file: &'static str,
    },
    /// The index is not what transformers writes.
    #[error("{} is not a safetensors index", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The index names a file outside its folder.
    #[error("{} points tensor {tensor} to \"{shard}\", which is not a plain .safetensors file name", path.display())]
    ShardName {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file name it is given.
        shard: String,
    },
    /// The weights file is damaged or was cut short.
    #[error("cannot read tensor {tensor} from {}: the file is damaged or incomplete", path.display())]
    Damaged {
        /// The weights file.
        path: PathBuf,
        /// The tensor that was asked for.
        tensor: String,
        /// What the safetensors reader says.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A weight is absent.
    #[error("{} has no tensor {tensor}", path.display())]
    MissingTensor {
        /// The file or index searched.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A weight has another shape than the configuration says.
    #[error("tensor {tensor} in {} has shape {found:?}, but config.json asks for {expected:?}", path.display())]
    Shape {
        /// The weights file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the configuration says.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A weight has a number type we do not compute with.
    #[error("tensor {tensor} in {} has dtype {found:?}; float32, bfloat16 and float16 are read", path.display())]
    Dtype {
        /// The weights file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the file has.
        found: safetensors::Dtype,
    },
    /// A card has no memory for the blocks, or failed.
    #[error("the blocks cannot be brought to a card")]
    Card(#[source] CudaError),
    /// Blocks were asked for that the model does not have.
    #[error("blocks {}:{} were asked for, but the model has {n_blocks} blocks", span.start, span.end)]
    Span {
        /// The blocks asked for.
        span: Range<u32>,
        /// How many there are.
        n_blocks: u32,
    },
}

/// Weights as Python objects: reading them runs whatever code they bring.
pub(crate) const PICKLE_FILES: [&str; 2] = ["pytorch_model.bin.index.json", "pytorch_model.bin"];

impl LoadError {
    /// What is to be said of a folder without weights that we read.
    pub(crate) fn without_weights(folder: &Path) -> Self {
        match PICKLE_FILES.into_iter().find(|file| folder.join(file).is_file()) {
            Some(file) => Self::PickleOnly {
                model: folder.display().to_string(),
                file,
            },
            None => Self::NoWeights {
                folder: folder.to_owned(),
            },
        }
    }
}

/// A step that cannot be computed: a mistake of the caller's, or a card that failed.
#[derive(Debug, Error)]
pub enum ComputeError {
    /// A card failed.
    #[error("the card failed")]
    Card(#[source] CudaError),
    /// The block is not loaded.
    #[error("block {block} was asked for, but blocks {}:{} are loaded", span.start, span.end)]
    Block {
        /// The block asked for.
        block: u32,
        /// What is loaded.
        span: Range<u32>,
    },
    /// The vocabulary has no such token.
    #[error("token {token} was given, but the vocabulary has {vocab_size} tokens")]
    Token {
        /// What was given.
        token: u32,
        /// How many there are.
        vocab_size: usize,
    },
    /// The activations are not what their shape says.
    #[error("activations of shape {shape:?} have {found} numbers")]
    Size {
        /// Batch, tokens, width.
        shape: [usize; 3],
        /// How many numbers there are.
        found: usize,
    },
    /// Nobody waits for the rest of a pass.
    #[error("the pass was stopped before it was done")]
    Stopped,
    /// The activations are not as wide as the model.
    #[error("activations are {found} wide, but the model's hidden size is {expected}")]
    Width {
        /// The model's hidden size.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// Input and gradient differ in shape.
    #[error("the input has shape {input:?}, but the gradient has shape {gradient:?}")]
    Gradient {
        /// Batch, tokens, width.
        input: [usize; 3],
        /// Batch, tokens, width.
        gradient: [usize; 3],
    },
    /// The tensor has another number of dimensions than activations.
    #[error("activations have the dimensions batch, tokens and hidden size, not {shape:?}")]
    Dimensions {
        /// What was given.
        shape: Vec<usize>,
    },
    /// The tensor has integers.
    #[error("activations are floating-point numbers, not {}", dtype.as_str())]
    NotFloat {
        /// What was given.
        dtype: sepal_protocol::tensor::DType,
    },
    /// The cache was made for another number of sequences.
    #[error("the cache holds {expected} sequences, but the step has {found}")]
    Batch {
        /// What the cache was made for.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// The cache was made by blocks of another model or dtype.
    #[error("the cache was made for another model")]
    ForeignCache,
    /// The cache has no such entry.
    #[error("entry {chain_idx} of a chain of {chain_len} blocks was asked for")]
    ChainIndex {
        /// The entry asked for.
        chain_idx: usize,
        /// How many there are.
        chain_len: usize,
    },
    /// The step would leave positions without keys.
    #[error("the step starts at position {position}, but only {cached} tokens are cached")]
    Gap {
        /// Where the step starts.
        position: usize,
        /// How many tokens are cached.
        cached: usize,
    },
    /// The step does not fit.
    #[error("{tokens} tokens at position {position} exceed the session's maximum of {max_length}")]
    TooLong {
        /// Where the step starts.
        position: usize,
        /// How many tokens it has.
        tokens: usize,
        /// What the cache was made for.
        max_length: usize,
    },
    /// The step has no such sequences.
    #[error("sequences {}:{} of a step of {batch} sequences were asked for", rows.start, rows.end)]
    Rows {
        /// The sequences asked for.
        rows: Range<usize>,
        /// How many there are.
        batch: usize,
    },
    /// The step has no such tokens.
    #[error("tokens {}:{} of a step of {n_tokens} tokens were asked for", tokens.start, tokens.end)]
    Tokens {
        /// The tokens asked for.
        tokens: Range<usize>,
        /// How many there are.
        n_tokens: usize,
    },
    /// Beams cannot be reordered so.
    #[error("cannot reorder a batch of {batch} by {rows:?}")]
    Reorder {
        /// Sequences in the cache.
        batch: usize,
        /// What was given.
        rows: Vec<usize>,
    },
}
