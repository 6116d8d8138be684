//! Hivemind's distributed hash table: records by key, without addresses. It does not know what a block is.
//!
//! Hivemind has a Kademlia of its own, carried by three unary calls between peers. Every node has a random id, knows
//! others (more of those near its own id), and holds the records whose keys are near it. A record is one value, or a
//! dictionary to which many nodes contribute entries; each expires by itself, so whoever wants it to stay stores it again.
//!
//! ```text
//!  Dht ──► get.rs · store.rs · bootstrap.rs      what a node wants            ┐
//!            │ search.rs                         asks, feeds the answers      │ drive
//!            ▼ rpc.rs ──► network.rs ──► p2p     ping, store, find            │ the network
//!          node.rs                               what follows from answers    ┘
//!            ▼
//!          inquiry.rs: traverse.rs, blacklist.rs   findings.rs   replicas.rs                          ┐ pure
//!          state.rs: routing.rs · storage.rs · record.rs                                              ┘
//! ```
//!
//! Everything below the line takes the time and the answers as arguments and opens no socket: [`simulation`] runs
//! thousands of nodes made of it in one thread. What differs from Python's node, and why, is said where it does.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use sepal_protocol::{dht_id::DhtId, msgpack::Value, value::Subkey};

use crate::{
    p2p::{CallError, Handler, Multiaddr, P2p, PeerId},
    task::Tasks,
};

mod blacklist;
mod bootstrap;
mod clock;
mod error;
mod findings;
mod get;
mod inquiry;
mod network;
mod node;
mod record;
mod refused;
mod replicas;
mod routing;
mod rpc;
mod search;
pub mod simulation;
mod state;
mod storage;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod traverse;
pub mod validate;

pub use bootstrap::MAX_CLOCK_SKEW_S;
pub use clock::Clock;
pub use error::{BootstrapError, Unusable, UnusablePeer};
pub use refused::Refused;
use validate::Validators;

/// What a node is made from. The defaults are Hivemind's, so that tables and replicas of both fill alike.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether to use the DHT without being part of it: others do not learn of this node and do not call it, until
    /// [`Dht::set_client_mode`] says otherwise.
    pub client_mode: bool,
    /// Nodes to join through. Each address ends in `/p2p/PEER-ID`. Empty: this is the first node.
    pub initial_peers: Vec<Multiaddr>,
    /// The id of this node; random if `None`. Hivemind draws a new one at every start.
    pub node_id: Option<DhtId>,
    /// Nodes that are asked at once in one search. Petals servers take their number of blocks, clients 32.
    pub workers: usize,
    /// Nodes of one bucket, nodes named in one answer, and nearest nodes that a search looks for.
    pub bucket_size: usize,
    /// Nodes that shall hold a record.
    pub replicas: usize,
    /// Buckets that do not cover the own id split until their depth is a multiple of this.
    pub depth_modulo: usize,
    /// Limit for one call.
    pub call_timeout: Duration,
    /// How long to wait for further initial peers after the first one, and for the search for the own id.
    pub bootstrap_timeout: Duration,
    /// Nearest nodes that get a copy of a found record for their cache.
    pub cache_nearest: usize,
    /// How long before it expires a cached record that is being read is fetched again, in seconds.
    pub cache_refresh_before_expiry_s: f64,
    /// How often to search for a random id. Bootstrap nodes do it every 30 s, others live on their own traffic.
    pub heartbeat: Option<Duration>,
    /// Who may store what. None by default, as everywhere in Petals.
    pub validators: Validators,
    /// Where the time comes from.
    pub clock: Clock,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            client_mode: false,
            initial_peers: Vec::new(),
            node_id: None,
            workers: 4,
            bucket_size: 20,
            replicas: 5,
            depth_modulo: 5,
            call_timeout: Duration::from_secs(3),
            bootstrap_timeout: Duration::from_secs(3),
            cache_nearest: 1,
            cache_refresh_before_expiry_s: 5.0,
            heartbeat: None,
            validators: Validators::default(),
            clock: Clock::System,
        }
    }
}

/// How much a read may miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// The first live value found will do, be it a stale copy or a dictionary without some of its entries.
    Any,
    /// All of the nearest nodes are asked; the newest value counts, dictionaries are merged.
    Latest,
}

/// A record that was found. Its values are MessagePack, and allowed by the validators; what they mean is not checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// One value.
    Regular {
        /// MessagePack.
        value: Vec<u8>,
        /// DHT time after which it is gone.
        expiration: f64,
    },
    /// Values by subkey. There is at least one, or one that was refused.
    Dictionary(FoundDictionary),
}

/// A dictionary that was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FoundDictionary {
    /// What may be used, one entry per subkey.
    pub entries: Vec<FoundEntry>,
    /// What the validators refused lately under this key, and would still be alive: forgeries, to be shown to people.
    pub refused: Vec<Refused>,
}

impl FoundDictionary {
    /// The usable entry with this subkey.
    pub fn get(&self, subkey: &Value) -> Option<&FoundEntry> {
        self.entries.iter().find(|entry| entry.subkey == *subkey)
    }
}

/// One entry of a dictionary that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundEntry {
    /// Its name.
    pub subkey: Value,
    /// MessagePack.
    pub value: Vec<u8>,
    /// DHT time after which it is gone.
    pub expiration: f64,
    /// Whether a validator found a proof that it is from whom its subkey names.
    pub proven: bool,
}

/// A record, or one entry of a dictionary, to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreItem {
    /// Where.
    pub key: DhtId,
    /// As a regular value, or as which entry.
    pub subkey: Subkey,
    /// MessagePack, at most 2 MiB.
    pub value: Vec<u8>,
    /// DHT time after which it is gone; at most a week ahead, or our nodes refuse it.
    pub expiration: f64,
}

/// What a node knows and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Nodes in the routing table.
    pub nodes: usize,
    /// Peers of the nearest of them, at most a few dozen.
    pub nearest_peers: BTreeSet<PeerId>,
    /// Keys stored for the DHT.
    pub stored: usize,
    /// Keys kept to answer faster.
    pub cached: usize,
}

/// A node of the DHT. Clones are handles to the same one.
#[derive(Clone)]
pub struct Dht {
    node: Arc<node::Node>,
}

impl Dht {
    /// Starts a node that can call out. To be called, its [`handlers`](Self::handlers) must be served.
    pub fn spawn(p2p: P2p, config: Config, tasks: &Tasks) -> Self {
        Self::over(Box::new(p2p), config, tasks)
    }

    fn over(network: Box<dyn network::Network>, config: Config, tasks: &Tasks) -> Self {
        let node = Arc::new(node::Node::new(network, config, tasks.clone()));
        tasks.spawn_until_stopped("dht", node.clone().maintain());
        Self { node }
    }

    /// What this node answers to: ping, store and find; while it is a client, ping only.
    pub fn handlers(&self) -> Vec<Handler> {
        self.node.handlers()
    }

    /// Leaves the DHT to others and only uses it from now on (`true`), or takes part in it. What it holds for others stays
    /// here until it expires, for the time when it takes part again.
    pub fn set_client_mode(&self, client: bool) {
        self.node.set_client_mode(client);
    }

    /// Whether this node uses the DHT without being part of it.
    pub fn is_client(&self) -> bool {
        self.node.is_client()
    }

    /// Joins through the initial peers. Returns how many of them are usable, 0 if there are none configured.
    ///
    /// # Errors
    /// If initial peers are configured and none is usable; says for each of them why.
    pub async fn bootstrap(&self) -> Result<usize, BootstrapError> {
        self.node.bootstrap().await
    }

    /// Joins through a further peer, as through an initial one, at any time. Returns who it is.
    ///
    /// # Errors
    /// If it cannot be used, and why.
    pub async fn meet(&self, addr: Multiaddr) -> Result<PeerId, Unusable> {
        self.node.meet(addr).await
    }

    /// Reads a record.
    pub async fn get(&self, key: DhtId, freshness: Freshness) -> Option<Found> {
        self.get_many(vec![key], freshness).await.pop().flatten()
    }

    /// Reads records; the result is in the order of the keys. Values that are not MessagePack, or that the validators
    /// refuse, are left out as if they were not there.
    ///
    /// # Cancel safety
    /// Nothing is lost; a search goes on only while somebody waits for it.
    pub async fn get_many(&self, keys: Vec<DhtId>, freshness: Freshness) -> Vec<Option<Found>> {
        self.node.get_many(keys, freshness).await
    }

    /// Stores a record. Returns whether at least one node took it.
    pub async fn store(&self, item: StoreItem) -> bool {
        self.store_many(vec![item]).await == [true]
    }

    /// Stores records; the result is in the order of the items, true where at least one node took the item. Nodes refuse
    /// what expires earlier than what they have.
    ///
    /// # Cancel safety
    /// What was sent stays stored.
    pub async fn store_many(&self, items: Vec<StoreItem>) -> Vec<bool> {
        self.node.store_many(items).await
    }

    /// How long a call of `rpc_ping` to a peer takes, there and back.
    ///
    /// # Errors
    /// If the peer does not answer within `timeout`.
    pub async fn ping(&self, peer: PeerId, timeout: Duration) -> Result<Duration, CallError> {
        let started = tokio::time::Instant::now();
        self.node.call_ping(peer, false, timeout).await?;
        Ok(started.elapsed())
    }

    /// How far the clock of a peer is ahead of ours, in seconds, 0 if within the time the question took; `None` if it does
    /// not tell its time.
    ///
    /// # Errors
    /// If the peer does not answer within `timeout`.
    pub async fn clock_offset(&self, peer: PeerId, timeout: Duration) -> Result<Option<f64>, CallError> {
        let (_, offset) = self.node.ping_clock(peer, false, timeout).await?;
        Ok(offset)
    }

    /// DHT time: Unix seconds.
    pub fn now(&self) -> f64 {
        self.node.now()
    }

    /// The id of this node, which is unrelated to its peer id.
    pub fn node_id(&self) -> DhtId {
        self.node.id
    }

    /// The peers of all nodes in the routing table.
    pub fn peers(&self) -> Vec<PeerId> {
        self.node.state().table.peers().collect()
    }

    /// What this node knows and holds now.
    pub fn status(&self) -> Status {
        let state = self.node.state();
        Status {
            nodes: state.table.len(),
            nearest_peers: state
                .neighbors(&self.node.id, None)
                .iter()
                .map(|node| node.peer)
                .collect(),
            stored: state.storage.len(),
            cached: state.cache.len(),
        }
    }
}

impl fmt::Debug for Dht {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dht")
            .field("node_id", &self.node.id)
            .finish_non_exhaustive()
    }
}
