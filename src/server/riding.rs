//! One step of a session on its way through its chain: where it is, which of its tokens go next, and how it ends. Who
//! else goes with it is not decided here.

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;

use super::{
    error::RequestError,
    guests::Origin,
    piece::Piece,
    schedule::{CROWD, MIN_CHUNK, Place},
    stats::Counters,
    waiting::Ticket,
    worker::{Step, StepOutput},
};
use crate::model::{Blocks, Part};

/// A step that is being computed.
#[derive(Debug)]
pub(crate) struct Riding {
    step: Step,
    reply: oneshot::Sender<Result<StepOutput, RequestError>>,
    /// Position in the chain of the next block.
    next: usize,
    /// What is between the first block and the last.
    piece: Piece,
    overtaken: usize,
    /// Takes part in the block run that is being prepared or computed.
    aboard: bool,
    /// Whether it may be called urgent: of the long steps of a peer, one at a time.
    leads: bool,
    /// Held for its `Drop`.
    _ticket: Ticket,
    error: Option<RequestError>,
    submitted: Instant,
    started: Option<Instant>,
}

impl Riding {
    /// Makes a step ready: the rows of its cache change places before its first block, and what is known of its tokens
    /// is not computed.
    pub(crate) fn new(
        mut step: Step,
        reply: oneshot::Sender<Result<StepOutput, RequestError>>,
        (submitted, ticket): (Instant, Ticket),
        (blocks, counters): (&Blocks, &Counters),
    ) -> Self {
        let cache = &mut step.cache.cache;
        let reordered = step.rows.take().map_or(Ok(()), |rows| cache.reorder(&rows));
        if reordered.is_ok() {
            let work = &mut step.work;
            let known = blocks.begin_step(cache, &mut work.x, step.position, work.prompts.is_some());
            counters.reused_tokens.add_many(known * work.x.batch);
            step.position += known;
        }
        Self {
            step,
            reply,
            next: 0,
            piece: Piece::default(),
            overtaken: 0,
            aboard: false,
            leads: true,
            _ticket: ticket,
            error: reordered.err().map(RequestError::from),
            submitted,
            started: None,
        }
    }

    pub(crate) fn place(&self) -> Place {
        let chain = &self.step.work.chain;
        Place {
            block: chain[self.next],
            overtaken: self.overtaken,
            patience: if self.leads { chain.len() } else { usize::MAX },
        }
    }

    /// For whom it is.
    pub(crate) fn origin(&self) -> Origin {
        self.step.work.origin
    }

    /// Takes its place beside the other steps of its peer: `first` says whether it is the first long one of these that has
    /// not begun.
    pub(crate) fn line_up(&mut self, first: impl FnOnce() -> bool) {
        self.leads = self.is_short() || !self.piece.is_empty() || first();
    }

    /// Tokens that take part in the block run.
    pub(crate) fn tokens_aboard(&self) -> usize {
        if self.aboard { self.piece.len() } else { 0 }
    }

    /// Tokens of the whole step.
    pub(crate) fn size(&self) -> usize {
        self.step.work.x.batch * self.step.work.x.tokens
    }

    /// Its chain, and which block of that is next.
    pub(crate) fn ahead(&self) -> (&Arc<[u32]>, usize) {
        (&self.step.work.chain, self.next)
    }

    /// Whether something is added to its activations between two blocks.
    pub(crate) fn has_prompts(&self) -> bool {
        self.step.work.prompts.is_some()
    }

    /// Whether it goes as a whole, and with everybody.
    pub(crate) fn is_short(&self) -> bool {
        let x = &self.step.work.x;
        self.size() <= if x.tokens == 1 { CROWD } else { MIN_CHUNK }
    }

    pub(crate) fn is_aboard(&self) -> bool {
        self.aboard
    }

    /// Nothing is left to compute.
    pub(crate) fn is_over(&self) -> bool {
        let x = &self.step.work.x;
        self.error.is_some() || x.data.is_empty() || self.piece.is_last(x.batch) || self.step.work.chain.is_empty()
    }

    pub(crate) fn caller_left(&self) -> bool {
        self.reply.is_closed()
    }

    /// Tokens that would go through the next block with this step if there is room for `room`; 0 if it would not go. A piece
    /// that was begun is not cut again.
    pub(crate) fn wants(&self, room: usize) -> usize {
        match self.piece.len() {
            0 => self.piece.next_len(self.shape(), room),
            len if len <= room => len,
            _ => 0,
        }
    }

    /// Gets on the next block run with up to `room` tokens, one at least. A piece that was begun is not cut again. Returns
    /// how many tokens it takes along.
    pub(crate) fn board(&mut self, room: usize) -> usize {
        if self.piece.is_empty() {
            self.piece.take(self.shape(), room);
            let work = &mut self.step.work;
            if let Some(prompts) = &work.prompts {
                prompts.add_to_piece(0, &mut work.x, &self.piece);
            }
        }
        self.aboard = true;
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.step.traced.is_computed();
        }
        self.piece.len()
    }

    fn shape(&self) -> [usize; 2] {
        [self.step.work.x.batch, self.step.work.x.tokens]
    }

    /// What it brings to the block run.
    pub(crate) fn part(&mut self) -> Part<'_> {
        Part {
            cache: &mut self.step.cache.cache,
            chain_idx: self.next,
            x: &mut self.step.work.x,
            position: self.step.position,
            rows: self.piece.rows(),
            tokens: self.piece.tokens(),
        }
    }

    /// It took part in the block run and could not be computed.
    pub(crate) fn failed(&mut self, error: RequestError) {
        self.error = Some(error);
    }

    /// So many blocks were run. Returns whether this step's tokens are through the last block of their chain.
    pub(crate) fn blocks_ran(&mut self, n_blocks: usize) -> bool {
        if !std::mem::take(&mut self.aboard) {
            self.overtaken += n_blocks;
            return false;
        }
        let work = &mut self.step.work;
        self.next += n_blocks;
        if self.next < work.chain.len() {
            if let Some(prompts) = &work.prompts {
                prompts.add_to_piece(self.next, &mut work.x, &self.piece);
            }
            return false;
        }
        self.next = 0;
        self.overtaken = 0;
        self.piece.done(self.step.work.x.tokens);
        true
    }

    /// Answers. Sending fails only when the caller left, and then nobody is there to be told.
    pub(crate) fn finish(mut self, counters: &Counters) {
        self.step.traced.ends();
        if let Some(error) = self.error {
            return drop(self.reply.send(Err(error)));
        }
        self.step.cache.cache.end_step(&mut self.step.work.x);
        let now = Instant::now();
        counters.waits.add(self.started.unwrap_or(now) - self.submitted);
        counters.step_times.add(now - self.submitted);
        drop(self.reply.send(Ok((self.step.work.x, self.step.cache))));
    }
}
