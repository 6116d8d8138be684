//! What a session's sequences were made of: a hash per token over everything that decided its keys and values, so that
//! full pages can be known to others. Tokens with deep prompts, and all after them, are not followed.

use std::sync::Arc;

use bytemuck::cast_slice;

use super::{
    Cache,
    arena::Arena,
    page::PAGE_TOKENS,
    places::Places,
    prefix::{Key, Known},
    room::{Room, Taken},
};
use crate::model::{Hidden, WeightDType};

/// Of one session.
#[derive(Debug)]
pub(super) struct Track {
    /// Numbers of a token.
    width: usize,
    /// What outputs are rounded to before anybody gets them.
    dtype: WeightDType,
    /// Hash of the chain and of whatever else decides what it computes.
    seed: Key,
    sequences: Vec<Sequence>,
    /// The step that runs.
    step: Option<Step>,
    /// For `sequences`.
    _memory: Taken,
}

/// One row of the batch.
#[derive(Clone, Debug, Default)]
struct Sequence {
    /// Of the inputs up to each token. Shorter than the cached sequence if a token could not be followed.
    hashes: Vec<Key>,
    tail: Tail,
}

/// Outputs of the tokens from `start` on, until their page is full.
#[derive(Clone, Debug, Default)]
struct Tail {
    outputs: Vec<f32>,
    start: usize,
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
    /// Of `batch` rows of up to `max_length` tokens. `None` if `room` has no memory for it.
    pub(super) fn new(
        room: &Room,
        seed: Key,
        (width, dtype): (usize, WeightDType),
        (batch, max_length): (usize, usize),
    ) -> Option<Self> {
        let hashes = max_length.saturating_mul(size_of::<Key>());
        let tail = width.saturating_mul(PAGE_TOKENS * size_of::<f32>());
        let row = size_of::<Sequence>().saturating_add(hashes).saturating_add(tail);
        let memory = room.take(row.saturating_mul(batch))?;
        Some(Self {
            width,
            dtype,
            seed,
            sequences: vec![Sequence::default(); batch],
            step: None,
            _memory: memory,
        })
    }

    /// Bytes that its rows have.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let row =
            |row: &Sequence| row.hashes.capacity() * size_of::<Key>() + row.tail.outputs.capacity() * size_of::<f32>();
        self.sequences.iter().map(row).sum::<usize>() + self.sequences.capacity() * size_of::<Sequence>()
    }

    /// Brings the rows into another order.
    pub(super) fn reorder(&mut self, places: &Places) {
        places.apply(&mut self.sequences, |from, to| to.become_like(from));
    }

    /// Follows `x` from `position` on, if everything before was followed, with room for `max_length` tokens.
    fn follow(&mut self, x: &Hidden, position: usize, mark: u64, max_length: usize) -> bool {
        for sequence in &mut self.sequences {
            sequence.rewind(position, x.width);
        }
        if self.sequences.iter().any(|sequence| sequence.hashes.len() < position) {
            return false;
        }
        let rows = x.data.chunks_exact(x.tokens * x.width);
        for (sequence, row) in self.sequences.iter_mut().zip(rows) {
            if sequence.hashes.capacity() == 0 {
                sequence.hashes.reserve_exact(max_length);
                sequence.tail.outputs.reserve_exact(PAGE_TOKENS * x.width);
            }
            let mut last = sequence.hashes.last().copied().unwrap_or(self.seed);
            for token in row.chunks_exact(x.width) {
                last = next_key(&last, mark, token);
                sequence.hashes.push(last);
            }
        }
        true
    }

    /// What is known of the pages that have tokens from `position` on and are full: in the middle of the first one, the
    /// head of which the session has, it is known as well by what it is to its end.
    fn recall(&mut self, arena: &Arc<Arena>, position: usize) -> Vec<Vec<Known>> {
        let first = position - position % PAGE_TOKENS;
        let known = Arena::recall(arena, self.sequences.iter().map(|sequence| &sequence.hashes[first..]));
        if let Some(n_pages) = known.first().map(Vec::len) {
            for sequence in &mut self.sequences {
                // The first page is needed by whoever needs a later one.
                arena.touch(&sequence.hashes[..first + n_pages * PAGE_TOKENS]);
                sequence.tail.outputs.clear();
            }
        }
        known
    }
}

impl Sequence {
    fn rewind(&mut self, position: usize, width: usize) {
        if position >= self.hashes.len() {
            return;
        }
        self.hashes.truncate(position);
        let Tail { outputs, start } = &mut self.tail;
        outputs.truncate(position.saturating_sub(*start) * width);
        *start = position.min(*start);
    }

    /// Becomes what `other` is.
    fn become_like(&mut self, other: &Self) {
        let same = common(&self.hashes, &other.hashes);
        self.hashes.truncate(same);
        self.hashes.reserve_exact(other.hashes.capacity() - same);
        self.hashes.extend_from_slice(&other.hashes[same..]);
        self.tail.outputs.clone_from(&other.tail.outputs);
        self.tail.start = other.tail.start;
    }
}

impl Tail {
    /// Takes in the outputs of the tokens from `position` on: tells `full` of every page that has become full and whose
    /// outputs are all there, and keeps those of the one that has not.
    fn take_in(
        &mut self,
        mut outputs: &[f32],
        (mut position, width): (usize, usize),
        mut full: impl FnMut(usize, &[f32]),
    ) {
        if self.start + self.outputs.len() / width != position {
            self.outputs.clear();
        }
        if self.outputs.is_empty() {
            self.start = position;
        }
        while !outputs.is_empty() {
            let page_idx = position / PAGE_TOKENS;
            let n = (PAGE_TOKENS - position % PAGE_TOKENS).min(outputs.len() / width);
            let (now, rest) = outputs.split_at(n * width);
            (position, outputs) = (position + n, rest);
            if n == PAGE_TOKENS {
                full(page_idx, now);
            } else {
                self.outputs.extend_from_slice(now);
            }
            if position.is_multiple_of(PAGE_TOKENS) {
                if self.outputs.len() == PAGE_TOKENS * width {
                    full(page_idx, &self.outputs);
                }
                self.outputs.clear();
                self.start = position;
            }
        }
    }
}

impl Cache {
    /// Begins a step of the whole chain with the tokens `x` at `position`: takes over what is known of them and leaves
    /// in `x` what is to be computed. Returns how many tokens were known. `mark` is what else decides keys, values and
    /// outputs; `None` if that is more than a number.
    pub(crate) fn begin(&mut self, x: &mut Hidden, position: usize, mark: Option<u64>) -> usize {
        let Some(track) = &mut self.track else { return 0 };
        track.step = None;
        let fits = (x.batch, x.width) == (self.batch, track.width)
            && position.checked_add(x.tokens).is_some_and(|end| end <= self.max_length);
        let has_gap = self.chain.iter().flatten().any(|row| row.tokens() < position);
        if !fits || has_gap || x.data.is_empty() || x.check_size().is_err() {
            return 0;
        }
        let Some(mark) = mark else {
            track
                .sequences
                .iter_mut()
                .for_each(|sequence| sequence.rewind(position, x.width));
            return 0;
        };
        if !track.follow(x, position, mark, self.max_length) {
            return 0;
        }
        let known = track.recall(&self.arena, position);
        let head = position % PAGE_TOKENS;
        let n_tokens = known.first().map_or(0, |pages| pages.len() * PAGE_TOKENS - head);
        let (dtype, width) = (track.dtype, track.width);
        track.step = Some(Step {
            position: position + n_tokens,
            known: known.iter().map(|pages| outputs(pages, head, dtype, width)).collect(),
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
        let len = x.tokens * x.width;
        let fills_pages = step.position / PAGE_TOKENS < (step.position + x.tokens) / PAGE_TOKENS;
        for (row_idx, Sequence { hashes, tail }) in track.sequences.iter_mut().enumerate() {
            let outputs = &x.data[row_idx * len..(row_idx + 1) * len];
            tail.take_in(outputs, (step.position, x.width), |page_idx, outputs| {
                let key = hashes[(page_idx + 1) * PAGE_TOKENS - 1];
                let pages = self.chain.iter().map(|rows| &rows[row_idx].pages()[page_idx]);
                self.arena.offer(key, pages, (outputs, track.dtype));
            });
            if fills_pages {
                self.arena.touch(hashes);
            }
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

/// What came out for the tokens of `pages`, without the first `head`.
fn outputs(pages: &[Known], head: usize, dtype: WeightDType, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(pages.len() * PAGE_TOKENS * width);
    for page in pages {
        page.outputs_into(dtype, PAGE_TOKENS * width, &mut out);
    }
    out.drain(..head * width);
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
