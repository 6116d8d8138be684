//! Some blocks of one card one after the other: activations go there once, through all of them, and back.

use std::{ops::Range, sync::Arc};

use super::{
    block::{CardBlock, Run},
    device::Device,
    error::CudaError,
    kernels::{
        attention::{Sequence, Sequences},
        cache::CardHeads,
    },
    memory::Buffer,
    steps::Steps,
};
use crate::model::{cpu::Pool, kv::PageRef, rope::Angles, rope::Rope};

/// What kernels have to know of the tokens that are computed, in memory of the host that is used again.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    sequences: Vec<Sequence>,
    /// Tokens of each sequence after the whole step.
    lengths: Vec<usize>,
    /// Of those sequences.
    tokens: usize,
    /// Of all sequences but those of the step that is being added.
    steps: Steps,
    /// Which tokens go through which adapter.
    updates: Vec<(Range<usize>, usize)>,
    /// Addresses of the pages of all sequences, block after block.
    pages: Vec<u64>,
    angles: Angles,
}

impl Tables {
    pub(crate) fn clear(&mut self) {
        self.sequences.clear();
        self.lengths.clear();
        self.tokens = 0;
        self.steps.clear();
        self.updates.clear();
        self.pages.clear();
    }

    /// Adds the tokens at `positions` of a sequence that has `length` tokens after the step, and may go through an adapter.
    pub(crate) fn add_sequence(&mut self, positions: Range<usize>, length: usize, adapter: Option<usize>) {
        let tokens = self.tokens..self.tokens + positions.len();
        self.tokens = tokens.end;
        self.sequences.push(Sequence {
            position: positions.start,
            tokens: positions.len(),
        });
        self.lengths.push(length);
        let Some(adapter) = adapter else { return };
        match self.updates.last_mut() {
            Some((last, same)) if last.end == tokens.start && *same == adapter => last.end = tokens.end,
            _ => self.updates.push((tokens, adapter)),
        }
    }

    /// The sequences since the last call are one step's, of `length` tokens each as far as it is not cut.
    pub(crate) fn end_step(&mut self, length: usize) {
        self.steps.push(self.tokens - self.steps.tokens(), length);
    }

    /// Adds the pages of the next sequence, in the first block and then in the others.
    pub(crate) fn add_pages(&mut self, pages: &[PageRef]) {
        self.pages.extend(pages.iter().map(|page| page.page().address()));
    }
}

/// Consecutive blocks of a chain, all on one card.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch<'a> {
    pub(crate) device: &'a Arc<Device>,
    pub(crate) blocks: &'a [&'a CardBlock],
    pub(crate) heads: CardHeads,
}

impl Stretch<'_> {
    /// Replaces `x`, `[tokens, hidden]` of all sequences in `tables`, by the output of the last block. `x` is as it was if
    /// anything fails.
    ///
    /// # Errors
    /// When the card fails, or has no memory left.
    pub(crate) fn run(&self, x: &mut [f32], tables: &mut Tables, pool: &Pool) -> Result<(), CudaError> {
        let sequences = Sequences::new(self.device, self.heads, &tables.sequences)?;
        let mut pages = Buffer::temporary(self.device, tables.pages.len())?;
        pages.upload(0, &tables.pages)?;
        let mut on_card = Buffer::temporary(self.device, x.len())?;
        on_card.upload(0, x)?;
        let mut angles: Vec<(&Rope, Buffer<f32>)> = Vec::new();
        let n_pages = sequences.n_pages();
        for (i, block) in self.blocks.iter().enumerate() {
            if let Some(rope) = &block.rope
                && !angles.iter().any(|(known, _)| known.turns_as(rope))
            {
                angles.push((rope, self.angles(rope, tables, pool)?));
            }
            let own = |(known, _): &&(&Rope, Buffer<f32>)| block.rope.as_ref().is_some_and(|rope| known.turns_as(rope));
            let run = Run {
                heads: self.heads,
                steps: &tables.steps,
                sequences: &sequences,
                pages: pages.view(i * n_pages..(i + 1) * n_pages),
                angles: angles.iter().find(own).map(|(_, angles)| angles.all()),
                updates: &tables.updates,
            };
            block.run(&mut on_card, &run)?;
        }
        on_card.download(0, x)
    }

    /// By what the tokens turn.
    fn angles(&self, rope: &Rope, tables: &mut Tables, pool: &Pool) -> Result<Buffer<f32>, CudaError> {
        let angles = &mut tables.angles;
        angles.reset(rope);
        for (sequence, length) in tables.sequences.iter().zip(&tables.lengths) {
            let positions = sequence.position..sequence.position + sequence.tokens;
            angles.push(rope, positions, *length, pool);
        }
        let mut on_card = Buffer::temporary(self.device, angles.numbers().len())?;
        on_card.upload(0, angles.numbers())?;
        Ok(on_card)
    }
}
