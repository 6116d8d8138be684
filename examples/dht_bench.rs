//! One DHT node, measured beside Python's: `scripts/bench-dht.sh` runs both. Orders are those of `dht_peer.py`, `time`.
//!
//! ```text
//! $ cargo run --release --example dht_bench -- [INITIAL_PEER…]
//! {"peer_id":"12D3KooW…","addrs":["/ip4/127.0.0.1/tcp/…"],"joined_s":0.004}
//! {"seconds":[0.002,0.001],"complete":true}
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{io::BufRead, time::Instant};

use anyhow::Context;
use sepal::dht::{self, Dht, Found, Freshness, StoreItem};
use sepal::p2p::{Config, Identity, Multiaddr, P2p, Router};
use sepal::swarm::signature;
use sepal::task::Tasks;
use sepal_protocol::{dht_id::DhtId, msgpack, value::Subkey};
use serde_json::{Value, json};

const LIFETIME_S: f64 = 600.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let peers = std::env::args().skip(1).map(|addr| addr.parse());
    let initial_peers: Vec<Multiaddr> = peers.collect::<Result<_, _>>().context("an address is malformed")?;
    let (tasks, identity, started) = (Tasks::new(), Identity::ephemeral(), Instant::now());
    let config = Config {
        identity: identity.clone(),
        known_peers: initial_peers.clone(),
        ..Config::default()
    };
    let p2p = P2p::bind(config, &tasks).await?;
    let config = dht::Config {
        initial_peers,
        validators: signature::validators(identity),
        ..dht::Config::default()
    };
    let dht = Dht::spawn(p2p.clone(), config, &tasks);
    Router::new(p2p.clone()).serve(dht.handlers()).spawn(&tasks);
    dht.bootstrap().await?;
    let addrs: Vec<String> = p2p.addrs().iter().map(ToString::to_string).collect();
    let joined_s = started.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"peer_id": p2p.peer_id().to_string(), "addrs": addrs, "joined_s": joined_s})
    );
    let (orders, mut inbox) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        let lines = std::io::stdin().lock().lines().map_while(Result::ok);
        lines.for_each(|line| drop(orders.blocking_send(line)));
    });
    while let Some(line) = inbox.recv().await {
        println!("{}", answer(&dht, &serde_json::from_str(&line)?).await?);
    }
    tasks.shutdown().await;
    Ok(())
}

/// Does what is ordered for each key in turn, or for all at once, and says how long each took.
async fn answer(dht: &Dht, order: &Value) -> anyhow::Result<Value> {
    let texts = |name: &str| -> Vec<String> {
        let list = order[name].as_array().into_iter().flatten();
        list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let (keys, subkeys, what) = (texts("keys"), texts("subkeys"), order["what"].as_str());
    let together = order["together"].as_bool().unwrap_or(false);
    let freshness = if what == Some("latest") {
        Freshness::Latest
    } else {
        Freshness::Any
    };
    let bytes = usize::try_from(order["bytes"].as_u64().unwrap_or(0))?;
    let (mut seconds, mut complete) = (Vec::new(), true);
    for keys in keys.chunks(if together { keys.len().max(1) } else { 1 }) {
        let started = Instant::now();
        if what == Some("store") {
            let value = msgpack::encode(&vec![7u8; bytes].as_slice().into());
            let expiration = dht.now() + LIFETIME_S;
            let item = |key: &String, subkey: &String| StoreItem {
                key: DhtId::of_str(key),
                subkey: Subkey::text(subkey),
                value: value.clone(),
                expiration,
            };
            let items = keys
                .iter()
                .flat_map(|key| subkeys.iter().map(move |subkey| item(key, subkey)));
            complete &= dht.store_many(items.collect()).await.iter().all(|stored| *stored);
        } else {
            let ids = keys.iter().map(|key| DhtId::of_str(key));
            let found = dht.get_many(ids.collect(), freshness).await;
            let n_wanted = subkeys.len();
            let is_whole =
                |found: &Option<Found>| matches!(found, Some(Found::Dictionary(all)) if all.entries.len() == n_wanted);
            complete &= found.iter().all(is_whole);
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(json!({"seconds": seconds, "complete": complete}))
}
