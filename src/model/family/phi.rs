//! Phi-2 (a single layer norm, attention and feed-forward side by side, biases, half of each head rotated) and Phi-3 and 4
//! (Llama with fused projections and longrope).

use serde_json::{Map, Value};

use super::{BlockNames, EndNames, FeedForwardNames, QkvNames, llama};
use crate::model::{
    ConfigError, Family, ModelConfig,
    config::{
        parts::{NormConfig, NormKind, Residual},
        read::{optional, sliding_blocks, with_defaults},
    },
};

pub(super) const PHI2_ENDS: EndNames = EndNames {
    final_norm: "final_layernorm",
    ..llama::ENDS
};

pub(super) const PHI2_BLOCK: BlockNames = BlockNames {
    output: "self_attn.dense",
    feed_forward: FeedForwardNames::Separate {
        gate: None,
        up: "mlp.fc1",
        down: "mlp.fc2",
    },
    ..llama::BLOCK
};

pub(super) const PHI3_BLOCK: BlockNames = BlockNames {
    qkv: QkvNames::Concatenated("self_attn.qkv_proj"),
    feed_forward: FeedForwardNames::GateUp {
        gate_up: "mlp.gate_up_proj",
        down: "mlp.down_proj",
    },
    ..llama::BLOCK
};

pub(super) fn read_phi2(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    if optional(raw, "qk_layernorm")?.unwrap_or(false) {
        return Err(ConfigError::Value {
            field: "qk_layernorm",
            problem: "is not supported, and no published model has it",
        });
    }
    let defaults = [("hidden_act", "gelu_new".into()), ("partial_rotary_factor", 0.5.into())];
    let raw = with_defaults(raw, &defaults);
    let mut config = llama::read_as(Family::Phi2, &raw)?;
    config.norm = NormConfig {
        kind: NormKind::LayerNorm,
        eps: optional(&raw, "layer_norm_eps")?.unwrap_or(1e-5),
    };
    config.residual = Residual::Parallel;
    config.attention.qkv_bias = true;
    config.attention.output_bias = true;
    config.feed_forward.gated = false;
    config.feed_forward.bias = true;
    config.ends.head_bias = true;
    Ok(config)
}

pub(super) fn read_phi3(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let raw = with_defaults(raw, &[("rms_norm_eps", 1e-5.into())]);
    let mut config = llama::read_as(Family::Phi3, &raw)?;
    config.attention.sliding = sliding_blocks(&raw, config.n_blocks, |_| true)?;
    Ok(config)
}
