//! Nodes that talk to each other: in memory, where every call is counted, and over real hosts on loopback.

use sepal_protocol::{
    dht_id::DhtId,
    msgpack::{self, Value},
    value::Subkey,
};

use super::{Found, StoreItem};

mod calls;
mod hosts;
mod reads;
mod swarm;

/// A time in the middle of nowhere, for clocks that are moved by hand.
const NOON: f64 = 1_000_000.0;

fn number(value: i64) -> Vec<u8> {
    msgpack::encode(&Value::from(value))
}

fn regular(key: DhtId, value: i64, expiration: f64) -> StoreItem {
    StoreItem {
        key,
        subkey: Subkey::None,
        value: number(value),
        expiration,
    }
}

fn entry(key: DhtId, subkey: &str, value: i64, expiration: f64) -> StoreItem {
    StoreItem {
        subkey: Subkey::text(subkey),
        ..regular(key, value, expiration)
    }
}

/// The value of a regular record.
fn value(found: Option<Found>) -> Option<i64> {
    match found? {
        Found::Regular { value, .. } => msgpack::decode(&value).unwrap().as_i64(),
        Found::Dictionary(_) => None,
    }
}

/// Subkeys and values of a dictionary, in order.
fn entries(found: Option<Found>) -> Vec<(String, i64)> {
    let Some(Found::Dictionary(dictionary)) = found else {
        return Vec::new();
    };
    let mut entries: Vec<_> = dictionary
        .entries
        .iter()
        .map(|entry| {
            let value = msgpack::decode(&entry.value).unwrap();
            (entry.subkey.as_str().unwrap().to_owned(), value.as_i64().unwrap())
        })
        .collect();
    entries.sort();
    entries
}
