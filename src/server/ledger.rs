//! Which sessions are open on a model and how far they are, for people. Nothing is decided by it and nobody waits for it.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::meter::{Meter, Rate};
use crate::p2p::PeerId;

/// Characters kept of the id that a client chose for its session.
const MAX_ID: usize = 64;

/// The open sessions of one model, on all of its spans. Each takes itself off when it ends.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Tokens that came out of steps of sessions.
    tokens: Meter,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    entries: BTreeMap<u64, Facts>,
    opened: u64,
}

/// What does not change, and where the session is.
#[derive(Debug)]
struct Facts {
    about: About,
    opened: Instant,
    last_step: Instant,
    position: usize,
    tokens: Arc<Meter>,
}

/// What a session is from its first message on.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// In the words of the client, if it gave one.
    pub(crate) id: Option<String>,
    pub(crate) peer: PeerId,
    /// Number of the swarm that it comes from.
    pub(crate) swarm: u32,
    /// As the chain has them; blocks may come twice.
    pub(crate) chain: Arc<[u32]>,
    pub(crate) batch: usize,
    pub(crate) max_length: usize,
}

/// One session's line; dropping it takes the session off.
#[derive(Debug)]
pub(crate) struct Entry {
    ledger: Arc<Ledger>,
    number: u64,
}

/// An open session, as a person is shown it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionView {
    /// How many sessions of the model were opened before it.
    pub number: u64,
    /// What the client calls it.
    pub id: Option<String>,
    /// Who opened it.
    pub peer: PeerId,
    /// Number of the swarm that it comes from.
    pub swarm: u32,
    /// From its first block to one past its last.
    pub blocks: Range<u32>,
    /// Sequences that it has in parallel.
    pub batch: usize,
    /// Tokens in its cache, of each sequence.
    pub position: usize,
    /// Tokens that it has reserved, for each sequence.
    pub max_length: usize,
    /// How long it has been open.
    pub age: Duration,
    /// How long it has done nothing.
    pub idle: Duration,
    /// Its tokens, those of all its sequences together.
    pub tokens: Rate,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            tokens: Meter::new(Instant::now()),
            open: Mutex::default(),
        }
    }

    /// A session begins.
    pub(crate) fn enter(self: &Arc<Self>, mut about: About) -> Entry {
        about.id = about.id.map(|id| id.chars().take(MAX_ID).collect());
        let now = Instant::now();
        let mut open = self.lock();
        let number = open.opened;
        open.opened += 1;
        open.entries.insert(
            number,
            Facts {
                about,
                opened: now,
                last_step: now,
                position: 0,
                tokens: Arc::new(Meter::new(now)),
            },
        );
        drop(open);
        Entry {
            ledger: self.clone(),
            number,
        }
    }

    /// Tokens of all sessions there ever were.
    pub(crate) fn tokens(&self) -> Rate {
        self.tokens.read(Instant::now())
    }

    /// How many are open.
    pub(crate) fn n_open(&self) -> usize {
        self.lock().entries.len()
    }

    /// All of them, the oldest first.
    pub(crate) fn views(&self) -> Vec<SessionView> {
        let now = Instant::now();
        let open = self.lock();
        let views = open.entries.iter().map(|(number, facts)| facts.view(*number, now));
        views.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    fn view(&self, number: u64, now: Instant) -> SessionView {
        let About {
            id,
            peer,
            swarm,
            chain,
            batch,
            max_length,
        } = &self.about;
        let (first, last) = (chain.iter().min(), chain.iter().max());
        SessionView {
            number,
            id: id.clone(),
            peer: *peer,
            swarm: *swarm,
            blocks: first.copied().unwrap_or_default()..last.map_or(0, |last| last + 1),
            batch: *batch,
            position: self.position,
            max_length: *max_length,
            age: now.saturating_duration_since(self.opened),
            idle: now.saturating_duration_since(self.last_step),
            tokens: self.tokens.read(now),
        }
    }
}

impl Entry {
    /// A step took the session to `position`, computing so many tokens of each sequence.
    pub(crate) fn step(&self, position: usize, tokens: usize) {
        let now = Instant::now();
        let mut open = self.ledger.lock();
        let Some(facts) = open.entries.get_mut(&self.number) else {
            return;
        };
        (facts.position, facts.last_step) = (position, now);
        let (meter, tokens) = (facts.tokens.clone(), (facts.about.batch * tokens) as u64);
        drop(open);
        meter.add(tokens, now);
        self.ledger.tokens.add(tokens, now);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.lock().entries.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_listed_while_it_is_open_and_its_tokens_count_beyond_that() {
        let ledger = Arc::new(Ledger::new());
        let about = About {
            id: Some("x".repeat(1000)),
            peer: PeerId::random(),
            swarm: 1,
            chain: [3, 4, 5].into(),
            batch: 2,
            max_length: 64,
        };
        let first = ledger.enter(about.clone());
        let _second = ledger.enter(About { id: None, ..about });
        first.step(7, 7);
        first.step(5, 1);
        let views = ledger.views();
        assert_eq!(views.iter().map(|view| view.number).collect::<Vec<_>>(), [0, 1]);
        let view = &views[0];
        assert_eq!(view.id.as_deref().map(str::len), Some(MAX_ID));
        assert_eq!((view.position, view.max_length, view.blocks.clone()), (5, 64, 3..6));
        assert_eq!((view.tokens.total, views[1].tokens.total), (16, 0));
        drop(first);
        assert_eq!((ledger.n_open(), ledger.tokens().total), (1, 16));
    }
}
