//! Which entries the validators refused lately: kept to be shown to people, used for nothing. Pure, bounded.

use std::collections::BTreeMap;

use sepal_protocol::{
    dht_id::DhtId,
    msgpack::{self, Value},
};

/// Most refused entries that are remembered: every server of a large swarm could be forged, or one in all its blocks.
const MAX_REFUSED: usize = 1024;

/// Longest subkey that is remembered, in bytes: a peer id has 52. Longer ones are refused without being remembered.
const MAX_SUBKEY_BYTES: usize = 128;

/// An entry that the rules of the network refuse.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// In whose name it was stored.
    pub subkey: Value,
    /// DHT time after which it is gone.
    pub expiration: f64,
}

/// What was refused, by key and subkey.
#[derive(Debug, Default)]
pub(crate) struct RefusedEntries {
    entries: BTreeMap<(DhtId, Vec<u8>), Refused>,
}

impl RefusedEntries {
    /// Notes an entry. When there are too many, the one that is gone first makes room.
    pub(crate) fn note(&mut self, key: DhtId, subkey: &Value, expiration: f64, now: f64) {
        let name = msgpack::encode(subkey);
        if name.len() > MAX_SUBKEY_BYTES {
            return;
        }
        let place = (key, name);
        if self.entries.len() >= MAX_REFUSED && !self.entries.contains_key(&place) {
            self.entries.retain(|_, entry| entry.expiration >= now);
            let first = self
                .entries
                .iter()
                .min_by(|a, b| a.1.expiration.total_cmp(&b.1.expiration));
            let first = first.map(|(place, _)| place.clone());
            if let Some(first) = first.filter(|_| self.entries.len() >= MAX_REFUSED) {
                self.entries.remove(&first);
            }
        }
        let subkey = subkey.clone();
        self.entries.insert(place, Refused { subkey, expiration });
    }

    /// What was refused under a key and would not be expired yet.
    pub(crate) fn of(&self, key: &DhtId, now: f64) -> Vec<Refused> {
        let from_key = self.entries.range((*key, Vec::new())..);
        from_key
            .take_while(|((other, _), _)| other == key)
            .map(|(_, entry)| entry)
            .filter(|entry| entry.expiration >= now)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dht::testing::id;

    #[test]
    fn entries_are_listed_by_key_until_they_would_have_expired() {
        let mut refused = RefusedEntries::default();
        for (key, subkey, expiration) in [(1, "a", 10.0), (1, "b", 20.0), (2, "a", 30.0), (1, "a", 15.0)] {
            refused.note(id(key), &subkey.into(), expiration, 0.0);
        }
        let names = |now| -> Vec<(String, f64)> {
            let of = refused.of(&id(1), now);
            of.iter()
                .map(|entry| (entry.subkey.to_string(), entry.expiration))
                .collect()
        };
        assert_eq!(names(1.0), [("\"a\"".to_string(), 15.0), ("\"b\"".to_string(), 20.0)]);
        assert_eq!(names(16.0), [("\"b\"".to_string(), 20.0)]);
        assert!(refused.of(&id(3), 1.0).is_empty());
    }

    #[test]
    fn memory_is_bounded_and_what_is_gone_first_makes_room() {
        let mut refused = RefusedEntries::default();
        for number in 0..2 * MAX_REFUSED {
            refused.note(id(1), &Value::from(number), number as f64, 0.0);
        }
        refused.note(id(1), &Value::from("x".repeat(MAX_SUBKEY_BYTES)), 1e9, 0.0);
        let left = refused.of(&id(1), 0.0);
        assert_eq!(left.len(), MAX_REFUSED);
        assert!(left.iter().all(|entry| entry.expiration >= MAX_REFUSED as f64));
    }
}
