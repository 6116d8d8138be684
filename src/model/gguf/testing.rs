//! GGUF files for tests, written as llama.cpp's converter writes models of Llama's shape.

use std::{collections::BTreeMap, io::Cursor};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use safetensors::SafeTensors;
use serde_json::{Value as Json, json};

use crate::model::builtin;

pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;
pub(crate) type Metadata = Vec<(String, gguf_file::Value)>;

pub(crate) fn text(text: &str) -> gguf_file::Value {
    gguf_file::Value::String(text.to_owned())
}

pub(crate) fn int(number: &Json) -> gguf_file::Value {
    gguf_file::Value::U32(number.as_u64().unwrap() as u32)
}

/// What the converter writes of a `config.json` of Llama's.
pub(crate) fn metadata_of(config: &Json) -> Metadata {
    let mut metadata = vec![
        ("general.architecture".to_owned(), text("llama")),
        ("general.name".to_owned(), text("Tiny Llama (test)")),
    ];
    for (key, name) in [
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("expert_count", "num_local_experts"),
        ("expert_used_count", "num_experts_per_tok"),
    ] {
        if config[name].is_u64() {
            metadata.push((format!("llama.{key}"), int(&config[name])));
        }
    }
    for (key, name) in [
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("rope.freq_base", "rope_theta"),
    ] {
        if let Some(number) = config[name].as_f64() {
            metadata.push((format!("llama.{key}"), gguf_file::Value::F32(number as f32)));
        }
    }
    metadata
}

/// A file with these tensors, matrices as `kind`.
pub(crate) fn gguf_of(config: &Json, tensors: &Tensors, kind: GgmlDType, metadata: &Metadata) -> Vec<u8> {
    let heads = |name: &str| config[name].as_u64().unwrap_or(1) as usize;
    let converted: Vec<(String, QTensor)> = tensors
        .iter()
        .map(|(name, (shape, numbers))| {
            let numbers = match name {
                name if name.contains("q_proj") => interleaved(numbers, shape, heads("num_attention_heads")),
                name if name.contains("k_proj") => interleaved(numbers, shape, heads("num_key_value_heads")),
                _ => numbers.clone(),
            };
            let kind = if shape.len() == 1 { GgmlDType::F32 } else { kind };
            let tensor = Tensor::from_vec(numbers, shape.as_slice(), &Device::Cpu).unwrap();
            (gguf_name(name), QTensor::quantize(&tensor, kind).unwrap())
        })
        .collect();
    let tensors: Vec<(&str, &QTensor)> = converted.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata: Vec<(&str, &gguf_file::Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let mut file = Cursor::new(Vec::new());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    file.into_inner()
}

fn gguf_name(name: &str) -> String {
    [
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (usual, ours)| name.replace(usual, ours))
}

/// The two numbers of a rotated pair become neighbours.
fn interleaved(numbers: &[f32], shape: &[usize], heads: usize) -> Vec<f32> {
    let cols = numbers.len() / shape[0];
    let half = shape[0] / heads / 2;
    let mut rows = Vec::new();
    for head in 0..heads {
        for pair in 0..half {
            for part in 0..2 {
                let row = (head * 2 + part) * half + pair;
                rows.extend_from_slice(&numbers[row * cols..(row + 1) * cols]);
            }
        }
    }
    rows
}

/// The built-in model as a GGUF file, with its tokenizer.
pub(crate) fn demo_gguf() -> Vec<u8> {
    let config: Json = serde_json::from_slice(builtin::CONFIG).unwrap();
    let weights = SafeTensors::deserialize(builtin::weights()).unwrap();
    let tensors = weights.tensors().into_iter().map(|(name, view)| {
        assert_eq!(view.dtype(), safetensors::Dtype::BF16);
        let halves = view.data().chunks_exact(2);
        let numbers = halves.map(|half| half::bf16::from_le_bytes([half[0], half[1]]).to_f32());
        (name, (view.shape().to_vec(), numbers.collect()))
    });
    let tensors: Tensors = tensors.collect();
    let mut metadata = metadata_of(&config);
    metadata.extend(demo_tokenizer());
    let tokenizer_config: Json = serde_json::from_slice(builtin::TOKENIZER_CONFIG).unwrap();
    let template = text(tokenizer_config["chat_template"].as_str().unwrap());
    metadata.push(("tokenizer.chat_template".to_owned(), template));
    for (key, name) in [("bos", "bos_token_id"), ("eos", "eos_token_id")] {
        metadata.push((format!("tokenizer.ggml.{key}_token_id"), int(&config[name])));
    }
    gguf_of(&config, &tensors, GgmlDType::BF16, &metadata)
}

fn demo_tokenizer() -> Metadata {
    let tokenizer: Json = serde_json::from_slice(builtin::TOKENIZER).unwrap();
    let mut tokens: Vec<(u64, &str)> = tokenizer["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), token.as_str()))
        .collect();
    tokens.sort_unstable();
    let merges = tokenizer["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Json::String(merge) => text(merge),
            pair => text(&format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())),
        });
    let special = tokenizer["added_tokens"].as_array().unwrap();
    let kind = |id: &u64| {
        if special.iter().any(|token| token["id"] == json!(id)) {
            3
        } else {
            1
        }
    };
    let kinds = tokens.iter().map(|(id, _)| gguf_file::Value::I32(kind(id)));
    let array = gguf_file::Value::Array;
    [
        ("model", text("gpt2")),
        ("pre", text("smollm")),
        ("add_bos_token", gguf_file::Value::Bool(true)),
        ("token_type", array(kinds.collect())),
        ("merges", array(merges.collect())),
        ("tokens", array(tokens.iter().map(|(_, token)| text(token)).collect())),
    ]
    .into_iter()
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .collect()
}

/// The metadata of a tokenizer that cuts texts as `pre` says and knows two letters.
pub(crate) fn byte_level(pre: &str) -> Metadata {
    let array = |tokens: &[&str]| gguf_file::Value::Array(tokens.iter().map(|token| text(token)).collect());
    [
        ("model", text("gpt2")),
        ("pre", text(pre)),
        ("tokens", array(&["a", "b", "ab"])),
        ("merges", array(&["a b"])),
    ]
    .into_iter()
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .collect()
}

/// The `tokenizer.json` of it.
pub(crate) fn byte_level_json(pre: &str) -> Vec<u8> {
    let file = gguf_of(&json!({}), &Tensors::new(), GgmlDType::F32, &byte_level(pre));
    super::Gguf::read(vec![file.into()]).unwrap().tokenizer_json().unwrap()
}

/// The `tokenizer.json` of a file with these pieces.
pub(crate) fn sentence_piece_json(tokens: &[&str], scores: &[f32]) -> Vec<u8> {
    let kind = |id: usize| gguf_file::Value::I32(if (1..3).contains(&id) { 3 } else { 1 });
    let array = gguf_file::Value::Array;
    let metadata: Metadata = [
        ("model", text("llama")),
        ("tokens", array(tokens.iter().map(|token| text(token)).collect())),
        (
            "scores",
            array(scores.iter().map(|score| gguf_file::Value::F32(*score)).collect()),
        ),
        ("token_type", array((0..tokens.len()).map(kind).collect())),
        ("bos_token_id", gguf_file::Value::U32(1)),
    ]
    .into_iter()
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .collect();
    let file = gguf_of(&json!({}), &Tensors::new(), GgmlDType::F32, &metadata);
    super::Gguf::read(vec![file.into()]).unwrap().tokenizer_json().unwrap()
}
