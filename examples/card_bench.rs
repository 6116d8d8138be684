//! How fast blocks run on an NVIDIA card, beside what its memory and its arithmetic can do at best.
//!
//! ```text
//! $ cargo run --release --example card_bench -- [--card N] [--shape SHAPE] [--quick] [FORMAT...]
//! {"card":"cuda NVIDIA …","shape":"llama-70b","blocks":8,"format":"bfloat16","block_bytes":1711341568,"read_gb_s":…, ...}
//! ```
//!
//! SHAPE is `llama-70b`, `tiny` or a folder with the `config.json` of a Llama-shaped model, of which nothing else is read:
//! weights are noise. As many blocks as fit half of what is free on the card, 4 to 8, each with memory of its own: for
//! `llama-70b` in 16 bits the card should have 12 GB. Without a FORMAT all of them but float32, one after the other. Steps go
//! through all blocks at a call, as a server's do, activations there and back included.
//!
//! `read_gb_s` is what a kernel reads of the card's memory that does nothing else, `peak_tflop_s` the fastest product of
//! thousands of tokens with the largest matrix of a block in bfloat16 by cuBLAS, both measured before each format. `decode_s`
//! are the seconds of a block, by how many sequences get one token each; `decode_of_read` is the bandwidth at which weights
//! (`block_bytes`) are read then, as a part of `read_gb_s`. `prefill_s` are the seconds of a block for a prompt of so many
//! tokens; `prefill_of_peak` counts the arithmetic of the matrices only. All are medians after warming up. With `--quick` there is
//! less of everything, to see that it works. A JSON object a line, for `scripts/bench.sh card`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

#[path = "shared/steps.rs"]
mod steps;

use std::{collections::BTreeMap, env, fs, path::Path};

use anyhow::{Context, bail};
use sepal::model::{
    Blocks, Cards, Engine, Machine, ModelConfig, Precision, Toolkit, WeightDType, WeightFormat, measure_cards,
};
use serde_json::{Value, json};
use steps::{Steps, median};

const SEQUENCES: [usize; 4] = [1, 4, 16, 64];
const FORMATS: [&str; 6] = ["bfloat16", "float16", "q8_0", "q4_0", "q4_k", "nf4"];

/// What is left of the blocks' memory is for caches, activations and the measurement of the limits.
const PART_OF_FREE: u64 = 2;

/// How much is done.
struct Effort {
    /// The least exceed the caches by far; more than the most take long to make, and show nothing else.
    blocks: [u64; 2],
    /// Tokens of the prompts.
    prompts: [usize; 2],
    /// Steps that do not count, and those that do.
    steps: [usize; 2],
    /// Repetitions of each prompt that count; one before them does not.
    repetitions: usize,
}

const USUAL: Effort = Effort {
    blocks: [4, 8],
    prompts: [512, 2048],
    steps: [3, 30],
    repetitions: 7,
};
const QUICK: Effort = Effort {
    blocks: [2, 2],
    prompts: [80, 128],
    steps: [1, 1],
    repetitions: 1,
};

fn main() -> anyhow::Result<()> {
    let (mut card, mut shape, mut effort, mut formats) = (0, "llama-70b".to_owned(), USUAL, Vec::new());
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} of what?"));
        match argument.as_str() {
            "--card" => card = value()?.parse()?,
            "--shape" => shape = value()?,
            "--quick" => effort = QUICK,
            name => formats.push(WeightFormat::from_name(name).with_context(|| format!("what is {name}?"))?),
        }
    }
    if formats.is_empty() {
        formats.extend(FORMATS.into_iter().filter_map(WeightFormat::from_name));
    }
    let config = config(&shape)?;
    let machine = Machine::with_cards(Engine::new(None)?, &Cards::These(vec![card]), &toolkit())?;
    for format in formats {
        let mut found = measure(&config, format, &machine, &effort)?;
        found["shape"] = shape.as_str().into();
        println!("{found}");
    }
    Ok(())
}

/// Where the toolkit or a Python environment has NVIDIA's libraries.
fn toolkit() -> Toolkit {
    let places = [
        ("CUDA_HOME", "lib64"),
        ("VIRTUAL_ENV", "lib"),
        ("CONDA_PREFIX", "lib"),
        ("HOME", ".local/lib"),
    ];
    let folders = places.into_iter().filter_map(|(name, below)| {
        let folder = env::var_os(name)?;
        Some(Path::new(&folder).join(below))
    });
    Toolkit {
        folders: folders.collect(),
        kernels: None,
    }
}

fn config(shape: &str) -> anyhow::Result<ModelConfig> {
    let of_sizes = |hidden: usize, intermediate: usize, heads: usize| {
        let config = json!({
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": heads,
            "num_key_value_heads": heads / 8, "num_hidden_layers": 80, "vocab_size": 512, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "rope_theta": 500000.0,
        });
        config.to_string().into_bytes()
    };
    let json = match shape {
        "llama-70b" => of_sizes(8192, 28672, 64),
        "tiny" => of_sizes(64, 176, 8),
        folder => {
            let path = Path::new(folder).join("config.json");
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?
        }
    };
    Ok(ModelConfig::from_json(&json)?)
}

/// What the card does at best, and what blocks in that format do.
fn measure(config: &ModelConfig, weights: WeightFormat, machine: &Machine, effort: &Effort) -> anyhow::Result<Value> {
    let free: u64 = machine.free_on_cards()?.context("no card")?.iter().sum();
    let fit = free / PART_OF_FREE / config.block_bytes(weights).max(1);
    let n_blocks = fit.clamp(effort.blocks[0], effort.blocks[1]) as u32;
    let dtype = weights.dtype().unwrap_or(WeightDType::Bf16);
    let blocks = Blocks::of_noise(config, n_blocks, Precision { weights, dtype }, machine)?;
    let limits = measure_cards(machine, [config.intermediate_size, config.hidden_size])?;
    let limits = limits.first().context("no card")?;
    let Some(peak) = limits.bf16_flops_per_second else {
        bail!("cuBLAS was not found, so that there is no peak to compare with: pip install nvidia-cublas-cu12");
    };
    let (mut decode, mut prefill) = (BTreeMap::new(), BTreeMap::new());
    for sequences in SEQUENCES {
        let [warm_up, steps] = effort.steps;
        let seconds = Steps::new(&blocks, sequences, warm_up + steps).times(warm_up + steps, 1)?;
        decode.insert(sequences, median(seconds[warm_up..].to_vec()));
    }
    for tokens in effort.prompts {
        let seconds = Steps::new(&blocks, 1, tokens).prompts(1 + effort.repetitions, tokens)?;
        prefill.insert(tokens, median(seconds[1..].to_vec()));
    }
    let read = |seconds: f64| blocks.block_bytes() as f64 / seconds / limits.read_bytes_per_second;
    let computed = |tokens: usize, seconds: f64| 2.0 * (config.numbers_per_block() as usize * tokens) as f64 / seconds;
    let of_read: BTreeMap<_, _> = decode.iter().map(|(n, seconds)| (n, read(*seconds))).collect();
    let of_peak: BTreeMap<_, _> = prefill
        .iter()
        .map(|(n, seconds)| (n, computed(*n, *seconds) / peak))
        .collect();
    Ok(json!({
        "card": machine.kernels(),
        "blocks": n_blocks,
        "format": weights.as_str(),
        "block_bytes": blocks.block_bytes(),
        "read_gb_s": limits.read_bytes_per_second / 1e9,
        "peak_tflop_s": peak / 1e12,
        "decode_s": decode,
        "decode_of_read": of_read,
        "prefill_s": prefill,
        "prefill_of_peak": of_peak,
    }))
}
