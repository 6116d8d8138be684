//! How fast blocks run on this machine's CPU, beside what its memory and its arithmetic can do at best.
//!
//! ```text
//! $ cargo run --release --example engine_bench -- FOLDER BLOCKS THREADS
//! {"threads":2,"kernels":"AVX-512","read_gb_s":25.9,"peak_gflop_s":301.2,"gemm_gflop_s":{"float32":270.0,"bfloat16":260.1}}
//! $ cargo run --release --example engine_bench -- FOLDER BLOCKS THREADS FORMAT...
//! {"format":"bfloat16","block_bytes":88080384,"read_gb_s":26.1,"decode_of_read":0.97,"decode_s":0.0036, ...}
//! $ yes | head -2 | cargo run --release --example engine_bench -- FOLDER BLOCKS THREADS FORMAT --turns
//! {"decode_s":0.0035,"prefill_s":0.11}
//! {"decode_s":0.0036,"prefill_s":0.11}
//! ```
//!
//! FOLDER is a Llama-shaped checkpoint whose first BLOCKS together exceed the caches by far. Seconds are those of one block:
//! of one token (median), of one token of each of 16 sequences (median), of a prompt of 512 tokens (best). `gemm` is the
//! product of 512 tokens with the block's largest matrix alone. It may not be alone on the machine, so memory is read once
//! before each token: `decode_of_read` is the median of what blocks read to that. With `--turns` one token after the other and
//! a prompt are timed for each line of the input, so that another engine can have its turn in between. A JSON object a line,
//! for `scripts/bench.sh`; `block_bytes` are those that the weight matrices take in memory: of bfloat16, 12 bits a weight.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{io, num::NonZeroUsize, path::Path, time::Instant};

use anyhow::Context;
use sepal::model::{
    Blocks, Cache, Engine, Hidden, LargeMemory, ModelConfig, ModelFiles, Part, Precision, Scratch, WeightDType,
    WeightFormat, measure_gemm, measure_limits,
};
use serde_json::{Value, json};

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
    let (mut decode, mut prefill) = (Bench::new(blocks, 1, STEPS), Bench::new(blocks, 1, PROMPT));
    for line in io::stdin().lines() {
        line?;
        (decode.position, prefill.position) = (0, 0);
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
    let mut decode = Bench::new(blocks, 1, STEPS);
    let (mut reads, mut steps) = (Vec::new(), Vec::new());
    for _ in 0..STEPS {
        reads.push(memory.bytes_per_second(engine));
        steps.push(decode.step(1)?);
    }
    let shares = reads.iter().zip(&steps);
    let shares = shares.map(|(read, step)| blocks.block_bytes() as f64 / step / read);
    Ok(json!({
        "format": weights.as_str(),
        "block_bytes": blocks.block_bytes(),
        "decode_of_read": median(shares.collect()),
        "read_gb_s": median(reads) / 1e9,
        "decode_s": median(steps),
        "batch16_s": median(Bench::new(blocks, SEQUENCES, STEPS).times(STEPS, 1)?),
        "prefill_s": Bench::new(blocks, 1, PROMPT).best(PROMPT)?,
    }))
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Sequences that grow through all blocks.
struct Bench<'a> {
    blocks: &'a Blocks,
    caches: Vec<Cache>,
    scratch: Scratch,
    position: usize,
}

impl<'a> Bench<'a> {
    fn new(blocks: &'a Blocks, sequences: usize, max_length: usize) -> Self {
        let n_blocks = blocks.span().len();
        let caches = (0..sequences)
            .map(|_| blocks.new_cache(n_blocks, 1, max_length))
            .collect();
        Self {
            blocks,
            caches,
            scratch: Scratch::default(),
            position: 0,
        }
    }

    /// Seconds a block that each of the next steps takes.
    fn times(&mut self, n: usize, tokens: usize) -> anyhow::Result<Vec<f64>> {
        (0..n).map(|_| self.step(tokens)).collect()
    }

    fn best(mut self, tokens: usize) -> anyhow::Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..=PASSES {
            self.position = 0;
            best = best.min(self.step(tokens)?);
        }
        Ok(best)
    }

    /// `tokens` more tokens of every sequence through every block.
    fn step(&mut self, tokens: usize) -> anyhow::Result<f64> {
        let width = self.blocks.config().hidden_size;
        let noise: Vec<f32> = (0..tokens * width)
            .map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0)
            .collect();
        let mut xs = vec![Hidden::new(noise, 1, tokens, width)?; self.caches.len()];
        let started = Instant::now();
        for (chain_idx, block) in self.blocks.span().enumerate() {
            let mut parts: Vec<Part<'_>> = self
                .caches
                .iter_mut()
                .zip(&mut xs)
                .map(|(cache, x)| Part {
                    cache,
                    chain_idx,
                    rows: 0..x.batch,
                    x,
                    position: self.position,
                    tokens: 0..tokens,
                })
                .collect();
            self.blocks.run_batch(&[block], &mut parts, &mut self.scratch)?;
        }
        self.position += tokens;
        Ok(started.elapsed().as_secs_f64() / self.blocks.span().len() as f64)
    }
}
