//! Checkpoints as they should be and as they should not.

use std::{collections::BTreeMap, error::Error, fs};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::model::{
    Blocks,
    layout::{BlockLayout, Packing, Rows},
    number::Slice,
    testing::{
        assert_same_bits, engine, fixture, fixture_at, random_hidden, random_tensors, rng, safetensors_of,
        small_config, tokens, widened, write_model,
    },
};

const QUERY: &str = "model.layers.1.self_attn.q_proj.weight";

fn query() -> TensorSpec {
    TensorSpec {
        name: QUERY.to_owned(),
        shape: vec![24, 24],
        cols: 24,
        packing: Packing::Plain,
        rows: Rows::range(0, 24),
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn load(folder: &TempDir) -> Result<Blocks, LoadError> {
    Blocks::load(
        &ModelFiles::from_folder(folder.path())?,
        0..2,
        WeightDType::F32,
        engine(),
    )
}

/// The error of loading a good model that was changed.
fn error_of(change: impl FnOnce(&mut Tensors)) -> String {
    let config = small_config(json!({}));
    let mut tensors = random_tensors(&config, 1);
    change(&mut tensors);
    load(&write_model(&config, &tensors)).unwrap_err().to_string()
}

#[test]
fn a_missing_tensor_is_named_with_its_file() {
    let error = error_of(|tensors| drop(tensors.remove(QUERY)));
    assert!(
        error.ends_with(&format!("model.safetensors has no tensor {QUERY}")),
        "{error}"
    );
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named_with_both_shapes() {
    let error = error_of(|tensors| tensors.get_mut(QUERY).unwrap().0 = vec![12, 48]);
    assert!(error.contains(QUERY) && error.contains("model.safetensors"), "{error}");
    assert!(error.contains("[12, 48]") && error.contains("[24, 24]"), "{error}");
}

#[test]
fn a_tensor_of_integers_is_named_with_its_type() {
    let folder = write_model(&small_config(json!({})), &BTreeMap::new());
    let view = safetensors::tensor::TensorView::new(Dtype::I8, vec![24, 24], &[0; 576]).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let bytes = safetensors::serialize([(name, view)], None).unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let error = load(&folder).unwrap_err().to_string();
    assert!(
        error.contains(name) && error.contains("I8") && error.contains("model.safetensors"),
        "{error}"
    );
}

#[test]
fn truncated_and_garbled_files_are_named_at_every_length() {
    let config = small_config(json!({}));
    let whole = safetensors_of(&random_tensors(&config, 1));
    let folder = write_model(&config, &BTreeMap::new());
    let path = folder.path().join("model.safetensors");
    for len in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let error = load(&folder).unwrap_err();
        assert!(error.to_string().contains("self_attn.q_proj.weight from /"), "{error}");
        assert!(
            error.to_string().contains("damaged or incomplete") && error.source().is_some(),
            "{error}"
        );
    }
    let mut huge_header = whole;
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, huge_header).unwrap();
    assert!(load(&folder).is_err());
}

#[test]
fn a_folder_without_weights_says_what_is_read() {
    let folder = TempDir::new().unwrap();
    let missing = ModelFiles::from_folder(folder.path()).unwrap_err();
    assert!(missing.to_string().contains("config.json"), "{missing}");
    fs::write(folder.path().join("config.json"), small_config(json!({})).to_string()).unwrap();
    let error = ModelFiles::from_folder(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("neither model.safetensors nor model.safetensors.index.json"),
        "{error}"
    );
}

#[test]
fn a_span_outside_the_model_is_refused() {
    let (files, _) = fixture("tiny-llama");
    for span in [0..5, 2..2, 4..5] {
        let error = Blocks::load(&files, span, WeightDType::F32, engine())
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("the model has 4 blocks"), "{error}");
    }
}

#[test]
fn only_the_shards_of_the_span_are_needed_and_give_the_same_blocks() {
    let config = small_config(json!({}));
    let tensors = random_tensors(&config, 1);
    let whole = write_model(&config, &tensors);
    let folder = TempDir::new().unwrap();
    let in_block_1 = |name: &str| name.starts_with("model.layers.1.");
    let map: BTreeMap<&String, &str> = tensors
        .keys()
        .map(|name| {
            (
                name,
                if in_block_1(name) {
                    "b.safetensors"
                } else {
                    "a.safetensors"
                },
            )
        })
        .collect();
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::write(folder.path().join(INDEX_FILE), &index).unwrap();
    let shard: Tensors = tensors
        .iter()
        .filter(|(name, _)| in_block_1(name))
        .map(|(a, b)| (a.clone(), b.clone()))
        .collect();
    fs::write(folder.path().join("b.safetensors"), safetensors_of(&shard)).unwrap();

    let files = ModelFiles::from_folder(folder.path()).unwrap();
    let parsed = crate::model::ShardIndex::parse(Path::new("index"), index.as_bytes()).unwrap();
    assert_eq!(parsed.files_for_span(files.config(), 1..2), ["b.safetensors"]);
    assert_eq!(
        parsed.files_for_span(files.config(), 0..2),
        ["a.safetensors", "b.safetensors"]
    );
    let error = Blocks::load(&files, 0..1, WeightDType::F32, engine())
        .unwrap_err()
        .to_string();
    assert!(error.contains("a.safetensors"), "{error}");
    let mut x = random_hidden(&mut rng(1), 1, 3, 24);
    let mut expected = x.clone();
    Blocks::load(&files, 1..2, WeightDType::F32, engine())
        .unwrap()
        .forward(1, &mut x)
        .unwrap();
    load(&whole).unwrap().forward(1, &mut expected).unwrap();
    assert_eq!(x, expected);
}

#[test]
fn an_index_cannot_point_outside_its_folder() {
    for shard in [
        "../a.safetensors",
        "/etc/passwd",
        "a.bin",
        ".safetensors",
        "x\\y.safetensors",
    ] {
        let index = json!({ "weight_map": { "t": shard } }).to_string();
        let error = crate::model::ShardIndex::parse(Path::new("index.json"), index.as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains(shard) && error.to_string().contains("tensor t"),
            "{error}"
        );
    }
}

#[test]
fn weights_of_the_right_type_and_alignment_are_used_in_place_and_others_are_converted() {
    let config = small_config(json!({}));
    let bytes = safetensors_of(&random_tensors(&config, 1));
    let mut memory: Vec<u8> = Vec::new();
    let engine = engine();
    for shift in [0, 4, 1] {
        memory.clear();
        memory.resize(shift, 0);
        memory.extend(&bytes);
        let memory: &'static [u8] = memory.clone().leak();
        let weights = &memory[shift..];
        let files = ModelFiles::from_bytes(config.to_string().as_bytes(), weights).unwrap();
        for dtype in [WeightDType::F32, WeightDType::Bf16] {
            let table = TensorReader::new(&files, dtype, &engine).table(&query()).unwrap();
            let in_place = match table.as_slice() {
                Slice::F32(numbers) => weights.as_ptr_range().contains(&numbers.as_ptr().cast()),
                _ => false,
            };
            let is_aligned = (weights.as_ptr() as usize).is_multiple_of(4);
            assert_eq!(in_place, dtype == WeightDType::F32 && is_aligned);
        }
        let a = TensorReader::new(&files, WeightDType::F32, &engine)
            .matrix(&query())
            .unwrap();
        assert_eq!(a.to_f32(), random_tensors(&config, 1)[QUERY].1);
    }
}

#[test]
fn weights_of_16_bits_stay_so_where_f32_is_wanted_and_no_bit_of_any_output_tells() {
    for name in ["families/qwen3", "families/mixtral", "families/phi2"] {
        let (files, _) = fixture_at(name);
        let folder = widened(name, WeightFormat::F32);
        let wide = ModelFiles::from_folder(folder.path()).unwrap();
        let width = files.config().hidden_size;
        let x = random_hidden(&mut rng(3), 1, 41, width);
        let outputs = [files, wide].map(|files| {
            let blocks = Blocks::load(&files, 0..1, WeightDType::F32, engine()).unwrap();
            let mut cache = blocks.new_cache(1, 1, 41);
            let (mut many, mut one) = (tokens(&x, 0..40), tokens(&x, 40..41));
            blocks.step(0, &mut cache, 0, &mut many, 0).unwrap();
            blocks.step(0, &mut cache, 0, &mut one, 40).unwrap();
            [many.data, one.data].concat()
        });
        assert_same_bits(&outputs[0], &outputs[1]);
    }
}

#[test]
fn bf16_takes_12_bits_where_kernels_are_quick_enough_for_codes_and_that_is_wanted() {
    let (engine, weights) = (engine(), vec![bf16::ONE; 64 * 256]);
    let files = fixture("tiny-llama").0;
    let source = |_: Range<usize>, out: &mut [f32]| out.fill(1.0);
    for (narrow, rounded) in [(true, Some(&*weights)), (true, None), (false, None)] {
        let reader = TensorReader::new(&files, WeightDType::Bf16, &engine);
        let reader = if narrow { reader.narrow() } else { reader };
        let matrix = reader
            .pack_from(WeightFormat::Bf16, [64, 256], &source, rounded)
            .unwrap();
        assert_eq!(matrix.bytes() * 8 < 13 * 64 * 256, narrow && engine.codes_bf16());
    }
}

#[test]
fn only_what_a_file_has_in_16_bits_is_kept_in_them() {
    let (engine, wanted) = (engine(), [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8_0]);
    let formats = |files: &ModelFiles| {
        let layout = BlockLayout::new(files.config(), 0, &|_| false);
        let spec = layout.matrices().next().unwrap().clone();
        wanted.map(|weights| {
            let precision = Precision {
                weights,
                dtype: WeightDType::F32,
            };
            let mut reader = TensorReader::new(files, precision, &engine).narrow();
            reader.matrix(&spec).unwrap().format()
        })
    };
    let halves = [WeightFormat::Bf16, WeightFormat::Bf16, WeightFormat::Q8_0];
    assert_eq!(formats(&fixture_at("families/qwen3").0), halves);
    assert_eq!(formats(&fixture("tiny-llama").0), wanted);
}
