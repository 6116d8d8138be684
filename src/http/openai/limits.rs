//! How often somebody may ask, and how many of their requests may run: token buckets and counts. Time is an argument; it
//! knows no requests and no keys.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Callers that are told apart. More share one entry, so that nobody fills the memory by asking from many addresses.
const MAX_CALLERS: usize = 4096;

const MINUTE: f64 = 60.0;

/// What one caller is allowed; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Requests a minute. As many may come at once after a quiet minute.
    pub(crate) requests_per_minute: Option<u32>,
    /// Requests that run at the same time.
    pub(crate) concurrent: Option<u32>,
}

impl Quota {
    /// This, and what `general` says where this says nothing.
    pub(crate) fn or(self, general: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(general.requests_per_minute),
            concurrent: self.concurrent.or(general.concurrent),
        }
    }

    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Whose requests are counted together.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The holder of a key.
    Key(Arc<str>),
    /// Whoever asks from this address; of IPv6 the network, since one machine has all of its addresses.
    Address(IpAddr),
    /// All for whom there was no entry left.
    Others,
}

impl Caller {
    /// Who asks from `address` without a key.
    pub(crate) fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 => v4,
        })
    }
}

/// Where a caller stands with its requests a minute, for the headers of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Standing {
    /// Requests a minute.
    pub(crate) limit: u32,
    /// Requests that would be answered now.
    pub(crate) remaining: u32,
    /// Until all of them would be.
    pub(crate) reset: Duration,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Refused {
    /// Too many this minute.
    Rate {
        /// Where the caller stands.
        standing: Standing,
        /// When the next one would be answered.
        retry_after: Duration,
    },
    /// As many run as may.
    Concurrent {
        /// How many.
        limit: u32,
    },
}

/// All callers and their counts. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limiter(Arc<Mutex<HashMap<Caller, Account>>>);

/// A request that runs; counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    /// Where the caller stands after it; `None` without a limit.
    pub(crate) standing: Option<Standing>,
    /// `None` if nothing is counted.
    counted: Option<(Limiter, Caller)>,
}

#[derive(Debug)]
struct Account {
    running: u32,
    /// Requests that may come at once, at `since`. Between 0 and the limit.
    level: f64,
    since: Instant,
    /// The limit that `level` belongs to.
    per_minute: Option<u32>,
}

impl Limiter {
    /// Counts a request of `caller`.
    ///
    /// # Errors
    /// The caller has none left, or too many run.
    pub(crate) fn admit(&self, caller: Caller, quota: Quota, now: Instant) -> Result<Permit, Refused> {
        if quota.is_none() {
            return Ok(Permit {
                standing: None,
                counted: None,
            });
        }
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = make_room(&mut accounts, caller, now);
        let account = accounts
            .entry(caller.clone())
            .or_insert_with(|| Account::new(quota, now));
        let standing = account.admit(quota, now)?;
        Ok(Permit {
            standing,
            counted: Some((self.clone(), caller)),
        })
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Forgets callers of whom nothing would be remembered, if there are too many. Who then still has no place is one of the
/// others.
fn make_room(accounts: &mut HashMap<Caller, Account>, caller: Caller, now: Instant) -> Caller {
    if accounts.len() < MAX_CALLERS || accounts.contains_key(&caller) {
        return caller;
    }
    accounts.retain(|_, account| !account.is_forgotten(now));
    if accounts.len() < MAX_CALLERS {
        caller
    } else {
        Caller::Others
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((limiter, caller)) = self.counted.take() {
            let mut accounts = limiter.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(account) = accounts.get_mut(&caller) {
                account.running = account.running.saturating_sub(1);
            }
        }
    }
}

impl Account {
    fn new(quota: Quota, now: Instant) -> Self {
        Self {
            running: 0,
            level: quota.requests_per_minute.map_or(0.0, f64::from),
            since: now,
            per_minute: quota.requests_per_minute,
        }
    }

    fn admit(&mut self, quota: Quota, now: Instant) -> Result<Option<Standing>, Refused> {
        self.refill(quota.requests_per_minute, now);
        if let Some(limit) = quota.concurrent.filter(|limit| self.running >= *limit) {
            return Err(Refused::Concurrent { limit });
        }
        let Some(limit) = quota.requests_per_minute else {
            self.running += 1;
            return Ok(None);
        };
        if self.level < 1.0 {
            let standing = self.standing(limit);
            let retry_after = time_for(1.0 - self.level, limit);
            return Err(Refused::Rate { standing, retry_after });
        }
        self.level -= 1.0;
        self.running += 1;
        Ok(Some(self.standing(limit)))
    }

    /// Adds what came since the last time. A limit that has changed changes what is left in proportion.
    fn refill(&mut self, per_minute: Option<u32>, now: Instant) {
        let limit = per_minute.map_or(0.0, f64::from);
        if self.per_minute != per_minute {
            let before = self.per_minute.map_or(0.0, f64::from);
            let share = if before > 0.0 { self.level / before } else { 1.0 };
            self.level = share * limit;
            self.per_minute = per_minute;
        }
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.level = (self.level + elapsed * limit / MINUTE).min(limit);
        self.since = self.since.max(now);
    }

    fn standing(&self, limit: u32) -> Standing {
        Standing {
            limit,
            remaining: self.level as u32,
            reset: time_for(f64::from(limit) - self.level, limit),
        }
    }

    /// Whether a new account would be the same.
    fn is_forgotten(&self, now: Instant) -> bool {
        let limit = self.per_minute.map_or(0.0, f64::from);
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.running == 0 && self.level + elapsed * limit / MINUTE >= limit
    }
}

/// How long it takes until so many more requests may come.
fn time_for(requests: f64, per_minute: u32) -> Duration {
    Duration::from_secs_f64(requests.max(0.0) * MINUTE / f64::from(per_minute.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn alice() -> Caller {
        Caller::Key("alice".into())
    }

    fn rate(requests_per_minute: u32) -> Quota {
        Quota {
            requests_per_minute: Some(requests_per_minute),
            concurrent: None,
        }
    }

    #[test]
    fn a_minute_has_as_many_requests_as_it_may_and_they_come_back_one_by_one() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        for left in [2, 1, 0] {
            let permit = limiter.admit(alice(), rate(3), start).unwrap();
            assert_eq!(permit.standing.unwrap().remaining, left);
        }
        let Err(Refused::Rate { standing, retry_after }) = limiter.admit(alice(), rate(3), start) else {
            panic!("a fourth one was let through");
        };
        assert_eq!((standing.limit, standing.remaining), (3, 0));
        assert_eq!((retry_after, standing.reset), (20 * SECOND, 60 * SECOND));
        assert!(limiter.admit(alice(), rate(3), start + 19 * SECOND).is_err());
        assert!(limiter.admit(alice(), rate(3), start + 20 * SECOND).is_ok());
        assert!(limiter.admit(alice(), rate(3), start + 21 * SECOND).is_err());
        // However long nobody asks, no more than a minute's are saved up.
        for n in 0..4 {
            assert_eq!(limiter.admit(alice(), rate(3), start + 9999 * SECOND).is_ok(), n < 3);
        }
    }

    #[test]
    fn what_runs_counts_until_it_is_dropped() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let quota = Quota {
            requests_per_minute: None,
            concurrent: Some(2),
        };
        let one = limiter.admit(alice(), quota, now).unwrap();
        let two = limiter.admit(alice(), quota, now).unwrap();
        let refused = limiter.admit(alice(), quota, now).unwrap_err();
        assert_eq!(refused, Refused::Concurrent { limit: 2 });
        drop(one);
        let three = limiter.admit(alice(), quota, now).unwrap();
        assert!(limiter.admit(alice(), quota, now).is_err());
        drop((two, three));
        assert!(limiter.admit(alice(), quota, now).is_ok());
    }

    #[test]
    fn a_request_that_may_not_run_does_not_use_up_the_minute() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let quota = Quota {
            requests_per_minute: Some(2),
            concurrent: Some(1),
        };
        let one = limiter.admit(alice(), quota, now).unwrap();
        assert!(matches!(
            limiter.admit(alice(), quota, now),
            Err(Refused::Concurrent { .. })
        ));
        drop(one);
        assert_eq!(
            limiter.admit(alice(), quota, now).unwrap().standing.unwrap().remaining,
            0
        );
    }

    #[test]
    fn callers_do_not_take_each_others_requests() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let address = |text: &str| Caller::at(text.parse().unwrap());
        assert!(limiter.admit(alice(), rate(1), now).is_ok());
        assert!(limiter.admit(Caller::Key("bob".into()), rate(1), now).is_ok());
        assert!(limiter.admit(address("192.0.2.1"), rate(1), now).is_ok());
        assert!(limiter.admit(address("192.0.2.2"), rate(1), now).is_ok());
        assert!(limiter.admit(address("::ffff:192.0.2.2"), rate(1), now).is_err());
        assert!(limiter.admit(address("2001:db8:0:1::1"), rate(1), now).is_ok());
        assert!(limiter.admit(address("2001:db8:0:1::2"), rate(1), now).is_err());
        assert!(limiter.admit(address("2001:db8:0:2::1"), rate(1), now).is_ok());
    }

    #[test]
    fn however_many_ask_the_memory_is_bounded() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let nth = |n: u32| Caller::at(IpAddr::V4(n.into()));
        for n in 0..MAX_CALLERS as u32 {
            assert!(limiter.admit(nth(n), rate(1), now).is_ok());
        }
        assert!(
            limiter.admit(nth(1 << 20), rate(1), now).is_ok(),
            "the first of the others"
        );
        assert!(
            limiter.admit(nth(1 << 21), rate(1), now).is_err(),
            "they share one account"
        );
        assert!(limiter.len() <= MAX_CALLERS + 1);
        let later = now + 60 * SECOND;
        assert!(limiter.admit(nth(1 << 22), rate(1), later).is_ok());
        assert_eq!(
            limiter.len(),
            1,
            "those who would have a full minute again are forgotten"
        );
    }

    #[test]
    fn a_changed_limit_counts_at_once() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        assert!(limiter.admit(alice(), rate(1), now).is_ok());
        assert!(
            limiter.admit(alice(), rate(100), now).is_err(),
            "what was used up stays used up"
        );
        assert!(limiter.admit(alice(), rate(100), now + SECOND).is_ok());
        let standing = limiter.admit(alice(), rate(100), now + 60 * SECOND).unwrap().standing;
        assert_eq!(standing.unwrap().limit, 100);
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let limiter = Limiter::default();
        let permit = limiter.admit(alice(), Quota::default(), Instant::now()).unwrap();
        assert_eq!((permit.standing, limiter.len()), (None, 0));
    }
}
