//! Getting connected: dialing what is known, asking kad for what is not, and letting calls wait meanwhile.

use std::time::Instant;

use libp2p::{
    Multiaddr, PeerId,
    swarm::{
        self, ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::oneshot;
use tracing::debug;

use super::{
    super::{
        addr::{self, Reach},
        error::DialError,
        reachability::Standing,
        rpc::{OpenFailure, OpenRequest, Refused},
        seek::{self, Seek, Stage},
        short_id,
    },
    Actor,
};

/// Peers looked for at the same time. A lookup of a large DHT asks for a few dozen; made-up peer ids must not cost more.
const MAX_SEEKS: usize = 512;

impl Actor {
    pub(super) fn connect(&mut self, peer: PeerId, addr: Multiaddr, reply: oneshot::Sender<Result<(), DialError>>) {
        if peer == *self.swarm.local_peer_id() {
            let _ = reply.send(Err(DialError::Ourselves));
            return;
        }
        self.readmit_wanted(peer);
        if self.book.is_connected(&peer) {
            let _ = reply.send(Ok(()));
            return;
        }
        let options = self.dial_options(peer, vec![addr], PeerCondition::Always);
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.connects.insert(id, (peer, reply));
            }
            Err(error) => {
                let _ = reply.send(Err(seek::dial_error(&error)));
            }
        }
    }

    pub(super) fn open(&mut self, peer: PeerId, request: OpenRequest) {
        if peer == *self.swarm.local_peer_id() {
            let _ = request.reply.send(Err(OpenFailure::Dial(DialError::Ourselves)));
            return;
        }
        match self.swarm.behaviour_mut().rpc.open(&peer, request, Instant::now()) {
            Ok(()) => {}
            Err(Refused::Busy(request)) => {
                let _ = request.reply.send(Err(OpenFailure::Busy));
            }
            Err(Refused::NotConnected(request)) => {
                self.readmit_wanted(peer);
                if self.seeks.len() >= MAX_SEEKS && !self.seeks.contains_key(&peer) {
                    let _ = request.reply.send(Err(OpenFailure::Busy));
                    return;
                }
                self.seeks.entry(peer).or_insert_with(Seek::new).park(request);
                self.begin(peer);
            }
        }
    }

    pub(super) fn on_connected(&mut self, peer: PeerId) {
        let named: Vec<ConnectionId> = self
            .connects
            .iter()
            .filter(|(_, (wanted, _))| *wanted == peer)
            .map(|(id, _)| *id)
            .collect();
        if !named.is_empty() || self.book.is_configured(&peer) {
            // Somebody named this peer, so it may be asked for others at once. Identify takes it out again if it serves no kad.
            for addr in self.book.addresses(&peer, Instant::now()) {
                self.swarm.behaviour_mut().kad.add_address(&peer, addr);
            }
        }
        for id in named {
            if let Some((_, reply)) = self.connects.remove(&id) {
                let _ = reply.send(Ok(()));
            }
        }
        let Some(seek) = self.seeks.remove(&peer) else { return };
        if let Stage::Lookup(id) = seek.stage {
            self.lookups.remove(&id);
            if let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&id) {
                query.finish();
            }
        }
        for request in seek.into_parked() {
            self.open(peer, request);
        }
    }

    pub(super) fn on_dial_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &swarm::DialError) {
        if matches!(error, swarm::DialError::DialPeerConditionFalse(_)) {
            return;
        }
        if let Some((_, reply)) = self.connects.remove(&id) {
            let _ = reply.send(Err(seek::dial_error(error)));
        }
        let Some(peer) = peer else { return };
        debug!(peer = %short_id(&peer), error = %seek::dial_error(error), "not reached");
        self.neighbours.silent(&peer, Instant::now());
        for addr in seek::failed_addrs(error) {
            self.book.failed(peer, &addr);
        }
        // libp2p-kad keeps the last address of a peer whatever comes of it, and asks at that one before it hears of others: a peer
        // that came back at another address would never be found. go-libp2p's table leaves such a peer out as well.
        if self.book.addresses(&peer, Instant::now()).is_empty() {
            self.swarm.behaviour_mut().kad.remove_peer(&peer);
        }
        let Some(seek) = self.seeks.get_mut(&peer) else { return };
        match seek.stage {
            // The query goes on with the addresses that others tell.
            Stage::Lookup(_) => seek.note(seek::dial_error(error)),
            stage => self.on_stage_failed(peer, stage, seek::dial_error(error)),
        }
    }

    /// Starts to look for `peer` unless that is under way.
    pub(super) fn begin(&mut self, peer: PeerId) {
        if self.seeks.get(&peer).is_some_and(|seek| seek.stage == Stage::Start) {
            self.next_stage(peer, Stage::Start);
        }
    }

    pub(super) fn on_stage_failed(&mut self, peer: PeerId, failed: Stage, error: DialError) {
        let Some(seek) = self.seeks.get_mut(&peer) else { return };
        if seek.stage == failed {
            seek.note(error);
            self.next_stage(peer, failed);
        }
    }

    /// Takes the first step after `stage` that can be taken.
    fn next_stage(&mut self, peer: PeerId, stage: Stage) {
        let (relayed, direct): (Vec<_>, Vec<_>) = self
            .book
            .addresses(&peer, Instant::now())
            .into_iter()
            .partition(|addr| addr::reach(addr) == Some(Reach::Relayed));
        let next = match stage {
            Stage::Start if self.dial(peer, &direct) => Some(Stage::Direct),
            Stage::Start | Stage::Direct if self.dial(peer, &relayed) => Some(Stage::Relayed),
            Stage::Start | Stage::Direct | Stage::Relayed => {
                let id = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
                self.lookups.insert(id, peer);
                Some(Stage::Lookup(id))
            }
            // No addresses of our own here: this only tells whether a dial of the query is still under way.
            Stage::Lookup(_) => self.is_being_dialed(peer).then_some(Stage::LastDial),
            Stage::LastDial => None,
        };
        match (next, self.seeks.get_mut(&peer)) {
            (Some(next), Some(seek)) => seek.stage = next,
            (None, Some(_)) => {
                if let Some(seek) = self.seeks.remove(&peer) {
                    let error = seek.fail();
                    debug!(peer = %short_id(&peer), %error, "given up");
                }
            }
            (_, None) => {}
        }
    }

    /// Dials the addresses, if any. A dial of someone else that is under way counts as ours.
    fn dial(&mut self, peer: PeerId, addrs: &[Multiaddr]) -> bool {
        if addrs.is_empty() {
            return false;
        }
        let options = self.dial_options(peer, addrs.to_vec(), PeerCondition::DisconnectedAndNotDialing);
        matches!(
            self.swarm.dial(options),
            Ok(()) | Err(swarm::DialError::DialPeerConditionFalse(_))
        )
    }

    /// Connections come from a port of their own: of two nodes that dial each other from the ports they listen on, TCP makes
    /// one connection in which both take themselves for the dialer. A node that cannot be dialed is safe from that, and
    /// dials from where it listens: the router then shows others the address at which to punch a hole.
    fn dial_options(&self, peer: PeerId, addrs: Vec<Multiaddr>, condition: PeerCondition) -> DialOpts {
        let options = DialOpts::peer_id(peer).condition(condition).addresses(addrs);
        if self.judge.standing() == Standing::Private {
            options.build()
        } else {
            options.allocate_new_port().build()
        }
    }

    fn is_being_dialed(&mut self, peer: PeerId) -> bool {
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(Vec::new())
            .build();
        matches!(
            self.swarm.dial(options),
            Err(swarm::DialError::DialPeerConditionFalse(_))
        )
    }
}
