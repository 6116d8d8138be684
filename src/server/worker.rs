//! The one thread that computes, or has cards compute. It takes jobs from the queue, runs blocks for all that wait at the
//! same one, and sends the results back; it never touches a socket, and nothing asynchronous ever computes.
//!
//! A job carries everything it works on, the session's cache included, and gives it back with the answer. So no lock is
//! held across compute, and a job whose caller left is simply dropped, its cache and lease with it.

mod turns;

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

use self::turns::Turns;
use super::{
    backward::{Backward, PassOutput},
    duty::Duty,
    error::RequestError,
    forward::Forward,
    guests::Origin,
    memory::Lease,
    queue::{Queue, SubmitError},
    request::Prompts,
    riding::Riding,
    schedule::{Class, Pace, next_block},
    stats::Counters,
    traced::Traced,
    training::{Queued, Training},
    waiting::{Ticket, Waiting, Waits},
};
use crate::model::{AdapterId, Blocks, Cache, ComputeError, CudaError, Hidden, Part, Scratch, emptied};

/// How long after a short step its session is still expected to send the next one.
const STILL_THERE: Duration = Duration::from_secs(1);

/// How long a rest lasts at most before those whose caller left are dropped, and their caches with them.
const LOOK: Duration = Duration::from_millis(20);

/// The cache of one session and the reservation that pays for it. They live and die together.
#[derive(Debug)]
pub(crate) struct SessionCache {
    pub(crate) cache: Cache,
    /// Held for its `Drop`. Boxed: it is moved about with every step.
    _lease: Box<Lease>,
}

impl SessionCache {
    pub(crate) fn new(cache: Cache, lease: Lease) -> Self {
        Self {
            cache,
            _lease: Box::new(lease),
        }
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
    /// For whom.
    pub(crate) origin: Origin,
    /// What pays for the memory of a pass; held for its `Drop`.
    pub(crate) _lease: Option<Arc<Lease>>,
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
    /// Where it is, for those who want to know.
    pub(crate) traced: Traced,
}

/// What a step gives back: the chain's output and the session's cache.
pub(crate) type StepOutput = (Hidden, SessionCache);

/// Where the result of a job goes.
type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// The asynchronous side's handle to the compute thread. Dropping the last clone does not stop it; [`Worker::stop`] does.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    queue: Queue<Job>,
    waiting: Waiting,
    lost: watch::Receiver<Option<Lost>>,
}

/// Why nothing is computed any more.
#[derive(Clone, Debug)]
pub(crate) enum Lost {
    /// A card is lost.
    Card(CudaError),
    /// A defect outside of the blocks ended the thread.
    Thread,
}

#[derive(Debug)]
struct Job {
    submitted: Instant,
    ticket: Ticket,
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
        pass: Box<Backward>,
        reply: Reply<PassOutput>,
    },
}

impl Worker {
    /// Starts the thread. At most `queue_limit` jobs wait for it or run; it rests as `duty` says.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(
        blocks: Arc<Blocks>,
        queue_limit: usize,
        counters: Arc<Counters>,
        duty: Duty,
    ) -> std::io::Result<Self> {
        let (worker, compute) = Self::prepare(blocks, queue_limit, counters, duty);
        thread::Builder::new()
            .name("compute".into())
            .spawn(move || compute.run())?;
        Ok(worker)
    }

    /// The handle, and what the thread is to run.
    fn prepare(blocks: Arc<Blocks>, queue_limit: usize, counters: Arc<Counters>, duty: Duty) -> (Self, Compute) {
        let queue = Queue::new(queue_limit);
        let (lost_sender, lost) = watch::channel(None);
        let compute = Compute {
            blocks,
            queue: queue.clone(),
            counters,
            arrived: Vec::new(),
            steps: Vec::new(),
            training: VecDeque::new(),
            turns: Turns::default(),
            pace: Pace::new(duty.share()),
            duty,
            order: Vec::new(),
            last_short: None,
            began: Instant::now(),
            computes: false,
            goes_back: false,
            scratch: Scratch::default(),
            parts: Vec::new(),
            lost: lost_sender,
        };
        let worker = Self {
            queue,
            waiting: Waiting::default(),
            lost,
        };
        (worker, compute)
    }

    /// Runs one step of a session.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block; the session's cache is gone with it.
    pub(crate) async fn step(&self, step: Step) -> Result<StepOutput, RequestError> {
        let (reply, answer) = oneshot::channel();
        let origin = step.work.origin;
        let class = if origin.own { Class::Own } else { Class::Inference };
        self.submit(Kind::Step { step, reply }, (class, origin))?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Runs a chain over whole sequences, without a cache.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block.
    pub(crate) async fn forward(&self, work: Work, adapter: Option<AdapterId>) -> Result<Hidden, RequestError> {
        let (reply, answer) = oneshot::channel();
        let origin = work.origin;
        self.submit(Kind::Forward { work, adapter, reply }, (Class::Training, origin))?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Differentiates a chain.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block.
    pub(crate) async fn backward(&self, pass: Backward) -> Result<PassOutput, RequestError> {
        let (reply, answer) = oneshot::channel();
        let origin = pass.origin();
        let kind = Kind::Backward {
            pass: Box::new(pass),
            reply,
        };
        self.submit(kind, (Class::Training, origin))?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Ends the thread after the block it is running. All jobs are answered with [`RequestError::NotServing`].
    pub(crate) fn stop(&self) {
        self.queue.close();
    }

    /// Waits until a card or the thread is lost and returns why; until the thread is stopped if neither is.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn lost(&self) -> Option<Lost> {
        let mut lost = self.lost.clone();
        let lost = lost.wait_for(Option::is_some).await.ok()?;
        lost.clone()
    }

    /// Jobs that wait or run.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Jobs that wait or run, class by class.
    pub(crate) fn waits(&self) -> Waits {
        self.waiting.read()
    }

    fn submit(&self, kind: Kind, (class, origin): (Class, Origin)) -> Result<(), RequestError> {
        let job = Job {
            submitted: Instant::now(),
            ticket: self.waiting.enter(class),
            kind,
        };
        self.queue.submit(job, origin.own).map_err(|error| match error {
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
    training: VecDeque<Queued>,
    turns: Turns,
    pace: Pace,
    duty: Duty,
    /// The steps at a block in the order in which they get on. Used while they do.
    order: Vec<usize>,
    /// When a short step was last done.
    last_short: Option<Instant>,
    /// Since when what is computed is accounted for.
    began: Instant,
    /// Whether it is, at this moment.
    computes: bool,
    /// Whether a job is on its way back through a block. It is in no list then.
    goes_back: bool,
    scratch: Scratch,
    /// Always empty between two block runs.
    parts: Vec<Part<'static>>,
    /// Where it is said that a card is lost, or the thread.
    lost: watch::Sender<Option<Lost>>,
}

impl Drop for Compute {
    /// Nobody waits for a thread that is gone, whatever ended it.
    fn drop(&mut self) {
        if thread::panicking() {
            error!("the compute thread panicked; nothing is computed any more");
            self.lost.send_replace(Some(Lost::Thread));
        }
        if self.computes {
            // Other models of the node would rest for ever from what is not computed any more.
            self.duty.end(Instant::now());
        }
        self.queue.close();
    }
}

impl Compute {
    fn run(mut self) {
        while self.rest() {
            let held = self.held();
            if !self.queue.collect(&mut self.arrived, held) {
                break;
            }
            self.admit();
            if let Some(turn) = self.turns.classes.next(self.waits()) {
                self.run_class(turn);
            }
        }
        // What is left is dropped, which its callers notice.
        debug!("compute thread ends");
    }

    fn run_class(&mut self, turn: usize) {
        self.begin();
        match Class::ALL[turn] {
            Class::Own => self.run_steps(true),
            Class::Inference => self.run_steps(false),
            Class::Training => self.run_training(),
        }
        self.end(turn);
    }

    /// What is computed from now on is accounted for by [`Compute::end`].
    fn begin(&mut self) {
        self.began = Instant::now();
        self.duty.begin(self.began);
        self.computes = true;
    }

    /// Accounts to a class for what was computed. Returns how long that took.
    fn end(&mut self, turn: usize) -> Duration {
        let end = Instant::now();
        self.duty.end(end);
        self.computes = false;
        let took = end - self.began;
        self.turns.classes.ran(turn, took, self.waits());
        took
    }

    /// Rests as long as that is owed. Returns whether the queue is still open.
    fn rest(&mut self) -> bool {
        while let Some(left) = self.duty.rest(Instant::now()) {
            let held = self.held();
            if !self.queue.rest(&mut self.arrived, held, left.min(LOOK)) {
                return false;
            }
            self.admit();
        }
        true
    }

    fn held(&self) -> usize {
        self.steps.len() + self.training.len() + usize::from(self.goes_back)
    }

    /// Which classes wait.
    fn waits(&self) -> [bool; 3] {
        let own = self.steps.iter().any(|step| step.origin().own);
        let others = self.steps.iter().any(|step| !step.origin().own);
        [own, others, self.goes_back || !self.training.is_empty()]
    }

    /// Makes what arrived ready, and drops what nobody waits for any more. What needs no computing is answered at once.
    fn admit(&mut self) {
        for Job {
            submitted,
            ticket,
            kind,
        } in self.arrived.drain(..)
        {
            let mut train = |job: Training, origin: Origin, ticket: Ticket| {
                self.training.push_back(Queued {
                    job,
                    origin,
                    _ticket: ticket,
                });
            };
            match kind {
                Kind::Step { step, reply } => {
                    let step = Riding::new(step, reply, (submitted, ticket), (&self.blocks, &self.counters));
                    if step.is_over() {
                        self.queue.release();
                        step.finish(&self.counters);
                    } else {
                        self.steps.push(step);
                    }
                }
                Kind::Forward { work, reply, .. } if work.x.data.is_empty() => {
                    self.queue.release();
                    drop(reply.send(Ok(work.x)));
                }
                // Rows without tokens cost a sender nothing; on the way there each would get a cache.
                Kind::Backward { pass, reply } if pass.is_empty() => {
                    self.queue.release();
                    drop(reply.send(Ok(pass.finish())));
                }
                Kind::Forward { work, adapter, reply } => {
                    let origin = work.origin;
                    let pass = Box::new(Forward::new(&self.blocks, work, adapter));
                    train(Training::Forward { pass, reply }, origin, ticket);
                }
                Kind::Backward { pass, reply } => {
                    let origin = pass.origin();
                    train(Training::Backward { pass, reply }, origin, ticket);
                }
            }
        }
        self.steps.retain(|step| !step.caller_left());
        self.training.retain(|queued| !queued.job.caller_left());
    }

    /// Runs one block, or as many as go at a call, for steps that wait at the first; `own` says whose turn it is.
    fn run_steps(&mut self, own: bool) {
        self.line_up();
        let turn = self.steps.iter().filter(|step| step.origin().own == own);
        let Some(block) = next_block(turn.map(Riding::place)) else {
            return;
        };
        let start = Instant::now();
        let tokens = self.board(block, own);
        let Some((chain, stretch)) = self.stretch() else { return };
        let n_blocks = stretch.len();
        self.run_blocks(&chain[stretch]);
        let each = start.elapsed() / u32::try_from(n_blocks).unwrap_or(u32::MAX);
        self.pace.ran(tokens, each);
        self.counters.block_runs.add_many(n_blocks);
        self.counters.block_tokens.add_many(tokens * n_blocks);
        for step in self.steps.iter().filter(|step| step.is_aboard()) {
            let amount = step.tokens_aboard() * n_blocks;
            self.turns.steps.ran(step.origin().peer, amount);
        }
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
                self.queue.release();
                self.steps.remove(idx).finish(&self.counters);
            } else if through {
                let step = self.steps.remove(idx);
                self.steps.push(step);
            } else {
                idx += 1;
            }
        }
    }

    /// Whether a short step was done a moment ago: its session will want the next.
    fn had_short_step(&self) -> bool {
        self.last_short.is_some_and(|last| last.elapsed() < STILL_THERE)
    }
}

/// Says so if a card is lost: nothing that is computed from now on can be right.
fn note_loss(lost: &watch::Sender<Option<Lost>>, error: &RequestError) {
    if let RequestError::Compute(ComputeError::Card(error)) = error
        && error.is_fatal()
    {
        lost.send_replace(Some(Lost::Card(error.clone())));
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
