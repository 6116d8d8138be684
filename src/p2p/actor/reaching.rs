//! How this node is reached: gathers evidence for `reachability.rs` and does what follows from it.
//!
//! A verdict counts only if its witness is as far away as any peer this node knows: a neighbour behind the same router
//! gets through where nobody else does. In a network without anyone further away, neighbours are all there is, and count.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, autonat, core::ConnectedPoint, swarm::ConnectionId};
use tracing::{debug, info};

use super::{
    super::{
        addr::{self, Reach},
        reachability::{Effect, Evidence, Source, Standing, Verdict},
        relay, short_id,
    },
    Actor,
};

/// Addresses under which others saw this node that are remembered.
const MAX_CANDIDATES: usize = 16;

/// How long a connection that was made only to find out whether a peer can be dialed stays open: the proof travels on it.
/// Shorter than the time for which nobody opens streams on it (`rpc.rs`).
const DIAL_BACK_TIME: Duration = Duration::from_secs(10);

/// What is remembered beside the evidence.
#[derive(Debug, Default)]
pub(super) struct Reaching {
    /// Addresses under which others saw this node, newest last.
    candidates: VecDeque<Multiaddr>,
    pub(super) dial_backs: DialBacks,
}

/// Connections that AutoNAT's servers make to find out whether a peer can be dialed. They do not close them.
#[derive(Debug, Default)]
pub(super) struct DialBacks {
    dialing: HashSet<ConnectionId>,
    open: VecDeque<(Instant, ConnectionId)>,
}

impl DialBacks {
    pub(super) fn established(&mut self, id: ConnectionId, now: Instant) {
        if self.dialing.remove(&id) {
            self.open.push_back((now, id));
        }
    }

    pub(super) fn closed(&mut self, id: ConnectionId) {
        self.dialing.remove(&id);
        self.open.retain(|(_, open)| *open != id);
    }

    /// Those that have served their purpose.
    fn due(&mut self, now: Instant) -> Vec<ConnectionId> {
        let old = |(since, _): &&(Instant, ConnectionId)| now.saturating_duration_since(*since) >= DIAL_BACK_TIME;
        let count = self.open.iter().take_while(old).count();
        self.open.drain(..count).map(|(_, id)| id).collect()
    }
}

impl Actor {
    pub(super) fn on_check(&mut self, verdict: Verdict) {
        self.hear(Evidence::new(Source::Check, verdict, Instant::now()));
    }

    /// What a server of AutoNAT v1 says.
    pub(super) fn on_autonat1(&mut self, event: autonat::v1::Event) {
        use autonat::v1::{Event, OutboundProbeError, OutboundProbeEvent, ResponseError};
        match event {
            Event::OutboundProbe(OutboundProbeEvent::Response { peer, address, .. }) => {
                self.on_dialed_back(Source::AutoNat1, peer, address);
            }
            Event::OutboundProbe(OutboundProbeEvent::Error {
                peer: Some(peer),
                // Other errors say that the server did not try.
                error: OutboundProbeError::Response(ResponseError::DialError),
                ..
            }) if self.is_far_enough(peer) => {
                self.hear(Evidence::new(Source::AutoNat1, Verdict::NotDialable, Instant::now()).by(peer));
            }
            event => debug!(?event, "AutoNAT v1"),
        }
    }

    /// What a server of AutoNAT v2 says.
    pub(super) fn on_autonat2(&mut self, event: autonat::v2::client::Event) {
        match event.result {
            Ok(()) => self.on_dialed_back(Source::AutoNat2, event.server, event.tested_addr),
            Err(error) if self.is_far_enough(event.server) && self.listens_as(&event.tested_addr) => {
                debug!(server = %short_id(&event.server), addr = %event.tested_addr, %error, "cannot be dialed");
                let evidence = Evidence::new(Source::AutoNat2, Verdict::NotDialable, Instant::now());
                self.hear(evidence.by(event.server).about(event.tested_addr.clone()));
                let effects = self.judge.withdraw(&event.tested_addr);
                self.apply(effects);
            }
            Err(_) => {}
        }
    }

    /// Whether this node listens over the kind of IP and carrier of `addr` at all. That nobody gets in otherwise says
    /// nothing: others see us under such addresses because we dial with them.
    fn listens_as(&self, addr: &Multiaddr) -> bool {
        let kind = |addr: &Multiaddr| addr::socket(addr).map(|(carrier, ip, _)| (carrier, ip.is_ipv4()));
        self.listened
            .iter()
            .any(|own| kind(own).is_some() && kind(own) == kind(addr))
    }

    fn on_dialed_back(&mut self, source: Source, server: PeerId, addr: Multiaddr) {
        if !self.is_far_enough(server) {
            return;
        }
        let addr = addr::without_peer(&addr);
        let evidence = Evidence::new(source, Verdict::Dialable, Instant::now());
        self.hear(evidence.by(server).about(addr.clone()));
        // A server of v1 names the address itself: only one under which others saw us is believed to be ours.
        let known = self.reaching.candidates.contains(&addr) || self.listened.contains(&addr);
        let ours = source == Source::AutoNat2 || known;
        if ours && addr::socket(&addr).is_some() {
            let effects = self.judge.confirm(addr);
            self.apply(effects);
        }
    }

    /// Somebody sees this node under `addr`.
    pub(super) fn on_candidate(&mut self, addr: Multiaddr) {
        let candidates = &mut self.reaching.candidates;
        candidates.retain(|known| *known != addr);
        candidates.push_back(addr);
        if candidates.len() > MAX_CANDIDATES {
            candidates.pop_front();
        }
    }

    /// A connection begins. A stranger who comes in by itself shows that strangers can; one that was dialed, or is connected
    /// otherwise, may have been let in by the router because of that.
    pub(super) fn on_visited(&mut self, peer: PeerId, endpoint: &ConnectedPoint) {
        let ConnectedPoint::Listener {
            local_addr,
            send_back_addr,
        } = endpoint
        else {
            return;
        };
        let reach = addr::reach(send_back_addr);
        if self.book.is_connected(&peer) || self.seeks.contains_key(&peer) || !self.is_far(reach) {
            return;
        }
        let evidence = Evidence::new(Source::Inbound, Verdict::Dialable, Instant::now());
        self.hear(evidence.by(peer).about(local_addr.clone()));
    }

    /// A protocol of libp2p dials. Only AutoNAT's servers dial peers that are connected.
    pub(super) fn on_behaviour_dials(&mut self, peer: PeerId, id: ConnectionId) {
        if !matches!(self.book.connected_over(&peer), None | Some(Reach::Relayed)) {
            self.reaching.dial_backs.dialing.insert(id);
        }
    }

    pub(super) fn close_dial_backs(&mut self) {
        for id in self.reaching.dial_backs.due(Instant::now()) {
            self.swarm.close_connection(id);
        }
    }

    /// An address that was listened on is gone: the machine is in another network now.
    pub(super) fn on_network_changed(&mut self) {
        self.judge.network_changed();
        self.reaching.candidates.clear();
    }

    /// Whether this node is most likely behind a router that nobody can dial through, as long as nothing is known.
    pub(super) fn seems_hidden(&self) -> bool {
        let own_public = self
            .announced()
            .iter()
            .any(|addr| addr::reach(addr) == Some(Reach::Public));
        !own_public && self.book.farthest() == Some(Reach::Public)
    }

    fn is_far_enough(&self, peer: PeerId) -> bool {
        self.is_far(self.book.connected_over(&peer))
    }

    fn is_far(&self, reach: Option<Reach>) -> bool {
        match (reach, self.book.farthest()) {
            (None | Some(Reach::Relayed), _) => false,
            (Some(Reach::Public), _) => true,
            (Some(reach), farthest) => farthest.is_none_or(|farthest| farthest == reach || farthest == Reach::Loopback),
        }
    }

    pub(super) fn hear(&mut self, evidence: Evidence) {
        if evidence.is_beside(&self.config.announce) {
            debug!(?evidence, "about an address that others are not told");
            return;
        }
        debug!(?evidence, "how this node is reached");
        let effects = self.judge.hear(evidence, Instant::now());
        self.apply(effects);
        self.show_reachability();
    }

    pub(super) fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Moved(standing) => {
                    info!(?standing, "how this node is reached has changed");
                    let wanted = self.config.relay.auto && standing == Standing::Private;
                    self.on_relay_event(relay::Event::Wanted(wanted));
                    self.offer_to_relay();
                    self.announce();
                }
                Effect::Announce(_) | Effect::Withdraw(_) => self.announce(),
            }
        }
    }

    pub(super) fn show_reachability(&mut self) {
        let (judge, relays) = (&self.judge, self.relaying.held());
        self.outputs.reachability.send_if_modified(|shown| {
            let changed =
                shown.standing != judge.standing() || shown.relays != relays || shown.evidence != judge.evidence();
            shown.standing = judge.standing();
            shown.evidence = judge.evidence().to_vec();
            shown.relays = relays;
            changed
        });
    }
}
