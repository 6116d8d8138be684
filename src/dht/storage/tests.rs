//! The storage against Python's log of stores, and its bounds.

use super::*;
use crate::dht::testing::{bytes, id, vectors};

const ROOMY: Limits = Limits {
    records: 100,
    bytes: 1 << 20,
};

fn value(byte: u8) -> Bytes {
    Bytes::from(vec![byte])
}

fn entry(subkey: &str, byte: u8, expiration: f64) -> Entry {
    Entry {
        subkey: subkey.into(),
        value: value(byte),
        expiration,
        proven: false,
    }
}

fn proven(subkey: &str, byte: u8, expiration: f64) -> Entry {
    Entry {
        proven: true,
        ..entry(subkey, byte, expiration)
    }
}

/// What the steps of the log do, in the words of the log: subkey (or none), value, seconds after the first expiration.
const STEPS: [(&str, Option<&str>, u8, f64); 11] = [
    ("store regular exp+0", None, 1, 0.0),
    ("store regular same exp", None, 2, 0.0),
    ("store regular exp+1", None, 3, 1.0),
    ("store_subkey 'a' exp+0.5 (older than regular)", Some("a"), 4, 0.5),
    ("store_subkey 'a' exp+2 (newer than regular)", Some("a"), 5, 2.0),
    (
        "store_subkey 'b' exp+1 (older than dict, new subkey)",
        Some("b"),
        6,
        1.0,
    ),
    ("store_subkey 'a' exp+2 again", Some("a"), 7, 2.0),
    ("store_subkey 'a' exp+3", Some("a"), 8, 3.0),
    ("store regular exp+3 over dict exp+3", None, 9, 3.0),
    ("store regular exp+4 over dict", None, 10, 4.0),
    ("store expired regular", None, 11, -2000.0),
];

#[test]
fn stores_are_accepted_and_refused_as_python_does() {
    const FIRST: f64 = 4_102_444_800.5;
    let now = FIRST - 1000.0;
    let log = &vectors("hivemind/protobuf.json")["local_storage_log"];
    let mut storage = Storage::new(ROOMY);
    assert_eq!(log.as_array().unwrap().len(), STEPS.len());
    for (step, (what, subkey, byte, after)) in log.as_array().unwrap().iter().zip(STEPS) {
        assert_eq!(step["step"], what);
        let stored = match subkey {
            None => storage.store(id(1), value(byte), FIRST + after, now),
            Some(subkey) => storage.store_entry(id(1), entry(subkey, byte, FIRST + after), now),
        };
        assert_eq!(stored, step["store_ok"].as_bool().unwrap(), "{what}");
        let record = storage.get(&id(1), now).unwrap();
        assert_eq!(record.expiration(), step["expiration"].as_f64().unwrap(), "{what}");
        let packed = match record {
            Record::Regular { value, .. } => value.to_vec(),
            Record::Dictionary(entries) => entries.to_wire().encode(),
        };
        assert_eq!(packed, bytes(&step["packed"]), "{what}");
    }
}

#[test]
fn a_refused_store_does_not_change_when_the_record_expires() {
    let mut storage = Storage::new(ROOMY);
    assert!(storage.store(id(1), value(1), 100.0, 0.0));
    assert!(!storage.store(id(1), value(2), 50.0, 0.0));
    assert!(storage.get(&id(1), 60.0).is_some());
    assert!(storage.get(&id(1), 100.0).is_some(), "the last second counts");
    assert!(storage.get(&id(1), 100.5).is_none());
    assert_eq!((storage.len(), storage.bytes), (0, 0));
}

#[test]
fn entries_of_a_dictionary_expire_one_by_one() {
    let mut storage = Storage::new(ROOMY);
    storage.store_entry(id(1), entry("a", 1, 10.0), 0.0);
    storage.store_entry(id(1), entry("b", 2, 20.0), 0.0);
    let Some(Record::Dictionary(entries)) = storage.get(&id(1), 15.0) else {
        panic!("the dictionary is gone");
    };
    assert_eq!(
        entries.iter().map(|entry| entry.value.clone()).collect::<Vec<_>>(),
        [value(2)]
    );
    assert!(storage.get(&id(1), 21.0).is_none());
    assert_eq!((storage.len(), storage.bytes, storage.queue.len()), (0, 0, 0));
}

#[test]
fn a_whole_dictionary_is_merged_entry_by_entry() {
    let mut storage = Storage::new(ROOMY);
    storage.store_entry(id(1), entry("a", 1, 10.0), 0.0);
    let mut whole = Entries::default();
    whole.put(entry("a", 2, 9.0));
    whole.put(entry("b", 3, 9.0));
    assert!(
        !storage.store_dictionary(id(1), whole, 0.0),
        "`a` is older than what is there"
    );
    let Some(Record::Dictionary(entries)) = storage.get(&id(1), 1.0) else {
        panic!("no dictionary");
    };
    assert_eq!(
        entries.iter().map(|entry| entry.value.clone()).collect::<Vec<_>>(),
        [value(1), value(3)]
    );
}

#[test]
fn what_expires_first_makes_room() {
    let mut storage = Storage::new(Limits {
        records: 2,
        bytes: 1 << 20,
    });
    assert!(storage.store(id(1), value(1), 30.0, 0.0));
    assert!(storage.store(id(2), value(2), 10.0, 0.0));
    assert!(storage.store(id(3), value(3), 20.0, 0.0));
    assert!(storage.get(&id(2), 0.0).is_none());
    assert!(!storage.store(id(4), value(4), 5.0, 0.0), "it would be the first to go");
    assert_eq!(storage.len(), 2);

    let big = Bytes::from(vec![0; 1000]);
    let mut storage = Storage::new(Limits {
        records: 100,
        bytes: 3500,
    });
    for (number, expiration) in [(1, 10.0), (2, 20.0), (3, 30.0), (4, 40.0)] {
        assert!(storage.store(id(number), big.clone(), expiration, 0.0));
    }
    assert!(storage.get(&id(1), 0.0).is_none() && storage.get(&id(2), 0.0).is_some());
    assert!(storage.bytes <= 3500);
}

#[test]
fn a_dictionary_has_a_bounded_number_of_entries() {
    let mut entries = Entries::default();
    for number in 0..MAX_SUBKEYS {
        entries.put(entry(&number.to_string(), 0, 100.0 + number as f64));
    }
    let mut storage = Storage::new(ROOMY);
    storage.put(id(1), Record::Dictionary(entries));
    assert!(!storage.store_entry(id(1), entry("early", 1, 50.0), 0.0));
    assert!(storage.store_entry(id(1), entry("late", 1, 50_000.0), 0.0));
    let Some(Record::Dictionary(entries)) = storage.get(&id(1), 0.0) else {
        panic!("no dictionary");
    };
    assert_eq!(entries.len(), MAX_SUBKEYS);
    assert!(entries.get(&"0".into()).is_none() && entries.get(&"late".into()).is_some());
}

#[test]
fn values_that_are_too_large_or_live_too_long_are_refused() {
    let mut storage = Storage::new(Limits {
        records: 10,
        bytes: usize::MAX,
    });
    assert!(!storage.store(id(1), Bytes::from(vec![0; MAX_VALUE_BYTES + 1]), 10.0, 0.0));
    assert!(!storage.store_entry(
        id(1),
        Entry {
            value: vec![0; MAX_VALUE_BYTES].into(),
            ..entry("a", 0, 10.0)
        },
        0.0
    ));
    for expiration in [MAX_LIFETIME_S + 1.0, f64::INFINITY, f64::NAN, f64::NEG_INFINITY] {
        assert!(!storage.store(id(1), value(0), expiration, 0.0), "{expiration}");
        assert!(
            !storage.store_entry(id(1), entry("a", 0, expiration), 0.0),
            "{expiration}"
        );
    }
    assert_eq!(storage.len(), 0);
}

const ROOM: Limits = Limits {
    records: 100,
    bytes: usize::MAX,
};

fn values(storage: &mut Storage, now: f64) -> Vec<u8> {
    match storage.get(&id(1), now) {
        Some(Record::Dictionary(entries)) => entries.iter().map(|entry| entry.value[0]).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn what_is_proven_gives_way_only_to_what_is_proven_while_it_lives() {
    let mut storage = Storage::new(ROOM);
    assert!(storage.store_entry(id(1), entry("a", 1, 50.0), 0.0));
    assert!(
        storage.store_entry(id(1), proven("a", 2, 10.0), 0.0),
        "a proof beats a later end"
    );
    assert!(!storage.store_entry(id(1), entry("a", 3, 90.0), 0.0));
    assert!(
        !storage.store(id(1), value(3), 90.0, 0.0),
        "nor does a regular value wipe it"
    );
    assert!(
        !storage.store_entry(id(1), proven("a", 4, 9.0), 0.0),
        "among equals the later end counts"
    );
    assert!(storage.store_entry(id(1), proven("a", 5, 20.0), 0.0));
    assert!(
        storage.store_entry(id(1), entry("b", 6, 15.0), 0.0),
        "others are as they were"
    );
    assert_eq!(values(&mut storage, 1.0), [5, 6]);
    assert!(
        storage.store_entry(id(1), entry("a", 7, 90.0), 20.1),
        "it is gone by now"
    );
    assert_eq!(values(&mut storage, 20.1), [7]);
}

#[test]
fn a_proven_entry_takes_the_place_of_a_regular_value_however_late_that_expires() {
    let mut storage = Storage::new(ROOM);
    assert!(storage.store(id(1), value(1), 90.0, 0.0));
    assert!(!storage.store_entry(id(1), entry("a", 2, 50.0), 0.0));
    assert!(storage.store_entry(id(1), proven("a", 3, 50.0), 0.0));
    assert_eq!(values(&mut storage, 1.0), [3]);
}

#[test]
fn a_flood_of_entries_does_not_push_out_a_proven_one() {
    let mut storage = Storage::new(ROOM);
    assert!(storage.store_entry(id(1), proven("a", 1, 10.0), 0.0));
    for number in 0..MAX_SUBKEYS {
        storage.store_entry(id(1), entry(&format!("flood {number}"), 2, 90.0), 0.0);
    }
    let values = values(&mut storage, 1.0);
    assert_eq!((values.len(), values[0]), (MAX_SUBKEYS, 1));
}

#[test]
fn accounts_are_right_after_any_sequence_of_stores() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let mut rng = StdRng::seed_from_u64(7);
    let mut storage = Storage::new(Limits {
        records: 8,
        bytes: 2000,
    });
    for step in 0..3000 {
        let now = f64::from(step) / 10.0;
        let key = id(rng.random_range(0..12));
        let expiration = now + rng.random_range(-5.0..40.0);
        let value = Bytes::from(vec![0; rng.random_range(0..300)]);
        if rng.random_bool(0.3) {
            storage.store(key, value, expiration, now);
        } else {
            let subkey = Value::from(rng.random_range(0..6));
            storage.store_entry(
                key,
                Entry {
                    subkey,
                    value,
                    expiration,
                    proven: rng.random_bool(0.3),
                },
                now,
            );
        }
        storage.get(&key, now);
        assert_eq!(storage.bytes, storage.records.values().map(Record::size).sum::<usize>());
        assert_eq!(storage.queue.len(), storage.records.len());
        assert!(storage.bytes <= 2000 && storage.len() <= 8);
    }
}
