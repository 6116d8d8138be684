//! Files that the Python `gguf` package wrote (`scripts/make-gguf-vectors.py`), one for each architecture and type of
//! blocks, against transformers with the weights that are in them.

use std::fs;

use candle_core::quantized::GgmlDType;
use serde_json::Value;

use crate::model::{
    Blocks, ModelFiles, ModelSource, Precision, WeightDType, WeightFormat, accuracy,
    files::Weights,
    hub::testing::options,
    layout::{BlockLayout, TensorSpec},
    load::TensorReader,
    quant::ggml::{can_lay_out, own_format},
    testing::{assert_close, engine, generate, ids, recorded_states as states, vectors, whole},
};

/// Each with the format that most of its weights have.
const FILES: [(&str, WeightFormat); 11] = [
    ("llama-q8_0", WeightFormat::Q8_0),
    ("llama-q4_0", WeightFormat::Q4_0),
    ("llama-q4_k_m", WeightFormat::Q4K),
    ("llama-k", WeightFormat::Q8_0),
    ("mixtral-q8_0", WeightFormat::Q8_0),
    ("qwen2-q4_0", WeightFormat::Q4_0),
    ("qwen3-q8_0", WeightFormat::Q8_0),
    ("qwen3moe-q4_0", WeightFormat::Q4_0),
    ("gemma2-q8_0", WeightFormat::Q8_0),
    ("gemma3-q4_0", WeightFormat::Q4_0),
    ("phi3-q4_0", WeightFormat::Q4_0),
];

fn fixture(name: &str) -> (ModelSource, ModelFiles, Value) {
    let path = vectors("sepal/gguf").join(format!("{name}.gguf"));
    let source = ModelSource::resolve(path.to_str().unwrap(), &options()).unwrap();
    let files = source.files_for_span(0..source.config().n_blocks).unwrap();
    let reference = fs::read_to_string(path.with_extension("json")).unwrap();
    (source, files, serde_json::from_str(&reference).unwrap())
}

/// Every matrix of every block, and how the file has it.
fn matrices(files: &ModelFiles) -> Vec<(TensorSpec, Option<GgmlDType>)> {
    let Weights::Gguf { file, .. } = files.weights() else {
        panic!("no GGUF file");
    };
    let layouts = (0..files.config().n_blocks).map(|block| BlockLayout::new(files.config(), block, &|t| file.has(t)));
    let specs = layouts.flat_map(|layout| layout.matrices().cloned().collect::<Vec<_>>());
    specs.map(|spec| (spec.clone(), file.kind(&spec.name))).collect()
}

#[test]
fn in_float32_every_architecture_gives_what_transformers_makes_of_the_same_weights() {
    for (name, _) in FILES {
        println!("{name}");
        let (_, files, reference) = fixture(name);
        let blocks = Blocks::load(&files, 0..files.config().n_blocks, WeightDType::F32, engine()).unwrap();
        for (block, pair) in (0..).zip(states(&reference).windows(2)) {
            assert_close(&whole(&blocks, block, &pair[0]).data, &pair[1].data, 1e-4);
        }
        let prompt = ids(&reference["input_ids"][0]);
        let greedy = ids(&reference["greedy"]);
        assert_eq!(generate(&files, &prompt, greedy.len(), WeightDType::F32), greedy);
    }
}

/// A weight of q6_K and others moves by at most half a step of q8_0, of which 127 make the largest of a block. One of q2_K
/// and q3_K moves by at most a step of q4_K, of which 15 are between the least and the largest; scales of 6 bits make that
/// a matter of its super-block.
#[test]
fn own_formats_keep_every_weight_that_there_are_kernels_for_and_move_others_by_a_fraction_of_a_step() {
    let engine = engine();
    for (name, _) in FILES {
        let (_, files, _) = fixture(name);
        let own = files.clone().with_own_formats();
        let mut exact = TensorReader::new(&files, WeightDType::F32, &engine);
        let mut kept = TensorReader::new(&own, WeightDType::F32, &engine);
        for (spec, kind) in matrices(&files) {
            let (wanted, found) = (
                exact.matrix(&spec).unwrap().to_f32(),
                kept.matrix(&spec).unwrap().to_f32(),
            );
            let kind = kind.unwrap();
            let Some(format) = own_format(kind).filter(|format| !can_lay_out(kind, *format)) else {
                assert!(wanted == found, "{name}: {} in {kind:?}", spec.name);
                continue;
            };
            // The scale of a block is rounded to 11 bits.
            let (block, share) = match format {
                WeightFormat::Q8_0 => (32, 0.5 / 127.0 + 1.0 / 2048.0),
                _ => (256, 1.0 / 15.0),
            };
            for (wanted, found) in wanted.chunks(block).zip(found.chunks(block)) {
                let [least, largest] = [f32::min, f32::max].map(|of| wanted.iter().copied().fold(0.0, of));
                let size = if block == 32 {
                    largest.max(-least)
                } else {
                    largest - least
                };
                assert_close(found, wanted, share * size);
            }
        }
    }
}

#[test]
fn with_own_formats_activations_are_those_of_transformers_within_8_bits() {
    for (name, format) in FILES {
        let (source, files, reference) = fixture(name);
        assert_eq!(source.own_format(), Some(format), "{name}");
        let n_blocks = files.config().n_blocks;
        let precision = Precision {
            weights: format,
            dtype: WeightDType::F32,
        };
        let blocks = Blocks::load(&files.with_own_formats(), 0..n_blocks, precision, engine()).unwrap();
        for (block, pair) in (0..).zip(states(&reference).windows(2)) {
            let error = accuracy::max_error(&pair[1].data, &whole(&blocks, block, &pair[0]).data);
            println!("{name} {block}: {error}");
            // Scales of random bits are further apart than q4_K can follow where it takes the place of q2_K and q3_K.
            let tolerance = if name == "llama-k" { 0.5 } else { 0.15 };
            assert!(error <= tolerance, "{name}, block {block}: {error}");
        }
    }
}

#[test]
fn blocks_in_own_formats_are_counted_with_about_the_bytes_of_the_file() {
    for (name, _) in FILES {
        let (source, files, _) = fixture(name);
        let Weights::Gguf { file, .. } = files.weights() else {
            panic!("no GGUF file");
        };
        let of_block = matrices(&files)
            .into_iter()
            .filter(|(spec, _)| spec.name.contains("layers.0."));
        let stored: usize = of_block
            .map(|(spec, _)| file.tensor(&spec.name).unwrap().unwrap().row(0).unwrap().len() * spec.rows.count)
            .sum();
        let counted = source.own_block_bytes(WeightFormat::F32) as f64;
        println!("{name}: {counted} for {stored}");
        // q4_0 and q8_0 keep their 4.5 and 8.5 bits, and their columns are filled up to 64; q6_K has 6.6 bits and gets 8.5.
        assert!(
            counted < 1.6 * stored as f64 && counted >= stored as f64,
            "{name}: {counted} for {stored}"
        );
    }
}
