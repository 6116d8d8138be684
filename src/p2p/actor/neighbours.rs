//! Visits the peers that mDNS names, and keeps those of the same swarm (`lan.rs` decides).

use std::time::Instant;

use libp2p::{
    PeerId, identify, mdns,
    swarm::dial_opts::{DialOpts, PeerCondition},
};
use tracing::{debug, info};

use super::{
    super::{lan::Admission, short_id},
    Actor,
};

impl Actor {
    pub(super) fn on_mdns(&mut self, event: mdns::Event) {
        match event {
            mdns::Event::Discovered(found) => {
                for (peer, addr) in found {
                    if self.neighbours.named(peer, &addr, Instant::now()) {
                        self.welcome(peer);
                    }
                }
                self.visit_neighbours();
            }
            mdns::Event::Expired(gone) => {
                for (peer, addr) in gone {
                    if self.neighbours.expired(peer, &addr) {
                        info!(peer = %short_id(&peer), "left the local network");
                        self.book.release(&peer);
                    }
                }
            }
        }
        self.tell_neighbours();
    }

    /// Dials whom mDNS names and nobody knows yet.
    pub(super) fn visit_neighbours(&mut self) {
        let book = &self.book;
        let visits = self.neighbours.visits(Instant::now(), |peer| book.is_connected(peer));
        for (peer, addrs) in visits {
            let options = DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(addrs)
                .allocate_new_port()
                .build();
            if let Err(error) = self.swarm.dial(options) {
                debug!(peer = %short_id(&peer), %error, "a peer of the local network is not visited");
                self.neighbours.silent(&peer, Instant::now());
            }
        }
    }

    /// Identify tells who serves the name of our swarm. To be called before anything else follows from what it tells.
    pub(super) fn identify_neighbour(&mut self, peer: PeerId, info: &identify::Info) {
        let Some(ours) = &self.lan_protocol else { return };
        let serves = info.protocols.iter().any(|name| name.as_ref() == ours);
        match self.neighbours.identified(peer, serves, Instant::now()) {
            Admission::Admitted => self.welcome(peer),
            Admission::Refused if !self.book.is_configured(&peer) => {
                debug!(peer = %short_id(&peer), "on the local network, but not of this swarm");
                // An error means that it is gone already.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            Admission::Refused | Admission::None => {}
        }
        self.tell_neighbours();
    }

    fn welcome(&mut self, peer: PeerId) {
        if !self.book.is_configured(&peer) {
            info!(%peer, "found on the local network");
        }
        for addr in self.neighbours.addrs_of(&peer) {
            self.book.configure(peer, addr, Instant::now());
        }
    }

    fn tell_neighbours(&self) {
        let members = self.neighbours.members();
        self.outputs.neighbours.send_if_modified(|told| {
            let changed = *told != members;
            *told = members;
            changed
        });
    }
}
