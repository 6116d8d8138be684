//! Records in the DHT: a value, a dictionary whose entries have subkeys, and what becomes of both when they expire.
//!
//! ```text
//! $ cargo run --release --example dht_node
//! two nodes more join /ip4/127.0.0.1/tcp/…/p2p/12D3KooW…
//! stored color = blue: true
//! found  color = blue, for another … s
//! stored color = grey, which would be gone before that: false
//! stored basket[apples] = 3: true
//! stored basket[pears] = 5: true
//! found  basket[apples] = 3
//! found  basket[pears] = 5
//! stored note = gone in ten seconds: true
//! found  note = gone in ten seconds
//! found  note = nothing
//! ```
//!
//! With addresses of nodes (`dht_node ADDR…`, each with /p2p/PEER_ID) the records are stored in the swarm of those, under keys
//! that nobody else uses.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use sepal::dht::{Dht, Found, Freshness, StoreItem};
use sepal::p2p::{Config, Multiaddr};
use sepal::swarm::Node;
use sepal_protocol::dht_id::DhtId;
use sepal_protocol::msgpack::{self, Value};
use sepal_protocol::value::Subkey;

/// Values are MessagePack and live until a time that whoever stores them names.
async fn store(dht: &Dht, key: &str, subkey: Subkey, value: impl Into<Value>, seconds: f64) -> bool {
    let item = StoreItem {
        key: DhtId::of_str(key),
        subkey,
        value: msgpack::encode(&value.into()),
        expiration: dht.now() + seconds,
    };
    dht.store(item).await
}

/// All nodes that should have the record are asked, and the newest one counts.
async fn find(dht: &Dht, key: &str) -> Option<Found> {
    dht.get(DhtId::of_str(key), Freshness::Latest).await
}

fn shown(value: &[u8]) -> anyhow::Result<String> {
    Ok(msgpack::decode(value)?.to_string().replace('"', ""))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let given: Result<Vec<Multiaddr>, _> = std::env::args().skip(1).map(|addr| addr.parse()).collect();
    let joined = |peers| Node::join(Config::on_loopback(peers));
    let first = joined(given?).await?;
    let entry = first.p2p.addrs();
    println!("two nodes more join {}", entry[0]);
    let (writer, reader) = (joined(entry.clone()).await?, joined(entry).await?);
    let (here, there) = (&writer.dht, &reader.dht);
    let [color, basket, note] = ["color", "basket", "note"].map(|key| format!("{key} of {}", writer.p2p.peer_id()));

    let stored = store(here, &color, Subkey::None, "blue", 60.0).await;
    println!("stored color = blue: {stored}");
    if let Some(Found::Regular { value, expiration }) = find(there, &color).await {
        println!(
            "found  color = {}, for another {:.0} s",
            shown(&value)?,
            expiration - there.now()
        );
    }
    let stored = store(here, &color, Subkey::None, "grey", 30.0).await;
    println!("stored color = grey, which would be gone before that: {stored}");

    // Each entry is stored by itself, by whomever, and has an end of its own.
    for (node, name, number) in [(here, "apples", 3), (there, "pears", 5)] {
        let stored = store(node, &basket, Subkey::text(name), number, 60.0).await;
        println!("stored basket[{name}] = {number}: {stored}");
    }
    if let Some(Found::Dictionary(mut found)) = find(&first.dht, &basket).await {
        found.entries.sort_by_key(|entry| entry.subkey.to_string());
        for entry in &found.entries {
            let name = entry.subkey.as_str().unwrap_or_default();
            println!("found  basket[{name}] = {}", shown(&entry.value)?);
        }
    }

    let stored = store(here, &note, Subkey::None, "gone in ten seconds", 10.0).await;
    println!("stored note = gone in ten seconds: {stored}");
    if let Some(Found::Regular { value, .. }) = find(there, &note).await {
        println!("found  note = {}", shown(&value)?);
    }
    while find(there, &note).await.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("found  note = nothing");
    for node in [reader, writer, first] {
        node.stop().await;
    }
    Ok(())
}
