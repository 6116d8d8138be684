//! How many blocks fit into this machine's memory when nobody says how many to serve, and how large the cache is.

use sysinfo::System;

use crate::model::{KvDType, ModelConfig, WeightDType, WeightFormat};

/// Share of the free memory that a server takes by itself; the rest stays for the system, the network and scratch space.
const MEMORY_SHARE: f64 = 0.8;

/// Defaults of Petals that depend on whether keys and values are shared among heads (`server/server.py`).
const CACHE_TOKENS_GROUPED: usize = 16384;
const CACHE_TOKENS_FULL: usize = 4096;
const TOKENS_GROUPED: usize = 8192;
const TOKENS_FULL: usize = 2048;

/// Cache size per block when `--attn-cache-tokens` is not given, in tokens.
pub(crate) fn default_attn_cache_tokens(config: &ModelConfig) -> usize {
    if has_grouped_heads(config) {
        CACHE_TOKENS_GROUPED
    } else {
        CACHE_TOKENS_FULL
    }
}

/// Longest session, and most tokens in a request, when the flags are not given, in tokens.
pub(crate) fn default_max_tokens(config: &ModelConfig) -> usize {
    if has_grouped_heads(config) {
        TOKENS_GROUPED
    } else {
        TOKENS_FULL
    }
}

/// Most bytes of one request: what `max_batch_size` allows in float32, twice, so that a request somewhat over it is read
/// and refused by name; deep prompts for all blocks; and the rest of the message.
pub(crate) fn request_bytes(config: &ModelConfig, max_batch_size: usize) -> usize {
    const PROMPT_TOKENS: usize = 64;
    const OVERHEAD: usize = 1 << 20;
    let tokens = max_batch_size
        .saturating_mul(2)
        .saturating_add(config.n_blocks as usize * PROMPT_TOKENS);
    tokens
        .saturating_mul(config.hidden_size * size_of::<f32>())
        .saturating_add(OVERHEAD)
}

fn has_grouped_heads(config: &ModelConfig) -> bool {
    config.n_heads > config.n_kv_heads
}

/// Bytes of the whole cache: K and V of `n_blocks` blocks. Petals counts `hidden / groups` per token whatever the head
/// size (`server/server.py`, attn_cache_bytes); so does this, or clients would misread what is announced.
pub(crate) fn cache_bytes(config: &ModelConfig, dtype: WeightDType, tokens: usize, n_blocks: usize) -> u64 {
    let per_block = 2 * config.hidden_size as u64 * tokens as u64 / config.group_size() as u64 * dtype.size() as u64;
    per_block * n_blocks as u64
}

/// As many blocks as fit into the memory that is free now, with their cache: at least one, at most all.
pub(crate) fn blocks_that_fit(
    config: &ModelConfig,
    (weights, cache): (WeightFormat, KvDType),
    cache_tokens: usize,
) -> u32 {
    let mut system = System::new();
    system.refresh_memory();
    let budget = (system.available_memory() as f64 * MEMORY_SHARE) as u64;
    fit(
        budget,
        config.block_bytes(weights) + config.cache_bytes_per_token(cache) as u64 * cache_tokens as u64,
        config.n_blocks,
    )
}

fn fit(budget: u64, per_block: u64, n_blocks: u32) -> u32 {
    u32::try_from(budget / per_block.max(1))
        .unwrap_or(n_blocks)
        .clamp(1, n_blocks.max(1))
}

/// Bytes of the weights of all blocks as they are published, about: what a whole download of them takes.
pub fn weight_bytes(config: &ModelConfig) -> u64 {
    let dtype = config.torch_dtype.unwrap_or(WeightDType::F32);
    config.numbers_per_block() * dtype.size() as u64 * u64::from(config.n_blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_one_block_and_at_most_all_are_served() {
        assert_eq!(fit(0, 10, 80), 1);
        assert_eq!(fit(100, 10, 80), 10);
        assert_eq!(fit(10_000, 10, 80), 80);
    }
}
