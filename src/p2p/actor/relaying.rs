//! Relays: does what `relay.rs` decides about reservations, and offers to be a relay as long as this node can be dialed.

use std::{
    collections::{HashMap, VecDeque},
    io,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{multiaddr::Protocol, transport::ListenerId},
    identify, relay as circuit,
};
use tracing::{debug, info};

use super::{
    super::{
        addr::{self, Reach},
        reachability::Standing,
        relay::{Effect, Event, Rank, Relays},
        short_id,
    },
    Actor,
};

/// How often is looked whether a relay may be asked again, whether to offer to be one, and which circuits are still needed.
pub(super) const TICK: Duration = Duration::from_secs(5);

/// Reservations, and what was last said of being a relay.
#[derive(Debug, Default)]
pub(super) struct Relaying {
    relays: Relays,
    reservations: HashMap<ListenerId, Reservation>,
    offering: bool,
}

#[derive(Debug)]
struct Reservation {
    relay: PeerId,
    /// Whether its end is our own wish.
    released: bool,
}

impl Relaying {
    /// Relays at which there is a reservation.
    pub(super) fn held(&self) -> Vec<PeerId> {
        self.relays.held()
    }
}

impl Actor {
    pub(super) fn start_relaying(&mut self) {
        for relay in self.config.relay.trusted.clone() {
            if let Some(peer) = addr::peer_of(&relay).filter(|peer| peer != self.swarm.local_peer_id()) {
                self.on_relay_event(Event::Offered(peer, Rank::Trusted));
            }
        }
        self.offer_to_relay();
    }

    pub(super) fn tick_relaying(&mut self) {
        self.on_relay_event(Event::Tick);
        self.offer_to_relay();
        self.close_dial_backs();
        self.drop_needless_circuits();
    }

    /// A peer says what it serves. Only a member of the swarm is a candidate: foreign relays serve their own network.
    pub(super) fn on_offer(&mut self, peer: PeerId, info: &identify::Info, belongs: bool) {
        let offers = info.protocols.contains(&circuit::HOP_PROTOCOL_NAME);
        let direct = !matches!(self.book.connected_over(&peer), None | Some(Reach::Relayed));
        let rank = if info.agent_version.starts_with("sepal/") {
            Rank::Ours
        } else if self.book.is_configured(&peer) {
            Rank::Configured
        } else {
            Rank::Met
        };
        self.on_relay_event(if offers && direct && belongs {
            Event::Offered(peer, rank)
        } else {
            Event::Withdrawn(peer)
        });
    }

    pub(super) fn on_relay_event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let effects = self.relaying.relays.on(event, Instant::now(), &mut rand::rng());
            for effect in effects {
                match effect {
                    Effect::Reserve(peer) if self.reserve(peer).is_none() => events.push_back(Event::Failed(peer)),
                    Effect::Reserve(_) => {}
                    Effect::Release(peer) => self.release(peer),
                }
            }
        }
        self.show_reachability();
    }

    /// Asks for a reservation. `None` if there is no address to ask at.
    fn reserve(&mut self, relay: PeerId) -> Option<()> {
        let addr = self.relay_addr(relay)?;
        debug!(relay = %short_id(&relay), %addr, "asking for a reservation");
        let id = self.swarm.listen_on(addr.with(Protocol::P2pCircuit)).ok()?;
        let reservation = Reservation { relay, released: false };
        self.relaying.reservations.insert(id, reservation);
        Some(())
    }

    /// Where to ask `relay`; libp2p uses the connection that there is, if any.
    fn relay_addr(&self, relay: PeerId) -> Option<Multiaddr> {
        let trusted = self.config.relay.trusted.iter().cloned();
        let known = self.book.addresses(&relay, Instant::now());
        trusted
            .chain(known)
            .find(|addr| addr::peer_of(addr) == Some(relay) && addr::reach(addr) != Some(Reach::Relayed))
    }

    fn release(&mut self, relay: PeerId) {
        let mut ended = Vec::new();
        for (id, reservation) in &mut self.relaying.reservations {
            if reservation.relay == relay && !reservation.released {
                reservation.released = true;
                ended.push(*id);
            }
        }
        for id in ended {
            self.swarm.remove_listener(id);
        }
    }

    /// A listener has an address: if it listens at a relay, the relay has agreed.
    pub(super) fn on_reserved(&mut self, id: ListenerId) {
        if let Some(reservation) = self.relaying.reservations.get(&id).filter(|held| !held.released) {
            let relay = reservation.relay;
            if !self.relaying.held().contains(&relay) {
                info!(relay = %short_id(&relay), "reached through a relay");
                self.on_relay_event(Event::Reserved(relay));
            }
        }
    }

    /// A listener has ended. Returns whether it listened at a relay of our choice.
    pub(super) fn on_reservation_closed(&mut self, id: ListenerId, reason: &io::Result<()>) -> bool {
        let Some(ended) = self.relaying.reservations.remove(&id) else {
            return false;
        };
        debug!(relay = %short_id(&ended.relay), ?reason, released = ended.released, "a reservation ended");
        if !ended.released {
            self.on_relay_event(Event::Failed(ended.relay));
        }
        true
    }

    /// Says whether this node is a relay: only one that can be dialed is of use to others. The bootstrap node of a private
    /// network is one although nobody ever judged it.
    pub(super) fn offer_to_relay(&mut self) {
        let offering = match self.judge.standing() {
            Standing::Public => true,
            Standing::Private => false,
            Standing::Unknown => !self.seems_hidden(),
        };
        if offering == self.relaying.offering {
            return;
        }
        self.relaying.offering = offering;
        if let Some(hop) = self.swarm.behaviour_mut().hop.as_mut() {
            debug!(offering, "being a relay");
            hop.set_status(Some(if offering {
                circuit::Status::Enable
            } else {
                circuit::Status::Disable
            }));
        }
    }

    /// Closes relayed connections to peers that are connected directly, once nothing is said on any connection to them.
    fn drop_needless_circuits(&mut self) {
        for (peer, id) in self.book.needless_circuits(Instant::now()) {
            if self.usage.of(&peer).calls == 0 {
                debug!(peer = %short_id(&peer), "connected directly, closing the circuit");
                self.swarm.close_connection(id);
            }
        }
    }
}
