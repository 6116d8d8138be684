//! A forward pass over whole sequences on the compute thread, block by block and a chunk of tokens at a time: others
//! get in between, and one block's keys and values are all that it keeps.

use super::{error::RequestError, piece::Piece, worker::Work};
use crate::model::{AdapterId, Blocks, Cache, Hidden, Part, Scratch};

/// A forward pass, somewhere on its way.
#[derive(Debug)]
pub(crate) struct Forward {
    work: Work,
    /// Position in the chain of the next block.
    next: usize,
    /// How far it is in that block.
    piece: Piece,
    /// Keys and values of one block; each block overwrites those of the one before.
    cache: Cache,
}

impl Forward {
    /// The pass over `work`, which has tokens, every block with `adapter`.
    pub(crate) fn new(blocks: &Blocks, work: Work, adapter: Option<AdapterId>) -> Self {
        let cache = blocks.new_pass_cache(work.x.batch, work.x.tokens).with_adapter(adapter);
        let mut forward = Self {
            work,
            next: 0,
            piece: Piece::default(),
            cache,
        };
        forward.enter();
        forward
    }

    pub(crate) fn chain_len(&self) -> usize {
        self.work.chain.len()
    }

    /// Whether the last block was passed.
    pub(crate) fn is_done(&self) -> bool {
        self.next == self.work.chain.len()
    }

    /// Takes up to `tokens` tokens through the next block, one at least; returns how many it took.
    ///
    /// # Errors
    /// When the block is not served, or does not fit.
    pub(crate) fn advance(
        &mut self,
        blocks: &Blocks,
        tokens: usize,
        scratch: &mut Scratch,
    ) -> Result<usize, RequestError> {
        let x = &mut self.work.x;
        let size = [x.batch, x.tokens];
        self.piece.take(size, tokens);
        let part = Part {
            cache: &mut self.cache,
            chain_idx: 0,
            x,
            position: 0,
            rows: self.piece.rows(),
            tokens: self.piece.tokens(),
        };
        blocks.run_batch(&[self.work.chain[self.next]], &mut [part], scratch)?;
        let len = self.piece.len();
        self.piece.done(size[1]);
        if self.piece.is_last(size[0]) {
            (self.next, self.piece) = (self.next + 1, Piece::default());
            self.enter();
        }
        Ok(len)
    }

    /// The output, after the last block.
    pub(crate) fn finish(self) -> Hidden {
        self.work.x
    }

    fn enter(&mut self) {
        if self.next < self.work.chain.len()
            && let Some(prompts) = &self.work.prompts
        {
            prompts.add_to(self.next, &mut self.work.x);
        }
    }
}
