//! Announcers on real DHT nodes over loopback, seen by other nodes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sepal_protocol::value::Subkey;

use super::*;
use crate::{
    dht::{self, Found, Freshness, StoreItem},
    p2p::{Multiaddr, P2p, Router},
    swarm::{
        Directory,
        directory::{block_key, read_registry},
        testing::{host, node, server},
    },
};

fn config(peer: PeerId, prefix: &str, blocks: Range<u32>) -> AnnounceConfig {
    AnnounceConfig {
        peer,
        prefix: prefix.to_string(),
        blocks,
        n_model_blocks: 4,
        repository: None,
        period: Duration::from_secs(60),
        expiration: AnnounceConfig::default_expiration(Duration::from_secs(60)),
    }
}

/// What the server says about itself; the announcer replaces state and span.
fn describe() -> ServerInfo {
    ServerInfo::new(ServerState::Offline, 7.0)
}

/// Reads the directory until it shows what is waited for.
async fn until(directory: &Directory, shown: impl Fn(&crate::swarm::Snapshot) -> bool) {
    while !shown(&*directory.refresh().await) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn expiration(dht: &Dht, prefix: &str, block: u32) -> f64 {
    let found = dht.get_many(vec![block_key(prefix, block)], Freshness::Latest).await;
    match found.into_iter().next() {
        Some(Some(Found::Dictionary(servers))) => servers.entries[0].expiration,
        _ => 0.0,
    }
}

#[test]
fn records_outlive_two_periods_and_the_difference_of_clocks() {
    let expiration = |s| AnnounceConfig::default_expiration(Duration::from_secs(s)).as_secs();
    assert_eq!(expiration(120), 240);
    assert_eq!(expiration(1), 3);
}

#[tokio::test]
async fn every_state_is_seen_by_others_once_it_is_set() {
    let tasks = Tasks::new();
    let (bootstrap, other) = node(&tasks, Vec::new()).await;
    let (p2p, dht) = node(&tasks, bootstrap.addrs()).await;
    let directory = Directory::new(other.clone(), "m", 4);
    let announcer = Announcer::spawn(dht, config(p2p.peer_id(), "m", 1..3), describe, &tasks);
    assert!(read_registry(&other).await.is_empty());
    for state in [ServerState::Joining, ServerState::Online, ServerState::Offline] {
        announcer.set_state(state).await.unwrap();
        let snapshot = directory.refresh().await;
        let seen = snapshot.spans(ServerState::Offline);
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].peer, seen[0].blocks.clone()), (p2p.peer_id(), 1..3));
        assert_eq!((seen[0].info.state, seen[0].info.throughput), (state, 7.0));
        assert_eq!(
            snapshot.blocks.iter().map(|servers| servers.len()).collect::<Vec<_>>(),
            [0, 1, 1, 0]
        );
        assert_eq!(read_registry(&other).await["m"].num_blocks, 4);
    }
    assert_eq!(
        announcer.set_state(ServerState::Online).await,
        Err(AnnounceError::Stopped)
    );
    tasks.shutdown().await;
}

#[tokio::test]
async fn two_spans_hand_over_without_a_moment_in_which_nothing_is_said() {
    let tasks = Tasks::new();
    let (bootstrap, other) = node(&tasks, Vec::new()).await;
    let (p2p, dht) = node(&tasks, bootstrap.addrs()).await;
    let directory = Directory::new(other, "m", 4);
    let me = p2p.peer_id();
    let read = async || {
        let snapshot = directory.refresh().await;
        let states = snapshot
            .blocks
            .iter()
            .map(|servers| servers.get(&me).map(|info| info.state));
        (
            states.collect::<Vec<_>>(),
            snapshot.spans.first().map(|span| span.blocks.clone()),
        )
    };
    let (offline, joining, online) = (
        Some(ServerState::Offline),
        Some(ServerState::Joining),
        Some(ServerState::Online),
    );
    let old = Announcer::spawn(dht.clone(), config(me, "m", 0..3), describe, &tasks);
    let new = Announcer::spawn(dht, config(me, "m", 1..4), describe, &tasks);
    old.set_state(ServerState::Online).await.unwrap();
    new.set_state_except(ServerState::Joining, 0..3).await.unwrap();
    assert_eq!(read().await, (vec![online, online, online, joining], Some(0..3)));
    old.set_state_except(ServerState::Offline, 1..4).await.unwrap();
    assert_eq!(read().await, (vec![offline, online, online, joining], Some(0..3)));
    new.set_state(ServerState::Online).await.unwrap();
    assert_eq!(read().await, (vec![offline, online, online, online], Some(1..4)));
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_private_model_is_not_registered() {
    let tasks = Tasks::new();
    let (p2p, dht) = node(&tasks, Vec::new()).await;
    let announcer = Announcer::spawn(dht.clone(), config(p2p.peer_id(), "_mine", 0..4), describe, &tasks);
    announcer.set_state(ServerState::Online).await.unwrap();
    assert!(expiration(&dht, "_mine", 0).await > 0.0);
    assert!(read_registry(&dht).await.is_empty());
    tasks.shutdown().await;
}

#[tokio::test]
async fn records_are_stored_again_with_what_is_new() {
    let tasks = Tasks::new();
    let (p2p, dht) = node(&tasks, Vec::new()).await;
    let free = Arc::new(AtomicU64::new(100));
    let describe = {
        let free = free.clone();
        move || ServerInfo {
            cache_tokens_left: Some(free.load(Ordering::Relaxed)),
            ..describe()
        }
    };
    let mut config = config(p2p.peer_id(), "m", 0..4);
    config.period = Duration::from_millis(50);
    let announcer = Announcer::spawn(dht.clone(), config, describe, &tasks);
    announcer.set_state(ServerState::Online).await.unwrap();
    let first = expiration(&dht, "m", 3).await;
    free.store(50, Ordering::Relaxed);
    until(&Directory::new(dht.clone(), "m", 4), |snapshot| {
        snapshot.spans[0].info.cache_tokens_left == Some(50)
    })
    .await;
    assert!(expiration(&dht, "m", 3).await > first);
    tasks.shutdown().await;
}

#[tokio::test]
async fn round_trips_to_the_next_servers_are_published() {
    let tasks = Tasks::new();
    let (p2p, dht) = node(&tasks, Vec::new()).await;
    let (next_p2p, next_dht) = node(&tasks, p2p.addrs()).await;
    let next = Announcer::spawn(next_dht, config(next_p2p.peer_id(), "m", 2..4), describe, &tasks);
    next.set_state(ServerState::Online).await.unwrap();
    let first = Announcer::spawn(dht.clone(), config(p2p.peer_id(), "m", 0..2), describe, &tasks);
    first.set_state(ServerState::Online).await.unwrap();
    let pings = |snapshot: &crate::swarm::Snapshot| {
        let own = snapshot.blocks[0][&p2p.peer_id()].next_pings.clone();
        own.unwrap_or_default()
    };
    let directory = Directory::new(dht, "m", 4);
    until(&directory, |snapshot| !pings(snapshot).is_empty()).await;
    let pings = pings(&directory.snapshot());
    assert_eq!(pings.len(), 1);
    assert_eq!(pings[0].0, next_p2p.peer_id().to_string());
    assert!(pings[0].1.is_finite());
    tasks.shutdown().await;
}

/// A DHT client that has not joined yet: it can store nothing.
async fn outsider(tasks: &Tasks, initial_peers: Vec<Multiaddr>) -> (P2p, Dht) {
    let p2p = host(tasks, false).await;
    let config = dht::Config {
        client_mode: true,
        initial_peers,
        ..dht::Config::default()
    };
    let dht = Dht::spawn(p2p.clone(), config, tasks);
    Router::new(p2p.clone()).serve(dht.handlers()).spawn(tasks);
    (p2p, dht)
}

#[tokio::test]
async fn a_state_is_announced_as_soon_as_a_node_can_take_it() {
    let tasks = Tasks::new();
    let (bootstrap, other) = node(&tasks, Vec::new()).await;
    let (p2p, dht) = outsider(&tasks, bootstrap.addrs()).await;
    let announcer = Announcer::spawn(dht.clone(), config(p2p.peer_id(), "m", 0..4), describe, &tasks);
    let online = announcer.set_state(ServerState::Online);
    tokio::pin!(online);
    // Nobody is there to take it.
    let waited = tokio::time::timeout(Duration::from_millis(200), &mut online).await;
    assert!(waited.is_err());
    dht.bootstrap().await.unwrap();
    online.await.unwrap();
    let snapshot = Directory::new(other, "m", 4).refresh().await;
    assert_eq!(snapshot.spans[0].blocks, 0..4);
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_new_state_replaces_one_that_cannot_be_stored_and_offline_gives_up() {
    let tasks = Tasks::new();
    let (p2p, dht) = outsider(&tasks, Vec::new()).await;
    let announcer = Announcer::spawn(dht, config(p2p.peer_id(), "m", 0..4), describe, &tasks);
    let (online, offline) = tokio::join!(
        announcer.set_state(ServerState::Online),
        announcer.set_state(ServerState::Offline)
    );
    assert_eq!(online, Err(AnnounceError::Superseded));
    assert_eq!(offline, Err(AnnounceError::NotStored { stored: 0, blocks: 4 }));
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_server_outlives_the_longer_lasting_records_of_its_former_self() {
    let tasks = Tasks::new();
    let (p2p, dht) = node(&tasks, Vec::new()).await;
    let former = StoreItem {
        key: block_key("m", 0),
        subkey: Subkey::text(&p2p.peer_id().to_string()),
        value: server(ServerState::Offline, 0..1).encode(),
        expiration: dht.now() + 3600.0,
    };
    assert_eq!(dht.store_many(vec![former]).await, [true]);
    let announcer = Announcer::spawn(dht.clone(), config(p2p.peer_id(), "m", 0..2), describe, &tasks);
    announcer.set_state(ServerState::Online).await.unwrap();
    let snapshot = Directory::new(dht, "m", 4).refresh().await;
    assert_eq!(snapshot.spans[0].blocks, 0..2);
    tasks.shutdown().await;
}
