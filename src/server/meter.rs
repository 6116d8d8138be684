//! How many of something there were, and how many a second lately. It knows no clock of its own.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What "lately" means.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

/// Parts of the window that are counted together, so that a meter stays small however much it counts.
const PART: Duration = Duration::from_millis(250);

/// A count that grows. One short lock each time.
#[derive(Debug)]
pub(crate) struct Meter {
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    begun: Instant,
    total: u64,
    /// The parts of the window in which something came: when each began, and how many came.
    recent: VecDeque<(Instant, u64)>,
}

/// A reading of a meter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// How many there were.
    pub total: u64,
    /// How many a second in the last ten seconds, or since the beginning if that is shorter.
    pub recent: f64,
    /// How many a second since the beginning.
    pub mean: f64,
}

impl Meter {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            counts: Mutex::new(Counts {
                begun: now,
                total: 0,
                recent: VecDeque::new(),
            }),
        }
    }

    pub(crate) fn add(&self, n: u64, now: Instant) {
        let mut counts = self.lock();
        counts.forget(now);
        counts.total += n;
        match counts.recent.back_mut() {
            Some((begun, count)) if now.saturating_duration_since(*begun) < PART => *count += n,
            _ => counts.recent.push_back((now, n)),
        }
    }

    pub(crate) fn read(&self, now: Instant) -> Rate {
        let mut counts = self.lock();
        counts.forget(now);
        let age = now.saturating_duration_since(counts.begun);
        let per_second = |count: u64, time: Duration| match count {
            0 => 0.0,
            // Nobody can say much after less than a part.
            _ => count as f64 / time.max(PART).as_secs_f64(),
        };
        Rate {
            total: counts.total,
            recent: per_second(counts.recent.iter().map(|(_, count)| count).sum(), age.min(WINDOW)),
            mean: per_second(counts.total, age),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn forget(&mut self, now: Instant) {
        let is_old = |begun: &Instant| now.saturating_duration_since(*begun) >= WINDOW;
        while self.recent.front().is_some_and(|(begun, _)| is_old(begun)) {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_seconds_and_the_whole_time_are_told_apart() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let meter = Meter::new(start);
        assert_eq!(meter.read(at(5.0)), Rate::default());
        meter.add(30, at(5.0));
        let early = meter.read(at(6.0));
        assert_eq!((early.total, early.recent, early.mean), (30, 5.0, 5.0));
        meter.add(20, at(19.0));
        let later = meter.read(at(20.0));
        assert_eq!((later.total, later.recent, later.mean), (50, 2.0, 2.5));
        assert_eq!(meter.read(at(100.0)).recent, 0.0);
    }

    #[test]
    fn a_meter_stays_small() {
        let start = Instant::now();
        let meter = Meter::new(start);
        (0..100_000).for_each(|step| meter.add(1, start + Duration::from_millis(step)));
        assert!(meter.lock().recent.len() <= 41);
        let rate = meter.read(start + Duration::from_secs(100));
        assert_eq!(rate.total, 100_000);
        assert!((rate.recent - 1000.0).abs() < 30.0, "{}", rate.recent);
    }
}
