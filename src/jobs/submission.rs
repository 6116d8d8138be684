//! One job on the side of whoever submitted it: offered, given to one worker at a time, taken back from those that are
//! silent, until one delivers. Time is an argument, and what is to be done comes out as effects.
//!
//! ```text
//! offering ──claims──▶ one is chosen ──▶ running ──result──▶ ended
//!    ▲                                      │
//!    └──────── silent, refused, false ──────┘
//! ```

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    time::Duration,
};

use super::{LEASE, check::FalseDelivery};
use crate::p2p::PeerId;

/// How long further claims are waited for after the first.
const CLAIMS: Duration = Duration::from_millis(250);
/// How soon a job is offered again that nobody claims.
const OFFER_AGAIN: Duration = Duration::from_secs(1);
/// How long a worker is left out that failed, or has no room for the moment.
const LEAVE_OUT: Duration = Duration::from_secs(3);
/// How often a job is given to a worker.
const MAX_ATTEMPTS: u32 = 16;
/// Claims that are remembered.
const MAX_CLAIMS: usize = 256;

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    Tick,
    /// A worker would do it, and has so many jobs.
    Claimed {
        worker: PeerId,
        number: u32,
        jobs: u32,
    },
    /// The worker of this attempt is still there.
    Beat {
        attempt: u32,
    },
    /// It has delivered, and what it delivered was looked at.
    Delivered {
        attempt: u32,
        outcome: Result<(), FalseDelivery>,
    },
    /// Its stream ended without a result.
    Lost {
        attempt: u32,
        why: String,
    },
    /// Its worker does not do this job, and would not do it later either.
    Refused {
        attempt: u32,
        why: String,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Tell everyone of the job.
    Offer { number: u32 },
    /// Give it to this worker.
    Assign { worker: PeerId, attempt: u32 },
    /// Close the stream of this attempt.
    Drop { attempt: u32 },
    /// The delivery of this attempt is the result.
    Done { attempt: u32 },
    /// Nobody does it.
    Fail { why: String },
}

#[derive(Debug)]
enum Phase {
    Offering {
        since: Duration,
        offered: Option<Duration>,
        claimed: Option<Duration>,
    },
    Running {
        worker: PeerId,
        heard: Duration,
    },
    Ended,
}

/// The state of a job.
#[derive(Debug)]
pub(super) struct Submission {
    phase: Phase,
    /// Offers made.
    offers: u32,
    /// Assignments made.
    attempts: u32,
    /// Jobs that each claimant has.
    claims: HashMap<PeerId, u32>,
    /// Those that had it.
    tried: HashSet<PeerId>,
    /// Until when a worker is left out.
    left_out: HashMap<PeerId, Duration>,
    patience: Duration,
    /// What the last worker said, and which it was.
    last: Option<String>,
}

impl Submission {
    /// A job that fails if nobody works on it for `patience`.
    pub(super) fn new(patience: Duration, now: Duration) -> Self {
        Self {
            phase: Phase::offering(now),
            offers: 0,
            attempts: 0,
            claims: HashMap::new(),
            tried: HashSet::new(),
            left_out: HashMap::new(),
            patience,
            last: None,
        }
    }

    /// Takes in what happened.
    pub(super) fn on(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        match event {
            Event::Tick => self.tick(now),
            Event::Claimed { worker, number, jobs } => {
                self.claim(worker, number, jobs, now);
                Vec::new()
            }
            Event::Beat { attempt } => {
                if let (Phase::Running { heard, .. }, true) = (&mut self.phase, attempt + 1 == self.attempts) {
                    *heard = now;
                }
                Vec::new()
            }
            Event::Delivered { attempt, outcome } => match (self.current(attempt), outcome) {
                (None, _) => Vec::new(),
                (Some(_), Ok(())) => {
                    self.phase = Phase::Ended;
                    vec![Effect::Done { attempt }]
                }
                (Some(worker), Err(why)) => self.bar(worker, why.to_string(), now),
            },
            Event::Lost { attempt, why } => match self.current(attempt) {
                Some(worker) => self.lose(worker, why, now),
                None => Vec::new(),
            },
            Event::Refused { attempt, why } => match self.current(attempt) {
                Some(worker) => self.bar(worker, why, now),
                None => Vec::new(),
            },
        }
    }

    /// The worker, if `attempt` is the one that runs.
    fn current(&self, attempt: u32) -> Option<PeerId> {
        match &self.phase {
            Phase::Running { worker, .. } if attempt + 1 == self.attempts => Some(*worker),
            _ => None,
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Effect> {
        match self.phase {
            Phase::Ended => Vec::new(),
            Phase::Running { worker, heard } => {
                if now.saturating_sub(heard) < LEASE {
                    return Vec::new();
                }
                let mut effects = vec![Effect::Drop {
                    attempt: self.attempts - 1,
                }];
                effects.extend(self.lose(worker, format!("no sign of life for {} s", LEASE.as_secs()), now));
                effects
            }
            Phase::Offering {
                since,
                offered,
                claimed,
            } => {
                if claimed.is_some_and(|claimed| now.saturating_sub(claimed) >= CLAIMS)
                    && let Some(effect) = self.assign(now)
                {
                    return vec![effect];
                }
                self.offer_or_fail((since, offered), now)
            }
        }
    }

    fn offer_or_fail(&mut self, (since, offered): (Duration, Option<Duration>), now: Duration) -> Vec<Effect> {
        if now.saturating_sub(since) >= self.patience {
            let seconds = self.patience.as_secs();
            let before = match self.attempts {
                0 => String::new(),
                _ => format!("{}, then ", self.tries()),
            };
            return self.fail(format!("{before}nobody took the job within {seconds} s"));
        }
        if offered.is_some_and(|offered| now.saturating_sub(offered) < OFFER_AGAIN) {
            return Vec::new();
        }
        if let Phase::Offering { offered, .. } = &mut self.phase {
            *offered = Some(now);
        }
        let number = self.offers;
        self.offers += 1;
        vec![Effect::Offer { number }]
    }

    fn claim(&mut self, worker: PeerId, number: u32, jobs: u32, now: Duration) {
        let known = number < self.offers;
        let out = self.left_out.get(&worker).is_some_and(|until| *until > now);
        let room = self.claims.len() < MAX_CLAIMS || self.claims.contains_key(&worker);
        if let (Phase::Offering { claimed, .. }, true, false, true) = (&mut self.phase, known, out, room) {
            claimed.get_or_insert(now);
            self.claims.insert(worker, jobs);
        }
    }

    /// The claimant with the fewest jobs; of several, any.
    fn assign(&mut self, now: Duration) -> Option<Effect> {
        self.left_out.retain(|_, until| *until > now);
        let left_out = &self.left_out;
        self.claims.retain(|worker, _| !left_out.contains_key(worker));
        let (worker, _) = self
            .claims
            .iter()
            .min_by_key(|(worker, jobs)| (**jobs, worker.to_bytes()))?;
        let (worker, attempt) = (*worker, self.attempts);
        self.attempts += 1;
        self.claims.clear();
        self.tried.insert(worker);
        self.phase = Phase::Running { worker, heard: now };
        Some(Effect::Assign { worker, attempt })
    }

    fn lose(&mut self, worker: PeerId, why: String, now: Duration) -> Vec<Effect> {
        if let Entry::Vacant(entry) = self.left_out.entry(worker) {
            entry.insert(now + LEAVE_OUT);
        }
        self.last = Some(format!("{worker}: {why}"));
        if self.attempts >= MAX_ATTEMPTS {
            return self.fail(self.tries());
        }
        self.phase = Phase::offering(now);
        Vec::new()
    }

    /// The same, and the worker is left out for as long as the job takes.
    fn bar(&mut self, worker: PeerId, why: String, now: Duration) -> Vec<Effect> {
        self.left_out.insert(worker, Duration::MAX);
        self.lose(worker, why, now)
    }

    /// Ends the job with what was tried and what the last worker said.
    fn fail(&mut self, tried: String) -> Vec<Effect> {
        self.phase = Phase::Ended;
        let last = self.last.take().map(|last| format!("; the last worker: {last}"));
        let why = tried + &last.unwrap_or_default();
        vec![Effect::Fail { why }]
    }

    fn tries(&self) -> String {
        let times = match self.attempts {
            1 => "once".to_owned(),
            n => format!("{n} times"),
        };
        let workers = match self.tried.len() {
            1 => "one worker".to_owned(),
            n => format!("{n} workers"),
        };
        format!("given {times} to {workers} in vain")
    }
}

impl Phase {
    fn offering(since: Duration) -> Self {
        Self::Offering {
            since,
            offered: None,
            claimed: None,
        }
    }
}
