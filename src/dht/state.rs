//! What a node holds and how it answers: routing table, storage and cache together. Pure; the node locks it briefly.

use std::collections::BTreeSet;

use bytes::Bytes;
use sepal_protocol::dht_id::DhtId;

use super::{
    record::{Entries, Entry, Record},
    routing::{Contact, Peer, RoutingTable},
    storage::{Limits, Storage},
};
use crate::p2p::PeerId;

/// Bounds of what is stored for others. At some hundred bytes per entry of a public swarm, this is far more than needed.
const STORAGE_LIMITS: Limits = Limits {
    records: 1 << 16,
    bytes: 256 << 20,
};

/// Bounds of what is kept to answer faster.
const CACHE_LIMITS: Limits = Limits {
    records: 1 << 14,
    bytes: 64 << 20,
};

/// Most cached keys that wait to be refreshed.
const MAX_REFRESHES: usize = 1 << 12;

/// Most stored records that are looked through for a node that is met for the first time. Far more than the models of a
/// swarm have blocks; it keeps somebody who makes up nodes from making us sort our whole storage for each. A record that
/// is left out reaches the node when its owner stores it again.
const MAX_CONSIDERED: usize = 1 << 12;

/// Most keys in one question of a read, and most keys fetched again at once (hivemind, `dht/node.py`, `chunk_size`).
pub(crate) const MAX_KEYS_PER_CALL: usize = 16;

/// What a record is offered as.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Offer {
    Regular { value: Bytes, expiration: f64 },
    Entry(Entry),
    Dictionary(Entries),
}

impl From<Record> for Offer {
    fn from(record: Record) -> Self {
        match record {
            Record::Regular { value, expiration } => Self::Regular { value, expiration },
            Record::Dictionary(entries) => Self::Dictionary(entries),
        }
    }
}

/// What to do after hearing of a node.
#[derive(Debug)]
pub(crate) struct Met<P = PeerId> {
    /// Records that the node should have as well, because it is new and near their keys.
    pub(crate) hand_over: Vec<(DhtId, Record)>,
    /// A member of a full bucket that must show that it is alive.
    pub(crate) ping: Option<Contact<P>>,
}

/// The shape of a node's routing table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) bucket_size: usize,
    pub(crate) depth_modulo: usize,
    pub(crate) replicas: usize,
    /// Shortest time between two pings of members of full buckets, in seconds.
    pub(crate) ping_period_s: f64,
}

/// A node of the DHT without its network.
#[derive(Debug)]
pub(crate) struct State<P = PeerId> {
    own: DhtId,
    shape: Shape,
    pub(crate) table: RoutingTable<P>,
    pub(crate) storage: Storage,
    pub(crate) cache: Storage,
    /// Cached keys that were read, by the whole second in which to fetch them again.
    refreshes: BTreeSet<(u64, DhtId)>,
    /// DHT time before which no member of a full bucket is pinged.
    next_ping: f64,
}

impl<P: Peer> State<P> {
    pub(crate) fn new(own: DhtId, shape: Shape) -> Self {
        Self {
            own,
            shape,
            table: RoutingTable::new(own, shape.bucket_size, shape.depth_modulo),
            storage: Storage::new(STORAGE_LIMITS),
            cache: Storage::new(CACHE_LIMITS),
            refreshes: BTreeSet::new(),
            next_ping: f64::NEG_INFINITY,
        }
    }

    /// The record of a key, storage and cache merged. (Python takes the one that expires later as it is, so that a cached
    /// dictionary with one entry hides a stored one with many.)
    pub(crate) fn record(&mut self, key: &DhtId, now: f64) -> Option<Record> {
        let stored = self.storage.get(key, now).cloned();
        let cached = self.cache.get(key, now).cloned();
        match (stored, cached) {
            (Some(mut stored), Some(cached)) => {
                stored.merge(cached);
                Some(stored)
            }
            (stored, cached) => stored.or(cached),
        }
    }

    /// How many of `n_keys` to ask for in one question: ⌊√n⌋, as Hivemind does. A key is asked of every node of its beam; in
    /// a network that is no larger than the beam that is every node for every key, so that nothing is asked in vain by asking
    /// for as many at once as nodes expect.
    pub(crate) fn keys_per_call(&self, n_keys: usize) -> usize {
        let is_small = self.table.len() <= self.shape.bucket_size;
        let at_once = if is_small { n_keys.min(MAX_KEYS_PER_CALL) } else { 1 };
        n_keys.isqrt().max(at_once)
    }

    /// The same for reads, whose answers carry records.
    pub(crate) fn keys_per_read(&self, n_keys: usize) -> usize {
        self.keys_per_call(n_keys).min(MAX_KEYS_PER_CALL)
    }

    /// The nodes to tell someone who asks about `key`, nearest first.
    pub(crate) fn neighbors(&self, key: &DhtId, asker: Option<&DhtId>) -> Vec<Contact<P>> {
        self.table.nearest(key, self.shape.bucket_size, asker)
    }

    /// Takes a record, or refuses it.
    pub(crate) fn store(&mut self, key: DhtId, offer: Offer, in_cache: bool, now: f64) -> bool {
        let storage = if in_cache { &mut self.cache } else { &mut self.storage };
        match offer {
            Offer::Regular { value, expiration } => storage.store(key, value, expiration, now),
            Offer::Entry(entry) => storage.store_entry(key, entry, now),
            Offer::Dictionary(entries) => storage.store_dictionary(key, entries, now),
        }
    }

    /// Notes that a node is there, and says what that entails (hivemind, `dht/protocol.py`, `update_routing_table`).
    ///
    /// A new node gets the records for which it is among the nearest, from the one node that is nearest. Python leaves
    /// it out while fewer nodes are known than there should be replicas; here it gets a replica then. Python also pings a
    /// member of a full bucket for every message of a node that has no place in it, which in a large swarm is most of the
    /// messages; here only so often.
    pub(crate) fn met(&mut self, node: Contact<P>, now: f64) -> Met<P> {
        let mut hand_over = Vec::new();
        if node.id != self.own && !self.table.contains(&node.id) {
            let (own, table, replicas) = (self.own, &self.table, self.shape.replicas);
            let should_have = |key: &DhtId| {
                !table.has_nearer(1, key, own.distance(key)) && !table.has_nearer(replicas, key, node.id.distance(key))
            };
            hand_over = self
                .storage
                .iter(now)
                .take(MAX_CONSIDERED)
                .filter(|(key, _)| should_have(key))
                .map(|(key, record)| (*key, record.clone()))
                .collect();
        }
        let ping = self.table.add(node).filter(|old| {
            let is_time = now >= self.next_ping;
            if is_time {
                self.next_ping = now + self.shape.ping_period_s;
            } else {
                self.table.ping_not_sent(&old.id);
            }
            is_time
        });
        Met { hand_over, ping }
    }

    /// Asks for a cached record to be fetched again at DHT time `due`. Over the bound it just expires.
    pub(crate) fn refresh_at(&mut self, key: DhtId, due: f64) {
        let is_due = |(_, other): &&(u64, DhtId)| *other == key;
        if self.refreshes.len() < MAX_REFRESHES && self.refreshes.iter().find(is_due).is_none() {
            // Conversion saturates; times are positive.
            self.refreshes.insert((due.max(0.0) as u64, key));
        }
    }

    /// A read was answered from here: if the copy is a cached one, it shall be there, and fresh, for the next read as well.
    pub(crate) fn refresh_before_expiry(&mut self, key: &DhtId, lead_s: f64, now: f64) {
        if let Some(expiration) = self.cache.get(key, now).map(Record::expiration) {
            self.refresh_at(*key, expiration - lead_s);
        }
    }

    /// Up to `limit` keys whose refresh is due.
    pub(crate) fn take_due_refreshes(&mut self, limit: usize, now: f64) -> Vec<DhtId> {
        let mut due = Vec::new();
        while due.len() < limit {
            match self.refreshes.first() {
                Some((second, _)) if *second as f64 <= now => {
                    due.extend(self.refreshes.pop_first().map(|(_, key)| key))
                }
                _ => break,
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dht::testing::{contact, id};

    const SHAPE: Shape = Shape {
        bucket_size: 20,
        depth_modulo: 5,
        replicas: 5,
        ping_period_s: 0.0,
    };

    fn regular(byte: u8, expiration: f64) -> Offer {
        Offer::Regular {
            value: vec![byte].into(),
            expiration,
        }
    }

    fn entry(subkey: &str, byte: u8, expiration: f64) -> Offer {
        Offer::Entry(Entry {
            subkey: subkey.into(),
            value: vec![byte].into(),
            expiration,
            proven: false,
        })
    }

    #[test]
    fn a_cached_dictionary_does_not_hide_the_stored_one() {
        let mut state: State = State::new(id(0), SHAPE);
        assert!(state.store(id(1), entry("a", 1, 10.0), false, 0.0));
        assert!(state.store(id(1), entry("b", 2, 10.0), false, 0.0));
        assert!(state.store(id(1), entry("b", 3, 20.0), true, 0.0));
        let Some(Record::Dictionary(entries)) = state.record(&id(1), 1.0) else {
            panic!("no dictionary");
        };
        let values: Vec<u8> = entries.iter().map(|entry| entry.value[0]).collect();
        assert_eq!(values, [1, 3]);
    }

    #[test]
    fn the_newer_of_stored_and_cached_value_counts() {
        let mut state: State = State::new(id(0), SHAPE);
        state.store(id(1), regular(1, 10.0), false, 0.0);
        state.store(id(1), regular(2, 20.0), true, 0.0);
        assert_eq!(state.record(&id(1), 5.0).map(Offer::from), Some(regular(2, 20.0)));
        state.store(id(1), regular(3, 30.0), false, 0.0);
        assert_eq!(state.record(&id(1), 5.0).map(Offer::from), Some(regular(3, 30.0)));
    }

    #[test]
    fn the_first_node_met_gets_every_record() {
        let mut state: State = State::new(id(0), SHAPE);
        state.store(id(1000), regular(1, 10.0), false, 0.0);
        state.store(id(1001), entry("a", 1, 10.0), false, 0.0);
        state.store(id(1002), regular(1, 1.0), false, 0.0);
        let keys: Vec<DhtId> = state
            .met(contact(1), 2.0)
            .hand_over
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys.len(), 2, "and none that is expired");
        assert!(state.met(contact(1), 2.0).hand_over.is_empty(), "it is known by now");
    }

    #[test]
    fn the_nearest_node_hands_a_record_to_a_newcomer_among_the_nearest() {
        let key = id(1000);
        let mut nodes: Vec<Contact> = (1..100).map(contact).collect();
        nodes.sort_by_key(|node| node.id.distance(&key));
        let (near, own, far) = (nodes[0], nodes[10].id, &nodes[11..]);
        let mut state: State = State::new(own, SHAPE);
        for node in &far[3..9] {
            state.met(*node, 0.0);
        }
        state.store(key, regular(1, 10.0), false, 0.0);
        assert!(state.met(far[20], 0.0).hand_over.is_empty(), "five nodes are nearer");
        assert_eq!(state.met(far[0], 0.0).hand_over.len(), 1);
        assert_eq!(state.met(near, 0.0).hand_over.len(), 1);
        assert!(
            state.met(far[1], 0.0).hand_over.is_empty(),
            "someone else is nearest now"
        );
    }

    #[test]
    fn refreshes_come_when_they_are_due_and_once_per_key() {
        let mut state: State = State::new(id(0), SHAPE);
        state.refresh_at(id(1), 100.7);
        state.refresh_at(id(1), 50.0);
        state.refresh_at(id(2), 90.0);
        assert!(state.take_due_refreshes(16, 89.0).is_empty());
        assert_eq!(state.take_due_refreshes(16, 100.0), [id(2), id(1)]);
        assert!(state.take_due_refreshes(16, 1e9).is_empty());
    }
}
