//! What a session's sequences were made of: a hash per token over everything that decided its keys and values, so that
//! full pages can be known to others. Tokens with deep prompts, and all after them, are not followed.

use bytemuck::cast_slice;

use super::{
    Cache, Row,
    arena::Arena,
    page::PAGE_TOKENS,
    places::Places,
    prefix::{Key, Known},
};
use crate::model::{Hidden, WeightDType};

/// Of one session.
#[derive(Debug)]
pub(super) struct Track {
    /// What outputs are rounded to before anybody gets them.
    dtype: WeightDType,
    /// Hash of the chain and of whatever else decides what it computes.
    seed: Key,
    sequences: Vec<Sequence>,
    /// The step that runs.
    step: Option<Step>,
}

/// One row of the batch.
#[derive(Clone, Debug, Default)]
struct Sequence {
    /// Of the inputs up to each token. Shorter than the cached sequence if a token could not be followed.
    hashes: Vec<Key>,
    /// Outputs of the tokens from `tail_start` on, until their page is full.
    tail: Vec<f32>,
    tail_start: usize,
}

/// Between the begin and the end of a step.
#[derive(Debug)]
struct Step {
    /// Of the first token that is computed.
    position: usize,
    /// Outputs that were known, per row of the batch.
    known: Vec<Vec<f32>>,
}

impl Track {
    pub(super) fn new(seed: Key, dtype: WeightDType, batch: usize) -> Self {
        Self {
            dtype,
            seed,
            sequences: vec![Sequence::default(); batch],
            step: None,
        }
    }

    /// Brings the rows into another order.
    pub(super) fn reorder(&mut self, places: &Places) {
        places.apply(&mut self.sequences, |from, to| to.become_like(from));
    }

    /// Follows `x` from `position` on, if everything before was followed.
    fn follow(&mut self, x: &Hidden, position: usize, mark: u64) -> bool {
        for sequence in &mut self.sequences {
            sequence.rewind(position, x.width);
        }
        if self.sequences.iter().any(|sequence| sequence.hashes.len() < position) {
            return false;
        }
        let rows = x.data.chunks_exact(x.tokens * x.width);
        for (sequence, row) in self.sequences.iter_mut().zip(rows) {
            let mut last = sequence.hashes.last().copied().unwrap_or(self.seed);
            for token in row.chunks_exact(x.width) {
                last = next_key(&last, mark, token);
                sequence.hashes.push(last);
            }
        }
        true
    }

    /// Keys of the pages that are filled from `position`, the start of one, on.
    fn keys_from(&self, position: usize) -> Vec<Vec<Key>> {
        let sequences = self.sequences.iter();
        let pages = sequences.map(|sequence| sequence.hashes[position..].chunks_exact(PAGE_TOKENS));
        pages
            .map(|pages| pages.map(|page| page[PAGE_TOKENS - 1]).collect())
            .collect()
    }
}

impl Sequence {
    fn rewind(&mut self, position: usize, width: usize) {
        if position >= self.hashes.len() {
            return;
        }
        self.hashes.truncate(position);
        self.tail.truncate(position.saturating_sub(self.tail_start) * width);
        self.tail_start = self.tail_start.min(position);
    }

    /// Becomes what `other` is.
    fn become_like(&mut self, other: &Self) {
        let same = common(&self.hashes, &other.hashes);
        self.hashes.truncate(same);
        self.hashes.extend_from_slice(&other.hashes[same..]);
        self.tail.clone_from(&other.tail);
        self.tail_start = other.tail_start;
    }

    /// Makes all pages known that have become full, and keeps the outputs of the one that has not.
    fn offer(&mut self, arena: &Arena, rows: &[&Row], width: usize, dtype: WeightDType) {
        let (first, end) = (self.tail_start.div_ceil(PAGE_TOKENS), self.hashes.len() / PAGE_TOKENS);
        if self.tail_start < end * PAGE_TOKENS {
            for page_idx in first..end {
                let start = (page_idx * PAGE_TOKENS - self.tail_start) * width;
                let pages: Vec<_> = rows.iter().map(|row| &row.pages()[page_idx]).collect();
                let outputs = &self.tail[start..start + PAGE_TOKENS * width];
                arena.offer(self.key(page_idx), &pages, outputs, dtype);
            }
            arena.touch((0..end).map(|page_idx| self.key(page_idx)));
            self.tail.drain(..(end * PAGE_TOKENS - self.tail_start) * width);
            self.tail_start = end * PAGE_TOKENS;
        }
    }

    fn key(&self, page_idx: usize) -> Key {
        self.hashes[(page_idx + 1) * PAGE_TOKENS - 1]
    }
}

impl Cache {
    /// Begins a step of the whole chain with the tokens `x` at `position`: takes over what is known of them and leaves
    /// in `x` what is to be computed. Returns how many tokens were known. `mark` is what else decides keys, values and
    /// outputs; `None` if that is more than a number.
    pub(crate) fn begin(&mut self, x: &mut Hidden, position: usize, mark: Option<u64>) -> usize {
        let Some(track) = &mut self.track else { return 0 };
        track.step = None;
        let fits = x.batch == self.batch && position.checked_add(x.tokens).is_some_and(|end| end <= self.max_length);
        if !fits || x.data.is_empty() || x.check_size().is_err() {
            return 0;
        }
        let Some(mark) = mark else {
            track
                .sequences
                .iter_mut()
                .for_each(|sequence| sequence.rewind(position, x.width));
            return 0;
        };
        if !track.follow(x, position, mark) {
            return 0;
        }
        let known = match position % PAGE_TOKENS {
            0 => Arena::recall(&self.arena, &track.keys_from(position)),
            _ => Vec::new(),
        };
        let n_tokens = known.first().map_or(0, Vec::len) * PAGE_TOKENS;
        let (dtype, width) = (track.dtype, x.width);
        track.step = Some(Step {
            position: position + n_tokens,
            known: known.iter().map(|pages| outputs(pages, dtype, width)).collect(),
        });
        if n_tokens > 0 {
            self.share(position, known);
            drop_tokens(x, n_tokens);
        }
        n_tokens
    }

    /// Ends the step: makes what it filled known, and puts the outputs that were known before it in front of `x`, the
    /// outputs that were computed. Nothing happens unless it was begun with `Blocks::begin_step`.
    pub fn end_step(&mut self, x: &mut Hidden) {
        let Some(track) = &mut self.track else { return };
        let Some(step) = track.step.take() else { return };
        for (row_idx, sequence) in track.sequences.iter_mut().enumerate() {
            if sequence.tail.is_empty() {
                sequence.tail_start = step.position;
            }
            let len = x.tokens * x.width;
            sequence
                .tail
                .extend_from_slice(&x.data[row_idx * len..(row_idx + 1) * len]);
            let rows: Vec<&Row> = self.chain.iter().map(|rows| &rows[row_idx]).collect();
            sequence.offer(&self.arena, &rows, x.width, track.dtype);
        }
        put_in_front(x, &step.known);
    }

    fn share(&mut self, position: usize, known: Vec<Vec<Known>>) {
        for (row_idx, pages) in known.iter().enumerate() {
            for (chain_idx, rows) in self.chain.iter_mut().enumerate() {
                rows[row_idx].share(position, pages.iter().map(|known| known.pages[chain_idx].clone()));
            }
        }
    }
}

/// How many tokens two sequences begin with alike, by their hashes: those of one token are alike if all before them are.
fn common(some: &[Key], others: &[Key]) -> usize {
    let (mut alike, mut end) = (0, some.len().min(others.len()));
    while alike < end {
        let middle = alike.midpoint(end);
        match some[middle] == others[middle] {
            true => alike = middle + 1,
            false => end = middle,
        }
    }
    alike
}

fn next_key(last: &Key, mark: u64, token: &[f32]) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(last)
        .update(&mark.to_le_bytes())
        .update(cast_slice(token));
    *hasher.finalize().as_bytes()
}

fn outputs(pages: &[Known], dtype: WeightDType, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(pages.len() * PAGE_TOKENS * width);
    for page in pages {
        page.outputs_into(dtype, PAGE_TOKENS * width, &mut out);
    }
    out
}

/// Drops the first `n` tokens of every sequence.
fn drop_tokens(x: &mut Hidden, n: usize) {
    let rows = x.data.chunks_exact(x.tokens * x.width);
    x.data = rows.flat_map(|row| &row[n * x.width..]).copied().collect();
    x.tokens -= n;
}

/// Puts `known`, tokens of every sequence, before those of `x`.
fn put_in_front(x: &mut Hidden, known: &[Vec<f32>]) {
    let Some(first) = known.first().filter(|first| !first.is_empty()) else {
        return;
    };
    let len = x.tokens * x.width;
    let mut data = Vec::with_capacity(x.data.len() + known.len() * first.len());
    for (row_idx, known) in known.iter().enumerate() {
        data.extend_from_slice(known);
        data.extend_from_slice(&x.data[row_idx * len..(row_idx + 1) * len]);
    }
    x.tokens += first.len() / x.width;
    x.data = data;
}
