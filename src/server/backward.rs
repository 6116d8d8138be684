//! A backward pass on the compute thread, one block at a time: forward to learn what went into each block, then back
//! from the last block to the first. How one block is differentiated is the model's business. Nobody waits for the whole of
//! a block: the way there is cut as that of a forward pass, on the way back others get in at every breath.
//!
//! As in Petals (`server/block_functions.py`, `run_rpc_backward`), the output of the last block is never computed.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::{error::RequestError, forward::Forward, guests::Origin, worker::Work};
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
    /// Number of the next stage, each of which runs one block.
    next: usize,
    /// The block that is under way, on the way there.
    there: Option<Box<Forward>>,
    /// What went into the first blocks of the chain, prompts included: more and more of them on the way there, fewer
    /// and fewer on the way back.
    inputs: Vec<Hidden>,
    /// By the prompts of each block that was passed on the way back.
    prompt_gradients: Vec<Vec<f32>>,
    /// Held for its `Drop`.
    _turn: OwnedSemaphorePermit,
}

impl Backward {
    /// The pass over the chain of `work` whose input is `x`, every block with `adapter`; the activations of `work` are the
    /// gradient by the chain's output.
    pub(crate) fn new(mut x: Hidden, work: Work, adapter: Option<AdapterId>, turn: OwnedSemaphorePermit) -> Self {
        if let Some(prompts) = &work.prompts {
            prompts.add_to(0, &mut x);
        }
        Self {
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

    /// Whether the first block was passed on the way back.
    pub(crate) fn is_done(&self) -> bool {
        self.next == stages(self.chain_len())
    }

    /// Whether it is on the way there.
    pub(crate) fn goes_there(&self) -> bool {
        self.next + 1 < self.chain_len()
    }

    /// Takes up to `tokens` tokens through the next block on the way there, one of each sequence at least; returns how many
    /// it took.
    ///
    /// # Errors
    /// Those of the blocks.
    pub(crate) fn advance(
        &mut self,
        blocks: &Blocks,
        tokens: usize,
        scratch: &mut Scratch,
    ) -> Result<usize, RequestError> {
        let forward = self.there.get_or_insert_with(|| {
            let work = Work {
                chain: [self.work.chain[self.next]].into(),
                x: self.inputs[self.next].clone(),
                prompts: None,
                origin: self.work.origin,
            };
            Box::new(Forward::new(blocks, work, self.adapter))
        });
        let taken = forward.advance(blocks, tokens, scratch)?;
        if forward.is_done()
            && let Some(forward) = self.there.take()
        {
            self.next += 1;
            let mut x = forward.finish();
            if let Some(prompts) = &self.work.prompts {
                prompts.add_to(self.next, &mut x);
            }
            self.inputs.push(x);
        }
        Ok(taken)
    }

    /// Takes the gradient back through the next block.
    ///
    /// # Errors
    /// Those of the blocks and of `breath`.
    pub(crate) fn go_back(&mut self, blocks: &Blocks, breath: &mut Breath<'_>) -> Result<(), RequestError> {
        let block = self.work.chain[index(self.next, self.chain_len())];
        if let Some(x) = self.inputs.pop() {
            let gradient = &mut self.work.x;
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

/// How many stages a pass over so many blocks has.
fn stages(n_blocks: usize) -> usize {
    2 * n_blocks - 1
}

/// Which block of the chain a stage runs.
fn index(stage: usize, n_blocks: usize) -> usize {
    stage.min(stages(n_blocks) - 1 - stage)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_pass_goes_there_without_the_last_block_and_all_the_way_back() {
        for (n_blocks, expected) in [(1, vec![0]), (3, vec![0, 1, 2, 1, 0])] {
            let indices: Vec<_> = (0..stages(n_blocks)).map(|stage| index(stage, n_blocks)).collect();
            assert_eq!(indices, expected);
        }
    }

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
}
