//! What can go wrong with a checkpoint or a computation, by what the caller can do about it. Sources are kept, not
//! repeated in the text.

use std::{ops::Range, path::PathBuf};

use thiserror::Error;

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
        /// The families there are.
        supported: &'static str,
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
    /// The folder has no weights we read.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json (pickled .bin files are not read)", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
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
    /// Blocks were asked for that the model does not have.
    #[error("blocks {}:{} were asked for, but the model has {n_blocks} blocks", span.start, span.end)]
    Span {
        /// The blocks asked for.
        span: Range<u32>,
        /// How many there are.
        n_blocks: u32,
    },
}
