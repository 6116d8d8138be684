//! Whose turn it is on the compute thread: which steps go through a block together, and which job over whole sequences gets
//! on. The arithmetic is in `schedule.rs` and `fair.rs`; nothing is computed with blocks here but a job's own piece.

use std::{
    collections::{HashSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use super::{
    super::{
        error::RequestError,
        fair::Fair,
        guests::Origin,
        schedule::{CROWD, Class, MIN_CHUNK, Shares},
        training::Queued,
    },
    Compute, guarded, note_loss,
};
use crate::{model::ComputeError, p2p::PeerId};

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pub(super) classes: Shares<3>,
    /// Of jobs over whole sequences: own ones, others.
    pub(super) training: Shares<2>,
    /// Tokens of steps.
    pub(super) steps: Fair,
    /// Microseconds of jobs over whole sequences.
    pub(super) jobs: Fair,
    /// Peers of which a long step waits. Used while steps line up.
    pub(super) seen: HashSet<PeerId>,
}

impl Compute {
    /// Finds out which peers wait, and which of its long steps each wants to go next.
    pub(super) fn line_up(&mut self) {
        let Turns { steps, seen, .. } = &mut self.turns;
        steps.present(self.steps.iter().map(|step| step.origin().peer));
        seen.clear();
        for step in &mut self.steps {
            let peer = step.origin().peer;
            step.line_up(|| seen.insert(peer));
        }
    }

    /// Decides who goes through `block`: short steps, and of the others as many tokens as the time allows; those first whose
    /// turn it is, of these those whose peer had least, and of a peer's own those that wait longest. Returns the tokens of
    /// all.
    pub(super) fn board(&mut self, block: u32, own: bool) -> usize {
        let crowded = self.steps.len() > 1 || self.had_short_step();
        let mut order = std::mem::take(&mut self.order);
        order.extend((0..self.steps.len()).filter(|i| self.steps[*i].place().block == block));
        order.sort_by_key(|i| {
            let Origin { peer, own: is_own } = self.steps[*i].origin();
            (is_own != own, self.turns.steps.rank(&peer))
        });
        let room = if self.turns.steps.n_peers() > 1 {
            CROWD
        } else {
            usize::MAX
        };
        let (mut short, mut long, mut on_turn) = (0, 0, 0);
        for i in &order {
            let step = &mut self.steps[*i];
            let has_turn = step.origin().own == own;
            // Others may ride along for as long as that costs next to nothing.
            let room = if has_turn { room } else { MIN_CHUNK };
            let is_first = has_turn && short == 0;
            if step.is_short() && (is_first || short + step.size() <= room) {
                short += step.board(usize::MAX);
                on_turn += usize::from(has_turn);
            }
        }
        // Those that waited long enough first, of whom one goes in any case: were it all of them, a call would be as long
        // as they are many.
        order.sort_by_key(|i| !self.steps[*i].place().is_urgent());
        for i in &order {
            let step = &mut self.steps[*i];
            if step.is_short() || step.origin().own != own {
                continue;
            }
            let (chain, next) = step.ahead();
            let at_a_call = self.blocks.at_a_call(&chain[next..]);
            let budget = self.pace.chunk((chain.len(), at_a_call), crowded);
            let wants = step.wants(budget.saturating_sub(long));
            // A large chunk was cut while nobody else was there. It goes when it is its turn, or has no company.
            let alone = on_turn == 0 || (long == 0 && step.place().is_urgent());
            if wants > 0 || alone {
                long += step.board(wants.max(if alone { budget } else { 0 }));
                on_turn += 1;
            }
        }
        order.clear();
        self.order = order;
        short + long
    }

    /// Runs a piece of a job over whole sequences: of those whose turn it is, of the peer that had least, the one that waits
    /// longest.
    pub(super) fn run_training(&mut self) {
        let own = |queued: &Queued| usize::from(!queued.origin.own);
        let waits = |jobs: &VecDeque<Queued>| [0, 1].map(|group| jobs.iter().any(|queued| own(queued) == group));
        let turns = &mut self.turns;
        let Some(group) = turns.training.next(waits(&self.training)) else {
            return;
        };
        turns
            .jobs
            .present(self.training.iter().map(|queued| queued.origin.peer));
        let candidates = self.training.iter().enumerate();
        let candidates = candidates.filter(|(_, queued)| own(queued) == group);
        let next = candidates.min_by_key(|(_, queued)| turns.jobs.rank(&queued.origin.peer));
        let Some(mut queued) = next.map(|(i, _)| i).and_then(|i| self.training.remove(i)) else {
            return;
        };
        let (tokens, took) = match queued.job.goes_back() {
            true => self.go_back(&mut queued),
            false => self.advance(&mut queued),
        };
        let microseconds = usize::try_from(took.as_micros()).unwrap_or(usize::MAX);
        self.turns.jobs.ran(queued.origin.peer, microseconds);
        match tokens {
            Err(error) => {
                note_loss(&self.lost, &error);
                self.queue.release();
                queued.job.fail(error);
            }
            Ok(tokens) => {
                self.pace.ran(tokens, took);
                if queued.job.is_done() {
                    self.queue.release();
                    queued.job.finish();
                } else {
                    self.training.push_back(queued);
                }
            }
        }
        self.turns.training.ran(group, took, waits(&self.training));
    }

    /// Runs a piece of a job through a block as steps go. Returns how many tokens that were, and how long it took.
    fn advance(&mut self, queued: &mut Queued) -> (Result<usize, RequestError>, Duration) {
        let (crowded, start) = (!self.steps.is_empty() || self.had_short_step(), Instant::now());
        let (blocks, scratch, pace) = (&*self.blocks, &mut self.scratch, &self.pace);
        let outcome = guarded(|| queued.job.advance(blocks, (pace, crowded), scratch));
        (outcome, start.elapsed())
    }

    /// Takes a job back through a block, and lets steps whose turn it is get in between. Returns how long the block took.
    fn go_back(&mut self, queued: &mut Queued) -> (Result<usize, RequestError>, Duration) {
        let (blocks, mut before) = (self.blocks.clone(), Duration::ZERO);
        self.goes_back = true;
        let mut panic = None;
        let outcome = guarded(|| {
            // A defect in the middle of it is none of this block.
            queued.job.go_back(
                &blocks,
                &mut || match catch_unwind(AssertUnwindSafe(|| self.breathe())) {
                    Ok(took) => {
                        before += took?;
                        Ok(())
                    }
                    Err(defect) => {
                        panic = Some(defect);
                        Err(ComputeError::Stopped)
                    }
                },
            )
        });
        if let Some(defect) = panic {
            resume_unwind(defect);
        }
        self.goes_back = false;
        let outcome = match outcome {
            Err(RequestError::Compute(ComputeError::Stopped)) => Err(RequestError::NotServing),
            outcome => outcome.map(|()| 0),
        };
        (outcome, before + self.began.elapsed())
    }

    /// In the middle of a job over whole sequences: runs steps for as long as it is their turn. Returns how long was computed
    /// since the last time.
    ///
    /// # Errors
    /// [`ComputeError::Stopped`] at the end of the queue.
    fn breathe(&mut self) -> Result<Duration, ComputeError> {
        let training = Class::Training.index();
        let took = self.end(training);
        let mut is_open = true;
        while is_open {
            let held = self.held();
            is_open = self.rest() && self.queue.collect(&mut self.arrived, held);
            self.admit();
            match self.turns.classes.next(self.waits()) {
                Some(turn) if is_open && turn != training => self.run_class(turn),
                _ => break,
            }
        }
        self.begin();
        if is_open { Ok(took) } else { Err(ComputeError::Stopped) }
    }
}
