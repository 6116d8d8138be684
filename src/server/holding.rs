//! What holding a model takes, for servers that start and for people who ask before they start one. How many blocks of
//! several models share a memory is planned in `capacity.rs`.

use tracing::error;

use super::{
    LimitChoice,
    capacity::{self, Want},
    pass_memory::Costs,
};
use crate::model::{KvDType, Machine, ModelConfig, Precision, WeightFormat, free_memory, room_on_cards};

/// A model as a server with these flags would hold it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) precision: Precision,
    pub(crate) kv_dtype: KvDType,
    pub(crate) limits: &'a LimitChoice,
}

/// What a machine would hold of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Bytes of a block's weights.
    pub block_bytes: u64,
    /// Bytes of its attention cache.
    pub cache_bytes: u64,
    /// Bytes that are needed once: for activations, for passes over whole sequences, and for requests for those.
    pub scratch_bytes: u64,
    /// Blocks that fit, at most all.
    pub n_blocks: u32,
}

impl Holding<'_> {
    /// As many blocks as fit, without adapters.
    pub(crate) fn want(&self, model: &str) -> Want {
        let config = self.config;
        Want {
            model: model.to_owned(),
            n_blocks: config.n_blocks,
            wanted: None,
            weights: WeightFormat::ALL
                .map(|format| (format, config.block_bytes(format)))
                .to_vec(),
            format: self.precision.weights,
            cache_tokens: self.cache_tokens() as u64,
            cache_token_bytes: self.cache_token_bytes(),
            scratch: self.scratch(),
            passes: self.pass_wish(&self.pass_costs()),
        }
    }

    /// Attention cache per block, in tokens.
    pub(crate) fn cache_tokens(&self) -> usize {
        let chosen = self.limits.attn_cache_tokens;
        chosen.unwrap_or_else(|| capacity::default_attn_cache_tokens(self.config))
    }

    /// Most tokens in one request.
    pub(crate) fn max_batch_size(&self) -> usize {
        let chosen = self.limits.max_batch_size;
        chosen.unwrap_or_else(|| capacity::default_max_tokens(self.config))
    }

    /// Bytes that one compute thread takes for activations, whatever the number of blocks.
    pub(crate) fn scratch(&self) -> u64 {
        let max_chunk_bytes = self.limits.max_chunk_size_bytes;
        self.config.scratch_bytes(self.max_batch_size(), max_chunk_bytes)
    }

    /// Most bytes of one request, all its tensors together.
    pub(crate) fn request_bytes(&self) -> usize {
        capacity::request_bytes(self.config, self.max_batch_size())
    }

    /// What a pass costs.
    pub(crate) fn pass_costs(&self) -> Costs {
        Costs::new(self.config, self.kv_dtype)
    }

    /// Bytes for passes over whole sequences with these costs, if there is plenty: as long and through as many blocks as they
    /// may be, and the requests for them while they come in.
    pub(crate) fn pass_wish(&self, costs: &Costs) -> u64 {
        let computed = costs.wish(self.max_batch_size(), self.config.n_blocks as usize);
        computed.saturating_add(2 * self.request_bytes() as u64)
    }

    /// Bytes that a token of `--attn-cache-tokens` takes in one block: counted as Petals does, kept as we do.
    fn cache_token_bytes(&self) -> u64 {
        let (config, dtype) = (self.config, self.precision.dtype);
        let kept = config.cache_bytes_per_token(self.kv_dtype) as u64;
        let counted = config.cache_bytes_per_token(dtype.into()).max(1) as u64;
        capacity::cache_bytes(config, dtype, 1, 1) * kept / counted
    }
}

/// Bytes that may be planned with, in each place of a machine that blocks can be in. Where nobody says what is free, there is
/// no reason to expect the worst; of a card that does not answer there is.
pub fn room(machine: &Machine) -> Vec<u64> {
    match room_on_cards(machine) {
        Ok(None) => vec![free_memory().unwrap_or(u64::MAX)],
        Ok(Some(cards)) => cards,
        Err(error) => {
            error!(
                error = &error as &dyn std::error::Error,
                "a card does not say what is free"
            );
            vec![0]
        }
    }
}

/// What fits into `room` of a model, weights and cache in these formats, with default limits.
pub fn fit(config: &ModelConfig, (precision, kv_dtype): (Precision, KvDType), room: &[u64]) -> Fit {
    let holding = Holding {
        config,
        precision,
        kv_dtype,
        limits: &LimitChoice::default(),
    };
    let want = holding.want("").settled(room, 1);
    Fit {
        block_bytes: config.block_bytes(precision.weights),
        cache_bytes: want.cache(),
        scratch_bytes: want.scratch,
        n_blocks: capacity::fit(room, &want).min(config.n_blocks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KnownModel, WeightDType};

    #[test]
    fn what_is_said_to_fit_is_what_a_server_would_plan() {
        let known = KnownModel::find("Llama-3.1-8B").unwrap().unwrap();
        for weights in [WeightFormat::Bf16, WeightFormat::Q4_0] {
            let precision = Precision {
                weights,
                dtype: WeightDType::Bf16,
            };
            let room = [4 << 30];
            let found = fit(&known.config, (precision, KvDType::Bf16), &room);
            let limits = LimitChoice::default();
            let holding = Holding {
                config: &known.config,
                precision,
                kv_dtype: KvDType::Bf16,
                limits: &limits,
            };
            let planned = capacity::plan(&room, &[holding.want("Llama-3.1-8B")]).unwrap();
            assert_eq!(planned, [[found.n_blocks as usize]]);
            let needed = |n: u64| n * (found.block_bytes + found.cache_bytes) + found.scratch_bytes;
            assert!(needed(found.n_blocks.into()) <= room[0] && room[0] < needed(u64::from(found.n_blocks) + 1));
        }
    }
}
