//! What is stored under a key: one value, or a dictionary of values by subkey. Merging follows the storage rules.

use std::{cmp::Ordering, collections::BTreeMap};

use bytes::Bytes;
use sepal_protocol::{
    msgpack::{self, Value},
    value::{DictEntry, Dictionary},
};

/// What one record or one entry costs in memory beyond its bytes: maps, heads, alignment. A rough upper bound.
const OVERHEAD_BYTES: usize = 96;

/// A record as one node holds it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// One value, and the DHT time after which it is gone.
    Regular { value: Bytes, expiration: f64 },
    /// Values by subkey, each with an expiration of its own.
    Dictionary(Entries),
}

impl Record {
    /// When the last part of the record expires.
    pub(crate) fn expiration(&self) -> f64 {
        match self {
            Self::Regular { expiration, .. } => *expiration,
            Self::Dictionary(entries) => entries.latest,
        }
    }

    /// Approximate memory held, in bytes.
    pub(crate) fn size(&self) -> usize {
        OVERHEAD_BYTES
            + match self {
                Self::Regular { value, .. } => value.len(),
                Self::Dictionary(entries) => entries.size,
            }
    }

    /// Takes over what is better in `other`: dictionaries are merged by subkey, else one with a proven entry wins over
    /// one without, then the later expiration.
    pub(crate) fn merge(&mut self, other: Self) {
        let is_better = (other.is_proven(), other.expiration()) > (self.is_proven(), self.expiration());
        match (&mut *self, other) {
            (Self::Dictionary(ours), Self::Dictionary(theirs)) => ours.merge(theirs),
            (_, other) if is_better => *self = other,
            _ => {}
        }
    }

    /// Whether there is a proven entry in it.
    pub(crate) fn is_proven(&self) -> bool {
        matches!(self, Self::Dictionary(entries) if entries.iter().any(|entry| entry.proven))
    }
}

/// One value of a dictionary.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) subkey: Value,
    pub(crate) value: Bytes,
    pub(crate) expiration: f64,
    /// Whether it is shown to be from whom its subkey names; see [`Verdict::Proven`](super::validate::Verdict::Proven).
    pub(crate) proven: bool,
}

impl Entry {
    /// What decides between two entries with one subkey: first proof, then the later expiration.
    pub(crate) fn outranks(&self, other: &Self) -> bool {
        (self.proven, self.expiration) >= (other.proven, other.expiration)
    }

    /// Approximate memory held, in bytes. The subkey is held twice, as bytes and as a value.
    pub(crate) fn size(&self) -> usize {
        OVERHEAD_BYTES + 2 * msgpack::encode(&self.subkey).len() + self.value.len()
    }
}

/// The values of a dictionary, by the canonical MessagePack of their subkeys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entries {
    by_subkey: BTreeMap<Vec<u8>, Entry>,
    /// Largest expiration ever stored here, the one of the dictionary as a whole; −∞ for an empty one.
    latest: f64,
    /// Approximate memory held, in bytes.
    size: usize,
}

impl Default for Entries {
    fn default() -> Self {
        Self {
            by_subkey: BTreeMap::new(),
            latest: f64::NEG_INFINITY,
            size: 0,
        }
    }
}

impl Entries {
    /// The entries of a dictionary from the wire, none of them proven yet. Of several with one subkey, the one that expires
    /// last counts.
    pub(crate) fn from_wire(dictionary: Dictionary) -> Self {
        let mut entries = Self::default();
        for DictEntry {
            subkey,
            value,
            expiration,
        } in dictionary.entries
        {
            entries.put(Entry {
                subkey,
                value: value.into(),
                expiration,
                proven: false,
            });
        }
        entries
    }

    pub(crate) fn to_wire(&self) -> Dictionary {
        self.by_subkey
            .values()
            .map(|entry| DictEntry {
                subkey: entry.subkey.clone(),
                value: entry.value.to_vec(),
                expiration: entry.expiration,
            })
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_subkey.len()
    }

    /// Approximate memory held, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.by_subkey.values()
    }

    pub(crate) fn get(&self, subkey: &Value) -> Option<&Entry> {
        self.by_subkey.get(&msgpack::encode(subkey))
    }

    /// Stores an entry unless there is one with this subkey that is as good. Returns whether it was stored.
    pub(crate) fn put(&mut self, entry: Entry) -> bool {
        let subkey = msgpack::encode(&entry.subkey);
        if !entry.expiration.is_finite() || self.by_subkey.get(&subkey).is_some_and(|old| old.outranks(&entry)) {
            return false;
        }
        self.latest = self.latest.max(entry.expiration);
        self.size += entry.size();
        if let Some(old) = self.by_subkey.insert(subkey, entry) {
            self.size -= old.size();
        }
        true
    }

    /// Keeps the entries that satisfy `keep`. The expiration of the dictionary as a whole stays what it is.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&mut Entry) -> bool) {
        let mut size = 0;
        self.by_subkey.retain(|_, entry| {
            let kept = keep(entry);
            size += if kept { entry.size() } else { 0 };
            kept
        });
        self.size = size;
    }

    /// The entry to do without: one without proof before one with, then the one that expires first.
    pub(crate) fn least(&self) -> Option<&Entry> {
        let rank = |entry: &Entry| (entry.proven, entry.expiration);
        self.iter()
            .min_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(Ordering::Equal))
    }

    pub(crate) fn remove(&mut self, subkey: &Value) {
        if let Some(old) = self.by_subkey.remove(&msgpack::encode(subkey)) {
            self.size -= old.size();
        }
    }

    fn merge(&mut self, other: Self) {
        for entry in other.by_subkey.into_values() {
            self.put(entry);
        }
    }
}
