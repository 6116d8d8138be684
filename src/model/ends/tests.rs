//! The client's parts against transformers, alone and around the blocks.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use super::*;
use crate::model::testing::{
    assert_close, engine, fixture, generate, ids, random, recorded, recorded_numbers, rng, small_config, write_model,
};

#[test]
fn sixteen_greedy_tokens_are_those_of_transformers() {
    let (files, reference) = fixture("tiny-llama");
    let found = generate(&files, &ids(&reference["input_ids"]), 16, WeightDType::F32);
    assert_eq!(found, ids(&reference["float32"]["greedy_continuation_16"]));
}

#[test]
fn greedy_tokens_of_a_model_with_scaled_rotation_are_those_of_transformers() {
    let (files, reference) = fixture("tiny-llama31");
    let found = generate(&files, &ids(&reference["input_ids"]), 8, WeightDType::F32);
    assert_eq!(found, ids(&reference["greedy_continuation_8"]));
}

#[test]
fn embeddings_are_the_rows_of_the_matrix() {
    let (files, reference) = fixture("tiny-llama");
    for (dtype, name) in [(WeightDType::F32, "float32"), (WeightDType::Bf16, "bfloat16")] {
        let found = Ends::load(&files, dtype, &engine())
            .unwrap()
            .embed(&ids(&reference["input_ids"]))
            .unwrap();
        assert_eq!(found, recorded(&reference[name]["embeddings"]));
    }
}

#[test]
fn logits_equal_transformers_within_1e_4() {
    let (files, reference) = fixture("tiny-llama");
    let ends = Ends::load(&files, WeightDType::F32, &engine()).unwrap();
    let last_block = reference["float32"]["blocks"].as_array().unwrap().last().unwrap();
    let found = ends.logits(&recorded(last_block).data).unwrap();
    assert_close(&found, &recorded_numbers(&reference["float32"]["final_logits"]), 1e-4);
}

/// A model without blocks in its checkpoint: ends only.
fn ends_of(changes: Value, tensors: &[(&str, Vec<usize>)]) -> (tempfile::TempDir, ModelFiles) {
    let mut rng = rng(9);
    let tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = tensors
        .iter()
        .map(|(name, shape)| {
            let numbers = random(&mut rng, shape.iter().product());
            ((*name).to_owned(), (shape.clone(), numbers))
        })
        .collect();
    let folder = write_model(&small_config(changes), &tensors);
    let files = ModelFiles::from_folder(folder.path()).unwrap();
    (folder, files)
}

#[test]
fn a_tied_head_is_the_embedding_matrix_even_if_another_is_stored() {
    let tensors = [
        ("model.embed_tokens.weight", vec![8, 24]),
        ("model.norm.weight", vec![24]),
        ("lm_head.weight", vec![8, 24]),
    ];
    let x = vec![0.5; 24];
    let logits = |tied| {
        let (_folder, files) = ends_of(json!({"tie_word_embeddings": tied}), &tensors);
        Ends::load(&files, WeightDType::F32, &engine())
            .unwrap()
            .logits(&x)
            .unwrap()
    };
    let (_folder, files) = ends_of(json!({"tie_word_embeddings": true}), &tensors[..2]);
    assert_eq!(
        Ends::load(&files, WeightDType::F32, &engine())
            .unwrap()
            .logits(&x)
            .unwrap()
            .len(),
        8
    );
    assert_ne!(logits(true), logits(false));
}

#[test]
fn an_untied_head_that_is_missing_is_named() {
    let tensors = [
        ("model.embed_tokens.weight", vec![8, 24]),
        ("model.norm.weight", vec![24]),
    ];
    let (_folder, files) = ends_of(json!({"tie_word_embeddings": false}), &tensors);
    match Ends::load(&files, WeightDType::F32, &engine()) {
        Err(LoadError::MissingTensor { tensor, .. }) => assert_eq!(tensor, "lm_head.weight"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tokens_outside_the_vocabulary_and_odd_activations_are_refused() {
    let (files, _) = fixture("tiny-llama");
    let ends = Ends::load(&files, WeightDType::F32, &engine()).unwrap();
    assert!(matches!(
        ends.embed(&[3, 256]),
        Err(ComputeError::Token {
            token: 256,
            vocab_size: 256
        })
    ));
    assert_eq!(ends.embed(&[]).unwrap().tokens, 0);
    assert!(ends.logits(&[0.0; 65]).is_err());
    assert!(ends.logits(&[]).unwrap().is_empty());
}

#[test]
fn shards_without_the_ends_need_not_be_there() {
    let tensors = [
        ("model.embed_tokens.weight", vec![8, 24]),
        ("model.norm.weight", vec![24]),
    ];
    let (folder, _) = ends_of(json!({"tie_word_embeddings": true}), &tensors);
    fs::rename(
        folder.path().join("model.safetensors"),
        folder.path().join("ends.safetensors"),
    )
    .unwrap();
    let index = json!({"weight_map": {
        "model.embed_tokens.weight": "ends.safetensors", "model.norm.weight": "ends.safetensors",
        "model.layers.0.input_layernorm.weight": "blocks.safetensors"}});
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let files = ModelFiles::from_folder(folder.path()).unwrap();
    assert!(Ends::load(&files, WeightDType::F32, &engine()).is_ok());
}
