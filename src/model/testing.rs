//! What the tests of this layer share: fixtures recorded from transformers, and random models written to a folder.

use std::{collections::BTreeMap, fs, num::NonZeroUsize, ops::Range, path::PathBuf};

use rand::{Rng, SeedableRng, rngs::StdRng};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{layout::BlockLayout, load::TensorReader, *};

pub(super) fn vectors(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors")).join(path)
}

/// A fixture model recorded from Petals and what transformers computes with it.
pub(super) fn fixture(name: &str) -> (ModelFiles, Value) {
    fixture_at(&format!("petals/{name}"))
}

/// The fixture model in a folder of the vectors, and what transformers computes with it.
pub(super) fn fixture_at(path: &str) -> (ModelFiles, Value) {
    let folder = vectors(path);
    let reference = fs::read_to_string(folder.join("reference.json")).unwrap();
    (
        ModelFiles::from_folder(&folder).unwrap(),
        serde_json::from_str(&reference).unwrap(),
    )
}

/// A recorded tensor `[batch, tokens, hidden]`.
pub(super) fn recorded(tensor: &Value) -> Hidden {
    let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone()).unwrap();
    Hidden::new(recorded_numbers(tensor), shape[0], shape[1], shape[2]).unwrap()
}

/// Recorded input of block 0 and outputs of all blocks.
pub(super) fn recorded_states(reference: &Value) -> Vec<Hidden> {
    let outputs = reference["blocks"].as_array().unwrap().iter().map(recorded);
    std::iter::once(recorded(&reference["block_inputs"]))
        .chain(outputs)
        .collect()
}

pub(super) fn recorded_numbers(tensor: &Value) -> Vec<f32> {
    assert_eq!(tensor["dtype"], "float32");
    let bytes = hex::decode(tensor["hex_le"].as_str().unwrap()).unwrap();
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

/// Two threads, so that tests meet what only several do.
pub(crate) fn engine() -> Engine {
    Engine::new(NonZeroUsize::new(2)).unwrap()
}

pub(super) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

pub(super) fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

pub(super) fn random_hidden(rng: &mut StdRng, batch: usize, tokens: usize, width: usize) -> Hidden {
    Hidden::new(random(rng, batch * tokens * width), batch, tokens, width).unwrap()
}

/// The tokens `range` of every sequence.
pub(super) fn tokens(x: &Hidden, range: Range<usize>) -> Hidden {
    let rows = x.data.chunks_exact(x.tokens * x.width);
    let data = rows
        .flat_map(|row| row[range.start * x.width..range.end * x.width].to_vec())
        .collect();
    Hidden::new(data, x.batch, range.len(), x.width).unwrap()
}

/// Sequence `row`.
pub(super) fn sequence(x: &Hidden, row: usize) -> Hidden {
    let len = x.tokens * x.width;
    Hidden::new(x.data[row * len..(row + 1) * len].to_vec(), 1, x.tokens, x.width).unwrap()
}

#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(difference <= tolerance, "number {i}: {found} instead of {expected}");
    }
}

/// Bit for bit: what is computed in one order of additions has no other outcome.
#[track_caller]
pub(crate) fn assert_same_bits(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found.to_bits() == expected.to_bits();
        assert!(same, "number {i}: {found:?} instead of {expected:?}");
    }
}

/// The size of all differences, over that of all numbers expected.
pub(super) fn distance(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let size = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let differences = size(&mut expected.iter().zip(found).map(|(a, b)| a - b));
    (differences / size(&mut expected.iter().copied())) as f32
}

/// A copy of a fixture in f32 with the weights that are left of it in `format`. Routers and norms are never quantised.
pub(super) fn widened(path: &str, format: WeightFormat) -> TempDir {
    let (files, _) = fixture_at(path);
    let bytes = fs::read(vectors(path).join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = stored
        .iter()
        .map(|(name, view)| {
            let numbers = match view.dtype() {
                Dtype::F32 => view.data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
                _ => {
                    let halves = view.data().chunks_exact(2);
                    halves
                        .map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32())
                        .collect()
                }
            };
            (name.to_owned(), (view.shape().to_vec(), numbers))
        })
        .collect();
    let (engine, dtype) = (engine(), WeightDType::F32);
    let precision = Precision { weights: format, dtype };
    let mut reader = TensorReader::new(&files, precision, &engine);
    for block in 0..files.config().n_blocks {
        let layout = BlockLayout::new(files.config(), block, &|name| stored.tensor(name).is_ok());
        let router = layout.router.as_ref().map(|router| &router.weight);
        for spec in layout.matrices().filter(|spec| Some(*spec) != router) {
            let left = reader.matrix(spec).unwrap().to_f32();
            let (_, numbers) = tensors.get_mut(&spec.name).unwrap();
            for (row, left) in left.chunks_exact(spec.cols).enumerate() {
                let first = spec.rows.stored(row) * spec.cols;
                numbers[first..first + spec.cols].copy_from_slice(left);
            }
        }
    }
    let config = fs::read_to_string(vectors(path).join("config.json")).unwrap();
    write_model(&serde_json::from_str(&config).unwrap(), &tensors)
}

/// A configuration of one small block, with `changes`.
pub(super) fn small_config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 8, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// The tensors of all blocks that `config` asks for, with random numbers.
pub(super) fn random_tensors(config: &Value, seed: u64) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let config = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    let mut rng = rng(seed);
    let mut tensors = BTreeMap::new();
    for block in 0..config.n_blocks {
        let layout = BlockLayout::new(&config, block, &|_| false);
        for tensor in layout.tensors() {
            let (cols, len) = (tensor.cols, tensor.shape.iter().product());
            let (offset, scale) = match tensor.name.contains("norm") {
                true => (1.0, 0.3),
                false if cols == 1 => (0.0, 1.0),
                false => (0.0, 1.7 / (cols as f32).sqrt()),
            };
            let numbers = random(&mut rng, len).iter().map(|x| offset + x * scale).collect();
            tensors.insert(tensor.name.clone(), (tensor.shape.clone(), numbers));
        }
    }
    tensors
}

/// Writes a model folder with f32 weights.
pub(super) fn write_model(config: &Value, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::write(folder.path().join("model.safetensors"), safetensors_of(tensors)).unwrap();
    folder
}

pub(super) fn safetensors_of(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (shape, numbers))| {
        let bytes = bytemuck::cast_slice(numbers);
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A random model of one configuration, loaded.
pub(super) fn random_blocks(changes: Value, seed: u64, precision: impl Into<Precision>) -> Blocks {
    let config = small_config(changes);
    let folder = write_model(&config, &random_tensors(&config, seed));
    let files = ModelFiles::from_folder(folder.path()).unwrap();
    let n_blocks = files.config().n_blocks;
    Blocks::load(&files, 0..n_blocks, precision, engine()).unwrap()
}

/// `x` through `block`, `n` tokens at a time, in a cache of its own.
pub(super) fn stepwise(blocks: &Blocks, block: u32, x: &Hidden, n: usize) -> Vec<f32> {
    let mut cache = blocks.new_cache(1, x.batch, x.tokens);
    let mut by_step = Vec::new();
    for start in (0..x.tokens).step_by(n) {
        let mut part = tokens(x, start..(start + n).min(x.tokens));
        blocks.step(block, &mut cache, 0, &mut part, start).unwrap();
        by_step.push(part);
    }
    let sequences = (0..x.batch).flat_map(|row| by_step.iter().flat_map(move |part| sequence(part, row).data));
    sequences.collect()
}

pub(super) fn whole(blocks: &Blocks, block: u32, x: &Hidden) -> Hidden {
    let mut out = x.clone();
    blocks.forward(block, &mut out).unwrap();
    out
}

pub(super) fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Greedy continuation of `prompt`, with all blocks in place of a swarm.
pub(super) fn generate(files: &ModelFiles, prompt: &[u32], n: usize, dtype: WeightDType) -> Vec<u32> {
    let config = files.config();
    let ends = Ends::load(files, dtype, &engine()).unwrap();
    let blocks = Blocks::load(files, 0..config.n_blocks, dtype, engine()).unwrap();
    let mut cache = blocks.new_cache(config.n_blocks as usize, 1, prompt.len() + n);
    let sampler = Sampler::new(SamplingParams::default()).unwrap();
    let (mut history, mut position) = (prompt.to_vec(), 0);
    while history.len() < prompt.len() + n {
        let mut x = ends.embed(&history[position..]).unwrap();
        for block in 0..config.n_blocks {
            blocks
                .step(block, &mut cache, block as usize, &mut x, position)
                .unwrap();
        }
        position = history.len();
        let logits = ends.logits(&x.data[x.data.len() - x.width..]).unwrap();
        let (prompt, output) = history.split_at(prompt.len());
        let choice = sampler.next(&logits, Seen { prompt, output }, None).unwrap();
        history.push(choice.token);
    }
    history.split_off(prompt.len())
}
