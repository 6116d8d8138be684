//! Servers that failed stay out of new routes for a while, and why. Time is an argument: nothing here reads a clock.
//!
//! Petals: `client/routing/sequence_manager.py` and `hivemind/utils/timed_storage`-like blacklist, 15 s doubling with each
//! failure in a row. There the ban only takes effect at the next periodic update; here it does at once.
//!
//! Those whose answers were found wrong are another matter: they stay out for long, no answer makes that good, and a route
//! never falls back on them.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::{Duration, Instant},
};

use crate::p2p::PeerId;

/// First ban (Petals `ban_timeout`); doubles with each further failure.
const FIRST_BAN: Duration = Duration::from_secs(15);
/// Longest ban.
const LONGEST_BAN: Duration = Duration::from_secs(15 * 64);
/// Ban of a server whose answers are wrong: longer than clients usually run, short enough for hardware to be exchanged.
const LIAR_BAN: Duration = Duration::from_secs(24 * 3600);
/// Peers remembered; the ban that ends first makes room.
const MAX_BANS: usize = 4096;
/// Characters of a reason that are kept: servers choose parts of it.
const MAX_REASON: usize = 200;

/// A server that a client leaves out for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Avoided {
    /// Which server.
    pub peer: PeerId,
    /// What it calls itself.
    pub name: Option<String>,
    /// How much longer.
    pub left: Duration,
    /// What it did.
    pub reason: String,
}

impl fmt::Display for Avoided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.peer)?;
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        write!(f, " is left out for {} s more: {}", self.left.as_secs(), self.reason)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Bans {
    peers: HashMap<PeerId, Ban>,
}

#[derive(Debug)]
struct Ban {
    until: Instant,
    failures: u32,
    lied: bool,
    /// What it did last.
    reason: String,
}

impl Bans {
    /// Bans a peer for longer the more often it failed.
    pub(crate) fn failed(&mut self, peer: PeerId, reason: &str, now: Instant) {
        let ban = self.entry(peer, now);
        let length = FIRST_BAN.saturating_mul(1 << ban.failures.min(10)).min(LONGEST_BAN);
        ban.failures += 1;
        if !ban.lied {
            ban.until = now + length;
            ban.reason = reason.chars().take(MAX_REASON).collect();
        }
    }

    /// Bans a peer for long because its answers are wrong.
    pub(crate) fn lied(&mut self, peer: PeerId, reason: &str, now: Instant) {
        let ban = self.entry(peer, now);
        ban.lied = true;
        ban.until = now + LIAR_BAN;
        ban.reason = reason.chars().take(MAX_REASON).collect();
    }

    /// A peer that works again starts afresh; one that lied worked all the time.
    pub(crate) fn succeeded(&mut self, peer: &PeerId) {
        if self.peers.get(peer).is_some_and(|ban| !ban.lied) {
            self.peers.remove(peer);
        }
    }

    /// The peers banned at `now`.
    pub(crate) fn active(&self, now: Instant) -> HashSet<PeerId> {
        self.banned(now).map(|(peer, _)| *peer).collect()
    }

    /// Those of them that may not be used even if there is nobody else.
    pub(crate) fn liars(&self, now: Instant) -> HashSet<PeerId> {
        let liars = self.banned(now).filter(|(_, ban)| ban.lied);
        liars.map(|(peer, _)| *peer).collect()
    }

    /// The peers banned at `now`, until when and why, by the end of their bans.
    pub(crate) fn reasons(&self, now: Instant) -> Vec<(PeerId, Instant, String)> {
        let reason = |(peer, ban): (&PeerId, &Ban)| (*peer, ban.until, ban.reason.clone());
        let mut reasons: Vec<_> = self.banned(now).map(reason).collect();
        reasons.sort_by_key(|(_, until, _)| *until);
        reasons
    }

    fn banned(&self, now: Instant) -> impl Iterator<Item = (&PeerId, &Ban)> {
        self.peers.iter().filter(move |(_, ban)| ban.until > now)
    }

    fn entry(&mut self, peer: PeerId, now: Instant) -> &mut Ban {
        if self.peers.len() >= MAX_BANS
            && !self.peers.contains_key(&peer)
            && let Some(first) = self.peers.iter().min_by_key(|(_, ban)| ban.until)
        {
            let first = *first.0;
            self.peers.remove(&first);
        }
        self.peers.entry(peer).or_insert(Ban {
            until: now,
            failures: 0,
            lied: false,
            reason: String::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_doubles_with_each_failure_and_ends_with_a_success() {
        let (peer, start) = (PeerId::random(), Instant::now());
        let mut bans = Bans::default();
        bans.failed(peer, "gone", start);
        assert!(
            bans.active(start + FIRST_BAN - Duration::from_millis(1))
                .contains(&peer)
        );
        assert!(bans.active(start + FIRST_BAN).is_empty());
        bans.failed(peer, "gone", start);
        assert!(bans.active(start + FIRST_BAN).contains(&peer));
        assert!(bans.active(start + 2 * FIRST_BAN).is_empty());
        bans.succeeded(&peer);
        bans.failed(peer, "gone", start);
        assert!(bans.active(start + FIRST_BAN).is_empty());
    }

    #[test]
    fn who_lied_stays_out_whatever_comes_after() {
        let (peer, start) = (PeerId::random(), Instant::now());
        let mut bans = Bans::default();
        bans.lied(peer, "wrong numbers", start);
        bans.failed(peer, "gone", start);
        bans.succeeded(&peer);
        let later = start + LONGEST_BAN;
        assert!(bans.liars(later).contains(&peer));
        assert_eq!(
            bans.reasons(later),
            [(peer, start + LIAR_BAN, "wrong numbers".to_owned())]
        );
        assert!(bans.active(start + LIAR_BAN).is_empty());
    }

    #[test]
    fn reasons_are_the_last_ones_in_the_order_in_which_bans_end() {
        let (once, twice, start) = (PeerId::random(), PeerId::random(), Instant::now());
        let mut bans = Bans::default();
        bans.failed(twice, "silent", start);
        bans.failed(twice, "gone", start);
        bans.failed(once, &"x".repeat(10_000), start);
        let reasons = bans.reasons(start);
        assert_eq!(reasons[0], (once, start + FIRST_BAN, "x".repeat(MAX_REASON)));
        assert_eq!(reasons[1], (twice, start + 2 * FIRST_BAN, "gone".to_owned()));
        assert!(bans.liars(start).is_empty());
    }

    #[test]
    fn the_number_of_bans_is_bounded() {
        let mut bans = Bans::default();
        let now = Instant::now();
        for _ in 0..MAX_BANS + 10 {
            bans.failed(PeerId::random(), "gone", now);
        }
        assert_eq!(bans.peers.len(), MAX_BANS);
    }
}
