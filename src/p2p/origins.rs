//! From which IP addresses connected peers come, for whoever decides by them. Connections through relays come from none:
//! the address that is seen is the relay's.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};

use super::addr;

/// The other ends of all connections. Bounded by the limits on these.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    peers: Mutex<HashMap<PeerId, Vec<(ConnectionId, IpAddr)>>>,
}

impl Origins {
    /// A connection begins whose other end is at `remote`.
    pub(crate) fn connected(&self, peer: PeerId, id: ConnectionId, remote: &Multiaddr) {
        if let Some((_, ip, _)) = addr::socket(remote) {
            self.lock().entry(peer).or_default().push((id, ip));
        }
    }

    pub(crate) fn disconnected(&self, peer: PeerId, id: ConnectionId) {
        let mut peers = self.lock();
        if let Some(links) = peers.get_mut(&peer) {
            links.retain(|(link, _)| *link != id);
            if links.is_empty() {
                peers.remove(&peer);
            }
        }
    }

    pub(crate) fn of(&self, peer: &PeerId) -> Vec<IpAddr> {
        let peers = self.lock();
        let links = peers.get(peer).into_iter().flatten();
        links.map(|(_, ip)| *ip).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Vec<(ConnectionId, IpAddr)>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_comes_from_where_its_direct_connections_do() {
        let (origins, peer) = (Origins::default(), PeerId::random());
        let relayed = format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}/p2p-circuit");
        let addrs = ["/ip4/10.0.0.7/tcp/4001", "/ip6/::1/udp/4001/quic-v1", &relayed];
        for (id, addr) in addrs.iter().enumerate() {
            origins.connected(peer, ConnectionId::new_unchecked(id), &addr.parse().unwrap());
        }
        let seen: Vec<String> = origins.of(&peer).iter().map(IpAddr::to_string).collect();
        assert_eq!(seen, ["10.0.0.7", "::1"]);
        (0..3).for_each(|id| origins.disconnected(peer, ConnectionId::new_unchecked(id)));
        assert!(origins.of(&peer).is_empty() && origins.lock().is_empty());
    }
}
