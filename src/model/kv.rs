//! Cached keys and values of one session: per block of its chain and per row of its batch a list of pages, which grows
//! with the sequence and never copies history. Rewinding overwrites; beams, and sessions that begin alike, share pages
//! until one of them writes. How much memory a session may have is not decided here.
//!
//! ```text
//! Cache ──▶ chain entry ──▶ Row (a sequence) ──▶ PageRef ──▶ Page (16 tokens)
//!   └─ Track: what the tokens were made of          └───────▶ Arena: free pages · known prefixes
//! ```

mod arena;
mod page;
mod places;
mod prefix;
mod room;
mod row;
mod track;

use std::{ops::Range, sync::Arc};

pub use arena::CacheCounts;
pub(crate) use arena::{Arena, PageRef};
pub(crate) use page::{HeadPage, PAGE_TOKENS};
use places::Places;
pub(crate) use row::Row;
use track::Track;

use super::{AdapterId, ComputeError, ModelConfig, WeightDType, cpu::LANES};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDType {
    /// 4 bytes per number, exact.
    F32,
    /// 2 bytes per number.
    Bf16,
    /// 2 bytes per number.
    F16,
    /// 1 byte per number, and 4 for the scale of a head's key or value of a token.
    Int8,
}

impl KvDType {
    /// Bytes per number, scales not counted.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Int8 => 1,
        }
    }
}

impl From<WeightDType> for KvDType {
    fn from(dtype: WeightDType) -> Self {
        match dtype {
            WeightDType::F32 => Self::F32,
            WeightDType::Bf16 => Self::Bf16,
            WeightDType::F16 => Self::F16,
        }
    }
}

/// Tokens that a sequence of `tokens` takes memory for: it takes whole pages.
pub(crate) fn in_whole_pages(tokens: u64) -> u64 {
    tokens.div_ceil(PAGE_TOKENS as u64).saturating_mul(PAGE_TOKENS as u64)
}

/// What one token costs in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) dtype: KvDType,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvShape {
    pub(crate) fn new(config: &ModelConfig, dtype: KvDType) -> Self {
        Self {
            dtype,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Bytes of a key and a value of all heads.
    pub(crate) fn bytes_per_token(self) -> usize {
        let scale = match self.dtype {
            KvDType::Int8 => size_of::<f32>(),
            _ => 0,
        };
        2 * self.n_kv_heads * (self.head_dim * self.dtype.size() + scale)
    }

    /// Numbers of a head in whole panels.
    pub(crate) fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}

/// Keys and values of one session. Memory is taken as tokens arrive and given back when the cache is dropped; it never
/// exceeds `chain · batch · max_length · cache_bytes_per_token`, with `max_length` in whole pages. What a session that shares
/// takes besides is bounded for all of them together.
#[derive(Debug)]
pub struct Cache {
    arena: Arc<Arena>,
    batch: usize,
    max_length: usize,
    /// What the session goes through besides the frozen weights: its keys and values are of no use to others.
    adapter: Option<AdapterId>,
    /// `[chain][batch]`
    chain: Vec<Vec<Row>>,
    /// `None` if the session shares nothing with others.
    track: Option<Box<Track>>,
}

impl Cache {
    pub(crate) fn new(arena: &Arc<Arena>, chain_len: usize, batch: usize, max_length: usize) -> Self {
        Self {
            arena: arena.clone(),
            batch,
            max_length,
            chain: vec![vec![Row::new(arena, max_length); batch]; chain_len],
            adapter: None,
            track: None,
        }
    }

    /// From now on what this session computes is known to others with the same `identity` and adapter, and it takes over what they
    /// computed, if there is memory to follow it. Tokens have `width` numbers; `dtype` is what outputs are rounded to before anybody
    /// gets them.
    pub(crate) fn share_prefixes(&mut self, identity: &[u8], (width, dtype): (usize, WeightDType)) {
        let mut seed = blake3::Hasher::new();
        seed.update(identity);
        if let Some(AdapterId(adapter)) = self.adapter {
            seed.update(&adapter.to_le_bytes());
        }
        let seed = *seed.finalize().as_bytes();
        let track = Track::new(self.arena.room(), seed, (width, dtype), (self.batch, self.max_length));
        self.track = track.map(Box::new);
    }

    /// The cache of a session that wants an adapter. To be said before anything is shared.
    #[must_use]
    pub fn with_adapter(mut self, adapter: Option<AdapterId>) -> Self {
        self.adapter = adapter;
        self
    }

    pub(crate) fn adapter(&self) -> Option<AdapterId> {
        self.adapter
    }

    /// Makes row `i` a continuation of what was row `rows[i]`, in every block of the chain (Petals' `hypo_ids`).
    /// A row may be taken several times; nothing is copied until one of the takers writes.
    ///
    /// # Errors
    /// If there are not as many rows as the batch has, or one is outside the batch. Nothing is changed then.
    pub fn reorder(&mut self, rows: &[usize]) -> Result<(), ComputeError> {
        if rows.len() != self.batch || rows.iter().any(|row| *row >= self.batch) {
            return Err(ComputeError::Reorder {
                batch: self.batch,
                rows: rows.to_vec(),
            });
        }
        if rows.iter().enumerate().all(|(i, row)| i == *row) {
            return Ok(());
        }
        let (places, mut spent) = (Places::of(rows), Vec::new());
        for entry in &mut self.chain {
            places.apply(entry, |from, to: &mut Row| to.become_like(from, &mut spent));
        }
        PageRef::end_all(spent.drain(..));
        if let Some(track) = &mut self.track {
            track.reorder(&places);
        }
        Ok(())
    }

    /// Those of the rows of chain entry `chain_idx` that are in `among`, if `tokens` more tokens can be written to them at
    /// `position`, and the batch has `batch` of them.
    pub(crate) fn rows_for_step(
        &mut self,
        chain_idx: usize,
        (batch, among): (usize, &Range<usize>),
        position: usize,
        tokens: usize,
    ) -> Result<&mut [Row], ComputeError> {
        if batch != self.batch {
            return Err(ComputeError::Batch {
                expected: self.batch,
                found: batch,
            });
        }
        let chain_len = self.chain.len();
        let Some(rows) = self.chain.get_mut(chain_idx) else {
            return Err(ComputeError::ChainIndex { chain_idx, chain_len });
        };
        if position.checked_add(tokens).is_none_or(|end| end > self.max_length) {
            return Err(ComputeError::TooLong {
                position,
                tokens,
                max_length: self.max_length,
            });
        }
        let rows = &mut rows[among.clone()];
        let cached = rows.iter().map(Row::tokens).min().unwrap_or(position);
        if position > cached {
            return Err(ComputeError::Gap { position, cached });
        }
        Ok(rows)
    }

    pub(crate) fn shape(&self) -> KvShape {
        self.arena.shape()
    }
}

#[cfg(test)]
mod tests;
