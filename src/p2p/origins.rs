//! From which IP addresses connected peers come, for whoever decides by them. Connections through relays come from none:
//! the address that is seen is the relay's. Where a name was dialed, the transport says to which address it led.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};

use super::addr;

/// Dials that are remembered: the swarm reports a connection as soon as it is made, so that the last ones are enough.
const MAX_DIALS: usize = 1024;

/// The other ends of all connections. Bounded by the limits on these.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    peers: Mutex<HashMap<PeerId, Vec<(ConnectionId, IpAddr)>>>,
    /// Whom direct dials have reached and where, the last one first.
    dials: Mutex<VecDeque<(PeerId, IpAddr)>>,
}

impl Origins {
    /// A direct dial, maybe of a name, has reached a peer at `resolved`.
    pub(crate) fn dialed(&self, peer: PeerId, resolved: &Multiaddr) {
        if let Some((_, ip, _)) = addr::socket(resolved) {
            let mut dials = self.dials();
            dials.truncate(MAX_DIALS - 1);
            dials.push_front((peer, ip));
        }
    }

    /// A connection begins whose other end is at `remote`.
    pub(crate) fn connected(&self, peer: PeerId, id: ConnectionId, remote: &Multiaddr) {
        let ip = match addr::socket(remote) {
            Some((_, ip, _)) => Some(ip),
            None if addr::is_named(remote) => {
                let dials = self.dials();
                dials.iter().find(|(dialed, _)| *dialed == peer).map(|(_, ip)| *ip)
            }
            None => None,
        };
        if let Some(ip) = ip {
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

    fn dials(&self) -> MutexGuard<'_, VecDeque<(PeerId, IpAddr)>> {
        self.dials.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn a_peer_that_was_dialed_by_name_comes_from_where_the_name_led_last() {
        let (origins, peer) = (Origins::default(), PeerId::random());
        for ip in ["10.0.0.1", "10.0.0.2"] {
            origins.dialed(peer, &format!("/ip4/{ip}/tcp/1/p2p/{peer}").parse().unwrap());
        }
        origins.dialed(PeerId::random(), &"/ip4/10.0.0.3/tcp/1".parse().unwrap());
        let relayed = format!("/dns4/example.org/tcp/1/p2p/{peer}/p2p-circuit");
        // The second one is how a relay's client sees who comes through it.
        let none = [relayed, format!("/p2p/{peer}")];
        for (id, addr) in none.iter().enumerate() {
            origins.connected(peer, ConnectionId::new_unchecked(id), &addr.parse().unwrap());
        }
        assert!(origins.of(&peer).is_empty());
        let named = format!("/dns4/example.org/tcp/1/p2p/{peer}");
        origins.connected(peer, ConnectionId::new_unchecked(2), &named.parse().unwrap());
        assert_eq!(origins.of(&peer), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        for _ in 0..2 * MAX_DIALS {
            origins.dialed(peer, &"/ip4/10.0.0.4/udp/1/quic-v1".parse().unwrap());
        }
        assert_eq!(origins.dials().len(), MAX_DIALS);
    }
}
