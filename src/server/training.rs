//! Jobs of the class that comes last, whatever they compute: each runs in pieces, so that steps of sessions get in
//! between, and is answered at the end.

use tokio::sync::oneshot;

use super::{
    backward::{Backward, PassOutput},
    error::RequestError,
    forward::Forward,
    guests::Origin,
    schedule::Pace,
    waiting::Ticket,
};
use crate::model::{Blocks, Breath, ComputeError, Hidden, Scratch};

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
        pass: Box<Backward>,
        reply: oneshot::Sender<Result<PassOutput, RequestError>>,
    },
}

impl Training {
    /// Whether the next piece is a block backwards: then [`Training::go_back`] runs it, else [`Training::advance`].
    pub(crate) fn goes_back(&self) -> bool {
        match self {
            Self::Forward { .. } => false,
            Self::Backward { pass, .. } => !pass.goes_there(),
        }
    }

    /// Takes a block backwards. `breath` is taken after every piece of it, unless the caller left: then the pass ends.
    ///
    /// # Errors
    /// Then the job is over.
    pub(crate) fn go_back(&mut self, blocks: &Blocks, breath: &mut Breath<'_>) -> Result<(), RequestError> {
        let Self::Backward { pass, reply } = self else {
            return Ok(());
        };
        pass.go_back(blocks, &mut || match reply.is_closed() {
            true => Err(ComputeError::Stopped),
            false => breath(),
        })
    }

    /// Runs the next piece: as much as [`Pace`] allows while there is a crowd. Returns the tokens that went through a block
    /// as those of steps do.
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
            Self::Backward { pass, .. } => {
                let tokens = pace.chunk((pass.chain_len(), 1), crowded);
                pass.advance(blocks, tokens, scratch)
            }
        }
    }

    /// Whether nothing is left to run.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Forward { pass, .. } => pass.is_done(),
            Self::Backward { pass, .. } => pass.is_done(),
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
            Self::Backward { pass, reply } => drop(reply.send(Ok(pass.finish()))),
        }
    }

    pub(crate) fn fail(self, error: RequestError) {
        match self {
            Self::Forward { reply, .. } => drop(reply.send(Err(error))),
            Self::Backward { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}
