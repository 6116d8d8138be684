//! Every kind of place a model can be in, and which files are fetched.

use std::{fs, path::PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::model::{
    Blocks, Ends, WeightDType,
    hub::testing::{FakeHub, REPO},
    testing::{engine, vectors},
};

fn tiny_llama() -> PathBuf {
    vectors("petals/tiny-llama")
}

fn nowhere() -> HubOptions {
    HubOptions {
        offline: true,
        ..crate::model::hub::testing::options()
    }
}

#[test]
fn the_built_in_model_is_complete_and_its_weights_are_used_in_place() {
    let source = ModelSource::resolve("demo", &nowhere()).unwrap();
    assert_eq!(source.repo_name(), Some("sepal/demo"));
    assert_eq!(source.model_type(), "llama");
    assert_eq!(source.generation_config().eos_token_ids, source.config().eos_token_ids);
    assert!(!source.tokenizer_json().unwrap().is_empty());
    let n_blocks = source.config().n_blocks;
    assert_eq!(n_blocks % 2, 0, "two servers hold half each");
    let files = source.files_for_span(0..n_blocks).unwrap();
    assert!(Blocks::load(&files, 0..n_blocks, WeightDType::Bf16, engine()).is_ok());
    assert!(Ends::load(&source.files_for_ends().unwrap(), WeightDType::F32, &engine()).is_ok());
    assert_eq!(builtin::weights().as_ptr().align_offset(64), 0);
    assert!(builtin::weights().len() <= 3_000_000);
}

#[test]
fn a_folder_is_used_as_it_is_and_has_no_repository_name() {
    let name = tiny_llama().display().to_string();
    let source = ModelSource::resolve(&name, &nowhere()).unwrap();
    assert_eq!((source.name(), source.repo_name()), (name.as_str(), None));
    assert_eq!(source.generation_config().eos_token_ids, [2]);
    assert!(Blocks::load(&source.files_for_span(1..3).unwrap(), 1..3, WeightDType::F32, engine()).is_ok());
    assert!(matches!(source.tokenizer_json(), Err(ResolveError::NoTokenizer { .. })));
}

#[test]
fn a_path_that_leads_nowhere_is_not_taken_for_a_repository() {
    for name in [
        "./no/such/folder",
        "/no/such/folder",
        "../no/such/folder",
        "~/no/such/folder",
    ] {
        assert!(matches!(
            ModelSource::resolve(name, &nowhere()),
            Err(ResolveError::NoFolder { .. })
        ));
    }
    let other = ModelSource::resolve("no such/name", &nowhere());
    assert!(matches!(other, Err(ResolveError::Hub(HubError::Name { .. }))));
}

#[test]
fn a_configuration_of_no_use_is_named() {
    let folder = TempDir::new().unwrap();
    let name = folder.path().display().to_string();
    assert!(matches!(
        ModelSource::resolve(&name, &nowhere()),
        Err(ResolveError::Read { .. })
    ));
    fs::write(folder.path().join("config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
    let error = ModelSource::resolve(&name, &nowhere()).unwrap_err();
    assert!(
        matches!(
            error,
            ResolveError::Config {
                file: "config.json",
                ..
            }
        ),
        "{error}"
    );
}

/// The fixture as a repository whose blocks 0, 1 are in one shard, 2, 3 in another and the ends in a third.
fn sharded() -> FakeHub {
    let config = fs::read(tiny_llama().join("config.json")).unwrap();
    let weights = fs::read(tiny_llama().join("model.safetensors")).unwrap();
    let shard = |block: u32| {
        if block < 2 {
            "first.safetensors"
        } else {
            "second.safetensors"
        }
    };
    let tensors = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
    ]
    .into_iter()
    .chain([
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]);
    let mut map = serde_json::Map::new();
    for tensor in tensors {
        for block in 0..4 {
            map.insert(format!("model.layers.{block}.{tensor}.weight"), json!(shard(block)));
        }
    }
    for end in ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] {
        map.insert(end.to_owned(), json!("ends.safetensors"));
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    FakeHub::with_files(&[
        ("config.json", &config),
        ("tokenizer.json", b"{}"),
        (INDEX_FILE, index.as_bytes()),
        ("first.safetensors", &weights),
        ("second.safetensors", &weights),
        ("ends.safetensors", &weights),
    ])
}

#[test]
fn a_server_downloads_the_shards_of_its_blocks_only() {
    let cache = TempDir::new().unwrap();
    let hub = sharded();
    let source = ModelSource::resolve(REPO, &hub.options(cache.path())).unwrap();
    assert_eq!(source.repo_name(), Some(REPO));
    let files = source.files_for_span(2..4).unwrap();
    assert!(Blocks::load(&files, 2..4, WeightDType::F32, engine()).is_ok());
    let expected = ["config.json", INDEX_FILE, "second.safetensors"];
    assert_eq!(hub.asked(), expected);
}

#[test]
fn a_client_downloads_the_ends_only_and_the_second_time_nothing() {
    let cache = TempDir::new().unwrap();
    let hub = sharded();
    let source = ModelSource::resolve(REPO, &hub.options(cache.path())).unwrap();
    assert!(Ends::load(&source.files_for_ends().unwrap(), WeightDType::F32, &engine()).is_ok());
    assert_eq!(&*source.tokenizer_json().unwrap(), b"{}");
    let asked = ["config.json", INDEX_FILE, "ends.safetensors", "tokenizer.json"];
    assert_eq!(hub.asked(), asked);

    let offline = HubOptions {
        offline: true,
        ..hub.options(cache.path())
    };
    let source = ModelSource::resolve(REPO, &offline).unwrap();
    assert!(source.files_for_ends().is_ok());
    assert!(source.tokenizer_json().is_ok());
    assert!(matches!(
        source.files_for_span(0..1),
        Err(ResolveError::Hub(HubError::Offline { .. }))
    ));
}

/// The ends are open, and what they came from is still held, as clients do that go on to load blocks of their own.
#[test]
fn whoever_has_loaded_something_can_make_room_for_more() {
    const MIB: u64 = 1 << 20;
    let cache = TempDir::new().unwrap();
    let hub = sharded();
    let options = HubOptions {
        max_disk_space: Some(2 * MIB),
        ..hub.options(cache.path())
    };
    let source = ModelSource::resolve(REPO, &options).unwrap();
    let fill = |name: &str| {
        let blobs = cache.path().join("models--other--model/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(name), vec![1; 2 * MIB as usize]).unwrap();
        blobs.join(name)
    };
    let of_ends = source.files_for_ends().unwrap();
    let ends = Ends::load(&of_ends, WeightDType::F32, &engine()).unwrap();
    let old = fill("old");
    let of_blocks = source.files_for_span(0..2).unwrap();
    assert!(!old.exists());
    let blocks = Blocks::load(&of_blocks, 0..2, WeightDType::F32, engine()).unwrap();
    let older = fill("older");
    assert!(source.files_for_span(2..4).is_ok());
    assert!(!older.exists());
    drop((of_ends, ends, of_blocks, blocks));
}

#[test]
fn of_a_checkpoint_in_one_file_only_the_blocks_are_downloaded() {
    let cache = TempDir::new().unwrap();
    let config = fs::read(tiny_llama().join("config.json")).unwrap();
    let weights = fs::read(tiny_llama().join("model.safetensors")).unwrap();
    let hub = FakeHub::with_files(&[("config.json", &config), (SINGLE_FILE, &weights)]);
    let source = ModelSource::resolve(REPO, &hub.options(cache.path())).unwrap();
    for _ in 0..2 {
        assert!(Blocks::load(&source.files_for_span(0..1).unwrap(), 0..1, WeightDType::F32, engine()).is_ok());
    }
    assert_eq!(hub.asked(), ["config.json", SINGLE_FILE]);
    assert!(hub.sent(SINGLE_FILE) < weights.len() as u64 / 2);
    assert!(matches!(source.tokenizer_json(), Err(ResolveError::NoTokenizer { .. })));
}

#[test]
fn pickled_weights_are_refused_with_the_reason() {
    let cache = TempDir::new().unwrap();
    let config = fs::read(tiny_llama().join("config.json")).unwrap();
    let hub = FakeHub::with_files(&[("config.json", &config), ("pytorch_model.bin", b"pickle")]);
    let source = ModelSource::resolve(REPO, &hub.options(cache.path())).unwrap();
    let error = source.files_for_span(0..1).unwrap_err();
    assert!(
        matches!(error, ResolveError::Load(LoadError::PickleOnly { .. })),
        "{error}"
    );
    assert!(
        !hub.asked().contains(&"pytorch_model.bin".to_owned()),
        "it is not even downloaded"
    );

    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), b"pickle").unwrap();
    let source = ModelSource::resolve(&folder.path().display().to_string(), &nowhere()).unwrap();
    assert!(matches!(
        source.files_for_ends(),
        Err(ResolveError::Load(LoadError::PickleOnly { .. }))
    ));
}

#[test]
fn a_repository_of_gguf_files_is_refused_with_the_name_of_one() {
    let cache = TempDir::new().unwrap();
    let files = [
        "m-IQ2_M.gguf",
        "m-Q4_K_M-00002-of-00002.gguf",
        "m-Q4_K_M-00001-of-00002.gguf",
        "README.md",
    ];
    let mut all: Vec<(&str, &[u8])> = files.iter().map(|file| (*file, &b"GGUF"[..])).collect();
    let said = |files: &[(&str, &[u8])]| {
        let hub = FakeHub::with_large_files(files);
        let source = ModelSource::resolve(REPO, &hub.options(cache.path()));
        let error = source.and_then(|source| source.files_for_ends().map(drop)).unwrap_err();
        assert!(matches!(error, ResolveError::OnlyGguf { .. }), "{error:?}");
        error.to_string()
    };
    let remedy = format!("such as {REPO}:m-Q4_K_M-00001-of-00002.gguf");
    let error = said(&all);
    assert!(error.contains("no config.json") && error.ends_with(&remedy), "{error}");
    let config = fs::read(tiny_llama().join("config.json")).unwrap();
    all.push(("config.json", &config));
    let error = said(&all);
    assert!(
        error.contains("no model.safetensors") && error.ends_with(&remedy),
        "{error}"
    );

    let by_name = |name: &str| ModelSource::resolve(name, &nowhere()).unwrap_err().to_string();
    assert!(by_name("some/Model-GGUF").ends_with("such as some/Model-GGUF:FILE.gguf"));
    assert!(!by_name("some/Model").contains("GGUF"));
}

#[test]
fn of_several_gguf_files_in_a_folder_one_has_to_be_named() {
    let folder = TempDir::new().unwrap();
    for file in ["b.gguf", "a.gguf"] {
        fs::write(folder.path().join(file), b"GGUF").unwrap();
    }
    let name = folder.path().display().to_string();
    let error = ModelSource::resolve(&name, &nowhere()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{name} has several GGUF files and no config.json: name the .gguf file, such as {name}/a.gguf")
    );
}

#[test]
fn packed_weights_of_another_kind_are_refused_by_its_name() {
    let folder = TempDir::new().unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(tiny_llama().join("config.json")).unwrap()).unwrap();
    for (packing, said) in [
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "\"bitsandbytes\"",
        ),
        (json!({"quant_method": "gptq", "bits": 8}), "\"gptq in 8 bits\""),
        (
            json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}),
            "\"gptq in the layout marlin\"",
        ),
        (
            json!({"quant_method": "awq", "bits": 4, "version": "gemv"}),
            "\"awq in the layout gemv\"",
        ),
        (
            json!({"quant_method": "gptq", "bits": 4, "lm_head": true}),
            "\"gptq, the head too\"",
        ),
    ] {
        config["quantization_config"] = packing;
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = ModelSource::resolve(&folder.path().display().to_string(), &nowhere()).unwrap_err();
        let ResolveError::Config { source, .. } = &error else {
            panic!("{error}")
        };
        assert!(source.to_string().contains(said), "{source}");
    }
}
