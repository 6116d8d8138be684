//! Whom we tell what: our own addresses, and those of peers that others ask for.

use std::time::Instant;

use libp2p::{Multiaddr, PeerId, kad};

use super::{
    super::{
        addr::{self, Reach},
        kad_server::Found,
        reachability::Standing,
    },
    Actor,
};

impl Actor {
    /// Who is near `key`, and the peer whose id it is, if it is one and can be reached; see `kad_server.rs` for why.
    pub(super) fn closest(&mut self, key: &[u8], from: PeerId) -> Vec<Found> {
        let to = self.book.connected_over(&from).unwrap_or(Reach::Public);
        let ourselves = *self.swarm.local_peer_id();
        let target = PeerId::from_bytes(key).ok();
        if target == Some(ourselves) {
            let addrs = self.announced().into_iter().filter(|addr| addr::tellable(addr, to));
            return vec![Found {
                peer: ourselves,
                addrs: addrs.collect(),
                connected: true,
            }];
        }
        let key = kad::KBucketKey::from(key.to_vec());
        let kad = &mut self.swarm.behaviour_mut().kad;
        let mut peers: Vec<PeerId> = kad
            .find_closest_local_peers(&key, &from)
            .map(|near| near.node_id)
            .collect();
        peers.extend(target.filter(|target| *target != from && !peers.contains(target)));
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

    /// What others are told of this node. One that is reached through relays does not send them to doors that are closed,
    /// as far as anyone knows; its private addresses stay, for neighbours.
    pub(super) fn announced(&self) -> Vec<Multiaddr> {
        if self.config.unlisted {
            return Vec::new();
        }
        let is_circuit = |addr: &Multiaddr| addr::reach(addr) == Some(Reach::Relayed);
        let circuits = || self.listened.iter().filter(|addr| is_circuit(addr)).cloned();
        let configured = &self.config.announce;
        let mut addrs = addr::announced(configured, &self.listened, self.judge.confirmed());
        if !configured.is_empty() {
            addrs.extend(circuits());
        } else if self.judge.standing() == Standing::Private && circuits().next().is_some() {
            let open = self.judge.confirmed();
            addrs.retain(|addr| addr::reach(addr) != Some(Reach::Public) || open.contains(addr));
        }
        addrs
    }

    pub(super) fn unlisten(&mut self, addrs: &[Multiaddr]) {
        let is_own = |addr: &&Multiaddr| addr::socket(addr).is_some() && self.listened.contains(addr);
        if addrs.iter().any(|addr| is_own(&addr)) {
            self.on_network_changed();
        }
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
