//! Whom we tell what: our own addresses, and those of peers that others ask for.

use std::time::Instant;

use libp2p::{Multiaddr, PeerId, kad};

use super::{
    super::{
        addr::{self, Reach},
        kad_server::Found,
    },
    Actor,
};

impl Actor {
    /// Who is near `target`, and `target` itself if it can be reached; see `kad_server.rs` for why.
    pub(super) fn closest(&mut self, target: PeerId, from: PeerId) -> Vec<Found> {
        let to = self.book.connected_over(&from).unwrap_or(Reach::Public);
        let ourselves = *self.swarm.local_peer_id();
        if target == ourselves {
            let addrs = self.announced().into_iter().filter(|addr| addr::tellable(addr, to));
            return vec![Found {
                peer: ourselves,
                addrs: addrs.collect(),
                connected: true,
            }];
        }
        let key = kad::KBucketKey::from(target);
        let kad = &mut self.swarm.behaviour_mut().kad;
        let mut peers: Vec<PeerId> = kad
            .find_closest_local_peers(&key, &from)
            .map(|near| near.node_id)
            .collect();
        if target != from && !peers.contains(&target) {
            peers.push(target);
        }
        let now = Instant::now();
        let found = peers.into_iter().map(|peer| Found {
            peer,
            addrs: self
                .book
                .addresses(&peer, now)
                .iter()
                .filter(|addr| addr::tellable(addr, to))
                .map(addr::without_peer)
                .collect(),
            connected: self.book.is_connected(&peer),
        });
        found.filter(|found| !found.addrs.is_empty()).collect()
    }

    fn announced(&self) -> Vec<Multiaddr> {
        addr::announced(&self.config.announce, &self.listened)
    }

    pub(super) fn unlisten(&mut self, addrs: &[Multiaddr]) {
        self.listened.retain(|addr| !addrs.contains(addr));
        self.announce();
    }

    /// Tells identify and the handles which addresses are ours now.
    pub(super) fn announce(&mut self) {
        let announced = self.announced();
        let stale: Vec<Multiaddr> = self
            .swarm
            .external_addresses()
            .filter(|addr| !announced.contains(addr))
            .cloned()
            .collect();
        for addr in stale {
            self.swarm.remove_external_address(&addr);
        }
        for addr in &announced {
            self.swarm.add_external_address(addr.clone());
        }
        let ourselves = *self.swarm.local_peer_id();
        let full = announced.iter().filter_map(|addr| addr::with_peer(addr, ourselves));
        self.outputs.addrs.send_replace(full.collect());
    }
}
