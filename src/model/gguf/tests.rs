//! Files that give the same outputs as the checkpoint they are made of, and files that give none.

mod config;
mod repository;
mod tokenizer;

use std::{collections::BTreeMap, fs};

use candle_core::{Device, Tensor, quantized::QTensor, quantized::gguf_file};
use serde_json::json;
use tempfile::TempDir;

use super::{
    names::Place,
    tensor::decode,
    testing::{Metadata, Tensors, gguf_of, metadata_of, text},
    *,
};
use crate::model::{
    Blocks, Ends, LoadError, ModelSource, ResolveError, WeightDType,
    hub::testing::{FakeHub, REPO, options},
    testing::{engine, random_hidden, random_tensors, rng, small_config, write_model},
};

/// Every number of columns is whole blocks of every kind.
fn config() -> serde_json::Value {
    small_config(json!({
        "hidden_size": 256, "intermediate_size": 512, "rope_theta": 5000.0, "tie_word_embeddings": true,
        "vocab_size": 16, "num_attention_heads": 8, "num_key_value_heads": 2,
    }))
}

fn tensors(config: &serde_json::Value) -> Tensors {
    let mut tensors = random_tensors(config, 3);
    let hidden = config["hidden_size"].as_u64().unwrap() as usize;
    let embeddings = (0..16 * hidden).map(|i| (i % 31) as f32 / 31.0 - 0.5).collect();
    tensors.insert("model.embed_tokens.weight".to_owned(), (vec![16, hidden], embeddings));
    tensors.insert("model.norm.weight".to_owned(), (vec![hidden], vec![1.5; hidden]));
    tensors
}

/// What is left of the matrices after they were written as `kind`.
fn rounded(tensors: &Tensors, kind: GgmlDType) -> Tensors {
    let round = |shape: &[usize], numbers: &[f32]| {
        let tensor = Tensor::from_slice(numbers, shape, &Device::Cpu).unwrap();
        let rounded = QTensor::quantize(&tensor, kind)
            .unwrap()
            .dequantize(&Device::Cpu)
            .unwrap();
        rounded.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let rounded = tensors.iter().map(|(name, (shape, numbers))| {
        let numbers = if shape.len() == 1 {
            numbers.clone()
        } else {
            round(shape, numbers)
        };
        (name.clone(), (shape.clone(), numbers))
    });
    rounded.collect()
}

/// What comes out of all blocks and the head.
fn outputs(source: &ModelSource) -> Vec<f32> {
    let n_blocks = source.config().n_blocks;
    let blocks = Blocks::load(
        &source.files_for_span(0..n_blocks).unwrap(),
        0..n_blocks,
        WeightDType::F32,
        engine(),
    )
    .unwrap();
    let ends = Ends::load(&source.files_for_ends().unwrap(), WeightDType::F32, &engine()).unwrap();
    let mut x = random_hidden(&mut rng(7), 1, 5, source.config().hidden_size);
    for block in 0..n_blocks {
        blocks.forward(block, &mut x).unwrap();
    }
    let mut outputs = ends.logits(&x.data).unwrap();
    outputs.extend(ends.embed(&[3, 15]).unwrap().data);
    outputs
}

fn resolve(path: &Path) -> Result<ModelSource, ResolveError> {
    ModelSource::resolve(path.to_str().unwrap(), &options())
}

fn written(folder: &TempDir, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn every_kind_of_numbers_gives_the_outputs_of_the_same_numbers_in_safetensors() {
    let (config, folder) = (config(), TempDir::new().unwrap());
    let tensors = tensors(&config);
    for kind in [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q8_0,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ] {
        let path = written(&folder, &gguf_of(&config, &tensors, kind, &metadata_of(&config)));
        let source = resolve(&path).unwrap();
        let same = write_model(&config, &rounded(&tensors, kind));
        let expected = resolve(same.path()).unwrap();
        let (found, wanted) = (source.config(), expected.config());
        assert_eq!(
            (found.family, &found.norm, &found.attention),
            (wanted.family, &wanted.norm, &wanted.attention)
        );
        assert_eq!(found.ends, wanted.ends);
        assert_eq!(outputs(&source), outputs(&expected), "{kind:?}");
    }
    assert_eq!(
        resolve(&folder.path().join("model.gguf")).unwrap().title().unwrap(),
        "Tiny-Llama--test"
    );
    assert!(
        resolve(folder.path()).is_ok(),
        "a folder with one such file is that file"
    );
}

#[test]
fn embeddings_in_blocks_are_those_of_the_same_numbers_in_every_type() {
    let (config, folder) = (config(), TempDir::new().unwrap());
    let tensors = tensors(&config);
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4K, GgmlDType::Q6K] {
        let path = written(&folder, &gguf_of(&config, &tensors, kind, &metadata_of(&config)));
        let same = write_model(&config, &rounded(&tensors, kind));
        for dtype in [WeightDType::F32, WeightDType::Bf16, WeightDType::F16] {
            let [found, expected] = [path.as_path(), same.path()].map(|path| {
                let files = resolve(path).unwrap().files_for_ends().unwrap().with_own_formats();
                let ends = Ends::load(&files, dtype, &engine()).unwrap();
                ends.embed(&(0..16).collect::<Vec<u32>>()).unwrap().data
            });
            assert_eq!(found, expected, "{kind:?} {dtype:?}");
        }
    }
}

/// The same tensors in one file and in three, of which the later have nothing but tensors.
fn split(config: &serde_json::Value, tensors: &Tensors) -> [(String, Vec<u8>); 3] {
    std::array::from_fn(|no| {
        let some = tensors.iter().enumerate().filter(|(idx, _)| idx % 3 == no);
        let some = some.map(|(_, (name, tensor))| (name.clone(), tensor.clone())).collect();
        let mut metadata = if no == 0 { metadata_of(config) } else { Metadata::new() };
        metadata.push(("split.no".to_owned(), gguf_file::Value::U16(no as u16)));
        metadata.push(("split.count".to_owned(), gguf_file::Value::U16(3)));
        let name = format!("model-{:05}-of-00003.gguf", no + 1);
        (name, gguf_of(config, &some, GgmlDType::Q8_0, &metadata))
    })
}

#[test]
fn a_model_in_several_files_is_the_one_in_one_file_in_a_folder_and_in_a_repository() {
    let (config, folder) = (config(), TempDir::new().unwrap());
    let tensors = tensors(&config);
    let whole = gguf_of(&config, &tensors, GgmlDType::Q8_0, &metadata_of(&config));
    let expected = outputs(&resolve(&written(&folder, &whole)).unwrap());
    let (parts, folder, cache) = (
        split(&config, &tensors),
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
    );
    for (name, part) in &parts {
        fs::write(folder.path().join(name), part).unwrap();
    }
    assert_eq!(outputs(&resolve(folder.path()).unwrap()), expected, "by the folder");
    assert_eq!(outputs(&resolve(&folder.path().join(&parts[0].0)).unwrap()), expected);
    let later = resolve(&folder.path().join(&parts[1].0)).unwrap_err();
    let ResolveError::Load(LoadError::Gguf { source, .. }) = later else {
        panic!("{later}")
    };
    assert!(source.to_string().contains("-00001-of-00003.gguf"), "{source}");

    let files: Vec<(&str, &[u8])> = parts.iter().map(|(name, part)| (name.as_str(), &part[..])).collect();
    let hub = FakeHub::with_large_files(&files);
    let name = format!("{REPO}:{}", parts[0].0);
    let source = ModelSource::resolve(&name, &hub.options(cache.path())).unwrap();
    assert_eq!(outputs(&source), expected, "of a repository");

    fs::remove_file(folder.path().join(&parts[2].0)).unwrap();
    let missing = resolve(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("model-00003-of-00003.gguf"), "{missing}");
}

#[test]
fn a_file_in_a_repository_is_downloaded_and_used() {
    let (config, cache) = (config(), TempDir::new().unwrap());
    let file = gguf_of(&config, &tensors(&config), GgmlDType::Q8_0, &metadata_of(&config));
    let hub = FakeHub::with_large_files(&[("sub/model-Q8_0.gguf", &file), ("tokenizer.json", b"{}")]);
    let name = format!("{REPO}:sub/model-Q8_0.gguf");
    let source = ModelSource::resolve(&name, &hub.options(cache.path())).unwrap();
    assert!(!outputs(&source).is_empty());
    assert_eq!(&*source.tokenizer_json().unwrap(), b"{}");
    let missing = ModelSource::resolve(&format!("{REPO}:other.gguf"), &hub.options(cache.path()));
    assert!(matches!(missing, Err(ResolveError::Hub(_))));
}

#[test]
fn the_rotation_of_llama_3_is_recognised_by_its_factors() {
    let config = small_config(json!({
        "hidden_size": 256, "num_attention_heads": 4, "rope_theta": 500_000.0, "vocab_size": 16,
        "tie_word_embeddings": true,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    }));
    let expected = crate::model::ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    // As the converter computes them, in f64.
    let factors: Vec<f32> = (0..32)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * 500_000f64.powf(f64::from(i) / 32.0);
            let factor = match 8192.0 / wavelength {
                periods if periods > 4.0 => 1.0,
                periods if periods < 1.0 => 8.0,
                periods => {
                    let smooth = (periods - 1.0) / 3.0;
                    1.0 / ((1.0 - smooth) / 8.0 + smooth)
                }
            };
            factor as f32
        })
        .collect();
    let mut all = tensors(&config);
    all.insert("rope_freqs.weight".to_owned(), (vec![32], factors.clone()));
    let folder = TempDir::new().unwrap();
    let path = written(&folder, &gguf_of(&config, &all, GgmlDType::F32, &metadata_of(&config)));
    let source = resolve(&path).unwrap();
    assert_eq!(source.config().attention, expected.attention);

    let odd = factors.iter().map(|factor| factor * factor).collect();
    all.insert("rope_freqs.weight".to_owned(), (vec![32], odd));
    let path = written(&folder, &gguf_of(&config, &all, GgmlDType::F32, &metadata_of(&config)));
    assert!(resolve(&path).is_err());
}

#[test]
fn truncated_and_garbled_files_are_refused_at_every_length() {
    let config = small_config(json!({"vocab_size": 16, "tie_word_embeddings": true}));
    let whole = gguf_of(&config, &tensors(&config), GgmlDType::F32, &metadata_of(&config));
    let header = 2500;
    let read = |bytes: &[u8]| Gguf::read(vec![Bytes::copy_from_slice(bytes)]);
    for len in (0..header).step_by(7) {
        let Ok(file) = read(&whole[..len]) else { continue };
        assert!(
            file.config_json().is_err() || file.tensor("model.norm.weight").is_err(),
            "{len}"
        );
    }
    let cut = read(&whole[..whole.len() - 5000]).unwrap();
    let names: Vec<String> = tensors(&config).into_keys().collect();
    assert!(names.iter().any(|name| cut.tensor(name).is_err()));
    // No change of a byte makes it panic or take memory that the file has not.
    for at in 0..header {
        for value in [0, 255] {
            let mut garbled = whole.clone();
            garbled[at] = value;
            if let Ok(file) = read(&garbled) {
                let _ = (file.config_json(), file.tokenizer_json());
                names.iter().for_each(|name| drop(file.tensor(name)));
            }
        }
    }
}

/// A header whose metadata are lists of so many bytes.
fn with_lists(lists: &[(&str, usize)]) -> Vec<u8> {
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend([0, lists.len() as u64].map(u64::to_le_bytes).concat());
    for (key, len) in lists {
        header.extend((key.len() as u64).to_le_bytes());
        header.extend(key.bytes());
        header.extend([9, 0].map(u32::to_le_bytes).concat());
        header.extend((*len as u64).to_le_bytes());
        header.resize(header.len() + len, 0);
    }
    header
}

#[test]
fn lists_that_would_take_far_more_memory_than_the_file_are_refused_by_name() {
    let read = |lists: &[(&str, usize)]| Header::read(&with_lists(lists));
    assert!(read(&[("small", 1000)]).is_ok());
    let many = 1 << 22;
    for lists in [
        [("small", 0), ("tiny.list", many + 1)],
        [("half", many / 2), ("tiny.list", many / 2 + 1)],
    ] {
        let error = read(&lists).unwrap_err();
        assert!(matches!(error, GgufError::TooLong { .. }), "{error}");
        assert!(error.to_string().contains("tiny.list"), "{error}");
    }
    // Of a file on a hub no more is asked for.
    assert!(spans(&with_lists(&[("long", many + 1)])[..100], 1 << 40).is_err());
}

#[test]
fn only_whole_blocks_come_to_the_decoder_wherever_they_begin() {
    let place = Place {
        tensor: "blk.0.ffn_up.weight".to_owned(),
        expert: None,
        interleaved_heads: None,
        is_one_more: false,
    };
    for kind in (0..64).filter_map(header::kind).filter(|kind| kind.block_size() > 1) {
        let (block, size) = (kind.block_size(), kind.type_size());
        let bytes: Vec<u8> = (0..=2 * size).map(|i| (i * 7 % 60) as u8).collect();
        // One of the two is not aligned.
        let mut shifted = vec![0];
        shifted.extend(&bytes[..2 * size]);
        let decoded = |bytes: &[u8], numbers| decode(&place, kind, bytes, numbers);
        let numbers = decoded(&bytes[..2 * size], 2 * block).unwrap();
        assert_eq!(numbers.len(), 2 * block);
        assert_eq!(decoded(&shifted[1..], 2 * block).unwrap(), numbers, "{kind:?}");
        assert!(decoded(&[], 0).unwrap().is_empty());
        for (len, n_numbers) in [
            (2 * size + 1, 2 * block),
            (2 * size - 1, 2 * block),
            (size, 2 * block),
            (2 * size, block),
            (2 * size, 2 * block - 1),
            (0, block),
            (size, 0),
            (size, usize::MAX / block * block),
        ] {
            let refused = decoded(&bytes[..len], n_numbers);
            assert!(
                matches!(refused, Err(GgufError::Damaged(_))),
                "{kind:?} {len} {n_numbers}"
            );
        }
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let config = config();
    let folder = TempDir::new().unwrap();
    let error = |metadata: &Metadata| {
        let path = written(&folder, &gguf_of(&config, &tensors(&config), GgmlDType::F32, metadata));
        let error = resolve(&path)
            .and_then(|source| source.tokenizer_json().map(|_| ()))
            .unwrap_err();
        match error {
            ResolveError::Load(LoadError::Gguf { source, .. }) => source.to_string(),
            ResolveError::NoTokenizerForGguf { source, .. } => source.to_string(),
            _ => panic!("{error}"),
        }
    };
    let with = |key: &str, value: gguf_file::Value| {
        let mut metadata: BTreeMap<String, gguf_file::Value> = metadata_of(&config).into_iter().collect();
        metadata.insert(key.to_owned(), value);
        error(&metadata.into_iter().collect())
    };
    assert!(with("general.architecture", text("mamba")).contains("\"mamba\""));
    assert!(with("split.count", gguf_file::Value::U16(3)).contains("llama-gguf-split"));
    assert!(with("tokenizer.ggml.model", text("rwkv")).contains("tokenizer.ggml.tokens"));
    let metadata: Metadata = metadata_of(&config);
    let without = metadata
        .into_iter()
        .filter(|(key, _)| key != "llama.block_count")
        .collect();
    assert!(error(&without).contains("llama.block_count"));
    assert!(matches!(
        Gguf::read(vec![Bytes::from_static(b"GGML....")]),
        Err(GgufError::NotGguf)
    ));
    assert_eq!(header::kind_name(23), "IQ4_XS");
}
