//! The one thread that computes, or has cards compute. It takes jobs from the queue, runs blocks for all that wait at the
//! same one, and sends the results back; it never touches a socket, and nothing asynchronous ever computes.
//!
//! A job carries everything it works on, the session's cache included, and gives it back with the answer. So no lock is
//! held across compute, and a job whose caller left is simply dropped, its cache and lease with it.

use std::{
    collections::VecDeque,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};
use tracing::{debug, error};

use super::{
    backward::{Backward, PassOutput},
    error::RequestError,
    forward::Forward,
    memory::Lease,
    queue::{Queue, SubmitError},
    request::Prompts,
    riding::Riding,
    schedule::{Class, Pace, Shares, next_block},
    stats::Counters,
    training::Training,
};
use crate::model::{AdapterId, Blocks, Cache, ComputeError, CudaError, Hidden, Part, Scratch, emptied};

/// How long after a short step its session is still expected to send the next one.
const STILL_THERE: Duration = Duration::from_secs(1);

/// The cache of one session and the reservation that pays for it. They live and die together.
#[derive(Debug)]
pub(crate) struct SessionCache {
    pub(crate) cache: Cache,
    /// Held for its `Drop`.
    _lease: Lease,
}

impl SessionCache {
    pub(crate) fn new(cache: Cache, lease: Lease) -> Self {
        Self { cache, _lease: lease }
    }
}

/// Blocks to run one after another over the same activations.
#[derive(Debug)]
pub(crate) struct Work {
    /// Block indices, in execution order. The position in this list is the index into the cache.
    pub(crate) chain: Arc<[u32]>,
    /// `[batch, tokens, hidden]`; replaced by the output of each block in turn.
    pub(crate) x: Hidden,
    /// Added to the first positions of each block's input.
    pub(crate) prompts: Option<Prompts>,
}

/// One step of a session.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) work: Work,
    pub(crate) cache: SessionCache,
    /// Tokens in the cache before this step that it may see.
    pub(crate) position: usize,
    /// Cache row that each row of the batch continues (`hypo_ids`), if the rows change places.
    pub(crate) rows: Option<Vec<usize>>,
}

/// What a step gives back: the chain's output and the session's cache.
pub(crate) type StepOutput = (Hidden, SessionCache);

/// Where the result of a job goes.
type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// The asynchronous side's handle to the compute thread. Dropping the last clone does not stop it; [`Worker::stop`] does.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    queue: Queue<Job>,
    lost: watch::Receiver<Option<CudaError>>,
}

#[derive(Debug)]
struct Job {
    submitted: Instant,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Step {
        step: Step,
        reply: Reply<StepOutput>,
    },
    Forward {
        work: Work,
        /// What to go through besides the frozen weights. Of steps, the cache knows.
        adapter: Option<AdapterId>,
        reply: Reply<Hidden>,
    },
    Backward {
        work: Work,
        pass: Box<Backward>,
        reply: Reply<PassOutput>,
    },
}

impl Worker {
    /// Starts the thread. At most `queue_limit` jobs wait for it or run.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(blocks: Arc<Blocks>, queue_limit: usize, counters: Arc<Counters>) -> std::io::Result<Self> {
        let queue = Queue::new(queue_limit);
        let (lost_sender, lost) = watch::channel(None);
        let compute = Compute {
            blocks,
            queue: queue.clone(),
            counters,
            arrived: Vec::new(),
            steps: Vec::new(),
            training: VecDeque::new(),
            shares: Shares::default(),
            pace: Pace::default(),
            last_short: None,
            scratch: Scratch::default(),
            parts: Vec::new(),
            lost: lost_sender,
        };
        thread::Builder::new()
            .name("compute".into())
            .spawn(move || compute.run())?;
        Ok(Self { queue, lost })
    }

    /// Runs one step of a session.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block; the session's cache is gone with it.
    pub(crate) async fn step(&self, step: Step) -> Result<StepOutput, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Kind::Step { step, reply })?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Runs a chain over whole sequences, without a cache.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block.
    pub(crate) async fn forward(&self, work: Work, adapter: Option<AdapterId>) -> Result<Hidden, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Kind::Forward { work, adapter, reply })?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Differentiates a chain: `work.x` is the gradient by its output.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block.
    pub(crate) async fn backward(&self, work: Work, pass: Backward) -> Result<PassOutput, RequestError> {
        let (reply, answer) = oneshot::channel();
        let pass = Box::new(pass);
        self.submit(Kind::Backward { work, pass, reply })?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Ends the thread after the block it is running. All jobs are answered with [`RequestError::NotServing`].
    pub(crate) fn stop(&self) {
        self.queue.close();
    }

    /// Waits until a card is lost and returns why; until the thread ends if none is.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn lost(&self) -> Option<CudaError> {
        let mut lost = self.lost.clone();
        let lost = lost.wait_for(Option::is_some).await.ok()?;
        lost.clone()
    }

    /// Jobs that wait or run.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    fn submit(&self, kind: Kind) -> Result<(), RequestError> {
        let submitted = Instant::now();
        self.queue.submit(Job { submitted, kind }).map_err(|error| match error {
            SubmitError::Full { queued, limit } => RequestError::Busy { queued, limit },
            SubmitError::Closed => RequestError::NotServing,
        })
    }
}

/// Everything the thread owns.
struct Compute {
    blocks: Arc<Blocks>,
    queue: Queue<Job>,
    counters: Arc<Counters>,
    /// Always empty between two rounds.
    arrived: Vec<Job>,
    /// The longest waiting first.
    steps: Vec<Riding>,
    training: VecDeque<Training>,
    shares: Shares,
    pace: Pace,
    /// When a short step was last done.
    last_short: Option<Instant>,
    scratch: Scratch,
    /// Always empty between two block runs.
    parts: Vec<Part<'static>>,
    /// Where it is said that a card is lost.
    lost: watch::Sender<Option<CudaError>>,
}

impl Compute {
    fn run(mut self) {
        loop {
            let held = self.steps.len() + self.training.len();
            if !self.queue.collect(&mut self.arrived, held) {
                break;
            }
            self.admit();
            self.steps.retain(|step| !step.caller_left());
            self.training.retain(|job| !job.caller_left());
            let turn = self.shares.next(!self.steps.is_empty(), !self.training.is_empty());
            let Some(class) = turn else { continue };
            let start = Instant::now();
            let other_waits = match class {
                Class::Inference => {
                    self.run_steps();
                    !self.training.is_empty()
                }
                Class::Training => {
                    self.run_training();
                    !self.steps.is_empty()
                }
            };
            self.shares.ran(class, start.elapsed(), other_waits);
        }
        // What is left is dropped, which its callers notice.
        debug!("compute thread ends");
    }

    /// Makes what arrived ready. What needs no computing is answered at once.
    fn admit(&mut self) {
        for Job { submitted, kind } in self.arrived.drain(..) {
            match kind {
                Kind::Step { step, reply } => {
                    let step = Riding::new(step, reply, submitted, &self.blocks);
                    if step.is_over() {
                        step.finish(&self.counters);
                    } else {
                        self.steps.push(step);
                    }
                }
                Kind::Forward { work, reply, .. } if work.x.data.is_empty() => drop(reply.send(Ok(work.x))),
                Kind::Forward { work, adapter, reply } => {
                    let pass = Box::new(Forward::new(&self.blocks, work, adapter));
                    self.training.push_back(Training::Forward { pass, reply });
                }
                Kind::Backward { work, pass, reply } => self.training.push_back(Training::Backward {
                    chain: work.chain,
                    gradient: work.x,
                    pass,
                    next: 0,
                    reply,
                }),
            }
        }
    }

    /// Runs one block, or as many as go at a call, for all steps that wait at the first.
    fn run_steps(&mut self) {
        let Some(block) = next_block(self.steps.iter().map(Riding::place)) else {
            return;
        };
        let start = Instant::now();
        let tokens = self.board(block);
        let Some((chain, stretch)) = self.stretch() else { return };
        let n_blocks = stretch.len();
        self.run_blocks(&chain[stretch]);
        let each = start.elapsed() / u32::try_from(n_blocks).unwrap_or(u32::MAX);
        self.pace.ran(tokens, each);
        self.counters.block_runs.add_many(n_blocks);
        self.counters.block_tokens.add_many(tokens * n_blocks);
        self.settle(n_blocks);
    }

    /// Which blocks everybody aboard goes through at this call, as a part of a chain: those that go together and that all
    /// their chains have next, until somebody gets prompts between two of them, or waits at one.
    fn stretch(&self) -> Option<(Arc<[u32]>, Range<usize>)> {
        let mut aboard = self.steps.iter().filter(|step| step.is_aboard());
        let first = aboard.next()?;
        let (chain, next) = first.ahead();
        let ahead = &chain[next..];
        let mut n_blocks = if first.has_prompts() {
            1
        } else {
            self.blocks.at_a_call(ahead)
        };
        for step in aboard {
            let (other, at) = step.ahead();
            let common = ahead.iter().zip(&other[at..]).take_while(|(a, b)| a == b).count();
            n_blocks = n_blocks.min(if step.has_prompts() { 1 } else { common });
        }
        let somebody_waits = |block: &u32| {
            self.steps
                .iter()
                .any(|step| !step.is_aboard() && step.place().block == *block)
        };
        let until = ahead[..n_blocks].iter().skip(1).position(somebody_waits);
        let n_blocks = until.map_or(n_blocks, |until| until + 1);
        Some((chain.clone(), next..next + n_blocks))
    }

    /// Decides who goes through `block`: all short steps, and of the others as many tokens as the time allows, those
    /// that wait longest first. Returns the tokens of all.
    fn board(&mut self, block: u32) -> usize {
        let crowded = self.steps.len() > 1 || self.had_short_step();
        let (mut short, mut long) = (0, 0);
        let waiting = |step: &&mut Riding| step.place().block == block;
        for step in self.steps.iter_mut().filter(waiting).filter(|step| step.is_short()) {
            short += step.board(usize::MAX);
        }
        for step in self.steps.iter_mut().filter(waiting).filter(|step| !step.is_short()) {
            let (chain, next) = step.ahead();
            let at_a_call = self.blocks.at_a_call(&chain[next..]);
            let budget = self.pace.chunk((chain.len(), at_a_call), crowded);
            let wants = step.wants(budget.saturating_sub(long));
            // A large chunk was cut while nobody else was there. It goes when it is its turn, or has no company.
            let alone = short + long == 0 || step.place().is_urgent();
            if wants > 0 || alone {
                long += step.board(wants.max(if alone { budget } else { 0 }));
            }
        }
        short + long
    }

    fn run_blocks(&mut self, chain: &[u32]) {
        let mut parts: Vec<Part<'_>> = emptied(std::mem::take(&mut self.parts));
        let aboard = self.steps.iter_mut().filter(|step| step.is_aboard());
        parts.extend(aboard.map(Riding::part));
        let n_parts = parts.len();
        let (blocks, scratch) = (&*self.blocks, &mut self.scratch);
        let outcome = guarded(|| blocks.run_batch(chain, &mut parts, scratch));
        self.parts = emptied(parts);
        let Err(error) = outcome else { return };
        note_loss(&self.lost, &error);
        let mut aboard = self.steps.iter_mut().filter(|step| step.is_aboard());
        if n_parts == 1 {
            if let Some(step) = aboard.next() {
                step.failed(error);
            }
            return;
        }
        // Nothing was changed, so that each can go alone: only those that fail again have to end.
        debug!(?chain, n_parts, %error, "a batch failed; its steps are run one by one");
        for step in aboard {
            let outcome = guarded(|| blocks.run_batch(chain, &mut [step.part()], scratch));
            if let Err(error) = outcome {
                step.failed(error);
            }
        }
    }

    /// Moves everybody on, answers those that are through, and puts those that have more to do behind the others.
    fn settle(&mut self, n_blocks: usize) {
        let mut idx = 0;
        for _ in 0..self.steps.len() {
            let step = &mut self.steps[idx];
            let through = step.blocks_ran(n_blocks);
            if step.is_over() {
                if step.is_short() {
                    self.last_short = Some(Instant::now());
                }
                self.steps.remove(idx).finish(&self.counters);
            } else if through {
                let step = self.steps.remove(idx);
                self.steps.push(step);
            } else {
                idx += 1;
            }
        }
    }

    /// Runs a piece of the training job that waits longest.
    fn run_training(&mut self) {
        let Some(mut job) = self.training.pop_front() else {
            return;
        };
        let (crowded, start) = (!self.steps.is_empty() || self.had_short_step(), Instant::now());
        let (blocks, scratch, pace) = (&*self.blocks, &mut self.scratch, &self.pace);
        match guarded(|| job.advance(blocks, (pace, crowded), scratch)) {
            Err(error) => {
                note_loss(&self.lost, &error);
                job.fail(error);
            }
            Ok(tokens) => {
                self.pace.ran(tokens, start.elapsed());
                if job.is_done() {
                    job.finish();
                } else {
                    self.training.push_back(job);
                }
            }
        }
    }

    /// Whether a short step was done a moment ago: its session will want the next.
    fn had_short_step(&self) -> bool {
        self.last_short.is_some_and(|last| last.elapsed() < STILL_THERE)
    }
}

/// Says so if a card is lost: nothing that is computed from now on can be right.
fn note_loss(lost: &watch::Sender<Option<CudaError>>, error: &RequestError) {
    if let RequestError::Compute(ComputeError::Card(error)) = error
        && error.is_fatal()
    {
        lost.send_replace(Some(error.clone()));
    }
}

/// A defect in a block ends what was computed with it, and nothing else.
fn guarded<T, E>(run: impl FnOnce() -> Result<T, E>) -> Result<T, RequestError>
where
    RequestError: From<E>,
{
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => outcome.map_err(RequestError::from),
        Err(_) => {
            error!("a block panicked; what it was run for ends, the server goes on");
            Err(RequestError::Crashed)
        }
    }
}

#[cfg(test)]
mod tests;
