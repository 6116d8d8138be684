//! Signed records among Python nodes: our servers' signatures, which Python ignores, and Hivemind's for RSA owners.

use std::{fs, sync::Arc};

use interop_tests::{
    hub::{self, Hub, repository},
    node::Swarm,
    python::DhtPeer,
};
use rsa::{RsaPrivateKey, pkcs1::DecodeRsaPrivateKey};
use sepal::{
    dht::{
        self, Dht, Found, Freshness, StoreItem,
        validate::{SignatureValidator, Validators},
    },
    p2p::{self, Identity, Multiaddr, P2p, PeerId, Router},
    swarm::{
        Directory,
        signature::{self, Signature},
    },
    task::Tasks,
};
use sepal_protocol::{
    dht_id::DhtId,
    msgpack::{self, Value as Pack},
    record::ServerState,
    value::Subkey,
};
use serde_json::{Value, json};

const LIFETIME: f64 = 300.0;

/// A node in the test's own process, with these rules.
async fn node(initial: &str, identity: Identity, validators: Validators, tasks: &Tasks) -> Dht {
    let initial_peers: Vec<Multiaddr> = vec![initial.parse().unwrap()];
    let config = p2p::Config {
        identity,
        known_peers: initial_peers.clone(),
        ..p2p::Config::default()
    };
    let p2p = P2p::bind(config, tasks).await.unwrap();
    let config = dht::Config {
        initial_peers,
        validators,
        ..dht::Config::default()
    };
    let dht = Dht::spawn(p2p.clone(), config, tasks);
    Router::new(p2p).serve(dht.handlers()).spawn(tasks);
    dht.bootstrap().await.unwrap();
    dht
}

fn uids() -> Vec<String> {
    (0..hub::N_BLOCKS)
        .map(|block| format!("{}.{block}", hub::PREFIX))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn petals_reads_our_signed_records_and_its_forgeries_of_them_are_not_believed() {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:2", "2:4"], &[]).unwrap();
    let mut python = DhtPeer::start(&hub, &[&swarm.bootstrap.addr]).unwrap();
    let tasks = Tasks::new();
    let identity = Identity::ephemeral();
    let rules = signature::validators(identity.clone());
    let reader = node(&swarm.bootstrap.addr, identity, rules, &tasks).await;
    let ids: Vec<&str> = swarm.servers.iter().map(|server| server.peer_id.as_str()).collect();

    let read = python.ask(&json!({"op": "modules", "uids": uids()})).unwrap();
    assert_eq!(read["spans"], json!({ids[0]: [0, 2], ids[1]: [2, 4]}), "{read}");
    let told = &read["servers"][1][ids[0]];
    assert_eq!(told["state"], "ONLINE");
    assert_eq!((&told["start_block"], &told["end_block"]), (&json!(0), &json!(2)));
    assert_eq!(told["torch_dtype"], "float32");

    // What is stored has Petals' thirteen fields in their order, then the signature.
    let get = json!({"op": "get", "key": uids()[0], "latest": true});
    let stored = python.ask(&get).unwrap();
    let fields: Vec<&str> = stored["entries"][0][1][2]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(fields.len(), 14, "{fields:?}");
    assert_eq!(
        (fields[0], fields[12], fields[13]),
        ("start_block", "next_pings", "sepal_signature")
    );
    println!("Petals reads {told}\nof {}", stored["entries"][0]);

    // A later record in the name of the server, unsigned, as anybody can store one.
    let map = json!({"start_block": 0, "end_block": 4});
    let forgery =
        json!({"op": "store", "key": uids()[0], "subkey": ids[0], "value": [0, 1.0, map], "expires_in": 3000});
    python.ask(&forgery).unwrap();
    let victim: PeerId = ids[0].parse().unwrap();
    let snapshot = Directory::new(reader, hub::PREFIX, hub::N_BLOCKS).refresh().await;
    assert_eq!(snapshot.blocks[0][&victim].state, ServerState::Online);
    assert_eq!(snapshot.provenance[&victim].signature, Signature::Valid);
    assert_eq!(snapshot.spans.len(), 2);
    tasks.shutdown().await;
}

/// The key of the vector: to make one takes long in a debug build.
fn owner_key() -> RsaPrivateKey {
    let file = repository().join("protocol/vectors/hivemind/rsa_record.json");
    let vector: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let der = hex::decode(vector["private_key_der_pkcs1"].as_str().unwrap()).unwrap();
    RsaPrivateKey::from_pkcs1_der(&der).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_rsa_owners_are_written_by_either_and_changed_by_no_one_else() {
    let hub = Hub::new().unwrap();
    let tasks = Tasks::new();
    let mut python = DhtPeer::start(&hub, &["--sign"]).unwrap();
    let addr = python.addr.clone().unwrap();
    let rule = Arc::new(SignatureValidator::new(owner_key()));
    let our_marker = String::from_utf8(rule.owner_marker().unwrap().to_vec()).unwrap();
    let ours = node(&addr, Identity::ephemeral(), Validators::new(vec![rule]), &tasks).await;
    let their_marker = python.ask(&json!({"op": "owner"})).unwrap()["marker"]
        .as_str()
        .unwrap()
        .to_owned();
    let item = |subkey: &str, value: &str, lifetime: f64| StoreItem {
        key: DhtId::of_str("shared"),
        subkey: Subkey::text(subkey),
        value: msgpack::encode(&Pack::from(value)),
        expiration: ours.now() + lifetime,
    };
    let order = |subkey: &str, value: &str, lifetime: f64| json!({"op": "store", "key": "shared", "subkey": subkey, "value": value, "expires_in": lifetime});

    assert!(ours.store(item(&our_marker, "ours", LIFETIME)).await);
    let stored = python.ask(&order(&their_marker, "theirs", LIFETIME)).unwrap();
    assert_eq!(stored["stored"], true, "{stored}");
    // Each tries to change what the other owns.
    assert!(!ours.store(item(&their_marker, "stolen", 2.0 * LIFETIME)).await);
    let stolen = python.ask(&order(&our_marker, "stolen", 2.0 * LIFETIME)).unwrap();
    assert_eq!(stolen["stored"], false, "{stolen}");

    let read = python
        .ask(&json!({"op": "get", "key": "shared", "latest": true}))
        .unwrap();
    let mut seen: Vec<(String, String)> = read["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry[0].as_str().unwrap().to_owned(),
                entry[1].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    seen.sort();
    let mut want = vec![
        (our_marker.clone(), "ours".to_owned()),
        (their_marker.clone(), "theirs".to_owned()),
    ];
    want.sort();
    assert_eq!(seen, want);
    let Some(Found::Dictionary(found)) = ours.get(DhtId::of_str("shared"), Freshness::Latest).await else {
        panic!("no dictionary");
    };
    for (owner, value) in want {
        let entry = found.get(&Pack::from(owner)).unwrap();
        assert_eq!(entry.value, msgpack::encode(&Pack::from(value)));
        assert!(entry.proven);
    }
    tasks.shutdown().await;
}
