//! Ragged batches: the next tokens of any number of sessions through one block at once, so that its weights are read
//! once for all of them, or through several blocks one after the other. Which sessions meet, and how many tokens of each,
//! is not decided here.

mod on_card;

use std::ops::Range;

use super::{
    Blocks, Cache, ComputeError, Hidden,
    block::{self, Block, Segment},
    cuda::Tables,
    places::Placed,
};

/// The tokens of one session that go through some blocks now.
#[derive(Debug)]
pub struct Part<'a> {
    /// Keys and values of the session.
    pub cache: &'a mut Cache,
    /// Entry of the cache that belongs to the first of the blocks; those of the others follow.
    pub chain_idx: usize,
    /// A whole step, `[batch, tokens, hidden]`.
    pub x: &'a mut Hidden,
    /// Where the step's first token is in every sequence.
    pub position: usize,
    /// Which of the step's sequences.
    pub rows: Range<usize>,
    /// Which of the step's tokens, in each of these. Those before them went through the block already.
    pub tokens: Range<usize>,
}

/// Memory that steps need while they are computed. Whoever computes keeps one and passes it to every step, which then
/// takes no memory of its own.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The tokens of all parts, `[tokens, hidden]`.
    x: Vec<f32>,
    block: block::Scratch,
    /// Always empty between two calls.
    segments: Vec<Segment<'static>>,
    /// Those of a part of a step. Always empty between two calls.
    inside: Vec<Segment<'static>>,
    tables: Tables,
}

impl Part<'_> {
    /// Whether its tokens lie one behind the other in `x`.
    fn is_contiguous(&self) -> bool {
        self.rows.len() == 1 || self.tokens == (0..self.x.tokens)
    }

    fn n_tokens(&self) -> usize {
        self.rows.len() * self.tokens.len()
    }

    /// Its tokens, sequence by sequence.
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        let (row, range) = self.row_and_range();
        let rows = self
            .x
            .data
            .chunks_exact(row)
            .skip(self.rows.start)
            .take(self.rows.len());
        rows.map(move |row| &row[range.clone()])
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let (row, range) = self.row_and_range();
        let rows = self
            .x
            .data
            .chunks_exact_mut(row)
            .skip(self.rows.start)
            .take(self.rows.len());
        rows.map(move |row| &mut row[range.clone()])
    }

    /// Numbers in each sequence of the step, and which of them are in this part.
    fn row_and_range(&self) -> (usize, Range<usize>) {
        let Hidden { tokens, width, .. } = *self.x;
        (
            (tokens * width).max(1),
            self.tokens.start * width..self.tokens.end * width,
        )
    }

    /// Its sequences as segments of a batch, in the block that comes `offset` blocks after the first.
    fn segments(&mut self, offset: usize) -> Result<impl Iterator<Item = Segment<'_>>, ComputeError> {
        let (position, tokens) = (self.position + self.tokens.start, self.tokens.len());
        let sequence_len = self.position + self.x.tokens;
        let adapter = self.cache.adapter();
        let rows = self
            .cache
            .rows_for_step(self.chain_idx + offset, (self.x.batch, &self.rows), position, tokens)?;
        Ok(rows.iter_mut().map(move |row| Segment {
            row,
            position,
            tokens,
            sequence_len,
            adapter,
        }))
    }
}

impl Blocks {
    /// Replaces the tokens of all `parts` by the output of `blocks` (numbered as in the model), one after the other. What
    /// comes out for a token does not depend on what else is in the batch. The keys and values of the tokens are written to
    /// entry `chain_idx` of each part's cache and those after it, where anything behind them is forgotten.
    ///
    /// # Errors
    /// Whatever does not fit together; nothing is changed then. A card that fails; the activations of several parts are
    /// unchanged then, and each part can be run again.
    ///
    /// # Panics
    /// Only by a mistake in the kernels. The activations of several parts are unchanged then as well.
    pub fn run_batch(&self, blocks: &[u32], parts: &mut [Part<'_>], scratch: &mut Scratch) -> Result<(), ComputeError> {
        for (offset, block) in blocks.iter().enumerate() {
            self.held_block(*block)?;
            for part in &mut *parts {
                self.check_part(part, offset)?;
            }
        }
        match parts {
            [part] if part.is_contiguous() => self.run_alone(blocks, part, scratch),
            parts => self.run_together(blocks, parts, scratch),
        }
    }

    /// In place.
    fn run_alone(&self, blocks: &[u32], part: &mut Part<'_>, scratch: &mut Scratch) -> Result<(), ComputeError> {
        let width = part.x.width;
        let first = (part.rows.start * part.x.tokens + part.tokens.start) * width;
        let len = part.n_tokens() * width;
        let mut data = std::mem::take(&mut part.x.data);
        let outcome = self.run_all(
            blocks,
            &mut data[first..first + len],
            std::slice::from_mut(part),
            scratch,
        );
        part.x.data = data;
        outcome
    }

    /// Copied behind each other, and back: little beside reading the weights.
    fn run_together(&self, blocks: &[u32], parts: &mut [Part<'_>], scratch: &mut Scratch) -> Result<(), ComputeError> {
        let mut x = std::mem::take(&mut scratch.x);
        x.clear();
        for row in parts.iter().flat_map(Part::rows) {
            x.extend_from_slice(row);
        }
        let outcome = self.run_all(blocks, &mut x, parts, scratch);
        if outcome.is_ok() {
            let mut done = x.as_slice();
            for row in parts.iter_mut().flat_map(Part::rows_mut) {
                let (new, rest) = done.split_at(row.len());
                row.copy_from_slice(new);
                done = rest;
            }
        }
        scratch.x = x;
        outcome
    }

    /// The tokens of all parts, `[tokens, hidden]`, through all blocks.
    fn run_all(
        &self,
        blocks: &[u32],
        x: &mut [f32],
        parts: &mut [Part<'_>],
        scratch: &mut Scratch,
    ) -> Result<(), ComputeError> {
        #[cfg(test)]
        assert!(!self.poison.is_some_and(|poison| x.contains(&poison)), "poisoned");
        let mut offset = 0;
        while let Some(block) = blocks.get(offset) {
            match &self.held_block(*block)?.block {
                Placed::Host(block) => {
                    let mut segments = emptied(std::mem::take(&mut scratch.segments));
                    for part in parts.iter_mut().filter(|part| !part.tokens.is_empty()) {
                        segments.extend(part.segments(offset)?);
                    }
                    self.run(block, x, &mut segments, (&mut scratch.block, &mut scratch.inside));
                    scratch.segments = emptied(segments);
                    offset += 1;
                }
                Placed::Card(place, _) => {
                    let stretch = self.on_card(*place, &blocks[offset..]);
                    self.run_on_card((*place, &stretch), (x, offset), parts, &mut scratch.tables)?;
                    offset += stretch.len();
                }
            }
        }
        Ok(())
    }

    fn check_part(&self, part: &mut Part<'_>, offset: usize) -> Result<(), ComputeError> {
        self.check(part.x)?;
        if part.cache.shape() != self.shared.heads.kv {
            return Err(ComputeError::ForeignCache);
        }
        if part.tokens.start > part.tokens.end || part.tokens.end > part.x.tokens {
            return Err(ComputeError::Tokens {
                tokens: part.tokens.clone(),
                n_tokens: part.x.tokens,
            });
        }
        if part.rows.start > part.rows.end || part.rows.end > part.x.batch {
            return Err(ComputeError::Rows {
                rows: part.rows.clone(),
                batch: part.x.batch,
            });
        }
        let position = part.position.saturating_add(part.tokens.start);
        let rows = (part.x.batch, &part.rows);
        part.cache
            .rows_for_step(part.chain_idx + offset, rows, position, part.tokens.len())?;
        Ok(())
    }

    /// The tokens of all segments, `[tokens, hidden]`, as many at a time as `max_chunk_bytes` allows.
    fn run(
        &self,
        block: &Block,
        x: &mut [f32],
        segments: &mut [Segment<'_>],
        (scratch, spare): (&mut block::Scratch, &mut Vec<Segment<'static>>),
    ) {
        let width = self.config.hidden_size;
        let tokens_at_a_time = (self.max_chunk_bytes / block.scratch_bytes_per_token()).max(1);
        if x.is_empty() {
            return;
        }
        if x.len() <= tokens_at_a_time * width {
            return block.run(&self.shared, x, segments, scratch);
        }
        for (chunk_idx, chunk) in x.chunks_mut(tokens_at_a_time * width).enumerate() {
            let start = chunk_idx * tokens_at_a_time;
            let end = start + chunk.len() / width;
            let mut first = 0;
            let mut inside: Vec<Segment<'_>> = emptied(std::mem::take(spare));
            for segment in &mut *segments {
                let (from, to) = (start.max(first), end.min(first + segment.tokens));
                if from < to {
                    inside.push(Segment {
                        row: segment.row,
                        position: segment.position + from - first,
                        tokens: to - from,
                        sequence_len: segment.sequence_len,
                        adapter: segment.adapter,
                    });
                }
                first += segment.tokens;
            }
            block.run(&self.shared, chunk, &mut inside, scratch);
            *spare = emptied(inside);
        }
    }
}

/// The memory of a list of borrowed things, for another list of them: the standard library collects in place.
pub(crate) fn emptied<T, U>(mut list: Vec<T>) -> Vec<U> {
    list.clear();
    list.into_iter().filter_map(|_| None).collect()
}

#[cfg(test)]
mod tests;
