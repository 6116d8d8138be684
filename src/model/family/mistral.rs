//! Mistral and Mixtral: Llama with a window over the latest tokens; Mixtral has experts.

use serde_json::{Map, Value};

use super::{BlockNames, ExpertNames, FeedForwardNames, PlainExperts, llama};
use crate::model::{
    ConfigError, Family, ModelConfig,
    config::{
        parts::{ExpertsConfig, Routing},
        read::{optional, required, sliding_blocks, with_defaults},
    },
};

/// `model_type` of the text part beside images that is this family; Ministral 3 and Mistral Small 4 have others.
const TEXT_PART: &str = "mistral";

pub(super) const MIXTRAL_BLOCK: BlockNames = BlockNames {
    feed_forward: FeedForwardNames::Experts {
        router: "block_sparse_moe.gate",
        experts: ExpertNames::Plain(PlainExperts {
            folder: "block_sparse_moe.experts.",
            gate: "w1",
            up: "w3",
            down: "w2",
            fused: ["gate_up_proj", "down_proj"],
        }),
    },
    ..llama::BLOCK
};

/// A configuration without the key means 4096 tokens, one with null no window (transformers `MistralConfig`). Mistral
/// Small takes images as well since 3.1, and has the configuration of its text part inside.
pub(super) fn read_mistral(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let inside: Map<String, Value> = optional(raw, "text_config")?.unwrap_or_default();
    let kind: Option<String> = optional(&inside, "model_type")?;
    if let Some(other) = kind.filter(|kind| kind != TEXT_PART) {
        return Err(ConfigError::UnknownModelType {
            model_type: format!("mistral3 with {other}"),
            supported: format!("mistral3 with {TEXT_PART}"),
        });
    }
    let mut text = raw.clone();
    text.extend(inside);
    windowed(
        Family::Mistral,
        &with_defaults(&text, &[("sliding_window", 4096.into())]),
    )
}

pub(super) fn read_mixtral(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let raw = with_defaults(raw, &[("rope_theta", 1e6.into()), ("rms_norm_eps", 1e-5.into())]);
    let mut config = windowed(Family::Mixtral, &raw)?;
    config.feed_forward.experts = Some(ExpertsConfig {
        n_experts: required(&raw, "num_local_experts")?,
        experts_per_token: required(&raw, "num_experts_per_tok")?,
        routing: Routing::SoftmaxChosen,
        router_bias: false,
    });
    Ok(config)
}

/// All blocks have the window, if there is one.
fn windowed(family: Family, raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let mut config = llama::read_as(family, raw)?;
    config.attention.sliding = sliding_blocks(raw, config.n_blocks, |_| true)?;
    Ok(config)
}
