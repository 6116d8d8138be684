//! BLOOM: slopes instead of rotation, fused projections, layer norms and biases everywhere, normed embeddings.

use serde_json::{Map, Value};

use super::{EndNames, falcon, llama};
use crate::model::{
    ConfigError, Family, ModelConfig,
    config::{
        parts::{Activation, AlibiKind, NormKind, Position},
        read::{optional, renamed, with_defaults},
    },
};

/// Older checkpoints are those of the model without its head, and have no root.
pub(super) const ROOTS: &[&str] = &["transformer.", ""];

pub(super) const ENDS: EndNames = EndNames {
    embedding_norm: "word_embeddings_layernorm",
    ..falcon::ENDS
};

pub(super) fn read_config(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    if optional(raw, "apply_residual_connection_post_layernorm")?.unwrap_or(false) {
        return Err(ConfigError::Value {
            field: "apply_residual_connection_post_layernorm",
            problem: "is true, which is not supported; in the published models it is false",
        });
    }
    let names = [
        ("n_embed", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_layer", "num_hidden_layers"),
        ("layer_norm_epsilon", "rms_norm_eps"),
    ];
    let raw = renamed(raw, &names);
    let hidden_size: usize = optional(&raw, "hidden_size")?.unwrap_or(0);
    let defaults = [
        ("intermediate_size", (4 * hidden_size).into()),
        ("rms_norm_eps", 1e-5.into()),
        ("tie_word_embeddings", true.into()),
    ];
    let mut config = llama::read_as(Family::Bloom, &with_defaults(&raw, &defaults))?;
    config.norm.kind = NormKind::LayerNorm;
    config.attention.position = Position::Alibi(AlibiKind::Exact);
    config.attention.qkv_bias = true;
    config.attention.output_bias = true;
    config.feed_forward.activation = Activation::GeluTanh;
    config.feed_forward.gated = false;
    config.feed_forward.bias = true;
    config.ends.embedding_norm = true;
    Ok(config)
}
