//! Ragged batches: the next tokens of any number of sessions through one block at once, so that its weights are read
//! once for all of them. Which sessions meet, and how many tokens of each, is not decided here.

use std::ops::Range;

use super::{
    Blocks, Cache, ComputeError, Hidden,
    block::{self, Block, Segment},
};

/// The tokens of one session that go through a block now.
#[derive(Debug)]
pub struct Part<'a> {
    /// Keys and values of the session.
    pub cache: &'a mut Cache,
    /// Entry of the cache that belongs to the block.
    pub chain_idx: usize,
    /// A whole step, `[batch, tokens, hidden]`.
    pub x: &'a mut Hidden,
    /// Where the step's first token is in every sequence.
    pub position: usize,
    /// Which of the step's tokens, in every sequence. Those before them went through the block already.
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
}

impl Part<'_> {
    /// Whether its tokens lie one behind the other in `x`.
    fn is_contiguous(&self) -> bool {
        self.x.batch == 1 || self.tokens == (0..self.x.tokens)
    }

    /// Its tokens, sequence by sequence.
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        let (row, range) = self.row_and_range();
        self.x.data.chunks_exact(row).map(move |row| &row[range.clone()])
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let (row, range) = self.row_and_range();
        self.x
            .data
            .chunks_exact_mut(row)
            .map(move |row| &mut row[range.clone()])
    }

    /// Numbers in each sequence of the step, and which of them are in this part.
    fn row_and_range(&self) -> (usize, Range<usize>) {
        let Hidden { tokens, width, .. } = *self.x;
        (
            (tokens * width).max(1),
            self.tokens.start * width..self.tokens.end * width,
        )
    }

    /// Its sequences as segments of a batch.
    fn segments(&mut self) -> Result<impl Iterator<Item = Segment<'_>>, ComputeError> {
        let (position, tokens) = (self.position + self.tokens.start, self.tokens.len());
        let sequence_len = self.position + self.x.tokens;
        let adapter = self.cache.adapter();
        let rows = self
            .cache
            .rows_for_step(self.chain_idx, self.x.batch, position, tokens)?;
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
    /// Replaces the tokens of all `parts` by the output of `block` (numbered as in the model). What comes out for a token
    /// does not depend on what else is in the batch. The keys and values of the tokens are written to entry `chain_idx`
    /// of each part's cache, where anything behind them is forgotten.
    ///
    /// # Errors
    /// Whatever does not fit together; nothing is changed then.
    ///
    /// # Panics
    /// Only by a mistake in the kernels. The activations of several parts are unchanged then, and each part can be run
    /// again.
    pub fn run_batch(&self, block: u32, parts: &mut [Part<'_>], scratch: &mut Scratch) -> Result<(), ComputeError> {
        let block = self.block(block)?;
        for part in &mut *parts {
            self.check_part(part)?;
        }
        match parts {
            [part] if part.is_contiguous() => self.run_alone(block, part, scratch),
            parts => self.run_together(block, parts, scratch),
        }
    }

    /// In place.
    fn run_alone(&self, block: &Block, part: &mut Part<'_>, scratch: &mut Scratch) -> Result<(), ComputeError> {
        let width = part.x.width;
        let first = part.tokens.start * width;
        let len = part.x.batch * part.tokens.len() * width;
        let mut data = std::mem::take(&mut part.x.data);
        let mut segments = emptied(std::mem::take(&mut scratch.segments));
        segments.extend(part.segments()?);
        let memory = (&mut scratch.block, &mut scratch.inside);
        self.run(block, &mut data[first..first + len], &mut segments, memory);
        scratch.segments = emptied(segments);
        part.x.data = data;
        Ok(())
    }

    /// Copied behind each other, and back: little beside reading the weights.
    fn run_together(&self, block: &Block, parts: &mut [Part<'_>], scratch: &mut Scratch) -> Result<(), ComputeError> {
        let x = &mut scratch.x;
        x.clear();
        for row in parts.iter().flat_map(Part::rows) {
            x.extend_from_slice(row);
        }
        let mut segments = emptied(std::mem::take(&mut scratch.segments));
        for part in parts.iter_mut().filter(|part| !part.tokens.is_empty()) {
            segments.extend(part.segments()?);
        }
        self.run(block, x, &mut segments, (&mut scratch.block, &mut scratch.inside));
        scratch.segments = emptied(segments);
        let mut done = x.as_slice();
        for row in parts.iter_mut().flat_map(Part::rows_mut) {
            let (new, rest) = done.split_at(row.len());
            row.copy_from_slice(new);
            done = rest;
        }
        Ok(())
    }

    fn check_part(&self, part: &mut Part<'_>) -> Result<(), ComputeError> {
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
        let position = part.position.saturating_add(part.tokens.start);
        part.cache
            .rows_for_step(part.chain_idx, part.x.batch, position, part.tokens.len())?;
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
        #[cfg(test)]
        assert!(!self.poison.is_some_and(|poison| x.contains(&poison)), "poisoned");
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
