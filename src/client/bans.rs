//! Servers that failed stay out of new routes for a while. Time is an argument: nothing here reads a clock.
//!
//! Petals: `client/routing/sequence_manager.py` and `hivemind/utils/timed_storage`-like blacklist, 15 s doubling with each
//! failure in a row. There the ban only takes effect at the next periodic update; here it does at once.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::p2p::PeerId;

/// First ban (Petals `ban_timeout`); doubles with each further failure.
const FIRST_BAN: Duration = Duration::from_secs(15);
/// Longest ban.
const LONGEST_BAN: Duration = Duration::from_secs(15 * 64);
/// Peers remembered; the ban that ends first makes room.
const MAX_BANS: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Bans {
    peers: HashMap<PeerId, Ban>,
}

#[derive(Debug)]
struct Ban {
    until: Instant,
    failures: u32,
}

impl Bans {
    /// Bans a peer for longer the more often it failed.
    pub(crate) fn failed(&mut self, peer: PeerId, now: Instant) {
        if self.peers.len() >= MAX_BANS
            && let Some(first) = self
                .peers
                .iter()
                .min_by_key(|(_, ban)| ban.until)
                .map(|(peer, _)| *peer)
        {
            self.peers.remove(&first);
        }
        let ban = self.peers.entry(peer).or_insert(Ban {
            until: now,
            failures: 0,
        });
        let length = FIRST_BAN.saturating_mul(1 << ban.failures.min(10)).min(LONGEST_BAN);
        ban.failures += 1;
        ban.until = now + length;
    }

    /// A peer that works again starts afresh.
    pub(crate) fn succeeded(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    /// The peers banned at `now`.
    pub(crate) fn active(&self, now: Instant) -> HashSet<PeerId> {
        self.peers
            .iter()
            .filter(|(_, ban)| ban.until > now)
            .map(|(peer, _)| *peer)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_doubles_with_each_failure_and_ends_with_a_success() {
        let (peer, start) = (PeerId::random(), Instant::now());
        let mut bans = Bans::default();
        bans.failed(peer, start);
        assert!(
            bans.active(start + FIRST_BAN - Duration::from_millis(1))
                .contains(&peer)
        );
        assert!(bans.active(start + FIRST_BAN).is_empty());
        bans.failed(peer, start);
        assert!(bans.active(start + FIRST_BAN).contains(&peer));
        assert!(bans.active(start + 2 * FIRST_BAN).is_empty());
        bans.succeeded(&peer);
        bans.failed(peer, start);
        assert!(bans.active(start + FIRST_BAN).is_empty());
    }

    #[test]
    fn the_number_of_bans_is_bounded() {
        let mut bans = Bans::default();
        let now = Instant::now();
        for _ in 0..MAX_BANS + 10 {
            bans.failed(PeerId::random(), now);
        }
        assert_eq!(bans.peers.len(), MAX_BANS);
    }
}
