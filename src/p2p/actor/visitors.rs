//! Carries out what `guard.rs` decides about connected peers.

use std::time::Instant;

use libp2p::PeerId;
use tracing::debug;

use super::{super::short_id, Actor};

impl Actor {
    /// Sends those away who have no business here, or who are too many.
    pub(super) fn review_visitors(&mut self) {
        let (usage, book) = (&self.usage, &self.book);
        // Nothing is said on a connection to a relay most of the time, and others come through it all the same.
        let relays = self.relaying.held();
        let needed = |peer: &PeerId| book.is_configured(peer) || relays.contains(peer);
        let verdict = self.guard.review(Instant::now(), |peer| usage.of(peer), needed);
        for peer in verdict.readmit {
            self.swarm.behaviour_mut().barred.unblock_peer(peer);
        }
        for peer in verdict.bar {
            debug!(peer = %short_id(&peer), "belongs to no Hivemind swarm, disconnecting");
            let behaviour = self.swarm.behaviour_mut();
            behaviour.kad.remove_peer(&peer);
            behaviour.barred.block_peer(peer);
            self.book.forget(&peer);
        }
        for peer in verdict.close {
            debug!(peer = %short_id(&peer), "too many connections, closing a quiet one");
            // An error means that it is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Somebody here wants to call `peer`: whatever it was before, it is welcome.
    pub(super) fn readmit_wanted(&mut self, peer: PeerId) {
        if self.guard.wanted(&peer) {
            self.swarm.behaviour_mut().barred.unblock_peer(peer);
        }
    }
}
