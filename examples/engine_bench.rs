//! How fast blocks run on this machine's CPU, beside what its memory and its arithmetic can do at best.
//!
//! ```text
//! $ cargo run --release --example engine_bench -- FOLDER BLOCKS THREADS
//! {"threads":2,"kernels":"AVX-512 BF16","read_gb_s":49.8,"peak_gflop_s":515.…,"gemm_gflop_s":{"float32":480.…,…}}
//! $ cargo run --release --example engine_bench -- FOLDER BLOCKS THREADS FORMAT...
//! {"format":"bfloat16","block_bytes":661…,"decode_of_read":0.88,"read_gb_s":72.4,"decode_s":0.00106,…}
//! $ yes | head -2 | cargo run --release --example engine_bench -- FOLDER BLOCKS THREADS FORMAT --turns
//! {"decode_s":0.0017,"prefill_s":0.060}
//! …
//! ```
//!
//! FOLDER is a Llama-shaped checkpoint whose first BLOCKS together exceed the caches by far. Seconds are those of one block:
//! of one token (median), of one token of each of 16 sequences (median), of a prompt of 512 tokens (best). `gemm` is the
//! product of 512 tokens with the block's largest matrix alone. It may not be alone on the machine, so memory is read once
//! before each token: `decode_of_read` is the median of what blocks read to that. With `--turns` one token after the other and
//! a prompt are timed for each line of the input, so that another engine can have its turn in between. A JSON object a line,
//! for `scripts/bench.sh`; `block_bytes` are those that the weight matrices take in memory: of bfloat16, 12 bits a weight.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

#[path = "shared/steps.rs"]
mod steps;

use std::{io, num::NonZeroUsize, path::Path};

use anyhow::Context;
use sepal::model::{
    Blocks, Engine, LargeMemory, ModelConfig, ModelFiles, Precision, WeightDType, WeightFormat, measure_gemm,
    measure_limits,
};
use serde_json::{Value, json};
use steps::{Steps, median};

const PROMPT: usize = 512;
const STEPS: usize = 30;
const PASSES: usize = 3;
const SEQUENCES: usize = 16;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("which FOLDER?")?;
    let n_blocks: u32 = arguments.next().context("how many BLOCKS?")?.parse()?;
    let threads: usize = arguments.next().context("how many THREADS?")?.parse()?;
    let engine = Engine::new(NonZeroUsize::new(threads))?;
    let files = ModelFiles::from_folder(Path::new(&folder))?;
    let mut names: Vec<String> = arguments.collect();
    let in_turns = names.pop_if(|last| last == "--turns").is_some();
    if names.is_empty() {
        println!("{}", machine(&engine, files.config())?);
        return Ok(());
    }
    let memory = LargeMemory::new()?;
    for name in names {
        let weights = WeightFormat::from_name(&name).with_context(|| format!("what is {name}?"))?;
        let dtype = weights.dtype().unwrap_or(WeightDType::Bf16);
        let blocks = Blocks::load(&files, 0..n_blocks, Precision { weights, dtype }, &engine)?;
        if in_turns {
            turns(&blocks)?;
        } else {
            println!("{}", format(weights, &blocks, (&engine, &memory))?);
        }
    }
    Ok(())
}

/// What there is at best.
fn machine(engine: &Engine, config: &ModelConfig) -> anyhow::Result<Value> {
    let limits = measure_limits(engine)?;
    let shape = [config.intermediate_size, config.hidden_size];
    let gemm = |format| measure_gemm(format, shape, PROMPT, engine);
    Ok(json!({
        "threads": engine.threads(),
        "kernels": engine.instructions(),
        "read_gb_s": limits.read_bytes_per_second / 1e9,
        "peak_gflop_s": limits.flops_per_second / 1e9,
        "gemm_gflop_s": {
            WeightFormat::F32.as_str(): gemm(WeightFormat::F32)? / 1e9,
            WeightFormat::Bf16.as_str(): gemm(WeightFormat::Bf16)? / 1e9,
        },
    }))
}

/// A measurement for each line that comes.
fn turns(blocks: &Blocks) -> anyhow::Result<()> {
    let (mut decode, mut prefill) = (Steps::new(blocks, 1, STEPS), Steps::new(blocks, 1, PROMPT));
    for line in io::stdin().lines() {
        line?;
        decode.restart();
        prefill.restart();
        let turn = json!({
            "decode_s": median(decode.times(STEPS, 1)?),
            "prefill_s": prefill.step(PROMPT)?,
        });
        println!("{turn}");
    }
    Ok(())
}

/// What blocks in that format do.
fn format(weights: WeightFormat, blocks: &Blocks, (engine, memory): (&Engine, &LargeMemory)) -> anyhow::Result<Value> {
    let mut decode = Steps::new(blocks, 1, STEPS);
    let (mut reads, mut steps) = (Vec::new(), Vec::new());
    for _ in 0..STEPS {
        reads.push(memory.bytes_per_second(engine));
        steps.push(decode.step(1)?);
    }
    let shares = reads.iter().zip(&steps);
    let shares = shares.map(|(read, step)| blocks.block_bytes() as f64 / step / read);
    let prompts = Steps::new(blocks, 1, PROMPT).prompts(PASSES + 1, PROMPT)?;
    Ok(json!({
        "format": weights.as_str(),
        "block_bytes": blocks.block_bytes(),
        "decode_of_read": median(shares.collect()),
        "read_gb_s": median(reads) / 1e9,
        "decode_s": median(steps),
        "batch16_s": median(Steps::new(blocks, SEQUENCES, STEPS).times(STEPS, 1)?),
        "prefill_s": prompts.into_iter().fold(f64::INFINITY, f64::min),
    }))
}
