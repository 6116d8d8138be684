//! A swarm that the node is in, as its servers see it: the host that it answers on there, and how others get to that.
//!
//! A node in several swarms has a host and a DHT in each, or the swarms would become one. Blocks, cache, queue and compute
//! threads it has once, for all of them. The first swarm is the home: there the blocks are chosen.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::{dht::Dht, p2p::P2p, swarm::standing::Access};

/// Number of the swarm that a node was started in.
pub const HOME: u32 = 1;

/// A node in one of its swarms.
#[derive(Debug)]
pub struct Membership {
    number: u32,
    p2p: P2p,
    dht: Dht,
    access: watch::Receiver<Access>,
    left: AtomicBool,
}

impl Membership {
    /// The swarm called `number` on this node, joined over this host and this DHT.
    pub fn new(number: u32, (p2p, dht): (P2p, Dht), access: watch::Receiver<Access>) -> Self {
        Self {
            number,
            p2p,
            dht,
            access,
            left: AtomicBool::new(false),
        }
    }

    /// What the node calls the swarm.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Begins nothing new for those who ask from there; open sessions go on.
    pub fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Whether others cannot dial the node there.
    pub(super) fn using_relay(&self) -> bool {
        self.access.borrow().using_relay()
    }

    pub(super) fn access(&self) -> watch::Receiver<Access> {
        self.access.clone()
    }

    pub(super) fn p2p(&self) -> &P2p {
        &self.p2p
    }

    pub(super) fn dht(&self) -> &Dht {
        &self.dht
    }
}
