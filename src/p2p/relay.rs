//! At which relays this node holds a reservation: pure, with `now` and randomness as arguments.
//!
//! A node that cannot be dialed keeps [`WANTED`] reservations, so that one relay may go away. Candidates are relays that a
//! person trusts and connected peers that offer to be one. A relay that refuses, or is lost, is left alone for a time that
//! doubles; another one takes its place at once. Renewing a reservation is libp2p's work; that one is lost shows as
//! [`Event::Failed`].

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use rand::Rng;

/// Reservations to hold. Hivemind's daemon wants as many.
const WANTED: usize = 2;

/// Pause after the first failure; it doubles with every further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause, that of Hivemind's daemon between two searches for relays.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// A reservation held for so long makes up for earlier failures.
const STABLE: Duration = Duration::from_secs(10 * 60);

/// Candidates kept. Two are needed; the rest are for when these fail.
const MAX_CANDIDATES: usize = 64;

/// Which relay is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// A person named it as a relay.
    Trusted,
    /// A node of ours: its circuits last for half an hour, those of a Hivemind daemon often for two minutes.
    Ours,
    /// A bootstrap node: it stays.
    Configured,
    /// Any other member of the swarm.
    Met,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Whether this node needs relays.
    Wanted(bool),
    /// A peer offers to be a relay.
    Offered(PeerId, Rank),
    /// A peer left, or offers it no longer. A reservation there stays until it fails.
    Withdrawn(PeerId),
    /// A relay granted a reservation.
    Reserved(PeerId),
    /// A relay could not be reached, refused, or a reservation there ended.
    Failed(PeerId),
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Reserve(PeerId),
    Release(PeerId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not to be asked before this time.
    Free(Instant),
    Asked,
    Held(Instant),
}

#[derive(Debug)]
struct Candidate {
    rank: Rank,
    state: State,
    /// Failures without a stable reservation in between.
    failures: u32,
    offers: bool,
}

/// The machine.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    wanted: bool,
    candidates: BTreeMap<PeerId, Candidate>,
}

impl Relays {
    /// Relays that granted a reservation.
    pub(crate) fn held(&self) -> Vec<PeerId> {
        let held = self.candidates.iter().filter(|(_, relay)| is_held(relay));
        held.map(|(peer, _)| *peer).collect()
    }

    pub(crate) fn on(&mut self, event: Event, now: Instant, rng: &mut impl Rng) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Wanted(wanted) => {
                self.wanted = wanted;
                if !wanted {
                    effects = self.release(now);
                }
            }
            Event::Offered(peer, rank) => self.offered(peer, rank, now),
            Event::Withdrawn(peer) => {
                if let Some(relay) = self.candidates.get_mut(&peer) {
                    relay.offers = relay.rank == Rank::Trusted;
                }
            }
            Event::Reserved(peer) => {
                if let Some(relay) = self.candidates.get_mut(&peer).filter(|relay| !is_held(relay)) {
                    relay.state = State::Held(now);
                }
                // The answer may come after the need is over. (Taking a question back in the middle is not safe in libp2p.)
                if !self.wanted {
                    effects = self.release(now);
                }
            }
            Event::Failed(peer) => self.failed(peer, now, rng),
            Event::Tick => {}
        }
        // A candidate that left is forgotten, but not before it may be asked again: leaving is no way around the pause.
        self.candidates
            .retain(|_, relay| relay.offers || !matches!(relay.state, State::Free(from) if from <= now));
        effects.extend(self.fill(now, rng));
        effects
    }

    fn offered(&mut self, peer: PeerId, rank: Rank, now: Instant) {
        if let Some(relay) = self.candidates.get_mut(&peer) {
            relay.rank = relay.rank.min(rank);
            relay.offers = true;
        } else if self.candidates.len() < MAX_CANDIDATES || rank == Rank::Trusted {
            let relay = Candidate {
                rank,
                state: State::Free(now),
                failures: 0,
                offers: true,
            };
            self.candidates.insert(peer, relay);
        }
    }

    fn failed(&mut self, peer: PeerId, now: Instant, rng: &mut impl Rng) {
        let Some(relay) = self.candidates.get_mut(&peer) else {
            return;
        };
        match relay.state {
            State::Free(_) => return,
            State::Held(since) if now.saturating_duration_since(since) >= STABLE => relay.failures = 1,
            State::Held(_) | State::Asked => relay.failures = relay.failures.saturating_add(1),
        }
        relay.state = State::Free(now + pause(relay.failures, rng));
    }

    /// Gives up what is held.
    fn release(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (peer, relay) in self.candidates.iter_mut().filter(|(_, relay)| is_held(relay)) {
            relay.state = State::Free(now);
            relay.failures = 0;
            effects.push(Effect::Release(*peer));
        }
        effects
    }

    /// Asks as many relays as are missing: the best first, among equals any, so that nodes spread over the relays.
    fn fill(&mut self, now: Instant, rng: &mut impl Rng) -> Vec<Effect> {
        let mut effects = Vec::new();
        while self.wanted && self.busy() < WANTED {
            let free = self
                .candidates
                .iter_mut()
                .filter(|(_, relay)| relay.offers && matches!(relay.state, State::Free(from) if from <= now))
                .map(|(peer, relay)| ((relay.rank, relay.failures, rng.random::<u32>()), peer, relay))
                .min_by_key(|(order, ..)| *order);
            let Some((_, peer, relay)) = free else { break };
            relay.state = State::Asked;
            effects.push(Effect::Reserve(*peer));
        }
        effects
    }

    /// Relays that are held or asked.
    fn busy(&self) -> usize {
        let all = self.candidates.values();
        all.filter(|relay| !matches!(relay.state, State::Free(_))).count()
    }
}

fn is_held(relay: &Candidate) -> bool {
    matches!(relay.state, State::Held(_))
}

/// The pause after that many failures, a quarter more or less: those who lost the same relay must not return together.
fn pause(failures: u32, rng: &mut impl Rng) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(rng.random_range(0.75..1.25))
}

#[cfg(test)]
mod tests;
