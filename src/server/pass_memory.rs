//! What passes over whole sequences hold, and the memory that is kept for them: a pass reserves all it will need before
//! its tensors are decoded, and waits in line for it. Who holds what of it is `memory.rs`'s business.

use std::time::Duration;

use super::{
    checkpoints::most_inputs,
    error::RequestError,
    memory::{Lease, Memory},
};
use crate::model::{INNER_TOKENS_ON_THE_WAY_BACK, KvDType, ModelConfig, bytes_on_the_way_back, in_whole_pages};

/// Deep prompts that the largest pass may have, in tokens of a sequence.
const PROMPT_TOKENS: usize = 64;

/// What a number takes, in bytes.
const NUMBER: u64 = size_of::<f32>() as u64;

/// What a token costs in a pass through one model. Bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Costs {
    /// Of a token's activations between two blocks.
    row: u64,
    /// Of a token's keys and values in one block.
    kv: u64,
    /// Of whatever exists of a token on a block's way back.
    back: u64,
    /// Of what is inside of its feed-forward part then.
    inner: u64,
    /// Of the part of a matrix that is multiplied by on the way back: it is f32 then.
    matrix: u64,
    /// Of the block that is on its way back, if it was brought from a card for that.
    brought: u64,
}

/// A pass, by what its memory depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PassSize {
    /// Sequences.
    pub(crate) batch: usize,
    /// Of each sequence.
    pub(crate) tokens: usize,
    /// Of the chain.
    pub(crate) n_blocks: usize,
    /// Numbers of all deep prompts as they come.
    pub(crate) prompt_numbers: usize,
    /// Tokens of each sequence that prompts are added to.
    pub(crate) prefix: usize,
    /// Whether it is a backward pass.
    pub(crate) is_backward: bool,
}

/// What a pass reserves, and how it is computed within that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PassPlan {
    bytes: u64,
    /// Blocks of which the input of the first is kept, in a backward pass.
    pub(crate) stretch: usize,
}

/// The memory of all passes through a span. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct PassMemory {
    memory: Memory,
    costs: Costs,
}

impl Costs {
    /// Of a model whose keys and values are kept as `kv_dtype`.
    pub(crate) fn new(config: &ModelConfig, kv_dtype: KvDType) -> Self {
        let [hidden, inner] = [config.hidden_size, config.intermediate_size].map(|n| n as u64 * NUMBER);
        let [queries, keys] = [config.n_heads, config.n_kv_heads].map(|n| (n * config.head_dim) as u64 * NUMBER);
        Self {
            row: hidden,
            kv: config.cache_bytes_per_token(kv_dtype) as u64,
            back: 12 * hidden + 6 * (queries + keys),
            inner: 5 * inner,
            matrix: largest_part(config),
            brought: 0,
        }
    }

    /// The same where blocks are on cards: one is brought to the host in f32 for its way back, each matrix beside what it was
    /// unpacked to.
    pub(crate) fn with_blocks_on_cards(self, config: &ModelConfig) -> Self {
        let [hidden, inner, queries] = widths(config).map(|n| n as u64 * NUMBER);
        let largest = hidden.saturating_mul(inner.max(queries) / NUMBER);
        Self {
            brought: config
                .numbers_per_block()
                .saturating_mul(NUMBER)
                .saturating_add(largest),
            ..self
        }
    }

    /// What is to be kept for passes if there is plenty: the largest backward pass through `n_blocks` blocks and the largest
    /// forward pass beside it, with inputs computed again where that saves memory.
    pub(crate) fn wish(&self, max_tokens: usize, n_blocks: usize) -> u64 {
        let largest = |is_backward| PassSize {
            batch: 1,
            tokens: max_tokens,
            n_blocks,
            prompt_numbers: n_blocks.saturating_mul(PROMPT_TOKENS) * (self.row / NUMBER) as usize,
            prefix: PROMPT_TOKENS,
            is_backward,
        };
        let [there, back] = [false, true].map(|is_backward| self.least(&largest(is_backward)));
        there.bytes.saturating_add(back.bytes)
    }

    /// How `size` is computed with the fewest bytes.
    fn least(&self, size: &PassSize) -> PassPlan {
        let plans = self.plans(size);
        let least = plans.min_by_key(|plan| plan.bytes);
        least.unwrap_or(PassPlan { bytes: 0, stretch: 1 })
    }

    /// The ways to compute `size`, those that compute less first.
    fn plans(&self, size: &PassSize) -> impl Iterator<Item = PassPlan> {
        let stretches = if size.is_backward { size.n_blocks } else { 1 };
        (1..=stretches.max(1)).map(|stretch| PassPlan {
            bytes: self.bytes(size, stretch),
            stretch,
        })
    }

    fn bytes(&self, size: &PassSize, stretch: usize) -> u64 {
        let (batch, n_blocks) = (size.batch as u64, size.n_blocks as u64);
        let tokens = batch.saturating_mul(size.tokens as u64);
        let row = tokens.saturating_mul(self.row);
        let pages = batch
            .saturating_mul(in_whole_pages(size.tokens as u64))
            .saturating_mul(self.kv);
        // As they come, and as they are used.
        let prompts = (size.prompt_numbers as u64).saturating_mul(2 * NUMBER);
        if !size.is_backward {
            // Its activations, and the answer with the copies that encoding makes.
            return row.saturating_mul(4).saturating_add(pages).saturating_add(prompts);
        }
        let inputs = row.saturating_mul(most_inputs(size.n_blocks, stretch) as u64);
        let back = tokens
            .saturating_mul(self.back)
            .saturating_add(
                tokens
                    .min(INNER_TOKENS_ON_THE_WAY_BACK as u64)
                    .saturating_mul(self.inner),
            )
            .saturating_add(self.matrix)
            .saturating_add(self.brought);
        // One by one, and together in the answer.
        let by_prompts = n_blocks
            .saturating_mul(batch)
            .saturating_mul(size.prefix as u64)
            .saturating_mul(2 * self.row);
        let parts = [row, inputs, pages.max(back), prompts, by_prompts];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// Of all matrices of a block.
fn largest_part(config: &ModelConfig) -> u64 {
    let [hidden, inner, queries] = widths(config);
    let shapes = [[inner, hidden], [hidden, inner], [queries, hidden], [hidden, queries]];
    shapes.map(bytes_on_the_way_back).into_iter().fold(0, u64::max)
}

/// Of a block's matrices: of activations, of the feed-forward part, of all queries.
fn widths(config: &ModelConfig) -> [usize; 3] {
    [
        config.hidden_size,
        config.intermediate_size,
        config.n_heads * config.head_dim,
    ]
}

impl PassMemory {
    /// `bytes` for all passes through a model with these costs.
    pub(crate) fn new(costs: Costs, bytes: u64) -> Self {
        Self {
            memory: Memory::new(bytes),
            costs,
        }
    }

    /// Bytes that no pass has reserved.
    pub(crate) fn untaken(&self) -> u64 {
        self.memory.free_bytes()
    }

    /// Whether nothing is reserved.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.memory.is_free()
    }

    /// What is reserved. Bytes.
    #[cfg(test)]
    pub(crate) fn reserved(&self) -> u64 {
        self.memory.max().counted - self.memory.free_bytes()
    }

    /// All of it.
    #[cfg(test)]
    pub(crate) async fn take_all(&self) -> Lease {
        self.memory.lease(self.memory.max(), Duration::MAX).await.unwrap()
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn n_waiting(&self) -> usize {
        self.memory.n_waiting()
    }

    /// How a pass is computed: as fast as it can be in the memory that there is.
    ///
    /// # Errors
    /// When it does not fit, even alone.
    pub(crate) fn plan(&self, size: &PassSize) -> Result<PassPlan, RequestError> {
        let max = self.memory.max().taken;
        let fitting = self.costs.plans(size).find(|plan| plan.bytes <= max);
        fitting.ok_or_else(|| RequestError::PassTooLarge {
            tokens: size.batch.saturating_mul(size.tokens),
            n_blocks: size.n_blocks,
            bytes: self.costs.least(size).bytes,
            max,
        })
    }

    /// Waits in line for the memory of a pass; own passes go before those of others.
    ///
    /// # Errors
    /// Never: whatever was planned fits some time.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the line.
    pub(crate) async fn lease(&self, plan: PassPlan, own: bool) -> Result<Lease, RequestError> {
        self.memory.lease_in_turn(plan.bytes, (Duration::MAX, own)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::KnownModel;

    const GIB: u64 = 1 << 30;

    fn llama() -> (Costs, PassSize) {
        let known = KnownModel::find("Llama-3.1-8B").unwrap().unwrap();
        let size = PassSize {
            batch: 1,
            tokens: 8192,
            n_blocks: 32,
            is_backward: true,
            ..PassSize::default()
        };
        (Costs::new(&known.config, KvDType::Bf16), size)
    }

    #[test]
    fn the_largest_request_through_the_whole_of_a_model_fits_what_is_wished_for() {
        let (costs, size) = llama();
        let wish = costs.wish(8192, 32);
        assert!((4 * GIB..6 * GIB).contains(&wish), "{wish}");
        let passes = PassMemory::new(costs, wish);
        let plan = passes.plan(&size).unwrap();
        assert!(plan.stretch > 1, "its inputs alone take 4 GiB");
        let wide = PassSize {
            batch: 8192,
            tokens: 1,
            ..size
        };
        assert!(passes.plan(&wide).is_ok());
        let smaller = PassSize { tokens: 1024, ..size };
        assert_eq!(passes.plan(&smaller).unwrap().stretch, 1, "nothing is computed twice");
    }

    #[test]
    fn what_trainers_send_at_a_time_fits_on_a_machine_with_a_slice_of_a_large_model() {
        for (name, n_blocks, tokens) in [("Llama-3.1-70B", 29, 128), ("Llama-3.1-405B", 8, 32)] {
            let known = KnownModel::find(name).unwrap().unwrap();
            let size = PassSize {
                batch: 8,
                tokens,
                n_blocks,
                is_backward: true,
                ..PassSize::default()
            };
            // An eighth of 16 GiB.
            let passes = PassMemory::new(Costs::new(&known.config, KvDType::Bf16), 2 * GIB);
            assert!(passes.plan(&size).is_ok(), "{name}");
        }
    }

    #[test]
    fn beside_cards_a_way_back_takes_the_block_in_f32_and_the_way_there_does_not() {
        let known = KnownModel::find("Llama-3.1-70B").unwrap().unwrap();
        let costs = Costs::new(&known.config, KvDType::Bf16);
        let beside_cards = costs.with_blocks_on_cards(&known.config);
        let size = |is_backward| PassSize {
            batch: 1,
            tokens: 8,
            n_blocks: 1,
            is_backward,
            ..PassSize::default()
        };
        let [there, back] = [false, true].map(|is_backward| {
            let bytes = |costs: Costs| costs.least(&size(is_backward)).bytes;
            bytes(beside_cards) - bytes(costs)
        });
        assert_eq!(there, 0);
        // 856 million numbers, and the largest matrix once more.
        assert_eq!(back, 4 * (855_654_400 + 8192 * 28672));
    }

    #[test]
    fn a_pass_that_never_fits_is_told_the_limit() {
        let (costs, size) = llama();
        let error = PassMemory::new(costs, GIB).plan(&size).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a pass of 8192 tokens through 32 blocks needs 4.3 GiB, more than the 1.0 GiB that this server keeps for passes; \
             send fewer tokens or blocks at a time"
        );
        let huge = PassSize {
            batch: usize::MAX,
            tokens: usize::MAX,
            ..size
        };
        assert!(PassMemory::new(costs, u64::MAX - 1).plan(&huge).is_err());
        assert!(
            PassMemory::new(costs, GIB)
                .plan(&PassSize { tokens: 64, ..size })
                .is_ok()
        );
    }
}
