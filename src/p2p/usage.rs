//! Which peers calls are made with now, and when the last one was: what tells a guest from a stranger (`guard.rs`).
//!
//! Counted where calls begin and end, in the tasks that make and serve them; one short lock each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use libp2p::PeerId;

/// The calls with one peer, in both directions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Use {
    /// Calls that run now.
    pub(crate) calls: usize,
    /// When the last one began or ended.
    pub(crate) last: Option<Instant>,
}

/// The calls with all peers.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    peers: Mutex<HashMap<PeerId, Use>>,
}

/// A call that runs. Dropping it ends the count.
#[derive(Debug)]
pub(crate) struct InUse {
    usage: Arc<Usage>,
    peer: PeerId,
}

impl Usage {
    /// A call with `peer` begins.
    pub(crate) fn enter(self: &Arc<Self>, peer: PeerId) -> InUse {
        let mut peers = self.peers();
        let used = peers.entry(peer).or_default();
        used.calls += 1;
        used.last = Some(Instant::now());
        InUse {
            usage: self.clone(),
            peer,
        }
    }

    pub(crate) fn of(&self, peer: &PeerId) -> Use {
        self.peers().get(peer).copied().unwrap_or_default()
    }

    /// Forgets a peer that is gone, unless a call still ends.
    pub(crate) fn forget(&self, peer: &PeerId) {
        let mut peers = self.peers();
        if peers.get(peer).is_some_and(|used| used.calls == 0) {
            peers.remove(peer);
        }
    }

    /// Forgets all peers but these and those of running calls: many were called and never reached.
    pub(crate) fn retain(&self, is_connected: impl Fn(&PeerId) -> bool) {
        self.peers().retain(|peer, used| used.calls > 0 || is_connected(peer));
    }

    fn leave(&self, peer: &PeerId) {
        if let Some(used) = self.peers().get_mut(peer) {
            used.calls = used.calls.saturating_sub(1);
            used.last = Some(Instant::now());
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<PeerId, Use>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.usage.leave(&self.peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_until_they_end_and_the_peer_is_gone() {
        let (usage, peer) = (Arc::new(Usage::default()), PeerId::random());
        assert!(usage.of(&peer).last.is_none());
        let (one, two) = (usage.enter(peer), usage.enter(peer));
        drop(one);
        usage.forget(&peer);
        assert_eq!(usage.of(&peer).calls, 1);
        drop(two);
        assert_eq!(usage.of(&peer).calls, 0);
        assert!(usage.of(&peer).last.is_some());
        usage.retain(|_| true);
        assert!(usage.of(&peer).last.is_some());
        usage.retain(|_| false);
        assert!(usage.of(&peer).last.is_none());
    }
}
