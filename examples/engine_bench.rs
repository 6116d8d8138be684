//! How fast blocks run on this machine's CPU, beside what its memory and its arithmetic can do at best.
//!
//! ```text
//! $ cargo run --release --example engine_bench -- FOLDER THREADS FORMAT...
//! {"limits":{"read_gb_s":25.9,"gflop_s":301.2},"threads":2,"kernels":"AVX-512"}
//! {"engine":"sepal","format":"bf16","block_bytes":88080384,"decode_s":0.0036,"batch16_s":0.0071,"prefill_s":0.19}
//! ```
//!
//! FOLDER is a Llama-shaped checkpoint whose blocks together exceed the caches by far. Seconds are those of one block: of
//! one token (median), of one token of each of 16 sequences (median), of a prompt of 512 tokens (best). A JSON object a
//! line, for `scripts/bench.sh`; `block_bytes` are those of the weight matrices in that format.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{num::NonZeroUsize, path::Path, time::Instant};

use anyhow::Context;
use sepal::model::{
    Blocks, Cache, Engine, Hidden, ModelConfig, ModelFiles, Part, Precision, Scratch, WeightDType, WeightFormat,
    cpu_kernels, measure_limits,
};
use serde_json::json;

const PROMPT: usize = 512;
const STEPS: usize = 30;
const PASSES: usize = 3;
const SEQUENCES: usize = 16;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (folder, threads) = (arguments.next(), arguments.next());
    let folder = folder.context("which FOLDER?")?;
    let threads: usize = threads.context("how many THREADS?")?.parse()?;
    let engine = Engine::new(NonZeroUsize::new(threads))?;
    let limits = measure_limits(&engine)?;
    let limits = json!({
        "read_gb_s": limits.read_bytes_per_second / 1e9,
        "gflop_s": limits.flops_per_second / 1e9,
    });
    println!(
        "{}",
        json!({"limits": limits, "threads": threads, "kernels": cpu_kernels().0})
    );
    let files = ModelFiles::from_folder(Path::new(&folder))?;
    for name in arguments {
        let weights = WeightFormat::from_name(&name).with_context(|| format!("what is {name}?"))?;
        let dtype = weights.dtype().unwrap_or(WeightDType::Bf16);
        let n_blocks = files.config().n_blocks;
        let blocks = Blocks::load(&files, 0..n_blocks, Precision { weights, dtype }, &engine)?;
        let decode = Bench::new(&blocks, 1, STEPS + PROMPT)?.median(1)?;
        let batch = Bench::new(&blocks, SEQUENCES, STEPS + 1)?.median(1)?;
        let prefill = Bench::new(&blocks, 1, PROMPT)?.best(PROMPT)?;
        let line = json!({
            "engine": "sepal",
            "format": name,
            "block_bytes": block_bytes(files.config(), weights),
            "decode_s": decode,
            "batch16_s": batch,
            "prefill_s": prefill,
        });
        println!("{line}");
    }
    Ok(())
}

/// Bytes of the matrices of a Llama's block.
fn block_bytes(config: &ModelConfig, weights: WeightFormat) -> usize {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let attention = 2 * weights.bytes(queries, hidden) + 2 * weights.bytes(keys, hidden);
    attention + 2 * weights.bytes(inner, hidden) + weights.bytes(hidden, inner)
}

/// Sequences that grow through all blocks.
struct Bench<'a> {
    blocks: &'a Blocks,
    caches: Vec<Cache>,
    scratch: Scratch,
    position: usize,
}

impl<'a> Bench<'a> {
    fn new(blocks: &'a Blocks, sequences: usize, max_length: usize) -> anyhow::Result<Self> {
        let n_blocks = blocks.span().len();
        let caches = (0..sequences)
            .map(|_| blocks.new_cache(n_blocks, 1, max_length))
            .collect();
        Ok(Self {
            blocks,
            caches,
            scratch: Scratch::default(),
            position: 0,
        })
    }

    /// Seconds a block that each of the next steps takes.
    fn times(&mut self, n: usize, tokens: usize) -> anyhow::Result<Vec<f64>> {
        (0..n).map(|_| self.step(tokens)).collect()
    }

    fn median(mut self, tokens: usize) -> anyhow::Result<f64> {
        let mut times = self.times(STEPS, tokens)?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
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
