//! The cache of a span: where its pages come from, and what sessions that begin alike share of it.

use std::sync::Arc;

use super::{
    Blocks, Cache, CacheCounts, Hidden, KvDType, LoadError,
    kv::{Arena, PAGE_TOKENS},
};

/// How a span caches keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// How they are kept; as the weights if `None`.
    pub dtype: Option<KvDType>,
    /// How many tokens of one block there is memory for. More than are reserved at a time are of no use.
    pub block_tokens: u64,
    /// Whether a session takes over what another computed from the same inputs.
    pub share_prefixes: bool,
}

impl Blocks {
    /// Allocates the memory of all caches at once. Without, every page comes from the heap and nothing is shared.
    ///
    /// # Errors
    /// [`LoadError::CacheMemory`] if there is not enough.
    pub fn with_cache(mut self, options: CacheOptions) -> Result<Self, LoadError> {
        let kv = &mut self.shared.heads.kv;
        kv.dtype = options.dtype.unwrap_or(self.precision.dtype.into());
        let n_pages = options.block_tokens.div_ceil(PAGE_TOKENS as u64);
        let n_pages = usize::try_from(n_pages).unwrap_or(usize::MAX);
        let on_card = |card| self.blocks.iter().filter(|held| held.place() == Some(card)).count();
        let shares: Vec<usize> = (0..self.cards.len()).map(on_card).collect();
        self.shared.arena = Arena::of(*kv, (&self.cards, &shares), n_pages)?;
        self.shared.passes = Arena::of(*kv, (&self.cards, &[]), 0)?;
        self.share_prefixes = options.share_prefixes && n_pages > 0;
        Ok(self)
    }

    /// How the memory of all caches is used.
    pub fn cache_counts(&self) -> CacheCounts {
        self.shared.arena.counts()
    }

    /// Whether both take their caches from the same memory, as a span does that was made from another by
    /// [`Blocks::moved`].
    pub fn has_cache_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared.arena, &other.shared.arena)
    }

    /// Lets the session of `cache`, which is empty, share what it computes with all that have the same `chain`, in the same
    /// places, and `adapter`; unless those that do so already have all memory there is for that.
    pub fn share_prefixes(&self, cache: &mut Cache, chain: &[u32], adapter: &str) {
        if self.share_prefixes {
            let mut identity: Vec<u8> = chain.iter().flat_map(|block| block.to_le_bytes()).collect();
            // Spans that share a cache may have a block on different cards, and no card sees the pages of another.
            let cards = chain.iter().map(|block| self.held(*block)?.place());
            identity.extend(cards.flat_map(|card| card.map_or(0, |card| card as u64 + 1).to_le_bytes()));
            identity.extend_from_slice(adapter.as_bytes());
            cache.share_prefixes(&identity, (self.config.hidden_size, self.precision.dtype));
        }
    }

    /// Begins a step of the whole chain of `cache` with the tokens `x` at `position`. Tokens whose outputs are known are
    /// taken out of `x`, their keys and values are in the cache then; returns how many of each sequence. What is left is
    /// computed at as many positions further on. `has_prompts` says that more than `x` decides what comes out.
    pub fn begin_step(&self, cache: &mut Cache, x: &mut Hidden, position: usize, has_prompts: bool) -> usize {
        let sequence_len = position.saturating_add(x.tokens);
        let mut ropes = self.blocks.iter().filter_map(|held| held.rope());
        let mark = match ropes.any(|rope| rope.depends_on(sequence_len)) {
            true => sequence_len as u64,
            false => 0,
        };
        cache.begin(x, position, (!has_prompts).then_some(mark))
    }
}
