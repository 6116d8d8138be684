//! The model families: which parts the blocks of a `model_type` have and what its checkpoints call their tensors. One
//! file each; what the parts do is the same code for all (`model/block.rs`).

pub(crate) mod llama;

use serde_json::{Map, Value};

use super::{ConfigError, ModelConfig};

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

    /// What the names of the tensors of block `block` may start with, dot included; the usual one first.
    pub(crate) fn block_prefixes(self, block: u32) -> Vec<String> {
        let roots = self.roots().iter();
        roots.map(|root| format!("{root}{}{block}.", self.blocks())).collect()
    }

    /// What the names of all tensors but the head's may start with; the usual one first.
    pub(crate) fn roots(self) -> &'static [&'static str] {
        match self {
            Self::Llama => llama::ROOTS,
        }
    }

    /// Between the root and the number of a block.
    fn blocks(self) -> &'static str {
        match self {
            Self::Llama => "layers.",
        }
    }

    pub(crate) fn block_names(self, _config: &ModelConfig) -> BlockNames {
        match self {
            Self::Llama => llama::BLOCK,
        }
    }

    /// The names of the tensors outside the blocks, which a client needs.
    pub(crate) fn end_names(self) -> EndNames {
        match self {
            Self::Llama => llama::ENDS,
        }
    }
}

/// What a family calls the tensors of a block, after the block's prefix and before `.weight` and `.bias`. Names of parts
/// that its blocks do not have are empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockNames {
    pub(crate) attention_norm: &'static str,
    pub(crate) attention_post_norm: &'static str,
    pub(crate) qkv: QkvNames,
    pub(crate) qk_norm: [&'static str; 2],
    /// With its kind: a vector without a matrix.
    pub(crate) sinks: &'static str,
    pub(crate) output: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) mlp_post_norm: &'static str,
    pub(crate) feed_forward: FeedForwardNames,
}

/// Query, key and value projections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum QkvNames {
    Separate([&'static str; 3]),
    /// In one matrix: all queries, all keys, all values.
    Concatenated(&'static str),
    /// In one matrix: for each key head the queries that share it, the key, the value.
    ByKvHead(&'static str),
}

/// The projections of the feed-forward part.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FeedForwardNames {
    Separate {
        gate: Option<&'static str>,
        up: &'static str,
        down: &'static str,
    },
    /// Gate and up in one matrix, one after the other.
    GateUp {
        gate_up: &'static str,
        down: &'static str,
    },
    Experts {
        router: &'static str,
        experts: ExpertNames,
    },
}

/// Experts, one tensor each (`FOLDER.NUMBER.gate.weight`) or all in one (`FOLDER.gate_up`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertNames {
    /// Dot included.
    pub(crate) folder: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// Gate and up, and down.
    pub(crate) fused: [&'static str; 2],
}

/// What a family calls the tensors that are not in a block, after the root and before `.weight` and `.bias`. Names of
/// what it does not have are empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndNames {
    /// `[vocab_size, hidden_size]`
    pub(crate) embeddings: &'static str,
    /// `[hidden_size]`
    pub(crate) embedding_norm: &'static str,
    /// `[hidden_size]`
    pub(crate) final_norm: &'static str,
    /// `[vocab_size, hidden_size]`, absent from the checkpoint when tied. It has no root.
    pub(crate) head: &'static str,
}
