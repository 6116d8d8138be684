//! The nodes, who comes and goes.

use rand::Rng;
use sepal_protocol::{dht_id::DhtId, msgpack::Value};

use super::world::{Event, START_MS, World, millis};
use crate::dht::{
    blacklist::Blacklist,
    node::{BLACKLIST_BACKOFF, BLACKLIST_BASE_S},
    routing,
    state::{Shape, State},
};

/// Peers are numbered in the order in which they came.
pub(super) type Peer = u32;
pub(super) type Contact = routing::Contact<Peer>;

/// Share of newcomers whose clock is too wrong to be let in.
const BAD_CLOCKS: f64 = 0.02;

/// Nodes that are known on either side of a node, and elsewhere, to one that was there before the simulation began.
const KNOWN_NEAR: usize = 15;
const KNOWN_FAR: usize = 60;

/// A node of the simulation.
pub(super) struct Node {
    pub(super) contact: Contact,
    pub(super) state: State<Peer>,
    pub(super) blacklist: Blacklist<Peer>,
    /// How far its clock is ahead, in seconds.
    pub(super) clock_s: f64,
    /// Calls under way that nobody waits for.
    pub(super) background: usize,
    /// Subkey of its records.
    pub(super) name: Value,
    /// The keys it announces itself under, and whether it did.
    pub(super) blocks: Vec<(DhtId, bool)>,
    pub(super) is_bootstrap: bool,
}

impl World {
    /// A new node starts. The first ones are the bootstrap nodes.
    pub(super) fn come(&mut self) {
        let peer = self.nodes.len() as Peer;
        let is_bootstrap = self.nodes.len() < self.n_bootstraps;
        let id = DhtId::from_bytes(self.rng.random());
        let shape = Shape {
            bucket_size: self.config.bucket_size,
            depth_modulo: self.config.depth_modulo,
            replicas: self.config.replicas,
            ping_period_s: self.scenario.rules.ping_period_s,
        };
        let clock_s = if is_bootstrap { 0.0 } else { self.clock_error() };
        let blocks = self.blocks(peer);
        let is_server = !blocks.is_empty();
        self.nodes.push(Some(Box::new(Node {
            contact: Contact { id, peer },
            state: State::new(id, shape),
            blacklist: Blacklist::new(BLACKLIST_BASE_S, BLACKLIST_BACKOFF),
            clock_s,
            background: 0,
            name: Value::from(format!("12D3KooW{peer:044}")),
            blocks,
            is_bootstrap,
        })));
        self.alive.push(peer);
        let is_built = self.scenario.acquainted && self.now_ms == START_MS;
        if peer > 0 && !is_built {
            self.at(self.now_ms, Event::Join(peer));
        }
        let (announce, heartbeat) = (self.scenario.announce_period, self.scenario.heartbeat_period);
        if is_server {
            // A server announces itself as soon as it has joined and loaded its blocks.
            let first = 5000 + self.rng.random_range(0..millis(announce) / 4);
            self.at(self.now_ms + first, Event::Announce(peer));
        }
        if is_bootstrap || self.scenario.rules.all_nodes_heartbeat {
            let first = self.rng.random_range(0..millis(heartbeat));
            self.at(self.now_ms + first, Event::Heartbeat(peer));
        }
    }

    fn clock_error(&mut self) -> f64 {
        let worst = self.scenario.clock_error_s;
        if worst == 0.0 {
            0.0
        } else if self.rng.random_bool(BAD_CLOCKS) {
            self.rng.random_range(3.5..60.0) * if self.rng.random() { 1.0 } else { -1.0 }
        } else if self.rng.random_bool(1.0 / 3.0) {
            self.rng.random_range(-worst..worst)
        } else {
            self.rng.random_range(-0.05..0.05)
        }
    }

    /// The keys of some successive blocks.
    fn blocks(&mut self, peer: Peer) -> Vec<(DhtId, bool)> {
        if (peer as usize) < self.n_bootstraps || !self.rng.random_bool(self.scenario.servers) {
            return Vec::new();
        }
        let n_own = self.scenario.blocks_per_node;
        let n_keys = (self.scenario.nodes * n_own / self.scenario.nodes_per_block).max(n_own) as u64;
        let first = self.rng.random_range(0..n_keys);
        let number = |offset: u64| (first + offset) % n_keys;
        (0..n_own as u64)
            .map(|offset| (DhtId::of_str(&format!("model.{}", number(offset))), false))
            .collect()
    }

    /// A node that is not a bootstrap node is gone without a word.
    pub(super) fn vanish(&mut self) {
        if self.alive.len() > self.n_bootstraps {
            let at = self.rng.random_range(self.n_bootstraps..self.alive.len());
            let peer = self.alive.swap_remove(at);
            self.nodes[peer as usize] = None;
            self.tally.vanished += 1;
        }
    }

    /// A node that nobody lets in gives up.
    pub(super) fn refuse(&mut self, peer: Peer) {
        self.alive.retain(|other| *other != peer);
        self.nodes[peer as usize] = None;
        self.tally.refused += 1;
    }

    /// Lets every node know those nearest to it and some others, as if it had been there for a while.
    pub(super) fn acquaint_all(&mut self) {
        let mut contacts: Vec<Contact> = self.nodes.iter().flatten().map(|node| node.contact).collect();
        contacts.sort_unstable_by_key(|contact| contact.id);
        let (n, now) = (contacts.len(), self.now_ms as f64 / 1000.0);
        for at in 0..n {
            let near = (1..=KNOWN_NEAR).flat_map(|step| [(at + step) % n, (at + n - step % n) % n]);
            let far: Vec<usize> = (0..KNOWN_FAR).map(|_| self.rng.random_range(0..n)).collect();
            for other in near.chain(far) {
                let other = contacts[other];
                if let Some(node) = self.node(contacts[at].peer)
                    && let Some(old) = node.state.met(other, now).ping
                {
                    node.state.table.ping_not_sent(&old.id);
                }
            }
        }
    }
}
