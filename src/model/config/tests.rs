//! Configurations as published models write them, and as they must not be.

use std::error::Error;

use serde_json::{Value, json};

use super::{parts::*, rope::*, *};

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4,
        "num_hidden_layers": 4, "vocab_size": 256, "rope_theta": 10000.0,
    })
}

fn read(changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut config = llama();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(config.to_string().as_bytes())
}

#[test]
fn an_old_llama_configuration_gets_the_defaults_of_transformers() {
    let config = read(json!({})).unwrap();
    assert_eq!(config.n_kv_heads, 4);
    assert_eq!(config.head_dim, 16);
    let norm = NormConfig {
        kind: NormKind::Rms,
        eps: 1e-6,
    };
    assert_eq!(config.norm, norm);
    assert_eq!(config.rope(0).unwrap().scaling, RopeScaling::Default);
    assert!(!config.ends.tie_word_embeddings && !config.attention.qkv_bias && !config.feed_forward.bias);
    assert_eq!(config.auto_dtype(), WeightDType::Bf16);
}

#[test]
fn automatic_dtype_is_the_checkpoints_own_unless_it_is_float32() {
    let auto = |dtype: &str| read(json!({ "torch_dtype": dtype })).unwrap().auto_dtype();
    assert_eq!(auto("float16"), WeightDType::F16);
    assert_eq!(auto("bfloat16"), WeightDType::Bf16);
    assert_eq!(auto("float32"), WeightDType::Bf16);
}

#[test]
fn the_end_of_text_is_one_token_or_several() {
    assert_eq!(read(json!({"eos_token_id": 2})).unwrap().eos_token_ids, [2]);
    let several = read(json!({"eos_token_id": [128001, 128009]})).unwrap();
    assert_eq!(several.eos_token_ids, [128_001, 128_009]);
    assert!(read(json!({"eos_token_id": -1})).unwrap().eos_token_ids.is_empty());
}

#[test]
fn both_spellings_of_rope_scaling_mean_the_same() {
    let old = read(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
    let new = read(json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})).unwrap();
    let newest =
        json!({"rope_theta": null, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}});
    assert_eq!(old, new);
    assert_eq!(old, read(newest).unwrap());
    assert_eq!(old.rope(0).unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn an_unknown_model_type_is_named_together_with_what_is_supported() {
    let error = read(json!({"model_type": "gpt2"})).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model_type \"gpt2\" is not supported (supported: llama, mistral, mistral3, mixtral, qwen2, qwen3, qwen3_moe, gemma2, \
         gemma3_text, gemma3, phi, phi3, falcon, bloom, gpt_oss)"
    );
}

#[test]
fn an_unknown_rope_scaling_is_named_together_with_what_is_supported() {
    let error = read(json!({"rope_scaling": {"rope_type": "mystery"}})).unwrap_err();
    assert!(error.to_string().contains("\"mystery\"") && error.to_string().contains("longrope"));
}

#[test]
fn sizes_that_do_not_fit_together_are_refused() {
    for (changes, field) in [
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"hidden_size": 1u64 << 40}), "hidden_size"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
        (json!({"rope_theta": 0.0}), "rope_theta"),
        (json!({"hidden_act": "mystery"}), "hidden_act"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0.5}}), "factor"),
        (json!({"rope_scaling": {"type": "linear"}}), "factor"),
        (
            json!({"rope_scaling": {"type": "longrope", "factor": 2.0, "long_factor": [1.0]}}),
            "long_factor",
        ),
    ] {
        let error = read(changes).unwrap_err();
        assert!(error.to_string().contains(field), "{error} does not name {field}");
    }
}

#[test]
fn text_that_is_not_json_keeps_its_cause() {
    let error = ModelConfig::from_json(b"{").unwrap_err();
    assert_eq!(error.to_string(), "config.json is not valid");
    assert!(error.source().is_some());
}
