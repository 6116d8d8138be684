//! The metadata of a GGUF file as the `config.json` that transformers would have, so that families read one format.
//! Keys: `docs/gguf.md` of ggml; what it leaves out is what llama.cpp takes (`llama-model.cpp`).

use candle_core::quantized::GgmlDType;
use serde_json::{Value as Json, json};

use super::{Gguf, GgufError, Header, Value, tokenizer::CONTROL};

/// For error texts.
pub(super) const SUPPORTED: &str = "llama, qwen2, qwen3, qwen3moe, phi3, gemma2, gemma3";

/// How far a rotary factor of a file may be from the one computed: they are stored as f32.
const FACTOR_TOLERANCE: f64 = 1e-3;

/// Tokens after which nothing more is to come, by their texts: not every file names all of its own (llama.cpp's
/// `llama-vocab.cpp`, `special_eog_ids`).
const ENDS: [&str; 9] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
];
/// To Gemma it is HTML, so that it is an end only where it is a control token.
const CONTROL_END: &str = "</s>";

/// Llama 3's factor for each frequency.
const FREQUENCIES: &str = "rope_freqs.weight";

/// The tensors that belong to the configuration.
pub(super) const TENSORS: [&str; 3] = [FREQUENCIES, LONGROPE[0].1, LONGROPE[1].1];

/// What `rope_scaling` calls the lists of divisors, and the tensors that they are.
const LONGROPE: [(&str, &str); 2] = [
    ("short_factor", "rope_factors_short.weight"),
    ("long_factor", "rope_factors_long.weight"),
];

/// The metadata of one architecture.
struct Keys<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl Keys<'_> {
    fn integer(&self, key: &str) -> Option<u64> {
        self.header.integer(&format!("{}.{key}", self.architecture))
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.header.float(&format!("{}.{key}", self.architecture))
    }

    fn required(&self, key: &str) -> Result<u64, GgufError> {
        self.integer(key).ok_or_else(|| GgufError::Missing {
            key: format!("{}.{key}", self.architecture),
        })
    }
}

pub(super) fn json(gguf: &Gguf) -> Result<Json, GgufError> {
    let header = &gguf.header;
    let architecture = header.text("general.architecture").unwrap_or_default();
    let keys = Keys { header, architecture };
    let is_mixture = keys.integer("expert_count").is_some_and(|experts| experts > 0);
    let model_type = match (architecture, is_mixture) {
        ("llama", false) => "llama",
        ("llama", true) => "mixtral",
        ("qwen2", _) => "qwen2",
        ("qwen3", _) => "qwen3",
        ("qwen3moe", _) => "qwen3_moe",
        ("phi3", _) => "phi3",
        ("gemma2", _) => "gemma2",
        ("gemma3", _) => "gemma3_text",
        _ => {
            return Err(GgufError::Architecture {
                architecture: architecture.to_owned(),
            });
        }
    };
    let heads = keys.required("attention.head_count")?;
    let hidden = keys.required("embedding_length")?;
    let head_dim = keys.integer("attention.key_length").unwrap_or(hidden / heads.max(1));
    let vocab = header
        .tensors
        .get("token_embd.weight")
        .and_then(|info| info.shape.first());
    let mut config = json!({
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv").unwrap_or(heads),
        "num_hidden_layers": keys.required("block_count")?,
        "head_dim": head_dim,
        "vocab_size": vocab.ok_or_else(|| GgufError::Missing { key: "token_embd.weight".to_owned() })?,
        "rms_norm_eps": keys.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        "rope_theta": keys.float("rope.freq_base").unwrap_or(10_000.0),
        "max_position_embeddings": keys.integer("context_length"),
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
        "tie_word_embeddings": !header.tensors.contains_key("output.weight"),
        "bos_token_id": header.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends_of_text(header),
        "torch_dtype": dtype(header),
        "rope_scaling": rope_scaling(gguf, &keys, head_dim)?,
    });
    extend(&mut config, &keys, (model_type, head_dim, hidden / heads.max(1)));
    Ok(config)
}

/// What only some architectures have.
fn extend(config: &mut Json, keys: &Keys<'_>, (model_type, head_dim, hidden_per_head): (&str, u64, u64)) {
    if keys.header.tensors.contains_key("blk.0.attn_q.bias") && model_type == "llama" {
        config["attention_bias"] = true.into();
    }
    let experts = [
        ("num_local_experts", "expert_count"),
        ("num_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
    ];
    for (name, key) in experts {
        if let Some(value) = keys.integer(key).filter(|value| *value > 0) {
            config[name] = value.into();
        }
    }
    if model_type == "qwen3_moe" {
        config["norm_topk_prob"] = true.into();
    }
    if let Some(window) = keys.integer("attention.sliding_window").filter(|window| *window > 0) {
        config["sliding_window"] = window.into();
    }
    let rotated = keys
        .integer("rope.dimension_count")
        .filter(|rotated| *rotated != head_dim);
    if let Some(rotated) = rotated {
        config["partial_rotary_factor"] = (rotated as f64 / head_dim as f64).into();
    }
    if model_type.starts_with("gemma") {
        // Not in the files: llama.cpp knows the models of 27 billion by their number of blocks.
        let by_width = [("gemma2", 46), ("gemma3_text", 62)]
            .iter()
            .any(|(model, blocks)| *model == model_type && keys.integer("block_count") == Some(*blocks));
        config["query_pre_attn_scalar"] = if by_width { hidden_per_head } else { head_dim }.into();
        config["attn_logit_softcapping"] = json!(keys.float("attn_logit_softcapping"));
        config["final_logit_softcapping"] = json!(keys.float("final_logit_softcapping"));
        if let Some(object) = config.as_object_mut() {
            object.retain(|_, value| !value.is_null());
        }
    }
}

/// Chat models end a turn with another token than a text. The token that the file names comes first.
fn ends_of_text(header: &Header) -> Vec<u64> {
    let keys = ["eos", "eot", "eom"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
    let named = keys.iter().filter_map(|key| header.integer(key));
    let kinds = numbers(header, "tokenizer.ggml.token_type").unwrap_or_default();
    let tokens = texts(header, "tokenizer.ggml.tokens").unwrap_or_default();
    let is_end = |(id, token): &(usize, &str)| {
        ENDS.contains(token) || (*token == CONTROL_END && kinds.get(*id) == Some(&CONTROL))
    };
    let by_text = tokens.into_iter().enumerate().filter(is_end).map(|(id, _)| id as u64);
    let mut ends = Vec::new();
    for id in named.chain(by_text) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}

/// What most weights were before they were quantised, as far as the file knows (`general.file_type`).
fn dtype(header: &Header) -> &'static str {
    match header.integer("general.file_type") {
        Some(0) => "float32",
        Some(1) => "float16",
        _ => "bfloat16",
    }
}

/// Llama 3.1 and later files have a factor for each frequency; configurations have the rule that they come from.
fn rope_scaling(gguf: &Gguf, keys: &Keys<'_>, head_dim: u64) -> Result<Json, GgufError> {
    if let Some(factors) = plain_floats(gguf, FREQUENCIES) {
        return llama3_scaling(&factors, keys.float("rope.freq_base").unwrap_or(10_000.0), head_dim)
            .ok_or(GgufError::RopeFactors);
    }
    if LONGROPE
        .iter()
        .any(|(_, tensor)| gguf.header.tensors.contains_key(*tensor))
    {
        return longrope(gguf, keys);
    }
    let kind = gguf.header.text(&format!("{}.rope.scaling.type", keys.architecture));
    let factor = keys.float("rope.scaling.factor").unwrap_or(1.0);
    let original = keys.integer("rope.scaling.original_context_length");
    Ok(match kind {
        None | Some("none") => Json::Null,
        Some(kind) => json!({
            "rope_type": kind,
            "factor": factor,
            "original_max_position_embeddings": original,
        }),
    })
}

/// Files of Phi-3 with a long context, and of those after it, have the two lists as tensors.
fn longrope(gguf: &Gguf, keys: &Keys<'_>) -> Result<Json, GgufError> {
    let mut scaling = json!({
        "rope_type": "longrope",
        "attention_factor": keys.float("rope.scaling.attn_factor"),
    });
    for (list, tensor) in LONGROPE {
        let factors = plain_floats(gguf, tensor).ok_or_else(|| GgufError::Missing {
            key: format!("{tensor} in float32"),
        })?;
        scaling[list] = factors.into();
    }
    Ok(scaling)
}

fn plain_floats(gguf: &Gguf, tensor: &str) -> Option<Vec<f64>> {
    let info = gguf.header.tensors.get(tensor).filter(|info| info.kind == 0)?;
    let bytes = gguf.bytes(tensor, info, GgmlDType::F32).ok()?;
    let floats = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>);
    Some(floats.map(f64::from).collect())
}

/// All published models of the kind differ in the factor only (`LlamaModel.generate_extra_tensors`).
fn llama3_scaling(factors: &[f64], theta: f64, head_dim: u64) -> Option<Json> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL: f64 = 8192.0;
    let factor = factors.iter().copied().fold(1.0, f64::max);
    let expected = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        let smooth = (ORIGINAL / wavelength - LOW) / (HIGH - LOW);
        1.0 / ((1.0 - smooth.clamp(0.0, 1.0)) / factor + smooth.clamp(0.0, 1.0))
    };
    let fits = |(i, found): (usize, &f64)| (found - expected(i)).abs() <= FACTOR_TOLERANCE * factor;
    factors.iter().enumerate().all(fits).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as u64,
        })
    })
}

/// The texts of an array.
pub(super) fn texts<'a>(header: &'a Header, key: &str) -> Option<Vec<&'a str>> {
    let Value::Array(items) = header.get(key)? else {
        return None;
    };
    let text = |item: &'a Value| match item {
        Value::Text(text) => Some(text.as_str()),
        _ => None,
    };
    items.iter().map(text).collect()
}

/// The numbers of an array.
pub(super) fn numbers(header: &Header, key: &str) -> Option<Vec<f64>> {
    let Value::Array(items) = header.get(key)? else {
        return None;
    };
    let number = |item: &Value| match item {
        Value::Float(float) => Some(*float),
        Value::Integer(integer) => Some(*integer as f64),
        _ => None,
    };
    items.iter().map(number).collect()
}
