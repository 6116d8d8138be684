//! A backward pass on the compute thread, one block at a time: forward to learn what went into each block, then back
//! from the last block to the first. In which order that is done is said in `checkpoints.rs`; how one block is
//! differentiated is the model's business. Nobody waits for the whole of a block: the way there is cut as that of a forward
//! pass, on the way back others get in at every breath.
//!
//! As in Petals (`server/block_functions.py`, `run_rpc_backward`), the output of the last block is never computed.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::{
    checkpoints::{Stage, stages},
    error::RequestError,
    forward::Forward,
    guests::Origin,
    worker::Work,
};
use crate::model::{AdapterId, Blocks, Breath, Hidden, Scratch};

/// What a pass over a chain ends with.
#[derive(Debug)]
pub(crate) struct PassOutput {
    /// The chain's output, or the gradient by its input. `[batch, tokens, hidden]`.
    pub(crate) x: Hidden,
    /// The gradient by the deep prompts, if there were any to differentiate by.
    pub(crate) prompts: Option<PromptGradients>,
}

/// `[blocks, batch, prefix, hidden]`: for every row its own, even where all rows had the same prompts.
#[derive(Debug)]
pub(crate) struct PromptGradients {
    pub(crate) data: Vec<f32>,
    pub(crate) shape: [usize; 4],
}

/// Whose backward pass is next. One is under way: it holds the inputs of all its blocks, and two at a time would end no
/// sooner.
#[derive(Debug)]
pub(crate) struct BackwardTurns {
    turn: Arc<Semaphore>,
    /// Where strangers wait, all but the one of them who waits for the turn.
    strangers: Semaphore,
}

impl Default for BackwardTurns {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            strangers: Semaphore::new(1),
        }
    }
}

impl BackwardTurns {
    /// Waits for the turn, which lasts until what is returned is dropped. Of the strangers that came before it, an own pass
    /// waits for two at most: the one that is under way and the next. That one waits for no own pass that comes later.
    ///
    /// # Errors
    /// Never: nobody closes either line.
    pub(crate) async fn take(&self, own: bool) -> Result<OwnedSemaphorePermit, AcquireError> {
        let _next = match own {
            true => None,
            false => Some(self.strangers.acquire().await?),
        };
        self.turn.clone().acquire_owned().await
    }
}

/// A backward pass on its way.
#[derive(Debug)]
pub(crate) struct Backward {
    /// The chain, and for whom. Its activations are the gradient by the chain's output, and become that by its input.
    work: Work,
    adapter: Option<AdapterId>,
    stages: Vec<Stage>,
    /// Number of the next one.
    next: usize,
    /// The block that is under way, on the way there.
    there: Option<Box<Forward>>,
    /// What went into those blocks of the chain that it is kept of, prompts included: more and more of them on the way
    /// there, fewer and fewer on the way back.
    inputs: Vec<Hidden>,
    /// By the prompts of each block that was passed on the way back.
    prompt_gradients: Vec<Vec<f32>>,
    /// Held for its `Drop`.
    _turn: OwnedSemaphorePermit,
}

impl Backward {
    /// The pass over the chain of `work` whose input is `x`, every block with `adapter`; the activations of `work` are the
    /// gradient by the chain's output. Of each `stretch` of blocks only the first one's input is kept until they are passed
    /// on the way back.
    pub(crate) fn new(
        mut x: Hidden,
        work: Work,
        adapter: Option<AdapterId>,
        stretch: usize,
        turn: OwnedSemaphorePermit,
    ) -> Self {
        if let Some(prompts) = &work.prompts {
            prompts.add_to(0, &mut x);
        }
        Self {
            stages: stages(work.chain.len(), stretch),
            work,
            adapter,
            next: 0,
            there: None,
            inputs: vec![x],
            prompt_gradients: Vec::new(),
            _turn: turn,
        }
    }

    /// Whose it is.
    pub(crate) fn origin(&self) -> Origin {
        self.work.origin
    }

    pub(crate) fn chain_len(&self) -> usize {
        self.work.chain.len()
    }

    /// Whether there are no tokens to go through the chain, of however many rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.work.x.data.is_empty()
    }

    /// Whether the first block was passed on the way back.
    pub(crate) fn is_done(&self) -> bool {
        self.next == self.stages.len()
    }

    /// Whether it is on the way there.
    pub(crate) fn goes_there(&self) -> bool {
        matches!(self.stages.get(self.next), Some(Stage::There { .. }))
    }

    /// Takes up to `tokens` tokens through the next block on the way there, one at least; returns how many it took.
    ///
    /// # Errors
    /// Those of the blocks.
    pub(crate) fn advance(
        &mut self,
        blocks: &Blocks,
        tokens: usize,
        scratch: &mut Scratch,
    ) -> Result<usize, RequestError> {
        let Some(Stage::There { index, keeps }) = self.stages.get(self.next).copied() else {
            return Ok(0);
        };
        let mut forward = match self.there.take() {
            Some(forward) => forward,
            None => {
                let last = if keeps {
                    self.inputs.last().cloned()
                } else {
                    self.inputs.pop()
                };
                let Some(x) = last else { return Ok(0) };
                let work = Work {
                    chain: [self.work.chain[index]].into(),
                    x,
                    prompts: None,
                    origin: self.work.origin,
                    _lease: None,
                };
                Box::new(Forward::new(blocks, work, self.adapter))
            }
        };
        let taken = forward.advance(blocks, tokens, scratch)?;
        if forward.is_done() {
            self.next += 1;
            let mut x = forward.finish();
            if let Some(prompts) = &self.work.prompts {
                prompts.add_to(index + 1, &mut x);
            }
            self.inputs.push(x);
        } else {
            self.there = Some(forward);
        }
        Ok(taken)
    }

    /// Takes the gradient back through the next block.
    ///
    /// # Errors
    /// Those of the blocks and of `breath`.
    pub(crate) fn go_back(&mut self, blocks: &Blocks, breath: &mut Breath<'_>) -> Result<(), RequestError> {
        if let Some(Stage::Back { index }) = self.stages.get(self.next).copied()
            && let Some(x) = self.inputs.pop()
        {
            let (block, gradient) = (self.work.chain[index], &mut self.work.x);
            *gradient = blocks.backward_with(block, self.adapter, [&x, gradient], breath)?;
            if let Some(prompts) = &self.work.prompts {
                self.prompt_gradients.push(prompts.gradient(gradient));
            }
        }
        self.next += 1;
        Ok(())
    }

    /// The result, after the last stage.
    pub(crate) fn finish(self) -> PassOutput {
        let gradient = self.work.x;
        let (batch, width) = (gradient.batch, gradient.width);
        let n_blocks = self.prompt_gradients.len();
        let prompts = self.work.prompts.map(|prompts| PromptGradients {
            data: self.prompt_gradients.into_iter().rev().flatten().collect(),
            shape: [n_blocks, batch, prompts.prefix(), width],
        });
        PassOutput { x: gradient, prompts }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sepal_protocol::{
        compress::Compression,
        tensor::{DType, WireTensor},
    };

    use super::*;
    use crate::{
        model::{
            ModelFiles, WeightDType,
            testing::{assert_same_bits, engine},
        },
        p2p::PeerId,
        server::request,
    };

    #[tokio::test]
    async fn own_passes_go_before_strangers_that_came_first_and_do_not_keep_out_the_next_one() {
        let (turns, order) = (BackwardTurns::default(), Mutex::new(Vec::new()));
        let under_way = turns.take(false).await.unwrap();
        let pass = async |who: &'static str, own: bool| {
            let _turn = turns.take(own).await.unwrap();
            order.lock().unwrap().push(who);
        };
        tokio::join!(
            pass("first", false),
            pass("second", false),
            pass("third", false),
            pass("own", true),
            pass("own, too", true),
            async { drop(under_way) },
        );
        let order = order.into_inner().unwrap();
        assert_eq!(order, ["first", "own", "own, too", "second", "third"]);
    }

    /// Numbers around zero that are no pattern of the model's.
    fn numbers(len: usize, factor: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * factor % 101) as f32 - 50.0) / 50.0).collect()
    }

    #[tokio::test]
    async fn inputs_that_are_computed_again_change_no_bit_of_any_gradient() {
        const WIDTH: usize = 64;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/petals/tiny-llama");
        let files = ModelFiles::from_folder(folder.as_ref()).unwrap();
        let blocks = Blocks::load(&files, 0..4, WeightDType::F32, engine()).unwrap();
        let turns = BackwardTurns::default();
        let chain = [0, 1, 2, 3, 1, 0, 2];
        let prompts = WireTensor::from_f32(&numbers(7 * 2 * WIDTH, 29), [7, 1, 2, WIDTH], DType::F32).unwrap();
        let prompts = prompts.encode(Compression::None).unwrap();
        let mut plain = None;
        for stretch in 1..=8 {
            let x = Hidden::new(numbers(2 * 5 * WIDTH, 37), 2, 5, WIDTH).unwrap();
            let gradient = Hidden::new(numbers(2 * 5 * WIDTH, 17), 2, 5, WIDTH).unwrap();
            let turn = turns.take(false).await.unwrap();
            let prompts = request::prompts(&prompts, chain.len(), &x).unwrap();
            let work = Work {
                chain: chain.into(),
                x: gradient,
                prompts,
                origin: Origin {
                    peer: PeerId::random(),
                    own: false,
                },
                _lease: None,
            };
            let mut pass = Backward::new(x, work, None, stretch, turn);
            while !pass.is_done() {
                if pass.goes_there() {
                    pass.advance(&blocks, 3, &mut Scratch::default()).unwrap();
                } else {
                    pass.go_back(&blocks, &mut || Ok(())).unwrap();
                }
            }
            let output = pass.finish();
            let found = (output.x.data, output.prompts.unwrap().data);
            let (by_input, by_prompts) = plain.get_or_insert_with(|| found.clone());
            assert_same_bits(&found.0, by_input);
            assert_same_bits(&found.1, by_prompts);
        }
    }
}
