//! Qwen 2, 2.5 and 3: Llama with biases (2) or norms of heads (3), and experts in Qwen3-MoE.

use serde_json::{Map, Value};

use super::{BlockNames, ExpertNames, FeedForwardNames, PlainExperts, llama};
use crate::model::{
    ConfigError, Family, ModelConfig,
    config::{
        parts::{ExpertsConfig, Routing},
        read::{optional, renamed, required, sliding_blocks, with_defaults},
    },
};

pub(super) const QWEN3_BLOCK: BlockNames = BlockNames {
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    ..llama::BLOCK
};

pub(super) const QWEN3_MOE_BLOCK: BlockNames = BlockNames {
    feed_forward: FeedForwardNames::Experts {
        router: "mlp.gate",
        experts: ExpertNames::Plain(PlainExperts {
            folder: "mlp.experts.",
            gate: "gate_proj",
            up: "up_proj",
            down: "down_proj",
            fused: ["gate_up_proj", "down_proj"],
        }),
    },
    ..QWEN3_BLOCK
};

pub(super) fn read_qwen2(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let mut config = windowed(Family::Qwen2, raw)?;
    config.attention.qkv_bias = true;
    Ok(config)
}

pub(super) fn read_qwen3(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    normed(Family::Qwen3, raw)
}

/// `num_experts` has another name since transformers 5.
pub(super) fn read_qwen3_moe(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let raw = &renamed(raw, &[("num_local_experts", "num_experts")]);
    let sparse_step: usize = optional(raw, "decoder_sparse_step")?.unwrap_or(1);
    let dense: Vec<u32> = optional(raw, "mlp_only_layers")?.unwrap_or_default();
    if sparse_step != 1 || !dense.is_empty() {
        return Err(ConfigError::Value {
            field: "mlp_only_layers",
            problem: "asks for blocks without experts, which are not supported beside blocks with them",
        });
    }
    let mut config = normed(Family::Qwen3Moe, raw)?;
    config.intermediate_size = required(raw, "moe_intermediate_size")?;
    let normed: bool = optional(raw, "norm_topk_prob")?.unwrap_or(false);
    config.feed_forward.experts = Some(ExpertsConfig {
        n_experts: required(raw, "num_experts")?,
        experts_per_token: required(raw, "num_experts_per_tok")?,
        routing: if normed {
            Routing::SoftmaxChosen
        } else {
            Routing::SoftmaxAll
        },
        router_bias: false,
    });
    Ok(config)
}

fn normed(family: Family, raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let raw = with_defaults(raw, &[("head_dim", 128.into())]);
    let mut config = windowed(family, &raw)?;
    let bias = optional(&raw, "attention_bias")?.unwrap_or(false);
    config.attention.qk_norm = true;
    config.attention.qkv_bias = bias;
    config.attention.output_bias = bias;
    Ok(config)
}

/// The first `max_window_layers` blocks see everything, and the others as well unless `use_sliding_window` says
/// otherwise.
fn windowed(family: Family, raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let mut config = llama::read_as(family, raw)?;
    if optional(raw, "use_sliding_window")?.unwrap_or(false) {
        let first: u32 = optional(raw, "max_window_layers")?.unwrap_or(28);
        config.attention.sliding = sliding_blocks(raw, config.n_blocks, |block| block >= first)?;
    }
    Ok(config)
}
