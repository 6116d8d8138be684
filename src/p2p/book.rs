//! Addresses of peers, and over what they are connected: a bounded table without any input or output.
//!
//! Filled from identify messages, from connections we made and from the configuration; used to dial, and to answer
//! others who ask for a peer (`kad_server.rs`).

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, swarm::ConnectionId};

use super::addr::{self, Reach};

/// How long addresses outlive the last connection. go-libp2p keeps those of recently connected peers this long.
const ADDRESS_TTL: Duration = Duration::from_secs(30 * 60);

/// Addresses kept per peer; a multi-homed host announces about ten.
const MAX_ADDRS_PER_PEER: usize = 16;

/// Peers kept. Twice the connection limit of a large server, about 8 MiB when full.
const MAX_PEERS: usize = 4096;

/// How old a direct connection is before circuits to the same peer are given up for it: calls that the other end made before
/// it had that connection have arrived by then, and count as running.
const SETTLED: Duration = Duration::from_secs(5);

/// One connection.
#[derive(Clone, Copy, Debug)]
struct Link {
    reach: Reach,
    since: Instant,
}

/// What is known of one peer.
#[derive(Debug)]
struct Known {
    addrs: Vec<Multiaddr>,
    connections: HashMap<ConnectionId, Link>,
    configured: bool,
    /// Last time it was connected or talked about.
    seen: Instant,
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Book {
    peers: HashMap<PeerId, Known>,
}

impl Book {
    /// Addresses that a person configured: never forgotten.
    pub(crate) fn configure(&mut self, peer: PeerId, addr: &Multiaddr, now: Instant) {
        let known = self.entry(peer, now);
        known.configured = true;
        add(known, addr::with_peer(addr, peer));
    }

    /// A peer is no longer configured: it is forgotten like any other.
    pub(crate) fn release(&mut self, peer: &PeerId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.configured = false;
        }
    }

    /// A new connection. If we made it, its address is one that works.
    pub(crate) fn connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, now: Instant) {
        let remote = endpoint.get_remote_address();
        // The other end of an inbound relayed connection has no address of its own.
        let reach = addr::reach(remote).unwrap_or(Reach::Relayed);
        let known = self.entry(peer, now);
        known.connections.insert(id, Link { reach, since: now });
        if endpoint.is_dialer() {
            add(known, addr::with_peer(remote, peer));
        }
    }

    pub(crate) fn disconnected(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        let known = self.entry(peer, now);
        known.connections.remove(&id);
    }

    /// Addresses that a peer announces for itself. They replace all others, except configured ones.
    pub(crate) fn announced(&mut self, peer: PeerId, claimed: &[Multiaddr], now: Instant) -> Vec<Multiaddr> {
        let source = self.connected_over(&peer).unwrap_or(Reach::Public);
        let believed = addr::believable(claimed, peer, source);
        let known = self.entry(peer, now);
        if !known.configured && !believed.is_empty() {
            known.addrs.clear();
        }
        for addr in &believed {
            add(known, Some(addr.clone()));
        }
        believed
    }

    /// An address where the peer could not be reached.
    pub(crate) fn failed(&mut self, peer: PeerId, addr: &Multiaddr) {
        if let Some(known) = self.peers.get_mut(&peer)
            && !known.configured
            && let Some(addr) = addr::with_peer(addr, peer)
        {
            known.addrs.retain(|have| *have != addr);
        }
    }

    /// Where to dial `peer`, nearest reach last: loopback addresses of others are most often stale.
    pub(crate) fn addresses(&self, peer: &PeerId, now: Instant) -> Vec<Multiaddr> {
        let Some(known) = self.peers.get(peer).filter(|known| is_fresh(known, now)) else {
            return Vec::new();
        };
        let mut addrs = known.addrs.clone();
        addrs.sort_by_key(addr::reach);
        addrs
    }

    /// The nearest reach over which `peer` is connected.
    pub(crate) fn connected_over(&self, peer: &PeerId) -> Option<Reach> {
        let reaches = self.peers.get(peer)?.connections.values().map(|link| link.reach);
        // Direct and near beats relayed: what may be told to a peer follows from its nearest connection.
        reaches.min_by_key(|reach| match reach {
            Reach::Loopback => 0,
            Reach::Private => 1,
            Reach::Public => 2,
            Reach::Relayed => 3,
        })
    }

    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|known| !known.connections.is_empty())
    }

    pub(crate) fn is_configured(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|known| known.configured)
    }

    /// Configured peers without a connection.
    pub(crate) fn missing(&self) -> Vec<PeerId> {
        let missing = self
            .peers
            .iter()
            .filter(|(_, known)| known.configured && known.connections.is_empty());
        missing.map(|(peer, _)| *peer).collect()
    }

    /// The farthest reach of any direct connection: how far the network goes that this node is in.
    pub(crate) fn farthest(&self) -> Option<Reach> {
        let all = self.peers.values().flat_map(|known| known.connections.values());
        let direct = all.map(|link| link.reach).filter(|reach| *reach != Reach::Relayed);
        direct.max_by_key(|reach| match reach {
            Reach::Public => 2,
            Reach::Private => 1,
            Reach::Loopback | Reach::Relayed => 0,
        })
    }

    /// Relayed connections to peers that are connected directly as well, for some time.
    pub(crate) fn needless_circuits(&self, now: Instant) -> Vec<(PeerId, ConnectionId)> {
        let mut needless = Vec::new();
        for (peer, known) in &self.peers {
            let relayed = |link: &Link| link.reach == Reach::Relayed;
            let settled = |link: &Link| !relayed(link) && now.saturating_duration_since(link.since) >= SETTLED;
            if known.connections.values().any(settled) {
                let circuits = known.connections.iter().filter(|(_, link)| relayed(link));
                needless.extend(circuits.map(|(id, _)| (*peer, *id)));
            }
        }
        needless
    }

    /// Forgets the addresses of a peer, unless they are configured.
    pub(crate) fn forget(&mut self, peer: &PeerId) {
        if let Some(known) = self.peers.get_mut(peer)
            && !known.configured
        {
            known.addrs.clear();
        }
    }

    /// Forgets what is stale.
    pub(crate) fn prune(&mut self, now: Instant) {
        self.peers.retain(|_, known| is_fresh(known, now));
    }

    fn entry(&mut self, peer: PeerId, now: Instant) -> &mut Known {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            self.make_room();
        }
        let known = self.peers.entry(peer).or_insert_with(|| Known {
            addrs: Vec::new(),
            connections: HashMap::new(),
            configured: false,
            seen: now,
        });
        known.seen = now;
        known
    }

    /// Drops the peer that was not heard of for the longest time. Connected peers are bounded by the connection limits.
    fn make_room(&mut self) {
        let oldest = self
            .peers
            .iter()
            .filter(|(_, known)| known.connections.is_empty() && !known.configured)
            .min_by_key(|(_, known)| known.seen)
            .map(|(peer, _)| *peer);
        if let Some(peer) = oldest {
            self.peers.remove(&peer);
        }
    }
}

fn is_fresh(known: &Known, now: Instant) -> bool {
    known.configured || !known.connections.is_empty() || now.duration_since(known.seen) < ADDRESS_TTL
}

fn add(known: &mut Known, addr: Option<Multiaddr>) {
    if let Some(addr) = addr
        && addr::reach(&addr).is_some()
        && !known.addrs.contains(&addr)
        && known.addrs.len() < MAX_ADDRS_PER_PEER
    {
        known.addrs.push(addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_of_a_peer_that_left_are_kept_for_half_an_hour() {
        let (mut book, peer, start) = (Book::default(), PeerId::random(), Instant::now());
        let id = ConnectionId::new_unchecked(1);
        let dialed = ConnectedPoint::Dialer {
            address: addr("/ip4/8.8.8.8/tcp/1"),
            role_override: libp2p::core::Endpoint::Dialer,
            port_use: libp2p::core::transport::PortUse::New,
        };
        book.connected(peer, id, &dialed, start);
        let much_later = start + 10 * ADDRESS_TTL;
        assert_eq!(
            book.addresses(&peer, much_later).len(),
            1,
            "connected peers never expire"
        );

        book.disconnected(peer, id, much_later);
        assert_eq!(book.addresses(&peer, much_later + ADDRESS_TTL / 2).len(), 1);
        assert!(book.addresses(&peer, much_later + ADDRESS_TTL).is_empty());
        book.prune(much_later + ADDRESS_TTL);
        assert!(book.peers.is_empty());
    }

    #[test]
    fn circuits_are_needless_once_a_direct_connection_has_held() {
        let (mut book, peer, start) = (Book::default(), PeerId::random(), Instant::now());
        let [circuit, direct] = [1, 2].map(ConnectionId::new_unchecked);
        let inbound = |from: &str| ConnectedPoint::Listener {
            local_addr: addr("/ip4/8.8.8.8/tcp/1"),
            send_back_addr: addr(from),
        };
        book.connected(peer, circuit, &inbound(&format!("/p2p/{peer}")), start);
        let later = start + 10 * SETTLED;
        assert!(book.needless_circuits(later).is_empty(), "there is nothing else");
        book.connected(peer, direct, &inbound("/ip4/8.8.4.4/tcp/1"), later);
        assert!(book.needless_circuits(later).is_empty());
        assert_eq!(book.needless_circuits(later + SETTLED), [(peer, circuit)]);
        book.disconnected(peer, circuit, later);
        assert!(book.needless_circuits(later + SETTLED).is_empty());
    }

    #[test]
    fn configured_addresses_survive_failure_and_time() {
        let (mut book, peer, now) = (Book::default(), PeerId::random(), Instant::now());
        book.configure(peer, &addr("/ip4/8.8.8.8/tcp/1"), now);
        book.failed(peer, &addr("/ip4/8.8.8.8/tcp/1"));
        book.prune(now + 2 * ADDRESS_TTL);
        assert_eq!(book.addresses(&peer, now + 2 * ADDRESS_TTL).len(), 1);
        assert_eq!(book.missing(), [peer]);
    }

    #[test]
    fn what_a_peer_announces_replaces_what_was_known() {
        let (mut book, peer, now) = (Book::default(), PeerId::random(), Instant::now());
        book.announced(peer, &[addr("/ip4/8.8.8.8/tcp/1")], now);
        book.announced(peer, &[addr("/ip4/8.8.4.4/tcp/2"), addr("/ip4/127.0.0.1/tcp/2")], now);
        let expected = addr("/ip4/8.8.4.4/tcp/2").with_p2p(peer).unwrap();
        assert_eq!(book.addresses(&peer, now), [expected]);
    }

    #[test]
    fn the_table_and_the_addresses_in_it_are_bounded() {
        let (mut book, now) = (Book::default(), Instant::now());
        let many: Vec<Multiaddr> = (1..20).map(|port| addr(&format!("/ip4/8.8.8.8/tcp/{port}"))).collect();
        for n in 0..MAX_PEERS + 10 {
            book.announced(PeerId::random(), &many, now + Duration::from_millis(n as u64));
        }
        assert_eq!(book.peers.len(), MAX_PEERS);
        assert!(book.peers.values().all(|known| known.addrs.len() <= MAX_ADDRS_PER_PEER));
    }
}
