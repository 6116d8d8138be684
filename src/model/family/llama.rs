//! Llama: configuration keys, their defaults in transformers, and tensor names. Families that are a Llama with other
//! parts begin with what is read here.

use serde_json::{Map, Value};

use super::{BlockNames, EndNames, FeedForwardNames, QkvNames};
use crate::model::{
    ConfigError, Family, ModelConfig, WeightDType,
    config::{
        parts::{Activation, AttentionConfig, EndsConfig, FeedForwardConfig, NormConfig, NormKind, Position, Residual},
        read::{activation, optional, required, token_ids},
        rope::{LongRopeChoice, read_rope},
    },
};

pub(super) const ROOTS: &[&str] = &["model."];
/// Of checkpoints with text alone, and of those with images, whose layout has changed once.
pub(super) const ROOTS_WITH_IMAGES: &[&str] = &["model.", "language_model.model.", "model.language_model."];

pub(super) const ENDS: EndNames = EndNames {
    embeddings: "embed_tokens",
    embedding_norm: "",
    final_norm: "norm",
    head: "lm_head",
};

pub(super) const BLOCK: BlockNames = BlockNames {
    attention_norm: "input_layernorm",
    attention_post_norm: "",
    qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norm: ["", ""],
    sinks: "",
    output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    mlp_post_norm: "",
    feed_forward: FeedForwardNames::Separate {
        gate: Some("mlp.gate_proj"),
        up: "mlp.up_proj",
        down: "mlp.down_proj",
    },
};

/// Defaults are those of transformers' `LlamaConfig`, since older files leave out what was added later.
pub(super) fn read_config(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let rotated: Option<f32> = optional(raw, "partial_rotary_factor")?;
    if rotated.is_some_and(|share| share != 1.0) {
        return Err(ConfigError::Value {
            field: "partial_rotary_factor",
            problem: "is not 1",
        });
    }
    let config = read_as(Family::Llama, raw)?;
    let bias = optional(raw, "attention_bias")?.unwrap_or(false);
    Ok(ModelConfig {
        attention: AttentionConfig {
            qkv_bias: bias,
            output_bias: bias,
            ..config.attention
        },
        feed_forward: FeedForwardConfig {
            bias: optional(raw, "mlp_bias")?.unwrap_or(false),
            ..config.feed_forward
        },
        ..config
    })
}

/// A Llama without biases, under the keys that most families use.
pub(super) fn read_as(family: Family, raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let hidden_size: usize = required(raw, "hidden_size")?;
    let n_heads: usize = required(raw, "num_attention_heads")?;
    let head_dim = optional(raw, "head_dim")?.unwrap_or(hidden_size / n_heads.max(1));
    let rotated: f32 = optional(raw, "partial_rotary_factor")?.unwrap_or(1.0);
    let rotary_dim = (head_dim as f32 * rotated) as usize;
    let longrope = if family == Family::Llama {
        LongRopeChoice::Factor
    } else {
        LongRopeChoice::Length
    };
    let torch_dtype: Option<String> = match optional(raw, "torch_dtype")? {
        Some(name) => Some(name),
        None => optional(raw, "dtype")?,
    };
    Ok(ModelConfig {
        family,
        n_blocks: required(raw, "num_hidden_layers")?,
        hidden_size,
        n_heads,
        n_kv_heads: optional(raw, "num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        intermediate_size: required(raw, "intermediate_size")?,
        vocab_size: required(raw, "vocab_size")?,
        norm: NormConfig {
            kind: NormKind::Rms,
            eps: optional(raw, "rms_norm_eps")?.unwrap_or(1e-6),
        },
        residual: Residual::Sequential,
        attention: AttentionConfig {
            position: Position::Rotary(read_rope(raw, rotary_dim, longrope)?),
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
            sliding: None,
            sinks: false,
            qkv_bias: false,
            output_bias: false,
            qk_norm: false,
        },
        feed_forward: FeedForwardConfig {
            activation: activation(raw, "hidden_act")?.unwrap_or(Activation::Silu),
            gated: true,
            bias: false,
            experts: None,
        },
        ends: EndsConfig {
            embedding_scale: None,
            embedding_norm: false,
            tie_word_embeddings: optional(raw, "tie_word_embeddings")?.unwrap_or(false),
            head_bias: false,
            logit_softcap: None,
        },
        bos_token_id: token_ids(raw, "bos_token_id")?.first().copied(),
        eos_token_ids: token_ids(raw, "eos_token_id")?,
        torch_dtype: torch_dtype.and_then(|name| WeightDType::from_torch_str(&name)),
        packed: None,
    })
}
