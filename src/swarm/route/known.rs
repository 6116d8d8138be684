//! What a client knows besides the records of servers: round trips, and what its own steps took. Pure.
//!
//! What a step took corrects what servers announce of themselves, for this client and for as long as it is fresh: a measured
//! time counts fully at first, and by and by the announced one takes over again, so that a server that was slow for a while
//! gets another chance. All times are seconds.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use crate::{p2p::PeerId, swarm::ping::RttMap};

/// Weight of a new measurement against those before it.
const SMOOTHING: f64 = 0.2;

/// Time after which a measurement counts as much as what is announced, divided by ln 2.
const FADING_S: f64 = 600.0;

/// Measurements that count less than this are forgotten.
const LEAST_WEIGHT: f64 = 0.01;

/// One-way delay to a peer whose round trip is not known.
pub(crate) const DEFAULT_DELAY_S: f64 = 0.15;

/// Longest one-way delay that is believed; unreachable peers (an infinite round trip) cost this much.
const MAX_DELAY_S: f64 = 5.0;

/// What is known of the ways to servers and of their speed.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Round trips from here; infinite for peers that do not answer.
    pub rtts: RttMap,
    /// What steps took.
    pub times: Times,
    /// When it is, on the clock of `times`.
    pub now: f64,
}

impl From<RttMap> for Known {
    fn from(rtts: RttMap) -> Self {
        Self {
            rtts,
            ..Self::default()
        }
    }
}

/// One hop of a step of one token, as its client saw it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Who ran the blocks.
    pub peer: PeerId,
    /// Which blocks.
    pub blocks: Range<u32>,
    /// From when the step was sent, or the answer of the server before it was there, until this one's answer was.
    pub seconds: f64,
    /// Whether the server before it passed its output on, so that it did not wait for the client's.
    pub pushed: bool,
}

/// A measured time and how much it counts, 0 to 1, against an estimate of the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weighed {
    pub(super) seconds: f64,
    pub(super) weight: f64,
}

impl Weighed {
    /// Between what was measured and `estimate`.
    pub(super) fn against(self, estimate: f64) -> f64 {
        self.weight * self.seconds + (1.0 - self.weight) * estimate
    }
}

#[derive(Clone, Copy, Debug)]
struct Average {
    seconds: f64,
    at: f64,
}

impl Average {
    fn weigh(self, now: f64) -> Weighed {
        let weight = (-(now - self.at).max(0.0) / FADING_S).exp();
        Weighed {
            seconds: self.seconds,
            weight,
        }
    }

    fn is_fresh(&self, now: f64) -> bool {
        self.weigh(now).weight > LEAST_WEIGHT
    }
}

/// A hop and where it was entered from; `None` for the client.
type Way = (Option<PeerId>, PeerId, Range<u32>);

/// What steps took, smoothed.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// A server's own time for one block.
    blocks: HashMap<PeerId, Average>,
    /// Way to a server and its own time together.
    ways: HashMap<Way, Average>,
}

impl Times {
    /// Takes in what the hops of one step took, in order. `rtts` are those that the ways are estimated by; a server's own
    /// time is what remains where all of its ways are known.
    pub fn record(
        &mut self,
        step: &[Measured],
        rtts: &RttMap,
        way: impl Fn(&PeerId, &PeerId) -> Option<f64>,
        now: f64,
    ) {
        let mut before: Option<&Measured> = None;
        for hop in step {
            let back = |peer: &PeerId| delay(rtts.get(peer).copied());
            let since = before.map_or(0.0, |before| back(&before.peer));
            let arrived = (hop.seconds - back(&hop.peer) + since).max(0.0);
            let from = before.map(|before| before.peer);
            learn(&mut self.ways, (from, hop.peer, hop.blocks.clone()), arrived, now);
            let there = match before.filter(|_| hop.pushed) {
                Some(before) => way(&before.peer, &hop.peer).map(|rtt| rtt / 2.0),
                None => rtts.get(&hop.peer).map(|rtt| since + rtt / 2.0),
            };
            let known = rtts.contains_key(&hop.peer) && before.is_none_or(|before| rtts.contains_key(&before.peer));
            if let Some(there) = there.filter(|there| known && there.is_finite()) {
                let per_block = (arrived - there).max(0.0) / f64::from(hop.blocks.len().max(1) as u32);
                learn(&mut self.blocks, hop.peer, per_block, now);
            }
            before = Some(hop);
        }
        self.blocks.retain(|_, average| average.is_fresh(now));
        self.ways.retain(|_, average| average.is_fresh(now));
    }

    /// Whom anything is known about.
    pub fn peers(&self) -> BTreeSet<PeerId> {
        self.ways.keys().map(|(_, peer, _)| *peer).collect()
    }

    /// What a block takes a server.
    pub(super) fn per_block(&self, peer: &PeerId, now: f64) -> Option<Weighed> {
        Some(self.blocks.get(peer)?.weigh(now))
    }

    /// What it takes to get from `from` through `blocks` of a server.
    pub(super) fn through(&self, from: Option<PeerId>, peer: PeerId, blocks: &Range<u32>, now: f64) -> Option<Weighed> {
        Some(self.ways.get(&(from, peer, blocks.clone()))?.weigh(now))
    }
}

fn learn<K: std::hash::Hash + Eq>(averages: &mut HashMap<K, Average>, key: K, seconds: f64, now: f64) {
    let old = averages.get(&key).filter(|old| old.is_fresh(now));
    let seconds = old.map_or(seconds, |old| SMOOTHING * seconds + (1.0 - SMOOTHING) * old.seconds);
    averages.insert(key, Average { seconds, at: now });
}

/// Seconds one way, given a round trip in seconds.
pub(super) fn delay(rtt: Option<f64>) -> f64 {
    rtt.map_or(DEFAULT_DELAY_S, |rtt| (rtt / 2.0).min(MAX_DELAY_S))
}
