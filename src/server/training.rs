//! Jobs of the class that comes last, whatever they compute: each runs in pieces, so that steps of sessions get in
//! between, and is answered at the end.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    backward::{Backward, PassOutput},
    error::RequestError,
    forward::Forward,
    guests::Origin,
    schedule::Pace,
    waiting::Ticket,
};
use crate::model::{Blocks, Hidden, Scratch};

/// A job, for whom it is, and its place in the counts.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) job: Training,
    pub(crate) origin: Origin,
    /// Held for its `Drop`.
    pub(crate) _ticket: Ticket,
}

/// A job that is being computed.
#[derive(Debug)]
pub(crate) enum Training {
    Forward {
        pass: Box<Forward>,
        reply: oneshot::Sender<Result<Hidden, RequestError>>,
    },
    Backward {
        chain: Arc<[u32]>,
        /// By the chain's output, and in the end by its input.
        gradient: Hidden,
        /// What goes with the gradient.
        pass: Box<Backward>,
        /// Number of the next stage.
        next: usize,
        reply: oneshot::Sender<Result<PassOutput, RequestError>>,
    },
}

impl Training {
    /// Runs the next piece: as much as [`Pace`] allows while there is a crowd, or a whole block where it cannot be cut.
    /// Returns the tokens that went through a block as those of steps do.
    ///
    /// # Errors
    /// Then the job is over.
    pub(crate) fn advance(
        &mut self,
        blocks: &Blocks,
        (pace, crowded): (&Pace, bool),
        scratch: &mut Scratch,
    ) -> Result<usize, RequestError> {
        match self {
            Self::Forward { pass, .. } => {
                let tokens = pace.chunk((pass.chain_len(), 1), crowded);
                pass.advance(blocks, tokens, scratch)
            }
            Self::Backward {
                chain,
                gradient,
                pass,
                next,
                ..
            } => {
                pass.advance(blocks, chain, *next, gradient)?;
                *next += 1;
                Ok(0)
            }
        }
    }

    /// Whether nothing is left to run.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Forward { pass, .. } => pass.is_done(),
            Self::Backward { chain, next, .. } => *next == Backward::stages(chain.len()),
        }
    }

    pub(crate) fn caller_left(&self) -> bool {
        match self {
            Self::Forward { reply, .. } => reply.is_closed(),
            Self::Backward { reply, .. } => reply.is_closed(),
        }
    }

    /// Answers. Sending fails only when the caller left, and then nobody is there to be told.
    pub(crate) fn finish(self) {
        match self {
            Self::Forward { pass, reply } => drop(reply.send(Ok(pass.finish()))),
            Self::Backward {
                gradient, pass, reply, ..
            } => drop(reply.send(Ok(pass.finish(gradient)))),
        }
    }

    pub(crate) fn fail(self, error: RequestError) {
        match self {
            Self::Forward { reply, .. } => drop(reply.send(Err(error))),
            Self::Backward { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}
