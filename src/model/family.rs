//! The model families: which block a `model_type` has and what its checkpoints call their tensors. One file each.

pub(crate) mod llama;

use serde_json::{Map, Value};

use super::{ConfigError, ModelConfig, block::BlockNames};

/// A family of models that share the shape of their block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3.x and everything saved with their architecture.
    Llama,
}

/// For error texts.
const SUPPORTED: &str = "llama";

impl Family {
    /// The family of a `model_type`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`] names what is supported.
    pub fn of_model_type(model_type: &str) -> Result<Self, ConfigError> {
        match model_type {
            "llama" => Ok(Self::Llama),
            other => Err(ConfigError::UnknownModelType {
                model_type: other.to_owned(),
                supported: SUPPORTED,
            }),
        }
    }

    pub(crate) fn read_config(self, raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
        match self {
            Self::Llama => llama::read_config(raw),
        }
    }

    /// What the names of all tensors of block `block` start with, dot included.
    pub(crate) fn block_prefix(self, block: u32) -> String {
        match self {
            Self::Llama => format!("model.layers.{block}."),
        }
    }

    pub(crate) fn block_names(self) -> BlockNames {
        match self {
            Self::Llama => llama::BLOCK,
        }
    }

    /// The names of the tensors outside the blocks, which a client needs: embeddings, final norm, and the head unless
    /// it is tied to the embeddings.
    pub(crate) fn ends(self) -> EndNames {
        match self {
            Self::Llama => llama::ENDS,
        }
    }
}

/// What a family calls the tensors that are not in a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndNames {
    /// `[vocab_size, hidden_size]`
    pub(crate) embeddings: &'static str,
    /// `[hidden_size]`
    pub(crate) final_norm: &'static str,
    /// `[vocab_size, hidden_size]`, absent from the checkpoint when tied
    pub(crate) head: &'static str,
}
