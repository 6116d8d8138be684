//! Who may stay connected: pure rules over what is known of each connected peer. The actor asks and closes.
//!
//! `/ipfs/kad/1.0.0` is the name that the whole public IPFS network speaks, so strangers come, and queries lead to them.
//! A peer is admitted because it is configured, because it says that it belongs to a Hivemind swarm, or because it calls
//! or is called. Everyone else has to go after a short while and is not let in again for some time. When there are too
//! many even so, those who have been quiet for the longest time go first.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::{Limits, usage::Use};

/// How long it takes at most until identify has told who a peer is.
const UNKNOWN_GRACE: Duration = Duration::from_secs(60);

/// Strangers that may be here at the same time. With more, the oldest goes at once.
const MAX_STRANGERS: usize = 32;

/// How long a stranger that was sent away is not let in.
const BARRED_FOR: Duration = Duration::from_secs(10 * 60);

/// Barred peers that are remembered; with more, the oldest is forgotten.
const MAX_BARRED: usize = 4096;

/// A connection is left in peace for this long, as by go-libp2p's connection manager in Hivemind's daemon.
const TRIM_GRACE: Duration = Duration::from_secs(120);

/// What identify said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unknown,
    Member,
    Stranger,
}

#[derive(Clone, Copy, Debug)]
struct Guest {
    since: Instant,
    kind: Kind,
}

/// Connected peers, and those that are kept out.
#[derive(Debug)]
pub(crate) struct Guard {
    limits: Limits,
    guests: HashMap<PeerId, Guest>,
    barred: HashMap<PeerId, Instant>,
}

/// What the actor has to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// To be disconnected.
    pub(crate) close: Vec<PeerId>,
    /// To be disconnected, and refused until [`Verdict::readmit`] names them.
    pub(crate) bar: Vec<PeerId>,
    /// No longer refused.
    pub(crate) readmit: Vec<PeerId>,
}

impl Guard {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            guests: HashMap::new(),
            barred: HashMap::new(),
        }
    }

    pub(crate) fn connected(&mut self, peer: PeerId, now: Instant) {
        self.guests.entry(peer).or_insert(Guest {
            since: now,
            kind: Kind::Unknown,
        });
    }

    pub(crate) fn disconnected(&mut self, peer: &PeerId) {
        self.guests.remove(peer);
    }

    /// Identify told whether `peer` belongs to a swarm.
    pub(crate) fn identified(&mut self, peer: &PeerId, is_member: bool) {
        if let Some(guest) = self.guests.get_mut(peer) {
            guest.kind = if is_member { Kind::Member } else { Kind::Stranger };
        }
    }

    /// Somebody here wants to call `peer`. Returns whether it was barred and is not any more.
    pub(crate) fn wanted(&mut self, peer: &PeerId) -> bool {
        self.barred.remove(peer).is_some()
    }

    /// Who has to go now. `used` tells the calls with a peer, `protected` whether it is to stay in any case.
    pub(crate) fn review(
        &mut self,
        now: Instant,
        used: impl Fn(&PeerId) -> Use,
        protected: impl Fn(&PeerId) -> bool,
    ) -> Verdict {
        let readmit = self.readmit(now);
        let bar = self.strangers(now, &used, &protected);
        for peer in &bar {
            self.guests.remove(peer);
            self.barred.insert(*peer, now);
        }
        let close = self.surplus(now, &used, &protected);
        for peer in &close {
            self.guests.remove(peer);
        }
        Verdict { close, bar, readmit }
    }

    fn readmit(&mut self, now: Instant) -> Vec<PeerId> {
        let over = |since: &Instant| now.duration_since(*since) >= BARRED_FOR;
        let mut back: Vec<PeerId> = self
            .barred
            .iter()
            .filter(|(_, at)| over(at))
            .map(|(peer, _)| *peer)
            .collect();
        let surplus = (self.barred.len() - back.len()).saturating_sub(MAX_BARRED);
        if surplus > 0 {
            let mut rest: Vec<(PeerId, Instant)> = self
                .barred
                .iter()
                .filter(|(_, at)| !over(at))
                .map(|(peer, at)| (*peer, *at))
                .collect();
            rest.sort_by_key(|(_, at)| *at);
            back.extend(rest.into_iter().take(surplus).map(|(peer, _)| peer));
        }
        for peer in &back {
            self.barred.remove(peer);
        }
        back
    }

    fn strangers(
        &self,
        now: Instant,
        used: &impl Fn(&PeerId) -> Use,
        protected: &impl Fn(&PeerId) -> bool,
    ) -> Vec<PeerId> {
        let mut strangers: Vec<(PeerId, Guest)> = self
            .guests
            .iter()
            .filter(|(peer, guest)| guest.kind != Kind::Member && used(peer).last.is_none() && !protected(peer))
            .map(|(peer, guest)| (*peer, *guest))
            .collect();
        strangers.sort_by_key(|(_, guest)| guest.since);
        let is_stranger = |guest: &Guest| guest.kind == Kind::Stranger;
        let mut surplus = strangers
            .iter()
            .filter(|(_, guest)| is_stranger(guest))
            .count()
            .saturating_sub(MAX_STRANGERS);
        let goes = |guest: &Guest| {
            let grace = if is_stranger(guest) {
                self.limits.stranger_grace
            } else {
                UNKNOWN_GRACE
            };
            now.duration_since(guest.since) >= grace
        };
        strangers.retain(|(_, guest)| {
            let too_many = is_stranger(guest) && surplus > 0;
            surplus -= usize::from(too_many);
            too_many || goes(guest)
        });
        strangers.into_iter().map(|(peer, _)| peer).collect()
    }

    fn surplus(
        &self,
        now: Instant,
        used: &impl Fn(&PeerId) -> Use,
        protected: &impl Fn(&PeerId) -> bool,
    ) -> Vec<PeerId> {
        if self.guests.len() <= self.limits.high_water {
            return Vec::new();
        }
        let mut quiet: Vec<(Instant, PeerId)> = self
            .guests
            .iter()
            .filter(|(peer, guest)| {
                now.duration_since(guest.since) >= TRIM_GRACE && used(peer).calls == 0 && !protected(peer)
            })
            .map(|(peer, guest)| (used(peer).last.unwrap_or(guest.since), *peer))
            .collect();
        quiet.sort_unstable();
        quiet.truncate(self.guests.len().saturating_sub(self.limits.low_water));
        quiet.into_iter().map(|(_, peer)| peer).collect()
    }
}

#[cfg(test)]
mod tests;
