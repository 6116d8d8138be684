//! Checkpoints packed as GPTQ and AWQ publish them (`scripts/make-packed-vectors.py`), against transformers with the weights
//! that are in them.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::model::{
    Blocks, LoadError, ModelFiles, ModelSource, Precision, WeightDType, WeightFormat,
    hub::testing::options,
    layout::{BlockLayout, Packing, TensorSpec},
    load::TensorReader,
    testing::{assert_close, distance, engine, generate, ids, recorded_states as states, vectors, whole},
};

/// Each with the format of its matrices, and whether that has the same weights.
const MODELS: [(&str, WeightFormat, bool); 6] = [
    ("gptq", WeightFormat::Q4_0, true),
    ("gptq-v2", WeightFormat::Q4_0, true),
    ("gptq-asymmetric", WeightFormat::Q8_0, true),
    ("gptq-act-order", WeightFormat::Q8_0, false),
    ("awq", WeightFormat::Q8_0, true),
    ("awq-mixtral", WeightFormat::Q8_0, true),
];

fn fixture(name: &str) -> (ModelSource, ModelFiles, Value) {
    let folder = vectors("sepal/packed").join(name);
    let source = ModelSource::resolve(folder.to_str().unwrap(), &options()).unwrap();
    let files = source.files_for_span(0..source.config().n_blocks).unwrap();
    let reference = fs::read_to_string(folder.join("reference.json")).unwrap();
    (source, files, serde_json::from_str(&reference).unwrap())
}

fn matrices(files: &ModelFiles) -> Vec<TensorSpec> {
    let engine = engine();
    let reader = std::cell::RefCell::new(TensorReader::new(files, WeightDType::F32, &engine));
    let layouts = (0..files.config().n_blocks)
        .map(|block| BlockLayout::new(files.config(), block, &|tensor| reader.borrow_mut().exists(tensor)));
    let packed = |spec: &&TensorSpec| matches!(spec.packing, Packing::Grouped(_));
    layouts
        .flat_map(|layout| layout.matrices().filter(packed).cloned().collect::<Vec<_>>())
        .collect()
}

#[test]
fn packed_weights_give_what_transformers_makes_of_them_in_float32() {
    for (name, ..) in MODELS {
        println!("{name}");
        let (_, files, reference) = fixture(name);
        let blocks = Blocks::load(&files, 0..files.config().n_blocks, WeightDType::F32, engine()).unwrap();
        for (block, pair) in (0..).zip(states(&reference).windows(2)) {
            assert_close(&whole(&blocks, block, &pair[0]).data, &pair[1].data, 1e-4);
        }
        let greedy = ids(&reference["greedy"]);
        let prompt = ids(&reference["input_ids"][0]);
        assert_eq!(generate(&files, &prompt, greedy.len(), WeightDType::F32), greedy);
    }
}

#[test]
fn codes_and_scales_are_kept_where_a_format_has_them() {
    let engine = engine();
    for (name, format, is_exact) in MODELS {
        let (source, files, reference) = fixture(name);
        assert_eq!(source.own_format(), Some(format), "{name}");
        let own = files.clone().with_own_formats();
        let mut exact = TensorReader::new(&files, WeightDType::F32, &engine);
        let mut kept = TensorReader::new(&own, WeightDType::F32, &engine);
        let specs = matrices(&files);
        assert!(specs.len() >= 10, "{name}");
        for spec in specs {
            let (wanted, found) = (
                exact.matrix(&spec).unwrap().to_f32(),
                kept.matrix(&spec).unwrap().to_f32(),
            );
            if is_exact {
                assert!(wanted == found, "{name}: {}", spec.name);
            }
            // Half a step of q8_0 where columns of one block have different scales.
            for (wanted, found) in wanted.chunks(32).zip(found.chunks(32)) {
                let largest = wanted.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
                assert_close(found, wanted, (0.5 / 127.0 + 1.0 / 2048.0) * largest);
            }
        }
        let precision = Precision {
            weights: format,
            dtype: WeightDType::F32,
        };
        let blocks = Blocks::load(&own, 0..files.config().n_blocks, precision, &engine).unwrap();
        for (block, pair) in (0..).zip(states(&reference).windows(2)) {
            let error = distance(&pair[1].data, &whole(&blocks, block, &pair[0]).data);
            println!("{name} {block}: {error}");
            // Activations have 8 bits.
            assert!(error <= 0.03, "{name} {block}: {error}");
        }
    }
}

#[test]
fn another_format_can_be_asked_for() {
    let (_, files, reference) = fixture("awq");
    for (weights, tolerance) in [(WeightFormat::Bf16, 0.01), (WeightFormat::Q4K, 0.2)] {
        let dtype = WeightDType::F32;
        let blocks = Blocks::load(&files, 0..1, Precision { weights, dtype }, engine()).unwrap();
        let states = states(&reference);
        let error = distance(&states[1].data, &whole(&blocks, 0, &states[0]).data);
        assert!(error > 0.0 && error <= tolerance, "{}: {error}", weights.as_str());
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let (from, folder) = (vectors("sepal/packed/gptq-act-order"), TempDir::new().unwrap());
        let config = fs::read_to_string(from.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        change(&mut config);
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let files = ModelFiles::from_folder(folder.path()).unwrap();
        Blocks::load(&files, 0..1, WeightDType::F32, engine()).unwrap_err()
    };
    let other_groups = refused(&|config| config["quantization_config"]["group_size"] = 16.into());
    let text = other_groups.to_string();
    assert!(
        matches!(other_groups, LoadError::Shape { .. }) && text.contains("q_proj.qzeros"),
        "{text}"
    );
    let other_method = refused(&|config| {
        config["quantization_config"] = serde_json::json!({"quant_method": "awq", "bits": 4, "group_size": 32});
    });
    assert!(other_method.to_string().contains("q_proj.qweight"), "{other_method}");
    let no_groups = refused(&|config| config["quantization_config"]["group_size"] = 0.into());
    assert!(matches!(no_groups, LoadError::Packing { .. }), "{no_groups}");
}
