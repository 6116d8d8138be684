//! Steps of sequences through all blocks, timed: what the benchmarks of the engine have in common.

use std::time::Instant;

use sepal::model::{Blocks, Cache, Hidden, Part, Scratch};

/// Sequences that grow through all blocks.
pub(crate) struct Steps<'a> {
    blocks: &'a Blocks,
    caches: Vec<Cache>,
    scratch: Scratch,
    position: usize,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(blocks: &'a Blocks, sequences: usize, max_length: usize) -> Self {
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

    /// Seconds a block that each of the next `n` steps takes.
    pub(crate) fn times(&mut self, n: usize, tokens: usize) -> anyhow::Result<Vec<f64>> {
        (0..n).map(|_| self.step(tokens)).collect()
    }

    /// Seconds a block that each of `n` steps takes, every one of them the first.
    pub(crate) fn prompts(&mut self, n: usize, tokens: usize) -> anyhow::Result<Vec<f64>> {
        let prompts = (0..n).map(|_| {
            self.restart();
            self.step(tokens)
        });
        prompts.collect()
    }

    /// The next step is the first again.
    pub(crate) fn restart(&mut self) {
        self.position = 0;
    }

    /// `tokens` more tokens of every sequence through every block, as many blocks at a call as a server takes.
    pub(crate) fn step(&mut self, tokens: usize) -> anyhow::Result<f64> {
        let width = self.blocks.config().hidden_size;
        let noise: Vec<f32> = (0..tokens * width)
            .map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0)
            .collect();
        let mut xs = vec![Hidden::new(noise, 1, tokens, width)?; self.caches.len()];
        let chain: Vec<u32> = self.blocks.span().collect();
        let started = Instant::now();
        let mut chain_idx = 0;
        while chain_idx < chain.len() {
            let at_a_call = self.blocks.at_a_call(&chain[chain_idx..]);
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
            let blocks = &chain[chain_idx..chain_idx + at_a_call];
            self.blocks.run_batch(blocks, &mut parts, &mut self.scratch)?;
            chain_idx += at_a_call;
        }
        self.position += tokens;
        Ok(started.elapsed().as_secs_f64() / chain.len() as f64)
    }
}

pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
