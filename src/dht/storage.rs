//! Records with expirations, in bounded memory. Pure: the time is an argument, and nothing is on disk.
//!
//! The rules are those of hivemind, `dht/storage.py`, with its one bug left out: there, a refused store with an earlier
//! expiration makes the surviving record expire at the refused time. Python keeps records without bound; here the ones
//! that expire first make room for others. And one thing is added: what is proven to be from its owner gives way only to
//! what is proven too, however late anything else expires.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use bytes::Bytes;
use sepal_protocol::{dht_id::DhtId, msgpack::Value};

use super::record::{Entries, Entry, Record};

/// Largest value, in bytes. Half of the largest unary frame (4 MiB), so that an answer with it and its neighbours fits.
pub(crate) const MAX_VALUE_BYTES: usize = 2 << 20;

/// Largest dictionary, in bytes of memory; it is sent as a whole, so it must fit a frame too.
const MAX_DICTIONARY_BYTES: usize = 2 << 20;

/// Most entries of one dictionary. The largest ones of the public swarm have one entry per server, some hundreds.
const MAX_SUBKEYS: usize = 4096;

/// How far ahead an expiration may be, in seconds: a week. Records that live longer are stored again by their owner;
/// without a limit, records that never expire would displace all others once memory is full.
pub(crate) const MAX_LIFETIME_S: f64 = 7.0 * 24.0 * 3600.0;

/// How much a [`Storage`] may hold. Over it, the records that expire first are dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// Records by key.
#[derive(Debug)]
pub(crate) struct Storage {
    limits: Limits,
    records: BTreeMap<DhtId, Record>,
    /// One entry per record, by expiration.
    queue: BTreeSet<(Time, DhtId)>,
    bytes: usize,
}

impl Storage {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            records: BTreeMap::new(),
            queue: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// Number of records, expired ones included until they are dropped.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The record of a key, without entries that are expired.
    pub(crate) fn get(&mut self, key: &DhtId, now: f64) -> Option<&Record> {
        self.drop_expired(now);
        self.prune(key, now);
        self.records.get(key)
    }

    /// Every record that is not expired.
    pub(crate) fn iter(&mut self, now: f64) -> impl Iterator<Item = (&DhtId, &Record)> {
        self.drop_expired(now);
        self.records.iter()
    }

    /// Stores a regular value; refused if a record with this key lives as long, or is a dictionary with proven entries.
    /// Returns whether it was stored.
    pub(crate) fn store(&mut self, key: DhtId, value: Bytes, expiration: f64, now: f64) -> bool {
        let is_better = |old: &Record| old.is_proven() || old.expiration() >= expiration;
        if !acceptable(&value, expiration, now) || self.get(&key, now).is_some_and(is_better) {
            return false;
        }
        self.take(&key);
        self.put(key, Record::Regular { value, expiration })
    }

    /// Stores one entry of a dictionary. A regular value under the key gives way if it expires earlier, and to a proven
    /// entry in any case.
    pub(crate) fn store_entry(&mut self, key: DhtId, entry: Entry, now: f64) -> bool {
        self.drop_expired(now);
        self.prune(&key, now);
        if !acceptable(&entry.value, entry.expiration, now) || entry.size() > MAX_DICTIONARY_BYTES {
            return false;
        }
        let mut entries = match self.records.get(&key) {
            Some(Record::Regular { expiration, .. }) if !entry.proven && *expiration >= entry.expiration => {
                return false;
            }
            Some(Record::Dictionary(old)) if old.get(&entry.subkey).is_some_and(|old| old.outranks(&entry)) => {
                return false;
            }
            _ => match self.take(&key) {
                Some(Record::Dictionary(entries)) => entries,
                _ => Entries::default(),
            },
        };
        let subkey = entry.subkey.clone();
        let stored = make_room(&mut entries, &entry) && entries.put(entry);
        self.put(key, Record::Dictionary(entries)) && stored && self.has_entry(&key, &subkey)
    }

    /// Stores every entry of a dictionary that is acceptable. Returns whether all of them were.
    pub(crate) fn store_dictionary(&mut self, key: DhtId, entries: Entries, now: f64) -> bool {
        let mut all = true;
        for entry in entries.iter() {
            all &= self.store_entry(key, entry.clone(), now);
        }
        all
    }

    fn has_entry(&self, key: &DhtId, subkey: &Value) -> bool {
        matches!(self.records.get(key), Some(Record::Dictionary(entries)) if entries.get(subkey).is_some())
    }

    /// Adds a record under a key that has none, and drops what expires first while there is too much. Returns whether
    /// the record itself is still there.
    fn put(&mut self, key: DhtId, record: Record) -> bool {
        if matches!(&record, Record::Dictionary(entries) if entries.len() == 0) {
            return false;
        }
        self.bytes += record.size();
        self.queue.insert((Time(record.expiration()), key));
        self.records.insert(key, record);
        while self.records.len() > self.limits.records || self.bytes > self.limits.bytes {
            let Some((_, first)) = self.queue.first().copied() else {
                break;
            };
            self.take(&first);
        }
        self.records.contains_key(&key)
    }

    fn take(&mut self, key: &DhtId) -> Option<Record> {
        let record = self.records.remove(key)?;
        self.queue.remove(&(Time(record.expiration()), *key));
        self.bytes -= record.size();
        Some(record)
    }

    fn drop_expired(&mut self, now: f64) {
        while let Some((Time(expiration), key)) = self.queue.first().copied() {
            if expiration >= now {
                break;
            }
            self.take(&key);
        }
    }

    /// Drops expired entries of a dictionary whose other entries live on.
    fn prune(&mut self, key: &DhtId, now: f64) {
        if let Some(Record::Dictionary(entries)) = self.records.get_mut(key) {
            if entries.iter().all(|entry| entry.expiration >= now) {
                return;
            }
            if let Some(Record::Dictionary(mut entries)) = self.take(key) {
                entries.retain(|entry| entry.expiration >= now);
                self.put(*key, Record::Dictionary(entries));
            }
        }
    }
}

fn acceptable(value: &[u8], expiration: f64, now: f64) -> bool {
    // A comparison with NaN is false, so it is refused as well.
    value.len() <= MAX_VALUE_BYTES && expiration >= now && expiration <= now + MAX_LIFETIME_S
}

/// Drops the entries that count least until `new` fits. Returns false if `new` is the one that would have to go.
fn make_room(entries: &mut Entries, new: &Entry) -> bool {
    let replaced = entries.get(&new.subkey).map(|old| old.subkey.clone());
    if let Some(subkey) = replaced {
        entries.remove(&subkey);
    }
    while entries.len() + 1 > MAX_SUBKEYS || entries.size() + new.size() > MAX_DICTIONARY_BYTES {
        match entries.least() {
            Some(least) if !least.outranks(new) => {
                let subkey = least.subkey.clone();
                entries.remove(&subkey);
            }
            _ => return false,
        }
    }
    true
}

/// A time that orders: expirations are finite.
#[derive(Clone, Copy, Debug)]
struct Time(f64);

impl Ord for Time {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Time {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Time {}

#[cfg(test)]
mod tests;
