//! The bounded queue between the asynchronous side and the compute thread: priorities, refusal when full, and jobs whose
//! caller left are dropped. It knows nothing of blocks.
//!
//! Petals runs the task with the smallest (priority, submit time) (`server/task_prioritizer.py`, `task_pool.py`):
//! inference before forward and backward. A job that runs block by block goes back into the queue between two blocks, so that shorter
//! ones slip in.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// What runs first. The order is the one of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// Steps of inference sessions: a person waits for each.
    Inference,
    /// `rpc_forward`, `rpc_backward` and their stream variants.
    Batch,
}

/// The submitting and the taking side share the queue through clones.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

#[derive(Debug)]
struct Shared<T> {
    limit: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    submitted: u64,
    closed: bool,
    /// The taker has a job.
    working: bool,
}

#[derive(Debug)]
struct Entry<T> {
    order: (Priority, u64),
    job: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

/// Why a job was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SubmitError {
    /// The bound is reached.
    Full {
        /// Jobs that wait.
        queued: usize,
        /// The bound.
        limit: usize,
    },
    /// The compute thread is gone.
    Closed,
}

impl<T> Queue<T> {
    /// A queue in which at most `limit` jobs wait.
    pub(crate) fn new(limit: usize) -> Self {
        let state = State {
            heap: BinaryHeap::new(),
            submitted: 0,
            closed: false,
            working: false,
        };
        Self {
            shared: Arc::new(Shared {
                limit,
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    /// Adds a job, without waiting.
    ///
    /// # Errors
    /// [`SubmitError::Full`] over the bound, [`SubmitError::Closed`] after [`Queue::close`].
    pub(crate) fn submit(&self, priority: Priority, job: T) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if state.closed {
            return Err(SubmitError::Closed);
        }
        let queued = state.heap.len();
        if queued >= self.shared.limit {
            return Err(SubmitError::Full {
                queued,
                limit: self.shared.limit,
            });
        }
        state.push(priority, job);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Puts a job that was taken and is not finished behind the others of its class. Never refused for want of room:
    /// its place was granted when it was submitted. Once the queue is closed the job is dropped.
    pub(crate) fn resume(&self, priority: Priority, job: T) {
        let mut state = self.lock();
        if !state.closed {
            state.push(priority, job);
        }
    }

    /// Takes the next job, waiting for one. `None` once the queue is closed.
    pub(crate) fn take(&self) -> Option<T> {
        let mut state = self.lock();
        state.working = false;
        loop {
            if state.closed {
                return None;
            }
            if let Some(Reverse(entry)) = state.heap.pop() {
                state.working = true;
                return Some(entry.job);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether any job waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().heap.is_empty()
    }

    /// Whether no job waits and the taker waits for one.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.heap.is_empty() && !state.working
    }

    /// Whether [`Queue::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Ends the queue: waiting jobs are dropped, which their callers notice, and the taker gets `None`.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.heap)
        };
        drop(dropped);
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn push(&mut self, priority: Priority, job: T) {
        let order = (priority, self.submitted);
        self.submitted += 1;
        self.heap.push(Reverse(Entry { order, job }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inference_runs_before_batches_and_each_class_in_order() {
        let queue = Queue::new(8);
        for (priority, job) in [
            (Priority::Batch, 1),
            (Priority::Inference, 2),
            (Priority::Batch, 3),
            (Priority::Inference, 4),
        ] {
            queue.submit(priority, job).unwrap();
        }
        let order: Vec<_> = (0..4).map(|_| queue.take().unwrap()).collect();
        assert_eq!(order, [2, 4, 1, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_refuses_and_says_how_full() {
        let queue = Queue::new(1);
        queue.submit(Priority::Batch, 1).unwrap();
        assert_eq!(
            queue.submit(Priority::Inference, 2),
            Err(SubmitError::Full { queued: 1, limit: 1 })
        );
        queue.resume(Priority::Inference, 3);
        assert_eq!(queue.take(), Some(3));
    }

    #[test]
    fn closing_ends_the_taker_and_drops_what_waits() {
        let queue = Queue::new(4);
        let job = Arc::new(());
        queue.submit(Priority::Batch, job.clone()).unwrap();
        queue.close();
        assert!(queue.take().is_none());
        assert_eq!(Arc::strong_count(&job), 1);
        queue.resume(Priority::Batch, job.clone());
        assert_eq!(Arc::strong_count(&job), 1);
        assert_eq!(queue.submit(Priority::Batch, job), Err(SubmitError::Closed));
    }
}
