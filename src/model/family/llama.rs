//! Llama: configuration keys, their defaults in transformers, and tensor names. The block itself is `model/block.rs`.

use serde_json::{Map, Value};

use super::EndNames;
use crate::model::{
    ConfigError, Family, ModelConfig, WeightDType,
    block::BlockNames,
    config::{optional, read_rope, required, token_ids},
};

pub(super) const ENDS: EndNames = EndNames {
    embeddings: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
};

pub(super) const BLOCK: BlockNames = BlockNames {
    attention_norm: "input_layernorm",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
};

/// Defaults are those of transformers' `LlamaConfig`, since older files leave out what was added later.
pub(super) fn read_config(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let activation: Option<String> = optional(raw, "hidden_act")?;
    if activation.is_some_and(|name| name != "silu") {
        return Err(ConfigError::Value {
            field: "hidden_act",
            problem: "is not \"silu\"",
        });
    }
    let rotated: Option<f32> = optional(raw, "partial_rotary_factor")?;
    if rotated.is_some_and(|share| share != 1.0) {
        return Err(ConfigError::Value {
            field: "partial_rotary_factor",
            problem: "is not 1",
        });
    }
    let hidden_size: usize = required(raw, "hidden_size")?;
    let n_heads: usize = required(raw, "num_attention_heads")?;
    let head_dim = optional(raw, "head_dim")?.unwrap_or(hidden_size / n_heads.max(1));
    let torch_dtype: Option<String> = match optional(raw, "torch_dtype")? {
        Some(name) => Some(name),
        None => optional(raw, "dtype")?,
    };
    Ok(ModelConfig {
        family: Family::Llama,
        n_blocks: required(raw, "num_hidden_layers")?,
        hidden_size,
        n_heads,
        n_kv_heads: optional(raw, "num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        intermediate_size: required(raw, "intermediate_size")?,
        vocab_size: required(raw, "vocab_size")?,
        rms_eps: optional(raw, "rms_norm_eps")?.unwrap_or(1e-6),
        rope: read_rope(raw, head_dim)?,
        attention_bias: optional(raw, "attention_bias")?.unwrap_or(false),
        mlp_bias: optional(raw, "mlp_bias")?.unwrap_or(false),
        tie_word_embeddings: optional(raw, "tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: token_ids(raw, "bos_token_id")?.first().copied(),
        eos_token_ids: token_ids(raw, "eos_token_id")?,
        torch_dtype: torch_dtype.and_then(|name| WeightDType::from_torch_str(&name)),
    })
}
