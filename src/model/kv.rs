//! Cached keys and values of one session: per block of its chain and per row of its batch a list of pages, which grows
//! with the sequence and never copies history. Rewinding overwrites; beams share pages until one of them writes. How
//! much memory a session may have is not decided here.

use std::sync::Arc;

use super::{
    ComputeError, ModelConfig, WeightDType,
    number::{Buffer, Slice},
};

/// Tokens per page: long enough that a page is one call of a kernel, short enough that little is reserved in vain.
const PAGE_TOKENS: usize = 64;

/// What one token costs in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) dtype: WeightDType,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvShape {
    pub(crate) fn new(config: &ModelConfig, dtype: WeightDType) -> Self {
        Self {
            dtype,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Bytes of a key and a value of all heads.
    pub(crate) fn bytes_per_token(self) -> usize {
        2 * self.n_kv_heads * self.head_dim * self.dtype.size()
    }
}

/// Keys and values of one session. Memory is taken as tokens arrive and given back when the cache is dropped; it never
/// exceeds `chain · batch · max_length · cache_bytes_per_token`.
#[derive(Debug)]
pub struct Cache {
    shape: KvShape,
    batch: usize,
    max_length: usize,
    /// `[chain][batch]`
    chain: Vec<Vec<Row>>,
}

impl Cache {
    pub(crate) fn new(shape: KvShape, chain_len: usize, batch: usize, max_length: usize) -> Self {
        let row = Row {
            pages: Vec::new(),
            tokens: 0,
            max_length,
        };
        let chain = vec![vec![row; batch]; chain_len];
        Self {
            shape,
            batch,
            max_length,
            chain,
        }
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
        for entry in &mut self.chain {
            *entry = rows.iter().map(|row| entry[*row].clone()).collect();
        }
        Ok(())
    }

    /// The rows of chain entry `chain_idx`, if `tokens` more tokens of `batch` rows can be written at `position`.
    pub(crate) fn rows_for_step(
        &mut self,
        chain_idx: usize,
        batch: usize,
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
        let cached = rows.iter().map(|row| row.tokens).min().unwrap_or(position);
        if position > cached {
            return Err(ComputeError::Gap { position, cached });
        }
        Ok(rows)
    }

    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }
}

/// One sequence in one block.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pages: Vec<Arc<Page>>,
    /// How many tokens are valid.
    tokens: usize,
    max_length: usize,
}

/// Keys and values of up to `PAGE_TOKENS` tokens, each `[n_kv_heads, capacity, head_dim]`.
#[derive(Clone, Debug)]
struct Page {
    capacity: usize,
    keys: Buffer,
    values: Buffer,
}

/// The part of a page that belongs to one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadPage<'a> {
    /// Position of the first token.
    pub(crate) position: usize,
    /// `[tokens, head_dim]`
    pub(crate) keys: Slice<'a>,
    /// `[tokens, head_dim]`
    pub(crate) values: Slice<'a>,
}

impl Row {
    /// Writes keys and values `[tokens, n_kv_heads, head_dim]` from `position` on, which must not leave a gap; what
    /// was cached behind them is forgotten.
    ///
    /// # Panics
    /// If the tokens lie beyond the maximal length; [`Cache::rows_for_step`] checks it.
    pub(crate) fn write(&mut self, shape: KvShape, position: usize, keys: &[f32], values: &[f32]) {
        let width = shape.n_kv_heads * shape.head_dim;
        self.tokens = position + keys.len() / width;
        assert!(self.tokens <= self.max_length, "keys beyond the end of the cache");
        self.pages.truncate(self.tokens.div_ceil(PAGE_TOKENS));
        while self.pages.len() * PAGE_TOKENS < self.tokens {
            let capacity = PAGE_TOKENS.min(self.max_length - self.pages.len() * PAGE_TOKENS);
            self.pages.push(Arc::new(Page::new(shape, capacity)));
        }
        let tokens = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (position, (keys, values)) in (position..).zip(tokens) {
            let page = Arc::make_mut(&mut self.pages[position / PAGE_TOKENS]);
            page.write(shape, position % PAGE_TOKENS, keys, values);
        }
    }

    /// The first `tokens` tokens of one head, page by page.
    pub(crate) fn head(&self, shape: KvShape, head: usize, tokens: usize) -> impl Iterator<Item = HeadPage<'_>> {
        self.pages.iter().enumerate().map_while(move |(i, page)| {
            let position = i * PAGE_TOKENS;
            let n = tokens.saturating_sub(position).min(page.capacity);
            let start = head * page.capacity * shape.head_dim;
            let range = start..start + n * shape.head_dim;
            (n > 0).then(|| HeadPage {
                position,
                keys: page.keys.as_slice().range(range.clone()),
                values: page.values.as_slice().range(range),
            })
        })
    }
}

impl Page {
    fn new(shape: KvShape, capacity: usize) -> Self {
        let len = shape.n_kv_heads * capacity * shape.head_dim;
        Self {
            capacity,
            keys: Buffer::zeros(shape.dtype, len),
            values: Buffer::zeros(shape.dtype, len),
        }
    }

    fn write(&mut self, shape: KvShape, token: usize, keys: &[f32], values: &[f32]) {
        let heads = keys
            .chunks_exact(shape.head_dim)
            .zip(values.chunks_exact(shape.head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let at = (head * self.capacity + token) * shape.head_dim;
            self.keys.write(at, key);
            self.values.write(at, value);
        }
    }
}

#[cfg(test)]
mod tests;
