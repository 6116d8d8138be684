//! Blocks as a whole: against transformers, and against themselves taken apart. Against a second way to compute the same,
//! that of the gradients: `grad/tests.rs`.

use std::fs;

use serde_json::{Value, json};

use super::{testing::*, *};

const LLAMAS: [&str; 2] = ["tiny-llama", "tiny-llama31"];

fn load(name: &str, precision: impl Into<Precision>) -> (Blocks, Value) {
    let (files, reference) = fixture(name);
    let n_blocks = files.config().n_blocks;
    (
        Blocks::load(&files, 0..n_blocks, precision, engine()).unwrap(),
        reference,
    )
}

/// Input of block 0 and outputs of all blocks.
fn states(reference: &Value, dtype: &str) -> Vec<Hidden> {
    let (input, outputs) = match reference.get("block_inputs") {
        Some(input) => (input, &reference["blocks"]),
        None => (&reference[dtype]["embeddings"], &reference[dtype]["blocks"]),
    };
    let outputs = outputs.as_array().unwrap().iter().map(recorded);
    std::iter::once(recorded(input)).chain(outputs).collect()
}

#[test]
fn float32_blocks_equal_transformers_within_1e_4() {
    for name in LLAMAS {
        let (blocks, reference) = load(name, WeightDType::F32);
        let states = states(&reference, "float32");
        let mut x = states[0].clone();
        for (block, expected) in (0..).zip(&states[1..]) {
            blocks.forward(block, &mut x).unwrap();
            assert_close(&x.data, &expected.data, 1e-4);
        }
    }
}

#[test]
fn bfloat16_blocks_equal_transformers_within_what_bfloat16_can_tell() {
    let (blocks, reference) = load("tiny-llama", WeightDType::Bf16);
    let states = states(&reference, "bfloat16");
    for (block, pair) in (0..).zip(states.windows(2)) {
        assert_close(&whole(&blocks, block, &pair[0]).data, &pair[1].data, 0.06);
    }
}

/// The rounding of a number (root mean square, over that of the numbers), as derived in `interop-tests`
/// (`tests/interop/formats.rs`), and what comes of it after a block: seven products and two norms. These matrices are random
/// and 64 wide, so that nothing averages out.
#[test]
fn quantised_blocks_are_a_few_roundings_from_transformers() {
    for (weights, rounding) in [
        (WeightFormat::Q8_0, 7e-3),
        (WeightFormat::Q4K, 0.07),
        (WeightFormat::Nf4, 0.09),
        (WeightFormat::Q4_0, 0.076),
    ] {
        let dtype = WeightDType::F32;
        let (blocks, reference) = load("tiny-llama", Precision { weights, dtype });
        let states = states(&reference, "float32");
        for (block, pair) in (0..).zip(states.windows(2)) {
            let error = distance(&pair[1].data, &whole(&blocks, block, &pair[0]).data);
            println!("{} {block}: {} roundings", weights.as_str(), error / rounding);
            assert!(error <= 3.0 * rounding, "{}: {error}", weights.as_str());
        }
    }
}

#[test]
fn quantised_blocks_give_the_same_bits_token_by_token_as_at_once() {
    for weights in WeightFormat::ALL.into_iter().filter(|format| format.dtype().is_none()) {
        let dtype = WeightDType::F32;
        let (blocks, reference) = load("tiny-llama", Precision { weights, dtype });
        let x = &states(&reference, "float32")[0];
        let mut projected = Vec::new();
        for n in [1, 2, 3, x.tokens] {
            let linear = &blocks.blocks[0].host().query;
            let parts = x.data.chunks(n * x.width).map(|x| linear.applied(&engine(), x));
            projected.push(parts.flatten().collect::<Vec<f32>>());
        }
        assert!(
            projected.iter().all(|found| *found == projected[0]),
            "{}",
            weights.as_str()
        );
    }
}

/// Recorded by `scripts/make-block-vectors.py`.
#[test]
fn every_kind_of_rope_scaling_and_of_biases_equals_transformers_whole_and_token_by_token() {
    let vectors: Value =
        serde_json::from_str(&fs::read_to_string(vectors("sepal/llama_blocks.json")).unwrap()).unwrap();
    let tensors = vectors["weights"].as_object().unwrap().iter().map(|(name, tensor)| {
        let shape = serde_json::from_value(tensor["shape"].clone()).unwrap();
        (format!("model.layers.0.{name}"), (shape, recorded_numbers(tensor)))
    });
    let tensors = tensors.collect();
    let x = recorded(&vectors["input"]);
    for case in vectors["cases"].as_array().unwrap() {
        let mut config = vectors["sizes"].clone();
        for (key, value) in case["config"].as_object().unwrap() {
            config[key] = value.clone();
        }
        let folder = write_model(&config, &tensors);
        let files = ModelFiles::from_folder(folder.path()).unwrap();
        let blocks = Blocks::load(&files, 0..1, WeightDType::F32, engine()).unwrap();
        println!("{}", case["name"]);
        assert_close(&whole(&blocks, 0, &x).data, &recorded(&case["output"]).data, 2e-5);
        let one_by_one = recorded(&case["output_one_by_one"]);
        assert_close(&stepwise(&blocks, 0, &x, 1), &one_by_one.data, 2e-5);
    }
}

#[test]
fn float16_blocks_are_near_float32_ones() {
    for name in LLAMAS {
        let (blocks, reference) = load(name, WeightDType::F16);
        for (block, pair) in (0..).zip(states(&reference, "float32").windows(2)) {
            assert_close(&whole(&blocks, block, &pair[0]).data, &pair[1].data, 0.02);
        }
    }
}

#[test]
fn tokens_one_by_one_or_in_parts_give_the_same_as_all_at_once() {
    for name in LLAMAS {
        let (blocks, reference) = load(name, WeightDType::F32);
        let x = &states(&reference, "float32")[0];
        let expected = whole(&blocks, 1, x);
        for n in [1, 2, 5] {
            assert_close(&stepwise(&blocks, 1, x, n), &expected.data, 1e-5);
        }
    }
}

#[test]
fn long_prompts_give_the_same_in_chunks_across_pages_and_through_every_product() {
    for dtype in [WeightDType::F32, WeightDType::Bf16, WeightDType::F16] {
        let blocks = random_blocks(json!({}), 1, dtype);
        let x = random_hidden(&mut rng(2), 2, 150, 24);
        let expected = whole(&blocks, 0, &x);
        for n in [1, 7, 64, 100] {
            assert_close(&stepwise(&blocks, 0, &x, n), &expected.data, 2e-3);
        }
        for bytes in [1, 3_000, 100_000] {
            let blocks = random_blocks(json!({}), 1, dtype).with_max_chunk_bytes(bytes);
            assert_close(&whole(&blocks, 0, &x).data, &expected.data, 2e-3);
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let blocks = random_blocks(json!({}), 3, WeightDType::F32);
    let mut x = random_hidden(&mut rng(4), 3, 20, 24);
    x.data[20 * 24 + 7] = f32::NAN;
    let together = whole(&blocks, 0, &x);
    for row in [0, 2] {
        let alone = whole(&blocks, 0, &sequence(&x, row));
        assert_close(&sequence(&together, row).data, &alone.data, 1e-5);
    }
    assert!(sequence(&together, 1).data.iter().any(|number| number.is_nan()));
}

#[test]
fn infinite_and_huge_activations_do_not_panic() {
    let blocks = random_blocks(json!({}), 5, WeightDType::F32);
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 0.0] {
        let mut x = Hidden::new(vec![value; 24 * 70], 1, 70, 24).unwrap();
        blocks.forward(0, &mut x).unwrap();
    }
}

#[test]
fn a_rewound_session_continues_as_if_the_overwritten_tokens_had_never_been() {
    let blocks = random_blocks(json!({}), 6, WeightDType::F32);
    let x = random_hidden(&mut rng(7), 2, 90, 24);
    let mut cache = blocks.new_cache(1, 2, 200);
    let mut wrong = random_hidden(&mut rng(8), 2, 160, 24);
    blocks.step(0, &mut cache, 0, &mut tokens(&x, 0..30), 0).unwrap();
    blocks.step(0, &mut cache, 0, &mut wrong, 30).unwrap();
    let mut rest = tokens(&x, 30..90);
    blocks.step(0, &mut cache, 0, &mut rest, 30).unwrap();
    assert_close(&rest.data, &tokens(&whole(&blocks, 0, &x), 30..90).data, 1e-5);
    let gap = blocks.step(0, &mut cache, 0, &mut tokens(&x, 0..1), 91).unwrap_err();
    assert_eq!(
        gap.to_string(),
        "the step starts at position 91, but only 90 tokens are cached"
    );
}

#[test]
fn reordered_beams_continue_the_sequence_they_were_taken_from() {
    let blocks = random_blocks(json!({}), 9, WeightDType::F32);
    let x = random_hidden(&mut rng(10), 3, 70, 24);
    let mut cache = blocks.new_cache(2, 3, 100);
    for chain_idx in 0..2 {
        blocks
            .step(chain_idx as u32, &mut cache, chain_idx, &mut x.clone(), 0)
            .unwrap();
    }
    cache.reorder(&[2, 2, 0]).unwrap();
    let next = random_hidden(&mut rng(11), 3, 2, 24);
    for chain_idx in 0..2 {
        let mut out = next.clone();
        blocks
            .step(chain_idx as u32, &mut cache, chain_idx, &mut out, 70)
            .unwrap();
        for (row, origin) in [2, 2, 0].into_iter().enumerate() {
            let history = [sequence(&x, origin).data, sequence(&next, row).data].concat();
            let alone = whole(&blocks, chain_idx as u32, &Hidden::new(history, 1, 72, 24).unwrap());
            assert_close(&sequence(&out, row).data, &tokens(&alone, 70..72).data, 1e-5);
        }
    }
}

#[test]
fn a_step_without_tokens_changes_nothing() {
    let blocks = random_blocks(json!({}), 12, WeightDType::F32);
    let mut cache = blocks.new_cache(1, 2, 10);
    let mut nothing = Hidden::new(Vec::new(), 2, 0, 24).unwrap();
    blocks.step(0, &mut cache, 0, &mut nothing, 0).unwrap();
    assert_eq!((nothing.batch, nothing.tokens, nothing.data.len()), (2, 0, 0));
    let mut many = Hidden::new(Vec::new(), usize::MAX, 0, 24).unwrap();
    blocks.forward(0, &mut many).unwrap();
    assert!(blocks.backward(0, None, &many, &many).unwrap().data.is_empty());
}

#[test]
fn what_does_not_fit_is_refused_with_a_reason_and_changes_nothing() {
    let blocks = random_blocks(json!({}), 13, WeightDType::F32);
    let one = random_hidden(&mut rng(14), 1, 1, 24);
    let refused = |block, chain_idx, x: &Hidden, position| {
        let mut cache = blocks.new_cache(1, 1, 4);
        let mut out = x.clone();
        let error = blocks
            .step(block, &mut cache, chain_idx, &mut out, position)
            .unwrap_err();
        assert_eq!(&out, x);
        error.to_string()
    };
    assert_eq!(
        refused(2, 0, &one, 0),
        "block 2 was asked for, but blocks 0:2 are loaded"
    );
    assert_eq!(refused(0, 1, &one, 0), "entry 1 of a chain of 1 blocks was asked for");
    assert_eq!(
        refused(0, 0, &one, 1),
        "the step starts at position 1, but only 0 tokens are cached"
    );
    assert_eq!(
        refused(0, 0, &one, usize::MAX),
        format!("1 tokens at position {} exceed the session's maximum of 4", usize::MAX)
    );
    let five = random_hidden(&mut rng(15), 1, 5, 24);
    assert_eq!(
        refused(0, 0, &five, 0),
        "5 tokens at position 0 exceed the session's maximum of 4"
    );
    let two = random_hidden(&mut rng(16), 2, 1, 24);
    assert_eq!(
        refused(0, 0, &two, 0),
        "the cache holds 1 sequences, but the step has 2"
    );
    let wide = random_hidden(&mut rng(17), 1, 1, 25);
    assert_eq!(
        refused(0, 0, &wide, 0),
        "activations are 25 wide, but the model's hidden size is 24"
    );
    let broken = Hidden {
        data: vec![0.0; 3],
        batch: usize::MAX,
        tokens: 2,
        width: 24,
    };
    assert!(refused(0, 0, &broken, 0).starts_with("activations of shape"));
    assert!(Hidden::new(vec![0.0; 3], 1, 2, 2).is_err());
    let mut foreign = random_blocks(json!({}), 13, WeightDType::Bf16).new_cache(1, 1, 4);
    let error = blocks.step(0, &mut foreign, 0, &mut one.clone(), 0).unwrap_err();
    assert_eq!(error.to_string(), "the cache was made for another model");
    let mut cache = blocks.new_cache(1, 2, 4);
    assert!(cache.reorder(&[0]).is_err() && cache.reorder(&[0, 2]).is_err() && cache.reorder(&[1, 1]).is_ok());
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    let blocks = random_blocks(json!({}), 22, WeightDType::F32);
    let (x, grad) = (
        random_hidden(&mut rng(1), 1, 2, 24),
        random_hidden(&mut rng(1), 2, 1, 24),
    );
    let error = blocks.backward(0, None, &x, &grad).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the input has shape [1, 2, 24], but the gradient has shape [2, 1, 24]"
    );
}
