//! The bounded hand-over of jobs from the asynchronous side to the compute thread: refusal when full, and an end. It
//! knows nothing of blocks, and not who goes first (`schedule`).

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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
    arrived: Condvar,
}

#[derive(Debug)]
struct State<T> {
    jobs: Vec<T>,
    /// Jobs that the taker had when it looked last, without those that it let go since.
    held: usize,
    closed: bool,
    /// The taker has nothing to do and sleeps. Nobody is woken who does not: that is a call to the system.
    asleep: bool,
}

/// Why a job was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SubmitError {
    /// The bound is reached.
    Full {
        /// Jobs that wait or run.
        queued: usize,
        /// The bound.
        limit: usize,
    },
    /// The compute thread is gone.
    Closed,
}

impl<T> Queue<T> {
    /// A queue for at most `limit` jobs, those that the taker has begun included.
    pub(crate) fn new(limit: usize) -> Self {
        let state = State {
            jobs: Vec::new(),
            held: 0,
            closed: false,
            asleep: false,
        };
        Self {
            shared: Arc::new(Shared {
                limit,
                state: Mutex::new(state),
                arrived: Condvar::new(),
            }),
        }
    }

    /// Adds a job, without waiting. Those that are `welcome` find room for as many again when others have filled the queue.
    ///
    /// # Errors
    /// [`SubmitError::Full`] over the bound, [`SubmitError::Closed`] after [`Queue::close`].
    pub(crate) fn submit(&self, job: T, welcome: bool) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if state.closed {
            return Err(SubmitError::Closed);
        }
        let limit = self.shared.limit.saturating_mul(if welcome { 2 } else { 1 });
        let queued = state.jobs.len() + state.held;
        if queued >= limit {
            return Err(SubmitError::Full { queued, limit });
        }
        state.jobs.push(job);
        if state.asleep {
            self.shared.arrived.notify_one();
        }
        Ok(())
    }

    /// Moves what arrived behind `jobs`. The taker has `held` jobs beside; if it has none, this waits for one. Returns
    /// whether the queue is still open.
    pub(crate) fn collect(&self, jobs: &mut Vec<T>, held: usize) -> bool {
        let mut state = self.lock();
        loop {
            if state.closed {
                return false;
            }
            jobs.append(&mut state.jobs);
            state.held = held + jobs.len();
            if state.held > 0 {
                return true;
            }
            state.asleep = true;
            state = self.shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.asleep = false;
        }
    }

    /// Lets time pass, but not beyond the end of the queue, and moves what arrived meanwhile behind `jobs`, as
    /// [`Queue::collect`] does. Returns whether the queue is still open.
    pub(crate) fn rest(&self, jobs: &mut Vec<T>, held: usize, time: Duration) -> bool {
        let state = self.lock();
        let rested = self
            .shared
            .arrived
            .wait_timeout_while(state, time, |state| !state.closed);
        let (mut state, _) = rested.unwrap_or_else(PoisonError::into_inner);
        jobs.append(&mut state.jobs);
        state.held = held + jobs.len();
        !state.closed
    }

    /// The taker has one job less. It says so before it answers, so that whoever sends the next one at once finds room.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        state.held = state.held.saturating_sub(1);
    }

    /// Jobs that wait or run.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let state = self.lock();
        state.jobs.len() + state.held
    }

    /// Ends the queue: jobs that were not taken are dropped, which their callers notice.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        drop(dropped);
        self.shared.arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_is_taken_in_order() {
        let queue = Queue::new(8);
        (1..4).for_each(|job| queue.submit(job, false).unwrap());
        let mut jobs = vec![0];
        assert!(queue.collect(&mut jobs, 0));
        assert_eq!((jobs, queue.len()), (vec![0, 1, 2, 3], 4));
        assert!(queue.collect(&mut Vec::new(), 1), "whoever has a job does not wait");
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_full_queue_refuses_and_says_how_full() {
        let queue = Queue::new(2);
        queue.submit(1, false).unwrap();
        let mut jobs = Vec::new();
        assert!(queue.collect(&mut jobs, 0));
        queue.submit(2, false).unwrap();
        assert_eq!(queue.submit(3, false), Err(SubmitError::Full { queued: 2, limit: 2 }));
        assert!(queue.collect(&mut jobs, 0));
        assert_eq!(queue.submit(3, false), Err(SubmitError::Full { queued: 2, limit: 2 }));
        assert!(queue.collect(&mut Vec::new(), 1));
        queue.submit(3, false).unwrap();
    }

    #[test]
    fn a_job_that_was_let_go_makes_room_before_the_taker_looks_again() {
        let queue = Queue::new(1);
        queue.submit(1, false).unwrap();
        assert!(queue.collect(&mut Vec::new(), 0));
        assert_eq!(queue.submit(2, false), Err(SubmitError::Full { queued: 1, limit: 1 }));
        queue.release();
        queue.submit(2, false).unwrap();
        let mut jobs = Vec::new();
        assert!(queue.collect(&mut jobs, 0));
        assert_eq!((jobs, queue.len()), (vec![2], 1));
    }

    #[test]
    fn those_that_are_welcome_find_room_where_others_filled_the_queue() {
        let queue = Queue::new(2);
        (0..2).for_each(|job| queue.submit(job, false).unwrap());
        assert!(queue.submit(2, false).is_err());
        (0..2).for_each(|job| queue.submit(job, true).unwrap());
        assert_eq!(queue.submit(3, true), Err(SubmitError::Full { queued: 4, limit: 4 }));
    }

    #[test]
    fn what_arrives_in_a_rest_is_there_after_it_and_the_end_of_the_queue_ends_it() {
        let (queue, mut jobs) = (Queue::new(8), Vec::new());
        queue.submit(1, false).unwrap();
        assert!(queue.rest(&mut jobs, 2, Duration::from_micros(1)));
        assert_eq!((jobs.as_slice(), queue.len()), ([1].as_slice(), 3));
        let other = queue.clone();
        let closer = std::thread::spawn(move || other.close());
        assert!(!queue.rest(&mut jobs, 3, Duration::from_secs(3600)));
        closer.join().unwrap();
    }

    #[test]
    fn closing_ends_the_taker_and_drops_what_waits() {
        let queue = Queue::new(4);
        let job = Arc::new(());
        queue.submit(job.clone(), false).unwrap();
        queue.close();
        assert!(!queue.collect(&mut Vec::new(), 0));
        assert_eq!(Arc::strong_count(&job), 1);
        assert_eq!(queue.submit(job, false), Err(SubmitError::Closed));
    }
}
