//! GPT-OSS: experts in MXFP4 with clamped gates, learned sinks in every softmax, windows in every second block.

use serde_json::{Map, Value};

use super::{BlockNames, ExpertNames, FeedForwardNames, llama};
use crate::model::{
    ConfigError, Family, ModelConfig,
    activation::CLAMPED_SLOPE,
    config::{
        parts::{Activation, ExpertsConfig, Routing},
        read::{optional, required, sliding_blocks, with_defaults},
    },
};

pub(super) const BLOCK: BlockNames = BlockNames {
    sinks: "self_attn.sinks",
    feed_forward: FeedForwardNames::Experts {
        router: "mlp.router",
        experts: ExpertNames::Mxfp4(["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    },
    ..llama::BLOCK
};

/// Numbers in a block of MXFP4.
const MXFP4_BLOCK: usize = 32;

pub(super) fn read_config(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let defaults = [
        ("head_dim", 64.into()),
        ("sliding_window", 128.into()),
        ("rope_theta", 150_000.0.into()),
        ("rms_norm_eps", 1e-5.into()),
        ("max_position_embeddings", 131_072.into()),
    ];
    let raw = with_defaults(raw, &defaults);
    let mut config = llama::read_as(Family::GptOss, &raw)?;
    for (field, size) in [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
    ] {
        if !size.is_multiple_of(MXFP4_BLOCK) {
            return Err(ConfigError::Value {
                field,
                problem: "is not a multiple of 32, as the packing of the weights needs",
            });
        }
    }
    config.attention.sliding = sliding_blocks(&raw, config.n_blocks, |block| block % 2 == 0)?;
    config.attention.sinks = true;
    config.attention.qkv_bias = true;
    config.attention.output_bias = true;
    let slope: Option<f32> = optional(&raw, "swiglu_alpha")?;
    if slope.is_some_and(|slope| slope != CLAMPED_SLOPE) {
        return Err(ConfigError::Value {
            field: "swiglu_alpha",
            problem: "is not 1.702, as in all published models",
        });
    }
    let limit: f32 = optional(&raw, "swiglu_limit")?.unwrap_or(7.0);
    if limit < 0.0 {
        return Err(ConfigError::Value {
            field: "swiglu_limit",
            problem: "is no limit: it must not be below 0",
        });
    }
    config.feed_forward.activation = Activation::ClampedSwiglu { limit };
    config.feed_forward.bias = true;
    config.feed_forward.experts = Some(ExpertsConfig {
        n_experts: required(&raw, "num_local_experts")?,
        experts_per_token: required(&raw, "num_experts_per_tok")?,
        routing: Routing::SoftmaxChosen,
        router_bias: true,
    });
    Ok(config)
}
