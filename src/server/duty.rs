//! How long computing rests so that it takes no more than its part of the time. It is told when something begins and ends,
//! by whoever computes on the machine, and computes and sleeps itself never.
//!
//! Rest is owed in proportion to what was computed, and paid by any time in which nobody computes, such as that in which
//! clients think. What was rested beyond that is not saved up: a node that had nothing to do for an hour may not take the
//! whole machine afterwards.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Rest that is not worth going to sleep for: it is owed until there is more.
const GRAIN: Duration = Duration::from_millis(1);

/// The account of all that compute on one node. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Duty {
    share: f64,
    /// `None` while all of the time may be used.
    account: Option<Arc<Mutex<Account>>>,
}

/// The arithmetic: time is an argument.
#[derive(Debug)]
struct Account {
    /// Rest that each second of computing costs, in seconds.
    price: f64,
    /// Seconds.
    owed: f64,
    /// How many compute now.
    running: usize,
    /// Up to when time is accounted for.
    seen: Instant,
}

impl Duty {
    /// Computing may take `share` of the time; all of it from 1 on.
    pub(crate) fn new(share: f64, now: Instant) -> Self {
        let account = (share < 1.0).then(|| Account {
            price: 1.0 / share - 1.0,
            owed: 0.0,
            running: 0,
            seen: now,
        });
        Self {
            share: share.min(1.0),
            account: account.map(|account| Arc::new(Mutex::new(account))),
        }
    }

    /// Computing may take all of the time.
    pub(crate) fn unlimited() -> Self {
        Self {
            share: 1.0,
            account: None,
        }
    }

    /// The part of the time that computing may take.
    pub(crate) fn share(&self) -> f64 {
        self.share
    }

    /// Somebody begins to compute.
    pub(crate) fn begin(&self, now: Instant) {
        if let Some(mut account) = self.lock() {
            account.advance(now);
            account.running += 1;
        }
    }

    /// Somebody is done.
    pub(crate) fn end(&self, now: Instant) {
        if let Some(mut account) = self.lock() {
            account.advance(now);
            account.running = account.running.saturating_sub(1);
        }
    }

    /// How long to do nothing from now on before something is begun; `None` for not at all.
    pub(crate) fn rest(&self, now: Instant) -> Option<Duration> {
        let mut account = self.lock()?;
        account.advance(now);
        let owed = Duration::try_from_secs_f64(account.owed).unwrap_or(Duration::MAX);
        (owed >= GRAIN).then_some(owed)
    }

    fn lock(&self) -> Option<MutexGuard<'_, Account>> {
        let account = self.account.as_ref()?;
        Some(account.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Account {
    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.seen).as_secs_f64();
        self.seen = self.seen.max(now);
        match self.running {
            0 => self.owed = (self.owed - passed).max(0.0),
            _ => self.owed += passed * self.price,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Pieces of a length one after the other, for a while; returns the part of the time that they took.
    fn busy(share: f64, piece: Duration) -> f64 {
        let start = Instant::now();
        let (duty, mut now, mut worked) = (Duty::new(share, start), start, Duration::ZERO);
        while now < start + Duration::from_secs(100) {
            while let Some(rest) = duty.rest(now) {
                now += rest;
            }
            duty.begin(now);
            now += piece;
            worked += piece;
            duty.end(now);
        }
        worked.as_secs_f64() / (now - start).as_secs_f64()
    }

    #[test]
    fn whoever_always_has_something_to_do_takes_its_part_of_the_time() {
        for share in [0.05, 0.25, 0.5, 0.9] {
            for piece in [MS / 50, 3 * MS, 200 * MS] {
                let took = busy(share, piece);
                assert!((took - share).abs() < 0.01, "{took} of {share} in pieces of {piece:?}");
            }
        }
        assert!(busy(1.0, MS) > 0.999 && busy(3.0, MS) > 0.999);
        assert!(Duty::unlimited().rest(Instant::now()).is_none());
    }

    #[test]
    fn waiting_for_work_is_rest_and_is_not_saved_up() {
        let start = Instant::now();
        let duty = Duty::new(0.5, start);
        duty.begin(start + 1000 * MS);
        duty.end(start + 1100 * MS);
        assert_eq!(duty.rest(start + 1100 * MS), Some(100 * MS));
        assert_eq!(duty.rest(start + 1160 * MS), Some(40 * MS));
        assert_eq!(duty.rest(start + 1200 * MS), None);
    }

    #[test]
    fn what_two_compute_at_the_same_time_counts_once_and_both_rest() {
        let start = Instant::now();
        let duty = Duty::new(0.25, start);
        let twin = duty.clone();
        duty.begin(start);
        twin.begin(start + 50 * MS);
        duty.end(start + 100 * MS);
        assert_eq!(
            duty.rest(start + 100 * MS),
            Some(300 * MS),
            "nobody rests while the other computes"
        );
        twin.end(start + 150 * MS);
        assert_eq!(duty.rest(start + 150 * MS), twin.rest(start + 150 * MS));
        assert_eq!(twin.rest(start + 150 * MS), Some(450 * MS));
        assert_eq!(twin.rest(start + 600 * MS), None);
    }
}
