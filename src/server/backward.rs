//! A backward pass on the compute thread, one block at a time: forward to learn what went into each block, then back
//! from the last block to the first. How one block is differentiated is the model's business.
//!
//! As in Petals (`server/block_functions.py`, `run_rpc_backward`), the output of the last block is never computed.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::{error::RequestError, request::Prompts};
use crate::model::{AdapterId, Blocks, Hidden};

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

/// A backward pass on its way: what it has to remember beside the gradient itself.
#[derive(Debug)]
pub(crate) struct Backward {
    prompts: Option<Prompts>,
    adapter: Option<AdapterId>,
    /// What went into the first blocks of the chain, prompts included: more and more of them on the way there, fewer
    /// and fewer on the way back.
    inputs: Vec<Hidden>,
    /// By the prompts of each block that was passed on the way back.
    prompt_gradients: Vec<Vec<f32>>,
    /// Held for its `Drop`.
    _turn: OwnedSemaphorePermit,
}

impl Backward {
    /// The pass over a chain whose input is `x`, every block with `adapter`.
    pub(crate) fn new(
        mut x: Hidden,
        prompts: Option<Prompts>,
        adapter: Option<AdapterId>,
        turn: OwnedSemaphorePermit,
    ) -> Self {
        if let Some(prompts) = &prompts {
            prompts.add_to(0, &mut x);
        }
        Self {
            prompts,
            adapter,
            inputs: vec![x],
            prompt_gradients: Vec::new(),
            _turn: turn,
        }
    }

    /// How many stages a pass over so many blocks has. Each runs one block.
    pub(crate) fn stages(n_blocks: usize) -> usize {
        2 * n_blocks - 1
    }

    /// Which block of the chain a stage runs.
    pub(crate) fn index(stage: usize, n_blocks: usize) -> usize {
        stage.min(Self::stages(n_blocks) - 1 - stage)
    }

    /// Runs stage number `stage`; they come in order, each once. `gradient` is that by the output of the chain, and
    /// becomes that by its input.
    ///
    /// # Errors
    /// Those of the blocks.
    pub(crate) fn advance(
        &mut self,
        blocks: &Blocks,
        chain: &[u32],
        stage: usize,
        gradient: &mut Hidden,
    ) -> Result<(), RequestError> {
        let index = Self::index(stage, chain.len());
        if stage + 1 < chain.len() {
            let mut x = self.inputs[index].clone();
            blocks.forward_with(chain[index], self.adapter, &mut x)?;
            if let Some(prompts) = &self.prompts {
                prompts.add_to(index + 1, &mut x);
            }
            self.inputs.push(x);
        } else if let Some(x) = self.inputs.pop() {
            *gradient = blocks.backward(chain[index], self.adapter, &x, gradient)?;
            if let Some(prompts) = &self.prompts {
                self.prompt_gradients.push(prompts.gradient(gradient));
            }
        }
        Ok(())
    }

    /// The result, after the last stage.
    pub(crate) fn finish(self, gradient: Hidden) -> PassOutput {
        let (batch, width) = (gradient.batch, gradient.width);
        let n_blocks = self.prompt_gradients.len();
        let prompts = self.prompts.map(|prompts| PromptGradients {
            data: self.prompt_gradients.into_iter().rev().flatten().collect(),
            shape: [n_blocks, batch, prompts.prefix(), width],
        });
        PassOutput { x: gradient, prompts }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_pass_goes_there_without_the_last_block_and_all_the_way_back() {
        for (n_blocks, expected) in [(1, vec![0]), (3, vec![0, 1, 2, 1, 0])] {
            let stages = 0..Backward::stages(n_blocks);
            let indices: Vec<_> = stages.map(|stage| Backward::index(stage, n_blocks)).collect();
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
