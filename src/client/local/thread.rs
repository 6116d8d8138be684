//! The one thread that computes the client's own blocks, so that nothing asynchronous does. It takes steps from a bounded
//! queue in the order they come; short ones that wait at the same blocks go through them together, so that the weights are
//! read once for all of them. Which blocks there are, and how far a session is, it does not know.
//!
//! A step carries the session's cache with it and brings it back with the answer: no lock is held across compute, and a
//! step whose caller left is dropped, its cache with it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error};

use super::{error::LocalError, span::Stretch};
use crate::model::{Cache, Hidden, Part, Scratch};

/// Steps that wait for the thread. Whoever comes when there are as many waits to hand over the next.
const QUEUE: usize = 64;

/// Tokens of a step up to which it shares a pass with others. Longer ones are worth a pass of their own.
const SHORT: usize = 16;

/// One step through a stretch of blocks.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) stretch: Arc<Stretch>,
    pub(super) cache: Cache,
    /// `[batch, tokens, hidden]`
    pub(super) x: Hidden,
    /// Tokens in the cache before this step that it may see.
    pub(super) position: usize,
    /// Answer with the logits after so many of the last tokens, `[1, logits, vocab]`, where the stretch has a head; 0 for
    /// what comes out of the blocks.
    pub(super) logits: usize,
}

/// What a step gives back, and the session's cache.
type Output = (Hidden, Cache);

#[derive(Debug)]
struct Job {
    step: Step,
    reply: oneshot::Sender<Result<Output, LocalError>>,
}

/// The handle to the thread, which ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Thread {
    jobs: mpsc::Sender<Job>,
}

impl Thread {
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start() -> Result<Self, LocalError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("own blocks".into())
            .spawn(move || run(queue))
            .map_err(LocalError::Thread)?;
        Ok(Self { jobs })
    }

    /// Computes one step.
    ///
    /// # Errors
    /// What does not fit together; a defect in a block.
    ///
    /// # Cancel safety
    /// Dropping the future drops the step before it is computed, and the cache with it.
    pub(super) async fn step(&self, step: Step) -> Result<Output, LocalError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.jobs.send(Job { step, reply }).await;
        sent.map_err(|_| LocalError::Crashed)?;
        answer.await.unwrap_or(Err(LocalError::Crashed))
    }
}

fn run(mut queue: mpsc::Receiver<Job>) {
    let (mut waiting, mut scratch) = (VecDeque::new(), Scratch::default());
    loop {
        if waiting.is_empty() {
            match queue.blocking_recv() {
                Some(job) => waiting.push_back(job),
                None => break,
            }
        }
        while waiting.len() < QUEUE
            && let Ok(job) = queue.try_recv()
        {
            waiting.push_back(job);
        }
        waiting.retain(|job| !job.reply.is_closed());
        let aboard = board(&mut waiting);
        compute(aboard, &mut scratch);
    }
    debug!("the thread of the own blocks ends");
}

/// Takes the step that waits longest, and those that share its pass.
fn board(waiting: &mut VecDeque<Job>) -> Vec<Job> {
    let Some(first) = waiting.pop_front() else {
        return Vec::new();
    };
    let mut aboard = vec![first];
    if !aboard[0].is_short() {
        return aboard;
    }
    let mut at = 0;
    while at < waiting.len() {
        let job = &waiting[at];
        if job.is_short() && Arc::ptr_eq(&job.step.stretch, &aboard[0].step.stretch) {
            aboard.extend(waiting.remove(at));
        } else {
            at += 1;
        }
    }
    aboard
}

/// Runs steps of one stretch, and answers them.
fn compute(mut aboard: Vec<Job>, scratch: &mut Scratch) {
    let Some(stretch) = aboard.first().map(|job| job.step.stretch.clone()) else {
        return;
    };
    for job in &mut aboard {
        stretch.round(&mut job.step.x);
    }
    let together = pass(&stretch, &mut aboard, scratch);
    let alone = aboard.len() == 1;
    let mut failure = together.err();
    for mut job in aboard {
        let outcome = match failure.take() {
            None => Ok(()),
            Some(error) if alone => Err(error),
            // Nothing was changed, so that each can go alone: only those that fail again have to end.
            Some(error) => {
                failure = Some(error);
                pass(&stretch, std::slice::from_mut(&mut job), scratch)
            }
        };
        let answer = outcome.and_then(|()| stretch.finish(job.step));
        // Whoever asked may have left.
        drop(job.reply.send(answer));
    }
}

fn pass(stretch: &Stretch, jobs: &mut [Job], scratch: &mut Scratch) -> Result<(), LocalError> {
    let mut parts: Vec<Part<'_>> = jobs.iter_mut().map(|job| job.step.part()).collect();
    match catch_unwind(AssertUnwindSafe(|| stretch.run(&mut parts, scratch))) {
        Ok(outcome) => Ok(outcome?),
        Err(_) => {
            error!("a block panicked; what it was run for ends");
            Err(LocalError::Crashed)
        }
    }
}

impl Job {
    fn is_short(&self) -> bool {
        self.step.x.batch * self.step.x.tokens <= SHORT
    }
}

impl Step {
    fn part(&mut self) -> Part<'_> {
        Part {
            cache: &mut self.cache,
            chain_idx: 0,
            rows: 0..self.x.batch,
            tokens: 0..self.x.tokens,
            x: &mut self.x,
            position: self.position,
        }
    }
}
