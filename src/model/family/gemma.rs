//! Gemma 2 and 3 (text): norms with an offset of 1 before and after both parts, scaled embeddings, soft caps or norms of
//! heads, and windows in some blocks, which in Gemma 3 have a rotation of their own.

use serde_json::{Map, Value};

use super::{BlockNames, llama};
use crate::model::{
    ConfigError, Family, ModelConfig,
    config::{
        parts::{NormKind, Position, Residual, SlidingWindow},
        read::{activation, optional, sliding_blocks, with_defaults, with_rope_outside},
        rope::{RopeConfig, RopeScaling},
    },
};

pub(super) const BLOCK: BlockNames = BlockNames {
    attention_post_norm: "post_attention_layernorm",
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    mlp_norm: "pre_feedforward_layernorm",
    mlp_post_norm: "post_feedforward_layernorm",
    ..llama::BLOCK
};

pub(super) fn read_gemma2(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let defaults = [
        ("head_dim", 256.into()),
        ("query_pre_attn_scalar", 256.into()),
        ("attn_logit_softcapping", 50.0.into()),
        ("final_logit_softcapping", 30.0.into()),
        ("sliding_window", 4096.into()),
    ];
    let raw = with_defaults(raw, &defaults);
    let mut config = read(Family::Gemma2, &raw)?;
    config.attention.sliding = sliding_blocks(&raw, config.n_blocks, |block| block % 2 == 0)?;
    Ok(config)
}

/// A model that takes images as well has the configuration of its text part inside, with much left to the defaults of
/// transformers' `Gemma3TextConfig`.
pub(super) fn read_gemma3(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let mut text = raw.clone();
    text.extend(optional::<Map<String, Value>>(raw, "text_config")?.unwrap_or_default());
    let ropes: Map<String, Value> = optional(&text, "rope_parameters")?.unwrap_or_default();
    if let (Some(global), Some(local)) = (ropes.get("full_attention"), ropes.get("sliding_attention")) {
        // How transformers 5 writes both rotations.
        text.insert("rope_local_base_freq".to_owned(), local["rope_theta"].clone());
        text.insert("rope_parameters".to_owned(), global.clone());
    }
    let text = with_defaults(&with_rope_outside(&text)?, &[("rope_theta", 1e6.into())]);
    let defaults = [
        ("vocab_size", 262_208.into()),
        ("hidden_size", 2304.into()),
        ("intermediate_size", 9216.into()),
        ("num_hidden_layers", 26.into()),
        ("num_attention_heads", 8.into()),
        ("num_key_value_heads", 4.into()),
        ("head_dim", 256.into()),
        ("query_pre_attn_scalar", 256.into()),
        ("max_position_embeddings", 131_072.into()),
        ("sliding_window", 4096.into()),
        ("sliding_window_pattern", 6.into()),
        ("rope_local_base_freq", 10_000.0.into()),
    ];
    let text = with_defaults(&text, &defaults);
    let mut config = read(Family::Gemma3, &text)?;
    config.attention.qk_norm = true;
    let pattern: u32 = optional(&text, "sliding_window_pattern")?.unwrap_or(6);
    let sliding = sliding_blocks(&text, config.n_blocks, |block| (block + 1) % pattern.max(1) != 0)?;
    let Position::Rotary(rope) = &config.attention.position else {
        return Ok(config);
    };
    let local = RopeConfig {
        theta: optional(&text, "rope_local_base_freq")?.unwrap_or(10_000.0),
        scaling: RopeScaling::Default,
        ..rope.clone()
    };
    config.attention.sliding = sliding.map(|sliding| SlidingWindow {
        rope: Some(local),
        ..sliding
    });
    Ok(config)
}

fn read(family: Family, raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let raw = with_defaults(
        raw,
        &[
            ("tie_word_embeddings", true.into()),
            ("hidden_activation", "gelu_pytorch_tanh".into()),
        ],
    );
    let mut config = llama::read_as(family, &raw)?;
    let bias = optional(&raw, "attention_bias")?.unwrap_or(false);
    let scalar: f32 = optional(&raw, "query_pre_attn_scalar")?.unwrap_or(256.0);
    config.norm.kind = NormKind::RmsUnitOffset;
    config.residual = Residual::SequentialPostNorm;
    config.attention.scale = 1.0 / scalar.sqrt();
    config.attention.softcap = optional(&raw, "attn_logit_softcapping")?;
    config.attention.qkv_bias = bias;
    config.attention.output_bias = bias;
    if let Some(activation) = activation(&raw, "hidden_activation")? {
        config.feed_forward.activation = activation;
    }
    config.ends.embedding_scale = Some((config.hidden_size as f32).sqrt());
    config.ends.logit_softcap = optional(&raw, "final_logit_softcapping")?;
    Ok(config)
}
