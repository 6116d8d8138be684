//! The model families: which parts the blocks of a `model_type` have and what its checkpoints call their tensors. One
//! file each; what the parts do is the same code for all (`model/block.rs`).

mod bloom;
mod falcon;
mod gemma;
mod gpt_oss;
mod llama;
mod mistral;
mod phi;
mod qwen;
mod support;

use serde_json::{Map, Value};
pub use support::Support;

use super::{ConfigError, ModelConfig};

/// A family of models that share the shape of their block and the names of their tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3.x and everything saved with their architecture.
    Llama,
    /// Mistral: Llama with a window.
    Mistral,
    /// Mixtral: Mistral with experts.
    Mixtral,
    /// Qwen 2 and 2.5: biases of queries, keys and values.
    Qwen2,
    /// Qwen 3: norms of heads.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Gemma 2: soft caps, windows in every second block.
    Gemma2,
    /// Gemma 3, its text part.
    Gemma3,
    /// Phi-1.5 and Phi-2.
    Phi2,
    /// Phi-3, 3.5 and 4.
    Phi3,
    /// Falcon, all kinds.
    Falcon,
    /// BLOOM and BLOOMZ.
    Bloom,
    /// GPT-OSS.
    GptOss,
}

impl Family {
    /// All of them, in the order of the table in the README.
    pub const ALL: [Self; 13] = [
        Self::Llama,
        Self::Mistral,
        Self::Mixtral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi2,
        Self::Phi3,
        Self::Falcon,
        Self::Bloom,
        Self::GptOss,
    ];

    /// The family of a `model_type`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`] names what is supported.
    pub fn of_model_type(model_type: &str) -> Result<Self, ConfigError> {
        let types = |family: &Self| family.support().model_types;
        let family = Self::ALL.into_iter().find(|family| types(family).contains(&model_type));
        family.ok_or_else(|| ConfigError::UnknownModelType {
            model_type: model_type.to_owned(),
            supported: Self::ALL.iter().flat_map(types).copied().collect::<Vec<_>>().join(", "),
        })
    }

    pub(crate) fn read_config(self, raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
        match self {
            Self::Llama => llama::read_config(raw),
            Self::Mistral => mistral::read_mistral(raw),
            Self::Mixtral => mistral::read_mixtral(raw),
            Self::Qwen2 => qwen::read_qwen2(raw),
            Self::Qwen3 => qwen::read_qwen3(raw),
            Self::Qwen3Moe => qwen::read_qwen3_moe(raw),
            Self::Gemma2 => gemma::read_gemma2(raw),
            Self::Gemma3 => gemma::read_gemma3(raw),
            Self::Phi2 => phi::read_phi2(raw),
            Self::Phi3 => phi::read_phi3(raw),
            Self::Falcon => falcon::read_config(raw),
            Self::Bloom => bloom::read_config(raw),
            Self::GptOss => gpt_oss::read_config(raw),
        }
    }

    /// What the names of the tensors of block `block` may start with, dot included; the usual one first.
    pub(crate) fn block_prefixes(self, block: u32) -> Vec<String> {
        let folder = match self {
            Self::Falcon | Self::Bloom => "h",
            _ => "layers",
        };
        let roots = self.roots().iter();
        roots.map(|root| format!("{root}{folder}.{block}.")).collect()
    }

    /// What the names of all tensors but the head's may start with; the usual one first.
    pub(crate) fn roots(self) -> &'static [&'static str] {
        match self {
            Self::Mistral | Self::Gemma3 => llama::ROOTS_WITH_IMAGES,
            Self::Falcon => falcon::ROOTS,
            Self::Bloom => bloom::ROOTS,
            _ => llama::ROOTS,
        }
    }

    pub(crate) fn block_names(self, config: &ModelConfig) -> BlockNames {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => llama::BLOCK,
            Self::Mixtral => mistral::MIXTRAL_BLOCK,
            Self::Qwen3 => qwen::QWEN3_BLOCK,
            Self::Qwen3Moe => qwen::QWEN3_MOE_BLOCK,
            Self::Gemma2 | Self::Gemma3 => gemma::BLOCK,
            Self::Phi2 => phi::PHI2_BLOCK,
            Self::Phi3 => phi::PHI3_BLOCK,
            Self::Falcon => falcon::block_names(config),
            Self::Bloom => falcon::BLOOM_BLOCK,
            Self::GptOss => gpt_oss::BLOCK,
        }
    }

    /// The names of the tensors outside the blocks, which a client needs.
    pub(crate) fn end_names(self) -> EndNames {
        match self {
            Self::Phi2 => phi::PHI2_ENDS,
            Self::Falcon => falcon::ENDS,
            Self::Bloom => bloom::ENDS,
            _ => llama::ENDS,
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

/// The matrices of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ExpertNames {
    Plain(PlainExperts),
    /// Gate and up by turns, and down; each for all experts, in MXFP4.
    Mxfp4([&'static str; 2]),
}

/// Experts, one tensor each (`FOLDER.NUMBER.gate.weight`) or all in one (`FOLDER.gate_up`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainExperts {
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
    /// `[vocab_size, hidden_size]`, absent from the checkpoint when tied. Its root is that of the others without `model.`.
    pub(crate) head: &'static str,
}

#[cfg(test)]
mod tests;
