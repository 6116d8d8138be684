//! Falcon, three kinds: 7B (one key head, one norm, both parts side by side), 40B, 180B and 11B (groups of heads, one or
//! two norms), RW (slopes, one part after the other, biases).

use serde_json::{Map, Value};

use super::{BlockNames, EndNames, FeedForwardNames, QkvNames, llama};
use crate::model::{
    ConfigError, Family, ModelConfig,
    config::{
        parts::{Activation, AlibiKind, NormKind, Position, Residual},
        read::{activation, optional, required, with_defaults},
    },
};

pub(super) const ROOTS: &[&str] = &["transformer."];

pub(super) const ENDS: EndNames = EndNames {
    embeddings: "word_embeddings",
    embedding_norm: "",
    final_norm: "ln_f",
    head: "lm_head",
};

const BLOCK: BlockNames = BlockNames {
    attention_norm: "input_layernorm",
    attention_post_norm: "",
    qkv: QkvNames::ByKvHead("self_attention.query_key_value"),
    qk_norm: ["", ""],
    sinks: "",
    output: "self_attention.dense",
    mlp_norm: "post_attention_layernorm",
    mlp_post_norm: "",
    feed_forward: FeedForwardNames::Separate {
        gate: None,
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
    },
};

/// Two parallel norms have other names than one, or than two in a row.
pub(super) fn block_names(config: &ModelConfig) -> BlockNames {
    match config.residual {
        Residual::ParallelTwoNorms => BlockNames {
            attention_norm: "ln_attn",
            mlp_norm: "ln_mlp",
            ..BLOCK
        },
        _ => BLOCK,
    }
}

/// BLOOM's blocks are named like those of Falcon RW.
pub(super) const BLOOM_BLOCK: BlockNames = BLOCK;

pub(super) fn read_config(raw: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let hidden_size: usize = required(raw, "hidden_size")?;
    let n_heads: usize = required(raw, "num_attention_heads")?;
    let flag = |field, default| Ok::<bool, ConfigError>(optional(raw, field)?.unwrap_or(default));
    let new_decoder = flag("new_decoder_architecture", false)?;
    let one_kv_head = !new_decoder && flag("multi_query", true)?;
    let n_norms: Option<usize> = optional(raw, "num_ln_in_parallel_attn")?;
    let mut standard = with_defaults(
        raw,
        &[
            (
                "intermediate_size",
                optional(raw, "ffn_hidden_size")?.unwrap_or(4 * hidden_size).into(),
            ),
            (
                "rms_norm_eps",
                optional(raw, "layer_norm_epsilon")?.unwrap_or(1e-5).into(),
            ),
            ("tie_word_embeddings", true.into()),
        ],
    );
    let n_kv_heads = match new_decoder {
        true => optional(raw, "num_kv_heads")?.unwrap_or(n_heads),
        false if one_kv_head => 1,
        false => n_heads,
    };
    standard.insert("num_key_value_heads".to_owned(), n_kv_heads.into());
    let mut config = llama::read_as(Family::Falcon, &standard)?;
    config.norm.kind = NormKind::LayerNorm;
    config.residual = match (new_decoder, n_norms) {
        (true, None | Some(2)) => Residual::ParallelTwoNorms,
        (true, Some(_)) => Residual::Parallel,
        (false, _) if flag("parallel_attn", true)? => Residual::Parallel,
        (false, _) => Residual::Sequential,
    };
    if flag("alibi", false)? {
        config.attention.position = Position::Alibi(AlibiKind::Bfloat16);
    }
    let bias = flag("bias", false)?;
    config.attention.qkv_bias = bias;
    config.attention.output_bias = bias;
    config.feed_forward.bias = bias;
    config.feed_forward.gated = false;
    config.feed_forward.activation = activation(raw, "activation")?.unwrap_or(Activation::Gelu);
    Ok(config)
}
