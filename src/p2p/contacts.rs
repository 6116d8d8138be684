//! What a person is shown of the peers that are connected: over which address, how far away, what program. Nothing is
//! decided by it: where peers are dialed is in `book.rs`, who may stay in `guard.rs`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, swarm::ConnectionId};

use super::addr;

/// Characters kept of what a peer calls its program.
const MAX_AGENT: usize = 64;

/// One connected peer, as a person is shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Who it is.
    pub peer: PeerId,
    /// The other end of the best connection, if possible of one that was dialed, where the peer listens: of its relay where
    /// it is relayed.
    pub addr: Multiaddr,
    /// Whether every connection goes through a relay.
    pub relayed: bool,
    /// Whether this node made the connection.
    pub dialed: bool,
    /// How long the peer has been connected.
    pub connected: Duration,
    /// The last round trip that was measured.
    pub rtt: Option<Duration>,
    /// What it calls its program, in its own words.
    pub agent: Option<String>,
    /// Where it says it can be dialed, as far as it is believed.
    pub announced: Vec<Multiaddr>,
}

#[derive(Debug)]
struct Link {
    id: ConnectionId,
    addr: Multiaddr,
    relayed: bool,
    dialed: bool,
    since: Instant,
}

#[derive(Debug, Default)]
struct Known {
    links: Vec<Link>,
    rtt: Option<Duration>,
    agent: Option<String>,
    announced: Vec<Multiaddr>,
}

/// All connected peers. Bounded by the limits on connections.
#[derive(Debug, Default)]
pub(crate) struct Contacts {
    peers: HashMap<PeerId, Known>,
}

impl Contacts {
    pub(crate) fn connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, now: Instant) {
        let addr = endpoint.get_remote_address().clone();
        self.peers.entry(peer).or_default().links.push(Link {
            id,
            relayed: endpoint.is_relayed() || addr::is_relayed(&addr),
            addr,
            dialed: endpoint.is_dialer(),
            since: now,
        });
    }

    pub(crate) fn disconnected(&mut self, peer: &PeerId, id: ConnectionId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.links.retain(|link| link.id != id);
            if known.links.is_empty() {
                self.peers.remove(peer);
            }
        }
    }

    pub(crate) fn measured(&mut self, peer: &PeerId, rtt: Duration) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.rtt = Some(rtt);
        }
    }

    pub(crate) fn identified(&mut self, peer: &PeerId, agent: &str, announced: Vec<Multiaddr>) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.agent = Some(agent.chars().take(MAX_AGENT).collect());
            known.announced = announced;
        }
    }

    /// Everyone, in the order of their ids.
    pub(crate) fn all(&self, now: Instant) -> Vec<Contact> {
        let contact = |(peer, known): (&PeerId, &Known)| {
            let since = known.links.iter().map(|link| link.since).min()?;
            let best = known
                .links
                .iter()
                .min_by_key(|link| (link.relayed, !link.dialed, link.since))?;
            Some(Contact {
                peer: *peer,
                addr: best.addr.clone(),
                relayed: best.relayed,
                dialed: best.dialed,
                connected: now.saturating_duration_since(since),
                rtt: known.rtt,
                agent: known.agent.clone(),
                announced: known.announced.clone(),
            })
        };
        let mut all: Vec<Contact> = self.peers.iter().filter_map(contact).collect();
        all.sort_by_key(|contact| contact.peer);
        all
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::{Endpoint, transport::PortUse};

    use super::*;

    fn dialed(addr: &str) -> ConnectedPoint {
        ConnectedPoint::Dialer {
            address: addr.parse().unwrap(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        }
    }

    #[test]
    fn a_peer_is_shown_over_its_direct_connection_and_forgotten_with_the_last_one() {
        let (mut contacts, now) = (Contacts::default(), Instant::now());
        let (peer, relay) = (PeerId::random(), PeerId::random());
        let [circuit, direct] = [1, 2].map(ConnectionId::new_unchecked);
        let through = dialed(&format!("/ip4/192.0.2.1/tcp/1/p2p/{relay}/p2p-circuit"));
        contacts.connected(peer, circuit, &through, now);
        let told: Multiaddr = "/ip4/192.0.2.2/tcp/2".parse().unwrap();
        contacts.identified(&peer, &"a".repeat(1000), vec![told.clone()]);
        contacts.measured(&peer, Duration::from_millis(7));
        assert!(contacts.all(now)[0].relayed);
        let later = now + Duration::from_secs(5);
        contacts.connected(peer, direct, &dialed("/ip4/192.0.2.2/tcp/2"), later);
        let shown = contacts.all(later);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].addr.to_string(), "/ip4/192.0.2.2/tcp/2");
        assert!(!shown[0].relayed && shown[0].dialed);
        assert_eq!(shown[0].connected, Duration::from_secs(5));
        assert_eq!(shown[0].rtt, Some(Duration::from_millis(7)));
        assert_eq!(shown[0].agent.as_deref().map(str::len), Some(MAX_AGENT));
        assert_eq!(shown[0].announced, [told]);
        contacts.disconnected(&peer, direct);
        assert!(contacts.all(later)[0].relayed);
        contacts.disconnected(&peer, circuit);
        contacts.identified(&peer, "late", Vec::new());
        assert!(contacts.all(later).is_empty());
    }
}
