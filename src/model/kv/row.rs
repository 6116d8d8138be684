//! One sequence in one block: a list of pages that grows with it. It never copies history; a page that others see too is
//! copied when it is written to.

use std::sync::Arc;

use super::{
    KvShape,
    arena::{Arena, PageRef},
    page::{HeadPage, PAGE_TOKENS},
};

/// Keys and values of one sequence in one block.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pages: Vec<PageRef>,
    /// How many tokens are valid.
    tokens: usize,
    max_length: usize,
}

impl Row {
    pub(crate) fn new(max_length: usize) -> Self {
        Self {
            pages: Vec::new(),
            tokens: 0,
            max_length,
        }
    }

    /// How many tokens are valid.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn pages(&self) -> &[PageRef] {
        &self.pages
    }

    /// Writes keys and values `[tokens, n_kv_heads, head_dim]` from `position` on, which must not leave a gap; what was
    /// cached behind them is forgotten. `turn` is called for every head of every token (counted from 0) just before it
    /// is written.
    ///
    /// # Panics
    /// If the tokens lie beyond the maximal length; `Cache::rows_for_step` checks it.
    pub(crate) fn write(
        &mut self,
        arena: &Arc<Arena>,
        position: usize,
        (keys, values): (&mut [f32], &[f32]),
        turn: impl Fn(usize, &mut [f32]),
    ) {
        let shape = arena.shape();
        let width = shape.n_kv_heads * shape.head_dim;
        let end = position + values.len() / width;
        assert!(end <= self.max_length, "keys beyond the end of the cache");
        self.resize(arena, end);
        let (mut keys, mut values, mut token) = (keys, values, 0);
        while !values.is_empty() {
            let (page_idx, slot) = ((position + token) / PAGE_TOKENS, (position + token) % PAGE_TOKENS);
            let n_tokens = (PAGE_TOKENS - slot).min(values.len() / width);
            let (new_keys, keys_left) = keys.split_at_mut(n_tokens * width);
            let (new_values, values_left) = values.split_at(n_tokens * width);
            (keys, values) = (keys_left, values_left);
            let page = self.pages[page_idx].own();
            let heads = new_keys
                .chunks_exact_mut(shape.head_dim)
                .zip(new_values.chunks_exact(shape.head_dim));
            for (i, (key, value)) in heads.enumerate() {
                let (i, head) = (i / shape.n_kv_heads, i % shape.n_kv_heads);
                turn(token + i, key);
                page.write(shape, (head, slot + i), key, value);
            }
            token += n_tokens;
        }
    }

    /// Goes on from `tokens` tokens and `pages`, full ones, after them.
    pub(crate) fn share(&mut self, tokens: usize, pages: impl Iterator<Item = PageRef>) {
        self.pages.truncate(tokens / PAGE_TOKENS);
        self.pages.extend(pages);
        self.tokens = self.pages.len() * PAGE_TOKENS;
    }

    /// What head `head` has in page `page_idx`.
    pub(crate) fn head(&self, shape: KvShape, head: usize, page_idx: usize) -> HeadPage<'_> {
        self.pages[page_idx].page().head(shape, head)
    }

    fn resize(&mut self, arena: &Arc<Arena>, tokens: usize) {
        let n_pages = tokens.div_ceil(PAGE_TOKENS);
        self.pages.truncate(n_pages);
        if self.pages.capacity() == 0 {
            self.pages.reserve_exact(self.max_length.div_ceil(PAGE_TOKENS));
        }
        while self.pages.len() < n_pages {
            self.pages.push(Arena::take(arena));
        }
        self.tokens = tokens;
    }
}
