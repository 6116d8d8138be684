//! What the metadata say that `config.json` and `generation_config.json` would.

use super::*;
use crate::model::ModelConfig;

/// A vocabulary of these tokens, each with its type, of which one ends a text.
fn vocabulary(tokens: &[(&str, i32)], eos: u32) -> Metadata {
    let array = gguf_file::Value::Array;
    let kinds = tokens.iter().map(|(_, kind)| gguf_file::Value::I32(*kind));
    [
        ("tokens", array(tokens.iter().map(|(token, _)| text(token)).collect())),
        ("token_type", array(kinds.collect())),
        ("eos_token_id", gguf_file::Value::U32(eos)),
    ]
    .into_iter()
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .collect()
}

fn small() -> serde_json::Value {
    small_config(json!({"vocab_size": 16, "tie_word_embeddings": true}))
}

fn file_with(config: &serde_json::Value, more: Metadata) -> Vec<u8> {
    let metadata = metadata_of(config).into_iter().chain(more).collect();
    gguf_of(config, &tensors(config), GgmlDType::F32, &metadata)
}

#[test]
fn tokens_that_end_a_turn_are_found_by_their_texts() {
    let (config, folder) = (small(), TempDir::new().unwrap());
    let ends = |tokens: &[(&str, i32)], eos| {
        let path = written(&folder, &file_with(&config, vocabulary(tokens, eos)));
        resolve(&path).unwrap().generation_config().eos_token_ids.clone()
    };
    let gemma = [
        ("<pad>", 3),
        ("<eos>", 3),
        ("<start_of_turn>", 3),
        ("<end_of_turn>", 3),
        ("</s>", 4),
    ];
    assert_eq!(ends(&gemma, 1), [1, 3], "`</s>` is HTML there");
    let phi = [
        ("<unk>", 2),
        ("</s>", 3),
        ("<|endoftext|>", 3),
        ("<|end|>", 4),
        ("<|user|>", 3),
    ];
    assert_eq!(ends(&phi, 2), [2, 1, 3]);
    let qwen = [("a", 1), ("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3)];
    assert_eq!(ends(&qwen, 3), [3, 1], "what the file names comes first");
    let named = |key: &str, id| (format!("tokenizer.ggml.{key}_token_id"), gguf_file::Value::U32(id));
    let mut odd = vocabulary(&[("a", 1), ("stop", 3), ("pause", 3), ("call", 3)], 1);
    odd.extend([named("eot", 2), named("eom", 3)]);
    let path = written(&folder, &file_with(&config, odd));
    assert_eq!(resolve(&path).unwrap().generation_config().eos_token_ids, [1, 2, 3]);
}

#[test]
fn what_lies_beside_a_file_says_how_text_is_generated_and_takes_no_end_away() {
    let (config, folder, cache) = (small(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = file_with(&config, vocabulary(&[("<eos>", 3), ("a", 1), ("<end_of_turn>", 3)], 0));
    let generation = br#"{"do_sample": true, "temperature": 0.25, "eos_token_id": [1, 0]}"#;
    let path = written(&folder, &file);
    assert_eq!(resolve(&path).unwrap().generation_config().sampling().temperature, 0.0);
    fs::write(folder.path().join("generation_config.json"), generation).unwrap();
    let hub = FakeHub::with_large_files(&[("model.gguf", &file), ("generation_config.json", generation)]);
    let in_repo = ModelSource::resolve(&format!("{REPO}:model.gguf"), &hub.options(cache.path()));
    for source in [resolve(&path), in_repo] {
        let source = source.unwrap();
        let found = source.generation_config();
        assert_eq!(
            (found.sampling().temperature, &found.eos_token_ids[..]),
            (0.25, &[1, 0, 2][..])
        );
    }
}

/// Of Phi-4 mini's shape: three quarters of a head are rotated.
fn long_phi(attention_factor: Option<f64>) -> serde_json::Value {
    small_config(json!({
        "model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "partial_rotary_factor": 0.75, "vocab_size": 16, "tie_word_embeddings": true, "sliding_window": 262_144,
        "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "rope_theta": 10_000.0,
        "rope_scaling": {
            "rope_type": "longrope", "short_factor": [1.0, 1.25, 1.5, 1.75, 2.0, 2.25],
            "long_factor": [1.0, 1.5, 4.0, 16.0, 32.0, 48.5], "attention_factor": attention_factor,
        },
    }))
}

/// What the converter writes of it, but for the weights.
fn long_phi_gguf(config: &serde_json::Value, lists: &[&str]) -> Vec<u8> {
    let metadata = metadata_of(config)
        .into_iter()
        .map(|(key, value)| match key.strip_prefix("llama.") {
            Some(key) => (format!("phi3.{key}"), value),
            None if key == "general.architecture" => (key, text("phi3")),
            None => (key, value),
        });
    let mut metadata: Metadata = metadata.collect();
    let mut add = |key: &str, value| metadata.push((format!("phi3.{key}"), value));
    add("attention.sliding_window", gguf_file::Value::U32(262_144));
    add("rope.dimension_count", gguf_file::Value::U32(12));
    add("rope.scaling.original_context_length", gguf_file::Value::U32(4096));
    if let Some(factor) = config["rope_scaling"]["attention_factor"].as_f64() {
        add("rope.scaling.attn_factor", gguf_file::Value::F32(factor as f32));
    }
    let mut tensors = Tensors::from([("model.embed_tokens.weight".to_owned(), (vec![16, 64], vec![0.0; 1024]))]);
    for list in lists {
        let factors = config["rope_scaling"][format!("{list}_factor")].as_array().unwrap();
        let factors: Vec<f32> = factors.iter().map(|factor| factor.as_f64().unwrap() as f32).collect();
        tensors.insert(format!("rope_factors_{list}.weight"), (vec![factors.len()], factors));
    }
    gguf_of(config, &tensors, GgmlDType::F32, &metadata)
}

#[test]
fn longrope_of_a_file_is_that_of_the_config_it_was_made_of() {
    for attention_factor in [Some(1.25), None] {
        let config = long_phi(attention_factor);
        let expected = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
        let file = Gguf::read(vec![long_phi_gguf(&config, &["long", "short"]).into()]).unwrap();
        let found = ModelConfig::from_json(&file.config_json().unwrap()).unwrap();
        assert_eq!(found.attention, expected.attention);
        assert_eq!(found.context_length(), Some(131_072));
    }
    let half = Gguf::read(vec![long_phi_gguf(&long_phi(None), &["long"]).into()]).unwrap();
    let error = half.config_json().unwrap_err().to_string();
    assert!(error.contains("rope_factors_short.weight"), "{error}");
}
