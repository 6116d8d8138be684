//! Peers that did not answer a search lately, and for how long not to ask them again. Pure.

use std::collections::HashMap;

use super::routing::Peer;
use crate::p2p::PeerId;

/// Most peers remembered. Over it, the one whose ban ends first is forgotten.
const MAX_PEERS: usize = 4096;

/// Longest ban, in seconds. Python doubles without end, which only costs: a peer that is back is found by its own calls.
const MAX_BAN_S: f64 = 3600.0;

/// Bans of 5, 10, 20 … seconds (hivemind, `dht/node.py`, `Blacklist`); an answer ends them.
#[derive(Debug)]
pub(crate) struct Blacklist<P = PeerId> {
    base_s: f64,
    backoff: f64,
    bans: HashMap<P, Ban>,
}

#[derive(Debug)]
struct Ban {
    until: f64,
    failures: i32,
}

impl<P: Peer> Blacklist<P> {
    pub(crate) fn new(base_s: f64, backoff: f64) -> Self {
        Self {
            base_s,
            backoff,
            bans: HashMap::new(),
        }
    }

    /// Whether the peer is not to be asked.
    pub(crate) fn is_banned(&self, peer: &P, now: f64) -> bool {
        self.bans.get(peer).is_some_and(|ban| ban.until > now)
    }

    /// The peer answered.
    pub(crate) fn answered(&mut self, peer: &P) {
        self.bans.remove(peer);
    }

    /// The peer did not answer. Several failures at once count as one.
    pub(crate) fn failed(&mut self, peer: P, now: f64) {
        let ban = self.bans.entry(peer).or_insert(Ban {
            until: f64::NEG_INFINITY,
            failures: 0,
        });
        if ban.until > now {
            return;
        }
        ban.until = now + (self.base_s * self.backoff.powi(ban.failures)).min(MAX_BAN_S);
        ban.failures = ban.failures.saturating_add(1);
        if self.bans.len() > MAX_PEERS {
            let first = self.bans.iter().min_by(|a, b| a.1.until.total_cmp(&b.1.until));
            if let Some(peer) = first.map(|(peer, _)| *peer) {
                self.bans.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dht::testing::contact;

    #[test]
    fn bans_double_until_the_peer_answers() {
        let peer = contact(1).peer;
        let mut list = Blacklist::new(5.0, 2.0);
        let mut now = 100.0;
        for length in [5.0, 10.0, 20.0] {
            assert!(!list.is_banned(&peer, now));
            list.failed(peer, now);
            list.failed(peer, now + 1.0);
            assert!(list.is_banned(&peer, now + length - 0.1));
            assert!(!list.is_banned(&peer, now + length));
            now += length;
        }
        list.answered(&peer);
        list.failed(peer, now);
        assert!(!list.is_banned(&peer, now + 5.0));
    }

    #[test]
    fn a_ban_has_a_longest_length_and_the_list_a_largest_size() {
        let mut list = Blacklist::new(5.0, 2.0);
        let mut now = 0.0;
        for _ in 0..40 {
            list.failed(contact(0).peer, now);
            now += MAX_BAN_S;
            assert!(!list.is_banned(&contact(0).peer, now));
        }
        for number in 0..5000 {
            list.failed(contact(number).peer, now + number as f64);
        }
        assert_eq!(list.bans.len(), MAX_PEERS);
    }
}
