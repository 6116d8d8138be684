//! How many jobs of each class wait for a compute thread, or are computed, for people to see. Nothing is decided by it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::schedule::Class;

/// Jobs that wait or are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Steps of own sessions, which come first.
    pub own: usize,
    /// Steps of other sessions.
    pub sessions: usize,
    /// Forward and backward passes over whole sequences.
    pub passes: usize,
}

/// The counts of one compute thread. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(Arc<[AtomicUsize; 3]>);

/// A job that is counted; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Ticket {
    waiting: Waiting,
    class: Class,
}

impl Waiting {
    pub(crate) fn enter(&self, class: Class) -> Ticket {
        self.0[class.index()].fetch_add(1, Ordering::Relaxed);
        Ticket {
            waiting: self.clone(),
            class,
        }
    }

    pub(crate) fn read(&self) -> Waits {
        let [own, sessions, passes] = Class::ALL.map(|class| self.0[class.index()].load(Ordering::Relaxed));
        Waits { own, sessions, passes }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.0[self.class.index()].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Waits {
    /// All classes together.
    pub fn total(self) -> usize {
        self.own + self.sessions + self.passes
    }
}

impl std::ops::Add for Waits {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            own: self.own + other.own,
            sessions: self.sessions + other.sessions,
            passes: self.passes + other.passes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_counts_in_its_class_until_it_is_dropped() {
        let waiting = Waiting::default();
        let [own, step, pass] = Class::ALL.map(|class| waiting.enter(class));
        let other = waiting.enter(Class::Inference);
        drop((own, step));
        let left = Waits {
            own: 0,
            sessions: 1,
            passes: 1,
        };
        assert_eq!(waiting.read(), left);
        drop((pass, other));
        assert_eq!(waiting.read() + left, left);
    }
}
