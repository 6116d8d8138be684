//! Our DHT node and Python's: each joins through the other, and each reads what the other stored.

use std::time::Duration;

use interop_tests::{
    ANSWER,
    hub::Hub,
    node::Node,
    python::{DhtPeer, PetalsNode},
};
use sepal::{
    dht::{self, Dht, Found, Freshness, StoreItem},
    p2p::{self, Multiaddr, P2p, Router},
    task::Tasks,
};
use sepal_protocol::{
    dht_id::DhtId,
    msgpack::{self, Value as Pack},
    value::Subkey,
};
use serde_json::{Value, json};

/// Seconds that records live in these tests, unless their end is what is tested.
const LIFETIME: f64 = 300.0;

/// A node of ours in the test's own process, joined through these peers.
async fn ours(initial_peers: &[&str], tasks: &Tasks) -> (Dht, String) {
    ours_on(p2p::Config::default().listen, initial_peers, tasks).await
}

/// The same, listening there.
async fn ours_on(listen: Vec<Multiaddr>, initial_peers: &[&str], tasks: &Tasks) -> (Dht, String) {
    let known_peers: Vec<Multiaddr> = initial_peers.iter().map(|addr| addr.parse().unwrap()).collect();
    let config = p2p::Config {
        listen,
        known_peers: known_peers.clone(),
        ..p2p::Config::default()
    };
    let p2p = P2p::bind(config, tasks).await.unwrap();
    let config = dht::Config {
        initial_peers: known_peers,
        ..dht::Config::default()
    };
    let dht = Dht::spawn(p2p.clone(), config, tasks);
    Router::new(p2p.clone()).serve(dht.handlers()).spawn(tasks);
    assert_eq!(dht.bootstrap().await.unwrap(), initial_peers.len());
    (dht, p2p.addrs()[0].to_string())
}

fn item(key: &str, subkey: Subkey, value: &Pack, expiration: f64) -> StoreItem {
    StoreItem {
        key: DhtId::of_str(key),
        subkey,
        value: msgpack::encode(value),
        expiration,
    }
}

/// Everything that one can store and the other read, in both directions.
async fn exchange_records(ours: &Dht, python: &mut DhtPeer) {
    // A whole number survives the way through JSON exactly.
    let expiration = (ours.now() + LIFETIME).floor();
    let text = Pack::from("from Rust");
    let list = Pack::Array(vec![Pack::from(1), Pack::from(2.5), Pack::Nil, Pack::Boolean(true)]);
    let tuple = msgpack::tuple(vec![Pack::from(2), Pack::F64(10.0)]);
    assert_eq!(
        ours.store_many(vec![
            item("ours", Subkey::None, &list, expiration),
            item("ours, divided", Subkey::text("a"), &text, expiration),
            item("ours, divided", Subkey::text("b"), &tuple, expiration + 5.0),
        ])
        .await,
        [true, true, true]
    );
    let whole = python.ask(&json!({"op": "get", "key": "ours"})).unwrap();
    assert_eq!(whole, json!({"value": [1, 2.5, null, true], "expiration": expiration}));
    let divided = python
        .ask(&json!({"op": "get", "key": "ours, divided", "latest": true}))
        .unwrap();
    let want = json!([["a", "from Rust", expiration], ["b", [2, 10.0], expiration + 5.0]]);
    assert_eq!(sorted(&divided["entries"]), want);

    let mut store = |order: Value| {
        let answer = python.ask(&order).unwrap();
        assert_eq!(answer["stored"], true, "{answer}");
        answer["expiration"].as_f64().unwrap()
    };
    let lives = json!(LIFETIME);
    let whole = store(json!({"op": "store", "key": "theirs", "value": {"n": 3}, "expires_in": lives}));
    let part = |subkey: &str| json!({"op": "store", "key": "theirs, divided", "subkey": subkey, "value": subkey, "expires_in": lives});
    let (first, second) = (store(part("x")), store(part("y")));

    let value = Pack::Map(vec![(Pack::from("n"), Pack::from(3))]);
    let Some(Found::Regular { value: got, expiration }) = ours.get(DhtId::of_str("theirs"), Freshness::Any).await
    else {
        panic!("no value");
    };
    assert_eq!(got, msgpack::encode(&value));
    assert!((expiration - whole).abs() < 1e-6);
    let Some(Found::Dictionary(found)) = ours.get(DhtId::of_str("theirs, divided"), Freshness::Latest).await else {
        panic!("no dictionary");
    };
    for (subkey, expiration) in [("x", first), ("y", second)] {
        let entry = found.get(&Pack::from(subkey)).unwrap();
        assert_eq!(entry.value, msgpack::encode(&Pack::from(subkey)));
        assert!((entry.expiration - expiration).abs() < 1e-6);
    }
}

/// A later record replaces an earlier one, an earlier one replaces nothing, across both kinds of nodes.
async fn newer_wins(ours: &Dht, python: &mut DhtPeer) {
    let now = ours.now();
    let old = item("shared", Subkey::text("s"), &Pack::from("old"), now + LIFETIME);
    assert!(ours.store(old).await);
    let newer = json!({"op": "store", "key": "shared", "subkey": "s", "value": "new", "expires_in": 2.0 * LIFETIME});
    assert_eq!(python.ask(&newer).unwrap()["stored"], true);
    let late = item("shared", Subkey::text("s"), &Pack::from("late"), now + LIFETIME + 1.0);
    assert!(!ours.store(late).await);
    let found = python
        .ask(&json!({"op": "get", "key": "shared", "latest": true}))
        .unwrap();
    assert_eq!(found["entries"][0][1], "new", "{found}");
}

/// What one stored for a moment is gone for the other.
async fn records_end(ours: &Dht, python: &mut DhtPeer) {
    let brief = item("brief", Subkey::None, &Pack::from(1), ours.now() + 2.0);
    assert!(ours.store(brief).await);
    let deadline = std::time::Instant::now() + ANSWER;
    while python
        .ask(&json!({"op": "get", "key": "brief", "latest": true}))
        .unwrap()
        != json!({"missing": true})
    {
        assert!(std::time::Instant::now() < deadline, "the record does not end");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn sorted(entries: &Value) -> Value {
    let mut entries = entries.as_array().cloned().unwrap_or_default();
    entries.sort_by_key(|entry| entry[0].to_string());
    Value::Array(entries)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_node_that_joined_through_ours_shares_records_with_it() {
    let hub = Hub::new().unwrap();
    let tasks = Tasks::new();
    let (ours, addr) = ours(&[], &tasks).await;
    let mut python = DhtPeer::start(&hub, &[&addr]).unwrap();
    exchange_records(&ours, &mut python).await;
    newer_wins(&ours, &mut python).await;
    records_end(&ours, &mut python).await;
    tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_ours_that_joined_through_python_shares_records_with_it() {
    let hub = Hub::new().unwrap();
    let tasks = Tasks::new();
    let mut python = DhtPeer::start(&hub, &[]).unwrap();
    let addr = python.addr.clone().unwrap();
    let (ours, _) = ours(&[&addr], &tasks).await;
    exchange_records(&ours, &mut python).await;
    newer_wins(&ours, &mut python).await;
    tasks.shutdown().await;
}

/// Hivemind's daemon speaks QUIC as well, and prefers it when a peer announces both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_both_kinds_that_speak_nothing_but_quic_join_through_each_other_and_share_records() {
    let hub = Hub::new().unwrap();
    let tasks = Tasks::new();
    let quic: Multiaddr = "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap();
    let (_first, addr) = ours_on(vec![quic.clone()], &[], &tasks).await;
    let mut python = DhtPeer::start(&hub, &["--quic", &addr]).unwrap();
    let through = python.addr.clone().unwrap();
    assert!(through.contains("/quic-v1/"), "{through}");
    let (second, _) = ours_on(vec![quic], &[&through], &tasks).await;
    exchange_records(&second, &mut python).await;
    newer_wins(&second, &mut python).await;
    tasks.shutdown().await;
}

#[test]
fn a_third_python_node_reaches_ours_by_its_peer_id_alone() {
    let hub = Hub::new().unwrap();
    let ours = Node::bootstrap(&hub, &[]).unwrap();
    let middle = DhtPeer::start(&hub, &[&ours.addr]).unwrap();
    let mut third = DhtPeer::start(&hub, &[middle.addr.as_deref().unwrap()]).unwrap();
    let answer = third.ask(&json!({"op": "ping", "peer_id": ours.peer_id})).unwrap();
    assert_eq!(answer["node_id"].as_str().map(str::len), Some(40), "{answer}");
}

#[test]
fn two_python_nodes_find_each_other_and_their_records_through_ours() {
    let hub = Hub::new().unwrap();
    let ours = Node::bootstrap(&hub, &[]).unwrap();
    let mut first = DhtPeer::start(&hub, &[&ours.addr]).unwrap();
    let mut second = DhtPeer::start(&hub, &[&ours.addr]).unwrap();
    let stored = first
        .ask(&json!({"op": "store", "key": "k", "subkey": "s", "value": 1, "expires_in": LIFETIME}))
        .unwrap();
    assert_eq!(stored["stored"], true);
    let found = second.ask(&json!({"op": "get", "key": "k", "latest": true})).unwrap();
    assert_eq!(found["entries"][0][1], 1, "{found}");
    let answer = second.ask(&json!({"op": "ping", "peer_id": first.peer_id})).unwrap();
    assert!(answer["node_id"].is_string(), "{answer}");
}

#[test]
fn our_bootstrap_node_joins_a_swarm_of_petals_and_welcomes_others_into_it() {
    let hub = Hub::new().unwrap();
    let petals = PetalsNode::bootstrap(&hub, &[]).unwrap();
    let ours = Node::bootstrap(&hub, &[&petals.addr]).unwrap();
    let mut third = DhtPeer::start(&hub, &[&ours.addr]).unwrap();
    let answer = third.ask(&json!({"op": "ping", "peer_id": petals.peer_id})).unwrap();
    assert!(answer["node_id"].is_string(), "{answer}");
}

#[test]
fn a_petals_bootstrap_node_joins_through_ours() {
    let hub = Hub::new().unwrap();
    let ours = Node::bootstrap(&hub, &[]).unwrap();
    let petals = PetalsNode::bootstrap(&hub, &[&ours.addr]).unwrap();
    let mut third = DhtPeer::start(&hub, &[&petals.addr]).unwrap();
    let answer = third.ask(&json!({"op": "ping", "peer_id": ours.peer_id})).unwrap();
    assert!(answer["node_id"].is_string(), "{answer}");
}
