//! Reading: what the two kinds of read see, what is skipped, what is cached, what is shared.

use std::sync::Arc;

use rsa::{RsaPrivateKey, rand_core::OsRng};
use sepal_protocol::{dht_id::DhtId, msgpack::Value, names, value::Subkey};

use super::{NOON, entries, entry, number, regular, value};
use crate::{
    dht::{
        Clock, Config, Freshness, StoreItem,
        node::Node,
        rpc::StoreRecord,
        testing::{Lan, contact, id, until},
        validate::{SignatureValidator, Validators},
    },
    task::Tasks,
};

/// Some nodes on one network with one clock.
struct Bench {
    lan: Arc<Lan>,
    clock: Clock,
    tasks: Tasks,
}

impl Bench {
    fn new() -> Self {
        Self {
            lan: Arc::default(),
            clock: Clock::manual(NOON),
            tasks: Tasks::new(),
        }
    }

    fn config(&self) -> Config {
        Config {
            clock: self.clock.clone(),
            workers: 1,
            ..Config::default()
        }
    }

    fn node(&self, number: u64) -> Arc<Node> {
        self.lan.node(number, self.config(), &self.tasks)
    }
}

fn record(item: &StoreItem) -> StoreRecord {
    StoreRecord {
        key: item.key,
        tag: item.subkey.to_wire(),
        value: item.value.clone().into(),
        expiration: item.expiration,
    }
}

async fn read(node: &Arc<Node>, key: DhtId, freshness: Freshness) -> Option<crate::dht::Found> {
    node.get_many(vec![key], freshness).await.pop().flatten()
}

#[tokio::test]
async fn a_default_read_stops_at_the_first_dictionary_and_a_latest_read_merges_all() {
    let bench = Bench::new();
    let (reader, one, other) = (bench.node(0), bench.node(1), bench.node(2));
    let key = id(1000);
    one.store_here(&record(&entry(key, "a", 1, NOON + 50.0)), false);
    one.store_here(&record(&entry(key, "c", 3, NOON + 60.0)), false);
    other.store_here(&record(&entry(key, "b", 2, NOON + 40.0)), false);
    other.store_here(&record(&entry(key, "c", 4, NOON + 70.0)), false);
    reader.heard_from(contact(1));
    reader.heard_from(contact(2));

    let any = entries(read(&reader, key, Freshness::Any).await);
    assert_eq!(any.len(), 2, "only one node was asked: {any:?}");
    let all = [("a", 1), ("b", 2), ("c", 4)].map(|(subkey, value)| (subkey.to_owned(), value));
    assert_eq!(entries(read(&reader, key, Freshness::Latest).await), all);
}

#[tokio::test]
async fn a_default_read_merges_what_is_stored_and_what_is_cached_here() {
    let bench = Bench::new();
    let node = bench.node(0);
    let key = id(1000);
    node.store_here(&record(&entry(key, "a", 1, NOON + 50.0)), false);
    node.store_here(&record(&entry(key, "b", 2, NOON + 50.0)), false);
    node.store_here(&record(&entry(key, "b", 3, NOON + 90.0)), true);
    let merged = [("a", 1), ("b", 3)].map(|(subkey, value)| (subkey.to_owned(), value));
    assert_eq!(entries(read(&node, key, Freshness::Any).await), merged);
    assert_eq!(bench.lan.calls(names::DHT_FIND), 0);
}

#[tokio::test]
async fn eighty_keys_are_read_in_batches() {
    const KEYS: u64 = 80;
    for (n_nodes, most_per_node) in [(16, KEYS / 16), (100, KEYS / 8)] {
        let bench = Bench::new();
        let nodes: Vec<Arc<Node>> = (0..n_nodes).map(|number| bench.node(number)).collect();
        for node in &nodes {
            (0..n_nodes).for_each(|other| node.heard_from(contact(other)));
        }
        let keys: Vec<DhtId> = (1000..1000 + KEYS).map(id).collect();
        let items = (0..)
            .zip(&keys)
            .map(|(number, key)| entry(*key, "a", number, NOON + 60.0));
        assert_eq!(nodes[1].store_many(items.collect()).await, [true; KEYS as usize]);
        let before = bench.lan.calls(names::DHT_FIND);
        let found = nodes[0].get_many(keys, Freshness::Latest).await;
        assert!(
            (0..)
                .zip(found)
                .all(|(number, found)| entries(found) == [("a".to_owned(), number)])
        );
        let calls = bench.lan.calls(names::DHT_FIND) - before;
        // Every node is asked about every key that it is among the nearest of, and about none twice.
        let most = (n_nodes - 1) * most_per_node;
        assert!(
            calls <= usize::try_from(most).unwrap(),
            "{calls} calls among {n_nodes} nodes"
        );
    }
}

#[tokio::test]
async fn the_newest_value_counts_whoever_has_it() {
    let bench = Bench::new();
    let (reader, one, other) = (bench.node(0), bench.node(1), bench.node(2));
    for (node, number, lifetime) in [(&reader, 1, 10.0), (&one, 2, 30.0), (&other, 3, 20.0)] {
        node.store_here(&record(&regular(id(1000), number, NOON + lifetime)), false);
    }
    reader.heard_from(contact(1));
    reader.heard_from(contact(2));
    assert_eq!(
        value(read(&reader, id(1000), Freshness::Any).await),
        Some(1),
        "the own one will do"
    );
    assert_eq!(value(read(&reader, id(1000), Freshness::Latest).await), Some(2));
    assert_eq!(
        value(read(&reader, id(1000), Freshness::Any).await),
        Some(2),
        "it is cached by now"
    );
    assert_eq!(read(&reader, id(1001), Freshness::Any).await, None);
}

#[tokio::test]
async fn what_cannot_be_read_is_skipped() {
    let bench = Bench::new();
    let (reader, one, other) = (bench.node(0), bench.node(1), bench.node(2));
    let garbage = |item: StoreItem| StoreItem {
        value: vec![0xc1, 0xc1],
        ..item
    };
    one.store_here(&record(&garbage(regular(id(1000), 0, NOON + 90.0))), false);
    other.store_here(&record(&regular(id(1000), 5, NOON + 10.0)), false);
    one.store_here(&record(&garbage(entry(id(1001), "bad", 0, NOON + 90.0))), false);
    one.store_here(&record(&entry(id(1001), "good", 6, NOON + 80.0)), false);
    one.store_here(&record(&garbage(entry(id(1002), "bad", 0, NOON + 90.0))), false);
    reader.heard_from(contact(1));
    reader.heard_from(contact(2));
    assert_eq!(value(read(&reader, id(1000), Freshness::Latest).await), Some(5));
    assert_eq!(
        entries(read(&reader, id(1001), Freshness::Any).await),
        [("good".to_owned(), 6)]
    );
    assert_eq!(read(&reader, id(1002), Freshness::Latest).await, None);
}

#[tokio::test]
async fn readers_of_one_key_share_one_search() {
    let bench = Bench::new();
    let (reader, one) = (bench.node(0), bench.node(1));
    one.store_here(&record(&regular(id(1000), 5, NOON + 10.0)), false);
    reader.heard_from(contact(1));
    let reads = (0..20).map(|_| read(&reader, id(1000), Freshness::Latest));
    let found = futures::future::join_all(reads).await;
    assert!(found.into_iter().all(|found| value(found) == Some(5)));
    assert_eq!(bench.lan.calls(names::DHT_FIND), 1);
    assert!(reader.flights().is_empty());
    let twice = reader.get_many(vec![id(1001), id(1001)], Freshness::Any).await;
    assert_eq!(twice, [None, None]);
}

#[tokio::test]
async fn a_search_that_nobody_waits_for_ends() {
    let bench = Bench::new();
    let (reader, _one) = (bench.node(0), bench.node(1));
    reader.heard_from(contact(1));
    let mut abandoned = Box::pin(read(&reader, id(1000), Freshness::Any));
    assert!(futures::poll!(&mut abandoned).is_pending());
    assert_eq!(reader.flights().len(), 1);
    drop(abandoned);
    until("the search is gone", || reader.flights().is_empty()).await;
}

#[tokio::test]
async fn a_found_value_is_cached_here_and_at_the_nearest_node_that_lacks_it() {
    let bench = Bench::new();
    let (reader, one, other) = (bench.node(0), bench.node(1), bench.node(2));
    one.store_here(&record(&regular(id(1000), 5, NOON + 10.0)), false);
    reader.heard_from(contact(1));
    reader.heard_from(contact(2));
    assert_eq!(value(read(&reader, id(1000), Freshness::Latest).await), Some(5));
    assert_eq!(reader.state().cache.len(), 1);
    until("the other node has a copy", || other.state().cache.len() == 1).await;
    let calls = bench.lan.calls(names::DHT_FIND);
    assert_eq!(value(read(&reader, id(1000), Freshness::Any).await), Some(5));
    assert_eq!(bench.lan.calls(names::DHT_FIND), calls, "answered from the cache");
    bench.clock.advance(11.0);
    assert_eq!(read(&reader, id(1000), Freshness::Any).await, None);
}

#[tokio::test]
async fn a_cached_value_that_is_read_is_fetched_again_before_it_expires() {
    let bench = Bench::new();
    let (reader, one) = (bench.node(0), bench.node(1));
    one.store_here(&record(&regular(id(1000), 5, NOON + 100.0)), false);
    reader.heard_from(contact(1));
    read(&reader, id(1000), Freshness::Any).await;
    assert!(
        reader.state().take_due_refreshes(16, NOON + 1000.0).is_empty(),
        "nobody read the cached copy yet"
    );
    read(&reader, id(1000), Freshness::Any).await;
    one.store_here(&record(&regular(id(1000), 6, NOON + 200.0)), false);
    assert!(reader.state().take_due_refreshes(16, NOON + 94.0).is_empty());
    bench.clock.advance(95.0);
    let due = reader.state().take_due_refreshes(16, NOON + 95.0);
    assert_eq!(due, [id(1000)]);
    reader.refresh(due).await;
    bench.clock.advance(10.0);
    assert_eq!(value(read(&reader, id(1000), Freshness::Any).await), Some(6));
}

#[tokio::test]
async fn protected_records_need_the_signature_of_their_owner_and_are_read_without_it() {
    let bench = Bench::new();
    let signing = |number: u64| {
        let rule = Arc::new(SignatureValidator::new(RsaPrivateKey::new(&mut OsRng, 1024).unwrap()));
        let marker = rule.owner_marker().unwrap().to_vec();
        let config = Config {
            validators: Validators::new(vec![rule]),
            ..bench.config()
        };
        (bench.lan.node(number, config, &bench.tasks), marker)
    };
    let ((owner, marker), (thief, _)) = (signing(0), signing(1));
    owner.heard_from(contact(1));
    thief.heard_from(contact(0));
    let item = |number: i64, expiration: f64| StoreItem {
        key: id(1000),
        subkey: Subkey::Key(Value::Binary(marker.clone())),
        value: super::number(number),
        expiration,
    };
    assert_eq!(owner.store_many(vec![item(1, NOON + 50.0)]).await, [true]);
    assert_eq!(thief.store_many(vec![item(2, NOON + 90.0)]).await, [false]);
    assert!(!owner.store_here(&record(&item(3, NOON + 90.0)), false));
    let Some(crate::dht::Found::Dictionary(found)) = read(&thief, id(1000), Freshness::Latest).await else {
        panic!("no dictionary");
    };
    assert_eq!(found.entries.len(), 1);
    assert_eq!(found.entries[0].value, number(1));
}
