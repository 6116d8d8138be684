//! Known prefixes: pages that sessions filled, by what they were filled with, so that a session whose inputs are the
//! same, bit for bit, need not compute them again. They live in memory that nobody needs at the moment: the page whose
//! last use is the longest ago goes as soon as somebody takes a page.
//!
//! A page is known by a hash over all inputs of its sequence up to its last token, and with it the outputs of its 16
//! tokens, which the caller is still owed. What the hash covers is decided in `track`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytemuck::{cast_slice, cast_slice_mut};
use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{
    KvShape,
    arena::{Arena, PageRef, State},
    page::{Home, PAGE_TOKENS, Page},
};
use crate::model::WeightDType;

/// Hash of a sequence's inputs up to some token.
pub(super) type Key = [u8; 32];

/// What is known, and in which order it is forgotten.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<Key, Entry>,
    /// Keys of `entries` by their last use.
    by_age: BTreeMap<u64, Key>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    /// Of every block of the chain.
    pages: Vec<Arc<Page>>,
    /// Pages used as plain memory for the chain's outputs.
    outputs: Vec<Arc<Page>>,
    age: u64,
}

/// A page that is known.
#[derive(Debug)]
pub(super) struct Known {
    /// Of every block of the chain.
    pub(super) pages: Vec<PageRef>,
    outputs: Vec<PageRef>,
}

impl Index {
    /// Pages that only the index has, and those that sessions use as well.
    pub(super) fn pages(&self) -> (usize, usize) {
        let all = self
            .entries
            .values()
            .flat_map(|entry| entry.pages.iter().chain(&entry.outputs));
        let all = all.filter(|page| page.home() != Home::Index);
        all.fold((0, 0), |(alone, shared), page| match Arc::strong_count(page) {
            1 => (alone + 1, shared),
            _ => (alone, shared + 1),
        })
    }

    /// Known pages.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets what was not used for the longest time.
    pub(super) fn forget_oldest(&mut self) -> Option<impl Iterator<Item = Arc<Page>> + use<>> {
        let (_, key) = self.by_age.pop_first()?;
        let entry = self.entries.remove(&key)?;
        Some(entry.pages.into_iter().chain(entry.outputs))
    }

    fn touch(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            self.by_age.remove(&entry.age);
            self.clock += 1;
            entry.age = self.clock;
            self.by_age.insert(entry.age, *key);
        }
    }
}

impl Arena {
    /// What is known of `sequences`, each the hashes of its tokens from the start of a page on: for each the same number of
    /// pages from the first one on, as many as are known of all.
    pub(super) fn recall<'a>(arena: &Arc<Self>, sequences: impl Iterator<Item = &'a [Key]> + Clone) -> Vec<Vec<Known>> {
        if sequences.clone().any(|hashes| hashes.len() < PAGE_TOKENS) {
            return Vec::new();
        }
        let state = arena.lock();
        let entry = |key: &Key| state.index.entries.get(key);
        let n_known = |hashes| page_keys(hashes).map_while(entry).count();
        let n_pages = sequences.clone().map(n_known).min().unwrap_or(0);
        if n_pages == 0 {
            return Vec::new();
        }
        let refer = |pages: &[Arc<Page>]| pages.iter().map(|page| Self::refer(arena, page.clone())).collect();
        let known = |entry: &Entry| Known {
            pages: refer(&entry.pages),
            outputs: refer(&entry.outputs),
        };
        sequences
            .map(|hashes| page_keys(hashes).take(n_pages).filter_map(entry).map(known).collect())
            .collect()
    }

    /// Makes a full page known: `pages` of all blocks of the chain, and the chain's outputs for its tokens, which are
    /// numbers of `dtype`. Older ones are forgotten for it, but nothing is taken from sessions.
    pub(super) fn offer<'a>(
        &self,
        key: Key,
        pages: impl Iterator<Item = &'a PageRef> + Clone,
        (outputs, dtype): (&[f32], WeightDType),
    ) {
        let mut state = self.lock();
        let from_heap = pages.clone().any(|page| page.page().is_overflow());
        if from_heap || state.index.entries.contains_key(&key) {
            return;
        }
        let Some(outputs) = state.keep(self.shape(), outputs, dtype) else {
            return;
        };
        let index = &mut state.index;
        index.clock += 1;
        let entry = Entry {
            pages: pages.map(PageRef::shared).collect(),
            outputs,
            age: index.clock,
        };
        index.by_age.insert(entry.age, key);
        index.entries.insert(key, entry);
    }

    /// Notes that the prefix whose tokens have these hashes is in use: its first page last, because the others are reached
    /// through it.
    pub(super) fn touch(&self, hashes: &[Key]) {
        let mut state = self.lock();
        page_keys(hashes).rev().for_each(|key| state.index.touch(key));
    }
}

/// Keys of the pages that tokens fill, the first of which is the first of a page.
fn page_keys(hashes: &[Key]) -> impl DoubleEndedIterator<Item = &Key> {
    hashes.chunks_exact(PAGE_TOKENS).map(|page| &page[PAGE_TOKENS - 1])
}

impl State {
    /// Copies `numbers` as `dtype` to pages that are free, or as good as free. Beside pages on cards they are on the heap.
    fn keep(&mut self, shape: KvShape, numbers: &[f32], dtype: WeightDType) -> Option<Vec<Arc<Page>>> {
        let (mut pages, mut rest) = (Vec::new(), numbers);
        while !rest.is_empty() {
            let page = match self.heap {
                Some(_) => self.take_from_heap(shape),
                None => self.take_free(0),
            };
            let Some(mut page) = page else {
                pages.into_iter().for_each(|page| self.give_back(page));
                return None;
            };
            if let Some(page) = Arc::get_mut(&mut page) {
                rest = write(page.words_mut(), dtype, rest);
            }
            pages.push(page);
        }
        Some(pages)
    }
}

impl Known {
    /// Appends the first outputs to `out`, until there are `n` more.
    pub(super) fn outputs_into(&self, dtype: WeightDType, n: usize, out: &mut Vec<f32>) {
        let (mut at, end) = (out.len(), out.len() + n);
        out.resize(end, 0.0);
        for page in &self.outputs {
            at += read(page.page().words(), dtype, &mut out[at..]);
        }
    }
}

/// Writes as many `numbers` as fit; the rest of them.
fn write<'a>(words: &mut [f32], dtype: WeightDType, numbers: &'a [f32]) -> &'a [f32] {
    let n = numbers.len().min(size_of_val(words) / dtype.size());
    let (now, rest) = numbers.split_at(n);
    match dtype {
        WeightDType::F32 => words[..n].copy_from_slice(now),
        WeightDType::Bf16 => cast_slice_mut::<_, bf16>(words)[..n].convert_from_f32_slice(now),
        WeightDType::F16 => cast_slice_mut::<_, f16>(words)[..n].convert_from_f32_slice(now),
    }
    rest
}

/// Reads as many numbers as there are, or as `out` has room for; how many.
fn read(words: &[f32], dtype: WeightDType, out: &mut [f32]) -> usize {
    let n = out.len().min(size_of_val(words) / dtype.size());
    let out = &mut out[..n];
    match dtype {
        WeightDType::F32 => out.copy_from_slice(&words[..n]),
        WeightDType::Bf16 => cast_slice::<_, bf16>(words)[..n].convert_to_f32_slice(out),
        WeightDType::F16 => cast_slice::<_, f16>(words)[..n].convert_to_f32_slice(out),
    }
    n
}
