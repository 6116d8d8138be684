//! What the metadata say that `config.json` and `generation_config.json` would.

use super::*;

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
