//! One sequence in one block: a list of pages that grows with it. It never copies history; a page that others see too is
//! copied when it is written to.

use std::{cell::RefCell, ops::Range, sync::Arc};

use super::{
    KvShape,
    arena::{Arena, PageRef},
    page::{HeadPage, PAGE_TOKENS},
};
use crate::model::{
    CudaError,
    attention::Turn,
    cpu::{Pool, for_parts},
};

thread_local! {
    /// A key that is being changed.
    static KEY: RefCell<Vec<f32>> = RefCell::default();
}

/// Keys and values of one sequence in one block.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Where its pages come from.
    arena: Arc<Arena>,
    pages: Vec<PageRef>,
    /// How many tokens are valid.
    tokens: usize,
    max_length: usize,
}

impl Row {
    pub(crate) fn new(arena: &Arc<Arena>, max_length: usize) -> Self {
        Self {
            arena: arena.clone(),
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
    /// cached behind them is forgotten. `turn` changes every head of a key (of tokens counted from 0) just before it is
    /// written.
    ///
    /// # Panics
    /// If the tokens lie beyond the maximal length; `Cache::rows_for_step` checks it.
    pub(crate) fn write(&mut self, pool: &Pool, position: usize, (keys, values, turn): (&[f32], &[f32], Turn<'_>)) {
        let shape = self.arena.shape();
        let width = shape.n_kv_heads * shape.head_dim;
        let end = position + values.len() / width;
        assert!(end <= self.max_length, "keys beyond the end of the cache");
        self.resize(end);
        if values.is_empty() {
            return;
        }
        let first_page = position / PAGE_TOKENS;
        let pages = &mut self.pages[first_page..];
        // Pages come from the arena one by one.
        for page in pages.iter_mut() {
            page.own();
        }
        for_parts(pool, values.len(), (pages, 1), &|i, page| {
            let page_start = (first_page + i) * PAGE_TOKENS;
            let tokens = position.max(page_start) - position..end.min(page_start + PAGE_TOKENS) - position;
            let page = page[0].own();
            KEY.with_borrow_mut(|key| {
                // A head of a page stays in the nearest cache while it is written.
                for head in 0..shape.n_kv_heads {
                    for token in tokens.clone() {
                        let at = token * width + head * shape.head_dim;
                        key.clear();
                        key.extend_from_slice(&keys[at..at + shape.head_dim]);
                        turn(token, key);
                        let place = (head, position + token - page_start);
                        page.write(shape, place, key, &values[at..at + shape.head_dim]);
                    }
                }
            });
        });
    }

    /// Makes room on the card of `place` for tokens up to the end of `positions`, which are about to be written: every page they
    /// go to is one's own then. What was cached behind them is forgotten, and the pages of a block on another card are given
    /// back.
    ///
    /// # Errors
    /// When the card has no memory left, or is lost.
    ///
    /// # Panics
    /// As [`Row::write`].
    pub(crate) fn prepare_on_card(&mut self, place: usize, positions: Range<usize>) -> Result<(), CudaError> {
        assert!(positions.end <= self.max_length, "keys beyond the end of the cache");
        let n_pages = positions.end.div_ceil(PAGE_TOKENS);
        let elsewhere = positions.start == 0 && self.pages.first().is_some_and(|page| !page.is_at(place));
        self.shorten(if elsewhere { 0 } else { n_pages });
        while self.pages.len() < n_pages {
            self.pages.push(Arena::take_on_card(&self.arena, place)?);
        }
        for page in &mut self.pages[positions.start / PAGE_TOKENS..] {
            page.own_on_card()?;
        }
        self.tokens = positions.end;
        Ok(())
    }

    /// Becomes what `other` is, and shares its pages. Uses of pages that end by it are added to `spent`; what both have
    /// already is left as it is, which is nearly all in beams of one prompt.
    pub(crate) fn become_like(&mut self, other: &Self, spent: &mut Vec<PageRef>) {
        self.reserve();
        spent.extend(self.pages.drain(other.pages.len().min(self.pages.len())..));
        for (own, others) in self.pages.iter_mut().zip(&other.pages) {
            if !own.is_of(others) {
                spent.push(std::mem::replace(own, others.clone()));
            }
        }
        let n_pages = self.pages.len();
        self.pages.extend_from_slice(&other.pages[n_pages..]);
        self.tokens = other.tokens;
    }

    /// Goes on from `tokens` tokens with `pages`, full ones, the first of which is that of the token after them.
    pub(crate) fn share(&mut self, tokens: usize, pages: impl Iterator<Item = PageRef>) {
        self.shorten(tokens / PAGE_TOKENS);
        self.pages.extend(pages);
        self.tokens = self.pages.len() * PAGE_TOKENS;
    }

    /// What head `head` has in page `page_idx`.
    pub(crate) fn head(&self, shape: KvShape, head: usize, page_idx: usize) -> HeadPage<'_> {
        self.pages[page_idx].page().head(shape, head)
    }

    fn resize(&mut self, tokens: usize) {
        let n_pages = tokens.div_ceil(PAGE_TOKENS);
        self.shorten(n_pages);
        while self.pages.len() < n_pages {
            self.pages.push(Arena::take(&self.arena));
        }
        self.tokens = tokens;
    }

    /// To at most `n_pages` pages, with room for all that will ever be.
    fn shorten(&mut self, n_pages: usize) {
        PageRef::end_all(self.pages.drain(n_pages.min(self.pages.len())..));
        self.reserve();
    }

    fn reserve(&mut self) {
        if self.pages.capacity() == 0 {
            self.pages.reserve_exact(self.max_length.div_ceil(PAGE_TOKENS));
        }
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        PageRef::end_all(self.pages.drain(..));
    }
}
