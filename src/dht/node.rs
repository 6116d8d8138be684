//! A running node: the pure state behind a short lock, the network, and what follows from hearing of others.
//!
//! The state is never locked across an await. Work that nobody waits for (handing records to new nodes, pinging old
//! ones, filling caches) runs in the background, bounded; over the bound it is left out, because the DHT heals itself.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use futures::future::BoxFuture;
use sepal_protocol::{dht_id::DhtId, msgpack, names, value::Subkey};
use tokio::sync::Semaphore;
use tracing::{debug, trace};

use super::{
    Config,
    blacklist::Blacklist,
    get::Flights,
    network::Network,
    record::Record,
    refused::RefusedEntries,
    routing::Contact,
    rpc::StoreRecord,
    state::{self, State},
    validate::{RecordView, Verdict},
};
use crate::{
    p2p::{PeerId, short_id},
    task::Tasks,
};

/// Most background calls at once.
pub(super) const MAX_BACKGROUND: usize = 64;

/// Shortest time between two pings of members of full buckets, in seconds. A bucket near the top of a large swarm is then
/// gone through in minutes, which is quick against the hours that nodes stay.
pub(super) const PING_PERIOD_S: f64 = 2.0;

/// First ban of a peer that does not answer a search, in seconds, and its growth (hivemind, `dht/node.py`).
pub(super) const BLACKLIST_BASE_S: f64 = 5.0;
pub(super) const BLACKLIST_BACKOFF: f64 = 2.0;

/// What a client does not serve. It answers `rpc_ping`, although Hivemind's clients do not: servers measure round trips
/// to each other with it, and one that is reached through a relay is to be found as far away as it is, not infinitely far.
const NOT_SERVED_BY_CLIENTS: [&str; 2] = [names::DHT_STORE, names::DHT_FIND];

/// A node of the DHT. [`super::Dht`] is the handle to it.
pub(crate) struct Node {
    pub(crate) id: DhtId,
    pub(crate) config: Config,
    pub(crate) network: Box<dyn Network>,
    pub(crate) tasks: Tasks,
    /// Whether others are told not to call this node.
    client: AtomicBool,
    state: Mutex<State>,
    blacklist: Mutex<Blacklist>,
    flights: Mutex<Flights>,
    refused: Mutex<RefusedEntries>,
    background: Arc<Semaphore>,
}

impl Node {
    pub(crate) fn new(network: Box<dyn Network>, config: Config, tasks: Tasks) -> Self {
        let id = config.node_id.unwrap_or_else(|| DhtId::from_bytes(rand::random()));
        let shape = state::Shape {
            bucket_size: config.bucket_size,
            depth_modulo: config.depth_modulo,
            replicas: config.replicas,
            ping_period_s: PING_PERIOD_S,
        };
        network.withhold(&NOT_SERVED_BY_CLIENTS, config.client_mode);
        Self {
            id,
            network,
            tasks,
            client: AtomicBool::new(config.client_mode),
            state: Mutex::new(State::new(id, shape)),
            blacklist: Mutex::new(Blacklist::new(BLACKLIST_BASE_S, BLACKLIST_BACKOFF)),
            flights: Mutex::default(),
            refused: Mutex::default(),
            background: Arc::new(Semaphore::new(MAX_BACKGROUND)),
            config,
        }
    }

    /// Whether others are told not to call this node.
    pub(crate) fn is_client(&self) -> bool {
        self.client.load(Ordering::Relaxed)
    }

    /// Becomes a client, or stops to be one, and introduces itself anew to the nodes near its own id.
    pub(crate) fn set_client_mode(self: &Arc<Self>, client: bool) {
        if self.client.swap(client, Ordering::Relaxed) == client {
            return;
        }
        debug!(client, "changed the mode of the DHT node");
        self.network.withhold(&NOT_SERVED_BY_CLIENTS, client);
        self.search_self_in_background();
    }

    pub(crate) fn now(&self) -> f64 {
        self.config.clock.now()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn blacklist(&self) -> MutexGuard<'_, Blacklist> {
        self.blacklist.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refused(&self) -> MutexGuard<'_, RefusedEntries> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node called, or answered a call.
    pub(crate) fn heard_from(self: &Arc<Self>, contact: Contact) {
        let met = self.state().met(contact, self.now());
        if !met.hand_over.is_empty() {
            debug!(peer = %short_id(&contact.peer), records = met.hand_over.len(), "handing records to a new node");
            let records: Vec<StoreRecord> = met
                .hand_over
                .iter()
                .map(|(key, record)| StoreRecord::of(*key, record))
                .collect();
            self.offer_in_background(contact.peer, records, false);
        }
        if let Some(old) = met.ping {
            let node = self.clone();
            let timeout = self.config.call_timeout;
            let started = self.in_background(Box::pin(async move {
                // The answer, or its absence, goes into the routing table on the way.
                let _ = node.call_ping(old.peer, false, timeout).await;
            }));
            if !started {
                self.state().table.ping_not_sent(&old.id);
            }
        }
    }

    /// A peer did not answer.
    pub(crate) fn lost(&self, peer: &PeerId) {
        let mut state = self.state();
        if let Some(id) = state.table.id_of(peer) {
            trace!(peer = %short_id(peer), "removed from the routing table");
            state.table.remove(&id);
        }
    }

    /// Sends records to a peer without waiting for its answer.
    pub(crate) fn offer_in_background(self: &Arc<Self>, peer: PeerId, records: Vec<StoreRecord>, in_cache: bool) {
        let node = self.clone();
        self.in_background(Box::pin(async move {
            // Whether the peer wants them is its own affair.
            let _ = node.call_store(peer, &records, in_cache).await;
        }));
    }

    /// Runs something that nobody waits for. Returns false if too much of that is under way.
    fn in_background(&self, work: BoxFuture<'static, ()>) -> bool {
        let Ok(permit) = self.background.clone().try_acquire_owned() else {
            debug!("too many background calls: one was left out");
            return false;
        };
        self.tasks.spawn_until_stopped("dht background", async move {
            work.await;
            drop(permit);
        });
        true
    }

    /// What the rules of this network say of a record.
    pub(crate) fn judge(&self, key: &DhtId, tag: &[u8], value: &[u8], expiration: f64) -> Verdict {
        self.config.validators.validate(&RecordView {
            key: key.as_bytes(),
            subkey: tag,
            value,
            expiration,
        })
    }

    /// What of a record a reader can use: what is alive, allowed and MessagePack. Others may store anything; what the rules
    /// refuse is noted.
    pub(crate) fn readable(&self, key: &DhtId, record: Record) -> Option<Record> {
        let now = self.now();
        let usable = |tag: &[u8], value: &[u8], expiration: f64| {
            let view = RecordView {
                key: key.as_bytes(),
                subkey: tag,
                value,
                expiration,
            };
            let lives = expiration.is_finite() && expiration >= now;
            let readable = || msgpack::decode(self.config.validators.strip(&view)).is_ok();
            (lives && readable()).then(|| self.judge(key, tag, value, expiration))
        };
        match record {
            Record::Regular { value, expiration } => {
                let verdict = usable(&Subkey::None.to_wire(), &value, expiration)?;
                (verdict > Verdict::Refused).then_some(Record::Regular { value, expiration })
            }
            Record::Dictionary(mut entries) => {
                entries.retain(|entry| {
                    let tag = Subkey::Key(entry.subkey.clone()).to_wire();
                    let verdict = usable(&tag, &entry.value, entry.expiration);
                    entry.proven = verdict == Some(Verdict::Proven);
                    if verdict == Some(Verdict::Refused) {
                        self.refused().note(*key, &entry.subkey, entry.expiration, now);
                    }
                    verdict.is_some_and(|verdict| verdict > Verdict::Refused)
                });
                (entries.len() > 0).then_some(Record::Dictionary(entries))
            }
        }
    }
}
