//! Signing and checking one record at a time, and what a DHT of our nodes makes of forgeries.

use std::fs;

use sepal_protocol::record::ServerState;

use super::*;
use crate::{
    dht::{self, Dht, Found, Freshness, StoreItem},
    p2p::{self, P2p, Router},
    swarm::{
        Directory,
        directory::block_key,
        hygiene::Problem,
        testing::{node, peer, server},
    },
    task::Tasks,
};

/// An identity as a Python node keeps it: RSA, whose peer id is a hash of the key.
fn rsa_identity() -> Identity {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/hivemind/identity.json");
    let vectors: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.key");
    fs::write(
        &file,
        hex::decode(vectors["cases"][0]["identity_file"].as_str().unwrap()).unwrap(),
    )
    .unwrap();
    Identity::load_or_create(&file).unwrap()
}

fn record() -> Vec<u8> {
    server(ServerState::Online, 0..4).encode()
}

fn view<'a>(subkey: &'a [u8], value: &'a [u8]) -> RecordView<'a> {
    RecordView {
        key: &[7; 20],
        subkey,
        value,
        expiration: 1000.5,
    }
}

fn tag(peer: &PeerId) -> Vec<u8> {
    Subkey::text(&peer.to_string()).to_wire()
}

#[test]
fn what_a_server_signs_is_proven_and_any_change_is_refused() {
    for identity in [Identity::ephemeral(), rsa_identity()] {
        let subkey = tag(&identity.peer_id());
        let value = record();
        let signed = ServerSignatures::new(identity).sign(&view(&subkey, &value));
        assert_eq!(ServerInfo::decode(&signed), ServerInfo::decode(&value));
        let reader = ServerSignatures::new(Identity::ephemeral());
        for _ in 0..2 {
            assert_eq!(reader.validate(&view(&subkey, &signed)), Verdict::Proven);
        }
        let good = view(&subkey, &signed);
        let later = RecordView {
            expiration: 1001.0,
            ..good
        };
        let elsewhere = RecordView { key: &[8; 20], ..good };
        assert_eq!(reader.validate(&later), Verdict::Refused, "it shall not live longer");
        assert_eq!(
            reader.validate(&elsewhere),
            Verdict::Refused,
            "nor be under another block"
        );
        let other = tag(&peer(1));
        assert_eq!(
            reader.validate(&view(&other, &signed)),
            Verdict::Refused,
            "nor under another server"
        );
        let (_, seal) = Seal::detach(&signed).unwrap().unwrap();
        let changed = seal.attach(&server(ServerState::Offline, 0..4).encode()).unwrap();
        assert_eq!(
            reader.validate(&view(&subkey, &changed)),
            Verdict::Refused,
            "nor say anything else"
        );
    }
}

#[test]
fn only_the_own_server_records_are_signed_and_unsigned_ones_of_others_are_allowed() {
    let identity = Identity::ephemeral();
    let own = tag(&identity.peer_id());
    let rule = ServerSignatures::new(identity);
    let value = record();
    assert_ne!(rule.sign(&view(&own, &value)), value);
    assert_eq!(
        rule.sign(&view(&tag(&peer(1)), &value)),
        value,
        "a record of another server"
    );
    assert_eq!(rule.sign(&view(&own, b"\x05")), b"\x05", "no server record");
    for (subkey, value) in [
        (own.as_slice(), value.as_slice()),
        (&own, b"\x05"),
        (b"\xc0", &value),
        (b"\xa1x", &value),
    ] {
        assert_eq!(rule.validate(&view(subkey, value)), Verdict::Allowed);
    }
}

#[test]
fn verdicts_are_remembered_within_a_bound() {
    let mut remembered = Remembered::default();
    let name = |number: usize| -> Fingerprint { Sha256::digest(number.to_be_bytes()).into() };
    for number in 0..=MAX_REMEMBERED {
        remembered.put(name(number), Verdict::Proven);
    }
    assert_eq!(remembered.get(&name(0)), None);
    assert_eq!(remembered.get(&name(1)), Some(Verdict::Proven));
    assert_eq!(remembered.order.len(), MAX_REMEMBERED);
    assert_eq!(remembered.verdicts.len(), MAX_REMEMBERED);
}

/// A DHT node that signs its records and checks those of others.
async fn signing(tasks: &Tasks, initial_peers: Vec<p2p::Multiaddr>) -> (P2p, Dht) {
    let identity = Identity::ephemeral();
    let config = p2p::Config {
        identity: identity.clone(),
        ..p2p::Config::default()
    };
    let p2p = P2p::bind(config, tasks).await.unwrap();
    let config = dht::Config {
        initial_peers,
        validators: validators(identity),
        ..dht::Config::default()
    };
    let dht = Dht::spawn(p2p.clone(), config, tasks);
    Router::new(p2p.clone()).serve(dht.handlers()).spawn(tasks);
    dht.bootstrap().await.unwrap();
    (p2p, dht)
}

async fn store(dht: &Dht, peer: PeerId, block: u32, value: Vec<u8>, lifetime: f64) -> bool {
    let item = StoreItem {
        key: block_key("m", block),
        subkey: Subkey::text(&peer.to_string()),
        value,
        expiration: dht.now() + lifetime,
    };
    dht.store_many(vec![item]).await == [true]
}

#[tokio::test]
async fn forged_records_of_a_server_that_signs_are_neither_stored_nor_believed() {
    let tasks = Tasks::new();
    // The first node checks nothing, like one in Python; the forger is another such.
    let (first, naive) = node(&tasks, Vec::new()).await;
    let (_, forger) = node(&tasks, first.addrs()).await;
    let (server_p2p, server_dht) = signing(&tasks, first.addrs()).await;
    let (_, reader) = signing(&tasks, first.addrs()).await;
    let victim = server_p2p.peer_id();
    assert!(store(&server_dht, victim, 0, record(), 60.0).await);
    let directory = Directory::new(reader.clone(), "m", 4);
    let snapshot = directory.refresh().await;
    assert_eq!(snapshot.provenance[&victim].signature, Signature::Valid);

    let forged = server(ServerState::Offline, 0..4).encode();
    // The naive nodes take it, for it lives longer. Ours do not, and the reader believes what is signed.
    store(&forger, victim, 0, forged.clone(), 600.0).await;
    let snapshot = directory.refresh().await;
    assert_eq!(snapshot.blocks[0][&victim].state, ServerState::Online);
    assert_eq!(snapshot.provenance[&victim].signature, Signature::Valid);
    let Some(Found::Dictionary(seen)) = naive.get(block_key("m", 0), Freshness::Any).await else {
        panic!("the naive node has no record");
    };
    assert_eq!(
        ServerInfo::decode(&seen.entries[0].value).unwrap().state,
        ServerState::Offline
    );

    // Nor does an unsigned record under another block change the span of a server that signs.
    store(&forger, victim, 3, record(), 600.0).await;
    let snapshot = directory.refresh().await;
    assert!(snapshot.blocks[3].is_empty());
    assert!(
        snapshot
            .flawed
            .iter()
            .any(|flawed| { (flawed.peer, flawed.block, &flawed.problem) == (Some(victim), 3, &Problem::Unsigned) })
    );
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_record_with_a_wrong_signature_is_shown_as_forged_and_used_for_nothing() {
    let tasks = Tasks::new();
    let (first, forger) = node(&tasks, Vec::new()).await;
    let (_, reader) = signing(&tasks, first.addrs()).await;
    let seal = Seal {
        signature: vec![1; 64],
        public_key: None,
    };
    let victim = Identity::ephemeral().peer_id();
    store(&forger, victim, 0, seal.attach(&record()).unwrap(), 60.0).await;
    store(&forger, peer(2), 0, record(), 60.0).await;
    let snapshot = Directory::new(reader, "m", 4).refresh().await;
    assert_eq!(snapshot.blocks[0].keys().collect::<Vec<_>>(), [&peer(2)]);
    assert_eq!(snapshot.provenance[&victim].signature, Signature::Forged);
    assert_eq!(snapshot.provenance[&peer(2)].signature, Signature::None);
    assert_eq!(snapshot.flawed.len(), 1);
    assert_eq!(snapshot.flawed[0].peer, Some(victim));
    assert_eq!(snapshot.flawed[0].problem, Problem::Forged);
    tasks.shutdown().await;
}
