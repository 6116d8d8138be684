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
    /// Keys and values of one block; each block overwrites those of the one before, or gives their memory back if it is on
    /// another card.
    cache: Cache,
}

impl Forward {
    /// The pass over `work`, which has tokens, every block with `adapter`.
    pub(crate) fn new(blocks: &Blocks, work: Work, adapter: Option<AdapterId>) -> Self {
        let [batch, tokens] = [work.x.batch, work.x.tokens];
        let cache = blocks.new_pass_cache(1, batch, tokens).with_adapter(adapter);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{
            Cards, Machine, ModelFiles, Toolkit, WeightDType,
            testing::{assert_same_bits, engine},
        },
        p2p::PeerId,
        server::guests::Origin,
    };

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn a_pass_goes_from_one_cuda_card_to_another_and_back() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/petals/tiny-llama");
        let files = ModelFiles::from_folder(folder.as_ref()).unwrap();
        // The same card twice where there is no other.
        let last = Machine::count_cards().unwrap() - 1;
        let machine = Machine::with_cards(engine(), &Cards::These(vec![0, last]), &Toolkit::default()).unwrap();
        let blocks = Blocks::load(&files, 0..4, WeightDType::F32, machine).unwrap();
        let data = (0..2 * 40 * 64)
            .map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0)
            .collect();
        let x = Hidden::new(data, 2, 40, 64).unwrap();
        let work = Work {
            chain: [0, 1, 2, 3, 0].into(),
            x: x.clone(),
            prompts: None,
            origin: Origin {
                peer: PeerId::random(),
                own: false,
            },
            _lease: None,
        };
        let (mut expected, chain) = (x, work.chain.clone());
        let mut pass = Forward::new(&blocks, work, None);
        while !pass.is_done() {
            pass.advance(&blocks, usize::MAX, &mut Scratch::default()).unwrap();
        }
        chain
            .iter()
            .for_each(|block| blocks.forward(*block, &mut expected).unwrap());
        assert_same_bits(&pass.finish().data, &expected.data);
    }
}
