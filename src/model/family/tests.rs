//! Every family against transformers: blocks, whole and token by token, and text. The fixtures are those of the table of
//! support; those under `families/` are made by `scripts/make-family-vectors.py`.

use std::{collections::BTreeMap, fs};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::*;
use crate::model::{
    Blocks, ModelFiles, WeightDType,
    files::group_of_ends,
    layout::BlockLayout,
    testing::{
        assert_close, engine, fixture_at, generate, ids, recorded_states as states, stepwise, vectors, whole,
        write_model,
    },
};

/// The fixtures of this table that are whole models with recorded states of all blocks.
fn models() -> impl Iterator<Item = (Family, &'static str)> {
    let all = Family::ALL.into_iter();
    let fixtures = all.flat_map(|family| family.support().fixtures.iter().map(move |path| (family, *path)));
    fixtures.filter(|(_, path)| *path != "petals/tiny-llama" && !path.ends_with(".json"))
}

fn blocks(files: &ModelFiles, dtype: WeightDType) -> Blocks {
    Blocks::load(files, 0..files.config().n_blocks, dtype, engine()).unwrap()
}

#[test]
fn float32_blocks_of_every_family_equal_transformers_within_1e_4() {
    for (family, path) in models() {
        println!("{path}");
        let (files, reference) = fixture_at(path);
        assert_eq!(files.config().family, family);
        let blocks = blocks(&files, WeightDType::F32);
        let states = states(&reference);
        assert_eq!(states.len(), blocks.span().len() + 1);
        let mut x = states[0].clone();
        for (block, expected) in (0..).zip(&states[1..]) {
            blocks.forward(block, &mut x).unwrap();
            assert_close(&x.data, &expected.data, 1e-4);
        }
    }
}

/// Weights are bfloat16 in the fixtures under `families/`, so that only keys and values are rounded, and what weights are
/// multiplied with where the processor is quicker so; in those recorded from Petals the weights are as well.
#[test]
fn bfloat16_blocks_of_every_family_equal_transformers_within_what_bfloat16_can_tell() {
    for (_, path) in models() {
        let (files, reference) = fixture_at(path);
        let blocks = blocks(&files, WeightDType::Bf16);
        for (block, pair) in (0..).zip(states(&reference).windows(2)) {
            let largest = pair[1].data.iter().fold(1.0_f32, |max, x| max.max(x.abs()));
            println!("{path} {block}: numbers up to {largest}");
            assert_close(&whole(&blocks, block, &pair[0]).data, &pair[1].data, 0.02 * largest);
        }
    }
}

#[test]
fn token_by_token_every_family_gives_what_it_gives_at_once_bit_for_bit() {
    for (_, path) in models() {
        let (files, reference) = fixture_at(path);
        // Its rotation depends on the length of the sequence.
        if path == "families/phi3-long" {
            continue;
        }
        for dtype in [WeightDType::F32, WeightDType::Bf16] {
            let blocks = blocks(&files, dtype);
            for (block, x) in (0..files.config().n_blocks).zip(states(&reference)) {
                let at_once = whole(&blocks, block, &x).data;
                for n in [1, 7] {
                    println!("{path} {block} {dtype:?} {n}");
                    assert_eq!(stepwise(&blocks, block, &x, n), at_once);
                }
            }
        }
    }
}

#[test]
fn greedy_text_of_every_family_is_that_of_transformers() {
    for (_, path) in models() {
        // Transformers forgets its cache where the prompt is longer than the original context.
        if path == "families/phi3-long" {
            continue;
        }
        println!("{path}");
        let (files, reference) = fixture_at(path);
        assert_eq!(
            generate(&files, &prompt(&reference), 8, WeightDType::F32),
            ids(&reference["greedy_continuation_8"])
        );
    }
}

/// Recorded as one sequence or as a batch of one.
fn prompt(reference: &Value) -> Vec<u32> {
    match &reference["input_ids"][0] {
        Value::Array(_) => ids(&reference["input_ids"][0]),
        _ => ids(&reference["input_ids"]),
    }
}

/// The tensors of a fixture, as f32.
fn tensors(path: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(vectors(path).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, tensor): (String, safetensors::tensor::TensorView<'_>)| {
        assert_eq!(tensor.dtype(), safetensors::Dtype::BF16);
        let numbers = tensor.data().chunks_exact(2);
        let numbers = numbers.map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
        (name, (tensor.shape().to_vec(), numbers.collect()))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn config_of(path: &str) -> Value {
    serde_json::from_slice(&fs::read(vectors(path).join("config.json")).unwrap()).unwrap()
}

#[test]
fn experts_in_one_tensor_are_those_in_many() {
    for (path, folder, [gate, up, down], n_experts) in [
        ("families/mixtral", "block_sparse_moe.experts.", ["w1", "w3", "w2"], 4),
        (
            "families/qwen3-moe",
            "mlp.experts.",
            ["gate_proj", "up_proj", "down_proj"],
            6,
        ),
    ] {
        let mut tensors = tensors(path);
        for block in 0..2 {
            let prefix = format!("model.layers.{block}.{folder}");
            let mut take =
                |expert: usize, name: &str| tensors.remove(&format!("{prefix}{expert}.{name}.weight")).unwrap();
            let (mut gate_up, mut downs, mut sizes) = (Vec::new(), Vec::new(), [0, 0]);
            for expert in 0..n_experts {
                let (shape, gate) = take(expert, gate);
                sizes = [shape[0], shape[1]];
                gate_up.extend([gate, take(expert, up).1].concat());
                downs.extend(take(expert, down).1);
            }
            let [inner, hidden] = sizes;
            tensors.insert(
                format!("{prefix}gate_up_proj"),
                (vec![n_experts, 2 * inner, hidden], gate_up),
            );
            tensors.insert(format!("{prefix}down_proj"), (vec![n_experts, hidden, inner], downs));
        }
        let folder = write_model(&config_of(path), &tensors);
        assert_same_blocks(path, &ModelFiles::from_folder(folder.path()).unwrap());
    }
}

#[test]
fn checkpoints_with_another_root_are_the_same_model() {
    for (path, from, to) in [
        ("families/bloom", "transformer.", ""),
        ("families/gemma3", "model.", "language_model.model."),
        ("families/gemma3", "model.", "model.language_model."),
    ] {
        let renamed = tensors(path)
            .into_iter()
            .map(|(name, tensor)| (name.replacen(from, to, 1), tensor));
        let folder = write_model(&config_of(path), &renamed.collect());
        let files = ModelFiles::from_folder(folder.path()).unwrap();
        assert_same_blocks(path, &files);
        let (_, reference) = fixture_at(path);
        let found = generate(&files, &prompt(&reference), 8, WeightDType::F32);
        assert_eq!(found, ids(&reference["greedy_continuation_8"]));
    }
}

#[test]
fn mistral_with_images_is_its_text_part_in_both_layouts() {
    let path = "families/mistral";
    let text = config_of(path);
    let config = json!({
        "model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"], "text_config": text,
        "vision_config": {"hidden_size": 1024, "model_type": "pixtral"}, "torch_dtype": "bfloat16",
    });
    let (all, (original, reference)) = (tensors(path), fixture_at(path));
    let found = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    assert_eq!(found, *original.config());
    let moved: [fn(&str) -> String; 2] = [
        |name| format!("language_model.{name}"),
        |name| name.replacen("model.", "model.language_model.", 1),
    ];
    for rename in moved {
        let tensors = all.iter().map(|(name, tensor)| (rename(name), tensor.clone()));
        let folder = write_model(&config, &tensors.collect());
        let files = ModelFiles::from_folder(folder.path()).unwrap();
        assert_same_blocks(path, &files);
        let generated = generate(&files, &prompt(&reference), 8, WeightDType::F32);
        assert_eq!(generated, ids(&reference["greedy_continuation_8"]));
        let (_, ends) = group_of_ends(files.config());
        let mut names = all.keys().map(|name| rename(name));
        assert!(names.all(|name| name.contains("layers.") || ends.has(&name)));
    }

    let mut other = config;
    other["text_config"]["model_type"] = "ministral3".into();
    let error = ModelConfig::from_json(other.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("ministral3"), "{error}");
}

#[track_caller]
fn assert_same_blocks(path: &str, files: &ModelFiles) {
    let (original, reference) = fixture_at(path);
    let x = &states(&reference)[0];
    let blocks = [blocks(&original, WeightDType::F32), blocks(files, WeightDType::F32)];
    for block in blocks[0].span() {
        assert_eq!(whole(&blocks[1], block, x), whole(&blocks[0], block, x));
    }
}

/// What is counted is what is loaded, and loading reads all that the file has of the blocks.
#[test]
fn the_numbers_of_a_block_are_counted_as_the_checkpoint_has_them() {
    for (_, path) in models() {
        let (files, _) = fixture_at(path);
        let config = files.config();
        let bytes = fs::read(vectors(path).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let prefixes = config.family.block_prefixes(0);
        let of_block = file
            .tensors()
            .into_iter()
            .filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        let stored = of_block.map(|(name, tensor)| {
            let n: usize = tensor.shape().iter().product();
            match name {
                name if name.ends_with("_blocks") => 2 * n,
                name if name.ends_with("_scales") => 0,
                _ => n,
            }
        });
        assert_eq!(config.numbers_per_block(), stored.sum::<usize>() as u64, "{path}");
    }
}

#[test]
fn blocks_of_published_models_have_the_sizes_that_petals_counts() {
    let recorded: Value = serde_json::from_slice(&fs::read(vectors("petals/models.json")).unwrap()).unwrap();
    let numbers = |config: Value| {
        ModelConfig::from_json(config.to_string().as_bytes())
            .unwrap()
            .numbers_per_block()
    };
    for (model, config) in [
        (
            "Llama-2-7B",
            json!({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}),
        ),
        (
            "Mixtral-8x7B",
            json!({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}),
        ),
        (
            "Falcon-40B",
            json!({"model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8,
            "new_decoder_architecture": true}),
        ),
        (
            "Falcon-180B",
            json!({"model_type": "falcon", "hidden_size": 14848, "num_attention_heads": 232, "num_kv_heads": 8,
            "new_decoder_architecture": true}),
        ),
        (
            "Falcon-7B",
            json!({"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "multi_query": true}),
        ),
        (
            "BLOOM-176B",
            json!({"model_type": "bloom", "n_embed": 14336, "n_head": 112}),
        ),
        (
            "BLOOM-560M",
            json!({"model_type": "bloom", "hidden_size": 1024, "n_head": 16}),
        ),
    ] {
        let mut config = config;
        config["num_hidden_layers"] = 2.into();
        config["vocab_size"] = 100.into();
        assert_eq!(
            numbers(config),
            recorded["models"][model]["block_params"].as_u64().unwrap(),
            "{model}"
        );
    }
}

#[test]
fn gemma_3_with_images_is_read_from_its_text_part_and_the_defaults_of_transformers() {
    let config = json!({
        "model_type": "gemma3", "eos_token_id": [1, 106], "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    });
    let config = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    assert_eq!(
        (config.n_heads, config.n_kv_heads, config.head_dim, config.vocab_size),
        (8, 4, 256, 262_208)
    );
    assert_eq!(config.eos_token_ids, [1, 106]);
    assert_eq!(
        (config.window(4), config.window(5), config.window(6)),
        (Some(1024), None, Some(1024))
    );
    let theta = |block| config.rope(block).unwrap().theta;
    assert_eq!((theta(4), theta(5)), (10_000.0, 1e6));
}

#[test]
fn what_a_family_does_not_have_is_refused_by_name() {
    let refused = |path: &str, field: &str, value: Value| {
        let mut config = config_of(path);
        config[field] = value;
        let error = ModelConfig::from_json(config.to_string().as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(field), "{error} does not name {field}");
    };
    refused(
        "families/bloom",
        "apply_residual_connection_post_layernorm",
        json!(true),
    );
    refused("families/phi2", "qk_layernorm", json!(true));
    refused("families/qwen3-moe", "mlp_only_layers", json!([0]));
    refused("families/qwen3-moe", "num_experts_per_tok", json!(7));
    refused("families/gemma2", "layer_types", json!(["sliding_attention"]));
    refused("families/gemma2", "query_pre_attn_scalar", json!(-1.0));
    refused("families/gpt-oss", "intermediate_size", json!(40));
    refused("families/gpt-oss", "swiglu_alpha", json!(1.5));
    refused("families/gpt-oss", "swiglu_limit", json!(-1.0));
    refused("families/mistral", "sliding_window", json!(0));
    // Each would be described before the weights are seen not to be there.
    refused("families/qwen3-moe", "num_experts", json!(1 << 28));
    refused("families/phi2", "num_hidden_layers", json!(1 << 28));
}

#[test]
fn every_rotation_is_checked_wherever_its_blocks_are() {
    let mut config = config_of("families/gemma3");
    config["layer_types"] = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    assert!(ModelConfig::from_json(config.to_string().as_bytes()).is_ok());
    config["rope_theta"] = json!(0.0);
    let error = ModelConfig::from_json(config.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("rope_theta"), "{error}");
}

/// As transformers 5 writes it: what belongs to the rotation is in `rope_parameters` alone.
#[test]
fn a_configuration_means_the_same_in_the_spelling_of_transformers_5() {
    for path in ["mixtral", "qwen3-moe", "phi2", "phi3", "gpt-oss", "gemma3", "qwen2"] {
        let mut old = config_of(&format!("families/{path}"));
        // Not what the family's defaults are.
        old["rope_theta"] = json!(77_000.0);
        let mut new = old.clone();
        let fields = new.as_object_mut().unwrap();
        let mut parameters = match fields.remove("rope_scaling") {
            Some(Value::Object(scaling)) => scaling,
            _ => serde_json::Map::from_iter([("rope_type".to_owned(), json!("default"))]),
        };
        if let Some(kind) = parameters.remove("type") {
            parameters.insert("rope_type".to_owned(), kind);
        }
        for field in [
            "rope_theta",
            "partial_rotary_factor",
            "original_max_position_embeddings",
        ] {
            parameters.extend(fields.remove(field).map(|value| (field.to_owned(), value)));
        }
        fields.insert("rope_parameters".to_owned(), parameters.into());
        if path == "qwen3-moe" {
            let experts = fields.remove("num_experts").unwrap();
            fields.insert("num_local_experts".to_owned(), experts);
        }
        let [old, new] = [old, new].map(|config| ModelConfig::from_json(config.to_string().as_bytes()).unwrap());
        assert_eq!(old, new, "{path}");
    }
}

#[test]
fn every_recorded_family_is_in_the_table_and_every_tensor_has_one_owner() {
    let folders = fs::read_dir(vectors("families")).unwrap();
    for folder in folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        let path = format!("families/{folder}");
        assert!(models().any(|(_, listed)| listed == path), "{path} is in no row");
    }
    for (_, path) in models() {
        let (files, _) = fixture_at(path);
        let layout = BlockLayout::new(files.config(), 0, &|_| false);
        let parts: Vec<_> = layout
            .tensors()
            .map(|tensor| (&tensor.name, tensor.rows.start))
            .collect();
        let mut unique = parts.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), parts.len(), "{path}");
    }
}

/// The table of the README, made of what is said here.
fn table() -> String {
    let mut table =
        "| family | `model_type` | such as | compared with transformers | not supported |\n|---|---|---|---|---|\n"
            .to_owned();
    for support in Family::ALL.map(Family::support) {
        let code = |names: &[&str]| {
            names
                .iter()
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let Support {
            name, models, missing, ..
        } = support;
        let (types, fixtures) = (code(support.model_types), code(support.fixtures));
        table += &format!("| {name} | {types} | {models} | {fixtures} | {missing} |\n");
    }
    table
}

#[test]
fn the_readme_has_the_table_of_support() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let table = table();
    assert!(
        readme.contains(&table),
        "README.md should have this table of families:\n\n{table}"
    );
}
