//! Adapters against peft (`scripts/make-lora-vectors.py`), and many of them in one batch.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::model::{
    Blocks, Hidden, HubOptions, Part, Precision, Scratch, WeightDType, WeightFormat,
    hub::testing::{FakeHub, REPO},
    testing::{assert_close, assert_same_bits, engine, fixture, random_hidden, recorded, rng, vectors},
};

const NAMES: [&str; 2] = ["queries-and-values", "everything"];

fn open(place: &str) -> Result<Adapter, AdapterError> {
    let mut options = HubOptions::from_variables(|_| None);
    options.offline = true;
    Adapter::open(place, &options)
}

fn recorded_adapter(name: &str) -> Adapter {
    open(vectors("sepal/lora").join(name).to_str().unwrap()).unwrap()
}

fn blocks() -> Blocks {
    blocks_in(WeightDType::F32)
}

fn blocks_in(precision: impl Into<Precision>) -> Blocks {
    let (files, _) = fixture("tiny-llama");
    let blocks = Blocks::load(&files, 0..4, precision, engine()).unwrap();
    blocks.with_adapters(&NAMES.map(recorded_adapter)).unwrap()
}

fn reference() -> Value {
    serde_json::from_str(&fs::read_to_string(vectors("sepal/lora/reference.json")).unwrap()).unwrap()
}

#[test]
fn blocks_with_adapters_and_their_gradients_equal_peft_within_1e_4() {
    let (blocks, reference) = (blocks(), reference());
    for name in NAMES {
        let adapter = blocks.adapter(name);
        assert!(adapter.is_some());
        let expected = &reference["adapters"][name];
        let (mut x, mut inputs) = (recorded(&reference["input"]), Vec::new());
        for (block, expected) in (0..).zip(expected["blocks"].as_array().unwrap()) {
            inputs.push(x.clone());
            blocks.forward_with(block, adapter, &mut x).unwrap();
            assert_close(&x.data, &recorded(expected).data, 1e-4);
        }
        let mut gradient = recorded(&reference["by_output"]);
        for (block, input) in (0..4).zip(&inputs).rev() {
            gradient = blocks.backward(block, adapter, input, &gradient).unwrap();
        }
        let expected = recorded(&expected["gradient"]).data;
        // Gradients are larger than activations.
        let size = expected.iter().fold(0.0_f32, |size, number| size.max(number.abs()));
        assert!(size > 10.0);
        assert_close(&gradient.data, &expected, 1e-5 * size);
    }
}

#[test]
fn sequences_with_different_adapters_in_one_batch_get_what_they_get_alone() {
    sequences_get_what_they_get_alone(&blocks());
    for weights in [WeightFormat::Bf16, WeightFormat::Q8_0, WeightFormat::Nf4] {
        let dtype = WeightDType::F32;
        sequences_get_what_they_get_alone(&blocks_in(Precision { weights, dtype }));
    }
}

fn sequences_get_what_they_get_alone(blocks: &Blocks) {
    let wanted =
        [Some(0), None, Some(1), Some(1), Some(0)].map(|idx| idx.map(|idx: usize| blocks.adapter(NAMES[idx]).unwrap()));
    let mut inputs: Vec<Hidden> = (0..5)
        .map(|i| random_hidden(&mut rng(i), 1, 3 + i as usize, 64))
        .collect();
    let alone: Vec<Hidden> = inputs
        .iter()
        .zip(wanted)
        .map(|(x, adapter)| {
            let mut x = x.clone();
            blocks.forward_with(2, adapter, &mut x).unwrap();
            x
        })
        .collect();
    let mut caches: Vec<_> = wanted
        .iter()
        .map(|adapter| blocks.new_cache(1, 1, 8).with_adapter(*adapter))
        .collect();
    let mut parts: Vec<Part<'_>> = inputs
        .iter_mut()
        .zip(&mut caches)
        .map(|(x, cache)| Part {
            cache,
            chain_idx: 0,
            rows: 0..x.batch,
            tokens: 0..x.tokens,
            x,
            position: 0,
        })
        .collect();
    blocks.run_batch(&[2], &mut parts, &mut Scratch::default()).unwrap();
    for (together, alone) in inputs.iter().zip(&alone) {
        assert_same_bits(&together.data, &alone.data);
    }
    let [with, without] = [0, 1].map(|i| {
        let mut x = random_hidden(&mut rng(0), 1, 3, 64);
        blocks.forward_with(2, wanted[i], &mut x).unwrap();
        x
    });
    assert_ne!(with, without, "the adapters do something");
}

#[test]
fn adapters_have_the_name_of_their_folder_or_the_one_they_are_given() {
    let folder = vectors("sepal/lora/everything");
    let folder = folder.to_str().unwrap();
    assert_eq!(open(folder).unwrap().name(), "everything");
    assert_eq!(open(&format!("mine/all={folder}")).unwrap().name(), "mine/all");
    let (files, _) = fixture("tiny-llama");
    let twice = [open(folder).unwrap(), open(folder).unwrap()];
    let error = Blocks::load(&files, 0..1, WeightDType::F32, engine())
        .unwrap()
        .with_adapters(&twice);
    assert_eq!(
        error.unwrap_err().to_string(),
        "there are two adapters called everything"
    );
}

/// A copy of a recorded adapter with another configuration.
fn changed(change: impl Fn(&mut Value)) -> TempDir {
    let source = vectors("sepal/lora/everything");
    let folder = TempDir::new().unwrap();
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(source.join("adapter_config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    fs::copy(
        source.join("adapter_model.safetensors"),
        folder.path().join("adapter_model.safetensors"),
    )
    .unwrap();
    folder
}

#[test]
fn what_an_adapter_does_and_we_cannot_is_said() {
    let cases: [(&str, Value, &str); 4] = [
        ("peft_type", "IA3".into(), "is of type IA3"),
        ("use_dora", true.into(), "is a DoRA adapter"),
        ("bias", "all".into(), "changes biases"),
        ("layer_replication", serde_json::json!([[0, 4]]), "repeats blocks"),
    ];
    for (key, value, text) in cases {
        let folder = changed(|config| config[key] = value.clone());
        let place = format!("a={}", folder.path().display());
        let error = open(&place).unwrap_err().to_string();
        assert_eq!(error, format!("adapter a {text}, which is not supported"));
    }
    let (files, _) = fixture("tiny-llama31");
    let other = Blocks::load(&files, 0..1, WeightDType::F32, engine()).unwrap();
    let fits = other.with_adapters(&[recorded_adapter("everything")]);
    assert!(fits.is_err() || files.config().hidden_size == 64);
}

#[test]
fn modules_that_are_named_by_their_blocks_are_changed() {
    let modules = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj";
    let modules: Vec<&str> = modules.split(' ').chain(["mlp.down_proj"]).collect();
    let (files, _) = fixture("tiny-llama");
    let outputs = |adapter: Adapter| {
        let name = adapter.name().to_owned();
        let blocks = Blocks::load(&files, 0..4, WeightDType::F32, engine()).unwrap();
        let blocks = blocks.with_adapters(&[adapter]).unwrap();
        let mut x = random_hidden(&mut rng(3), 1, 4, 64);
        (0..4).for_each(|block| blocks.forward_with(block, blocks.adapter(&name), &mut x).unwrap());
        x.data
    };
    let expected = outputs(recorded_adapter("everything"));
    // Whole keys, and what peft makes of more than 20 of them.
    for before in ["model.layers.", "layers.", ""] {
        let names = (0..4).flat_map(|block| modules.iter().map(move |name| format!("{before}{block}.{name}")));
        let names: Vec<String> = names.collect();
        let folder = changed(|config| config["target_modules"] = names.clone().into());
        assert_same_bits(&outputs(open(folder.path().to_str().unwrap()).unwrap()), &expected);
    }
}

#[test]
fn an_adapter_may_change_other_blocks_but_not_none_of_the_model() {
    let (files, _) = fixture("tiny-llama");
    let with = |name: &str| {
        let folder = changed(|config| config["target_modules"] = vec![name].into());
        let adapter = open(&format!("a={}", folder.path().display())).unwrap();
        let blocks = Blocks::load(&files, 0..1, WeightDType::F32, engine()).unwrap();
        blocks.with_adapters(&[adapter])
    };
    let others = with("3.mlp.up_proj").unwrap();
    let first = &others.blocks[0].host().adapters[0];
    assert!(first.updates.iter().all(Option::is_none));
    for name in ["4.mlp.up_proj", "proj", "lm_head"] {
        let error = with(name).unwrap_err().to_string();
        assert!(error.starts_with("adapter a changes no block of the model"), "{error}");
    }
}

#[test]
fn an_adapter_of_another_family_is_refused_as_one_of_another_model() {
    let (files, _) = fixture("tiny-mixtral");
    let mixtral = Blocks::load(&files, 0..1, WeightDType::F32, engine()).unwrap();
    let error = mixtral.with_adapters(&[recorded_adapter("everything")]).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("adapter everything "), "{text}");
    assert!(text.ends_with(": the adapter is for another model"), "{text}");
}

#[test]
fn the_scale_of_rank_stabilised_adapters_falls_with_the_root_of_the_rank() {
    let folder = changed(|config| config["use_rslora"] = true.into());
    let [plain, stable] = [
        open(vectors("sepal/lora/everything").to_str().unwrap()),
        open(folder.path().to_str().unwrap()),
    ]
    .map(|adapter| {
        let (files, _) = fixture("tiny-llama");
        let blocks = Blocks::load(&files, 0..1, WeightDType::F32, engine()).unwrap();
        let blocks = blocks.with_adapters(&[adapter.unwrap()]).unwrap();
        blocks.blocks[0].host().adapters[0].get(Target::Down).unwrap().scale
    });
    assert!((plain - 4.0 / 3.0).abs() < 1e-6 && (stable - 4.0 / 3.0_f32.sqrt()).abs() < 1e-6);
}

#[test]
fn an_adapter_of_a_repository_is_downloaded_once_and_is_the_one_in_the_folder() {
    let folder = vectors("sepal/lora/everything");
    let [config, weights] =
        ["adapter_config.json", "adapter_model.safetensors"].map(|name| (name, fs::read(folder.join(name)).unwrap()));
    let hub = FakeHub::with_large_files(&[(config.0, &config.1), (weights.0, &weights.1)]);
    let cache = TempDir::new().unwrap();
    let mut options = hub.options(cache.path());
    // The revision that may be named is the model's.
    options.revision = Some("v1".to_owned());
    let downloaded = Adapter::open(REPO, &options).unwrap();
    assert_eq!(downloaded.name(), REPO);
    options.offline = true;
    let cached = Adapter::open(REPO, &options).unwrap();
    let (files, _) = fixture("tiny-llama");
    let x = random_hidden(&mut rng(3), 1, 4, 64);
    let outputs = [downloaded, cached, recorded_adapter("everything")].map(|adapter| {
        let name = adapter.name().to_owned();
        let blocks = Blocks::load(&files, 1..2, WeightDType::F32, engine()).unwrap();
        let blocks = blocks.with_adapters(&[adapter]).unwrap();
        let mut x = x.clone();
        blocks.forward_with(1, blocks.adapter(&name), &mut x).unwrap();
        x.data
    });
    assert_same_bits(&outputs[0], &outputs[2]);
    assert_same_bits(&outputs[1], &outputs[2]);
    let missing = Adapter::open("owner/other", &hub.options(cache.path())).unwrap_err();
    assert!(matches!(missing, AdapterError::Hub { .. }), "{missing}");
}

#[test]
fn what_adapters_take_is_counted_as_it_is_packed() {
    let (files, _) = fixture("tiny-llama");
    let queries = changed(|config| config["target_modules"] = vec!["0.self_attn.q_proj"].into());
    let folders = NAMES.map(|name| vectors("sepal/lora").join(name));
    for folder in folders.into_iter().chain([queries.path().to_owned()]) {
        let name = folder.display();
        let adapter = open(folder.to_str().unwrap()).unwrap();
        let blocks = Blocks::load(&files, 0..1, WeightDType::F32, engine()).unwrap();
        let blocks = blocks.with_adapters(std::slice::from_ref(&adapter)).unwrap();
        let updates = &blocks.blocks[0].host().adapters[0].updates;
        let packed = updates
            .iter()
            .flatten()
            .flat_map(|update| [&update.a.weight, &update.b.weight]);
        let bytes = packed.map(|matrix| WeightFormat::F32.bytes(matrix.rows(), matrix.cols()) as u64);
        assert_eq!(adapter.block_bytes(files.config()), bytes.sum::<u64>(), "{name}");
        let file = folder.join("adapter_model.safetensors");
        assert_eq!(adapter.file_bytes(), fs::metadata(file).unwrap().len());
    }
}
