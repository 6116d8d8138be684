//! The one thread that computes. It takes jobs from the queue, runs blocks and sends the result back; it never touches a
//! socket, and nothing asynchronous ever computes.
//!
//! A job carries everything it works on, the session's cache included, and gives it back with the answer. So no lock is
//! held across compute, and a job whose caller left is simply dropped, its cache and lease with it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use tokio::sync::oneshot;
use tracing::{debug, error};

use super::{
    backward::{Backward, PassOutput},
    error::RequestError,
    memory::Lease,
    queue::{Priority, Queue, SubmitError},
    request::Prompts,
};
use crate::model::{Blocks, Cache, Hidden};

/// Steps of at most this many tokens (rows × tokens) run their whole chain at once; longer ones let others in between
/// two blocks. Petals: `server/backend.py`, short inference.
const SHORT_STEP_TOKENS: usize = 128;

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

/// The asynchronous side's handle to the compute thread. Dropping the last clone does not stop it; [`Worker::stop`] does.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    queue: Queue<Job>,
}

#[derive(Debug)]
struct Job {
    work: Work,
    /// Number of the next stage: the position in the chain of the next block to run, or what a backward pass counts.
    next: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Step {
        cache: SessionCache,
        position: usize,
        /// Taken before the first block.
        rows: Option<Vec<usize>>,
        reply: oneshot::Sender<Result<StepOutput, RequestError>>,
    },
    Forward {
        reply: oneshot::Sender<Result<Hidden, RequestError>>,
    },
    Backward {
        /// What goes with the gradient, which is the job's `x`.
        pass: Backward,
        reply: oneshot::Sender<Result<PassOutput, RequestError>>,
    },
}

impl Worker {
    /// Starts the thread. At most `queue_limit` jobs wait for it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(blocks: Arc<Blocks>, queue_limit: usize) -> std::io::Result<Self> {
        let queue = Queue::new(queue_limit);
        let taker = queue.clone();
        thread::Builder::new().name("compute".into()).spawn(move || {
            while let Some(job) = taker.take() {
                run(&blocks, &taker, job);
            }
            debug!("compute thread ends");
        })?;
        Ok(Self { queue })
    }

    /// Runs one step of a session.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block; the session's cache is gone with it.
    pub(crate) async fn step(&self, step: Step) -> Result<StepOutput, RequestError> {
        let Step {
            work,
            cache,
            position,
            rows,
        } = step;
        let (reply, answer) = oneshot::channel();
        let job = Job {
            work,
            next: 0,
            kind: Kind::Step {
                cache,
                position,
                rows,
                reply,
            },
        };
        self.submit(job)?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Runs a chain over whole sequences, without a cache.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block.
    pub(crate) async fn forward(&self, work: Work) -> Result<Hidden, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job {
            work,
            next: 0,
            kind: Kind::Forward { reply },
        })?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Differentiates a chain: `work.x` is the gradient by its output.
    ///
    /// # Cancel safety
    /// Dropping the future drops the job before its next block.
    pub(crate) async fn backward(&self, work: Work, pass: Backward) -> Result<PassOutput, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job {
            work,
            next: 0,
            kind: Kind::Backward { pass, reply },
        })?;
        answer.await.unwrap_or(Err(RequestError::NotServing))
    }

    /// Ends the thread after the block it is running. All jobs are answered with [`RequestError::NotServing`].
    pub(crate) fn stop(&self) {
        self.queue.close();
    }

    /// Whether no job waits and none is running.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_idle()
    }

    fn submit(&self, job: Job) -> Result<(), RequestError> {
        self.queue.submit(job.priority(), job).map_err(|error| match error {
            SubmitError::Full { queued, limit } => RequestError::Busy { queued, limit },
            SubmitError::Closed => RequestError::NotServing,
        })
    }
}

/// Runs a job, or one block of it when it is long and others wait.
fn run(blocks: &Blocks, queue: &Queue<Job>, mut job: Job) {
    let long = job.work.x.batch * job.work.x.tokens > SHORT_STEP_TOKENS;
    while job.next < job.stages() {
        if job.caller_left() {
            return;
        }
        if queue.is_closed() {
            return job.fail(RequestError::NotServing);
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| job.run_block(blocks)));
        match outcome {
            Ok(Ok(())) => job.next += 1,
            Ok(Err(error)) => return job.fail(error),
            Err(_) => {
                error!(
                    block = job.block(),
                    "a block panicked; the session ends, the server goes on"
                );
                return job.fail(RequestError::Crashed);
            }
        }
        if long && job.next < job.stages() && !queue.is_empty() {
            return queue.resume(job.priority(), job);
        }
    }
    job.finish();
}

impl Job {
    fn priority(&self) -> Priority {
        match self.kind {
            Kind::Step { .. } => Priority::Inference,
            Kind::Forward { .. } | Kind::Backward { .. } => Priority::Batch,
        }
    }

    /// How many times a block has to be run.
    fn stages(&self) -> usize {
        match self.kind {
            Kind::Step { .. } | Kind::Forward { .. } => self.work.chain.len(),
            Kind::Backward { .. } => Backward::stages(self.work.chain.len()),
        }
    }

    /// The block that is next.
    fn block(&self) -> u32 {
        let chain = &self.work.chain;
        match self.kind {
            Kind::Step { .. } | Kind::Forward { .. } => chain[self.next],
            Kind::Backward { .. } => chain[Backward::index(self.next, chain.len())],
        }
    }

    fn caller_left(&self) -> bool {
        match &self.kind {
            Kind::Step { reply, .. } => reply.is_closed(),
            Kind::Forward { reply } => reply.is_closed(),
            Kind::Backward { reply, .. } => reply.is_closed(),
        }
    }

    fn run_block(&mut self, blocks: &Blocks) -> Result<(), RequestError> {
        let Work { chain, x, prompts } = &mut self.work;
        if let Kind::Step { cache, rows, .. } = &mut self.kind
            && let Some(rows) = rows.take()
        {
            cache.cache.reorder(&rows)?;
        }
        if x.tokens == 0 {
            return Ok(());
        }
        if let Some(prompts) = prompts {
            prompts.add_to(self.next, x);
        }
        match &mut self.kind {
            Kind::Step { cache, position, .. } => {
                blocks.step(chain[self.next], &mut cache.cache, self.next, x, *position)?;
            }
            Kind::Forward { .. } => blocks.forward(chain[self.next], x)?,
            Kind::Backward { pass, .. } => pass.advance(blocks, chain, self.next, x)?,
        }
        Ok(())
    }

    /// Sending fails only when the caller left, and then nobody is there to be told.
    fn finish(self) {
        match self.kind {
            Kind::Step { cache, reply, .. } => drop(reply.send(Ok((self.work.x, cache)))),
            Kind::Forward { reply } => drop(reply.send(Ok(self.work.x))),
            Kind::Backward { pass, reply } => drop(reply.send(Ok(pass.finish(self.work.x)))),
        }
    }

    fn fail(self, error: RequestError) {
        match self.kind {
            Kind::Step { reply, .. } => drop(reply.send(Err(error))),
            Kind::Forward { reply } => drop(reply.send(Err(error))),
            Kind::Backward { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}
