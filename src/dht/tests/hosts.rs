//! The same over real hosts: TCP, noise, yamux on loopback.

use std::time::Duration;

use bytes::Bytes;
use sepal_protocol::names;

use super::{NOON, entries, entry, regular, value};
use crate::{
    dht::{
        Clock, Config, Dht, Freshness,
        testing::{id, until},
    },
    p2p::{self, CallError, OpenError, P2p, Router},
    task::Tasks,
};

/// A node with a host of its own.
struct Host {
    dht: Dht,
    p2p: P2p,
    tasks: Tasks,
}

impl Host {
    async fn start(config: Config) -> Self {
        let tasks = Tasks::new();
        let p2p_config = p2p::Config {
            client_mode: config.client_mode,
            known_peers: config.initial_peers.clone(),
            ..p2p::Config::default()
        };
        let p2p = P2p::bind(p2p_config, &tasks).await.unwrap();
        let dht = Dht::spawn(p2p.clone(), config, &tasks);
        Router::new(p2p.clone()).serve(dht.handlers()).spawn(&tasks);
        dht.bootstrap().await.unwrap();
        Self { dht, p2p, tasks }
    }

    /// A node that joins through this one.
    async fn join(&self, clock: &Clock, client_mode: bool) -> Self {
        Self::start(Config {
            client_mode,
            initial_peers: self.p2p.addrs(),
            clock: clock.clone(),
            ..Config::default()
        })
        .await
    }
}

impl Host {
    /// Whether `other` accepts calls of this name.
    async fn is_served(&self, name: &str, other: &Self) -> bool {
        let peer = other.p2p.peer_id();
        let answer = self.p2p.call_unary(peer, name, Bytes::new(), Duration::from_secs(10));
        match answer.await {
            Err(CallError::Open(OpenError::UnknownName)) => false,
            Ok(_) | Err(CallError::Remote { .. }) => true,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn first(clock: &Clock) -> Host {
    Host::start(Config {
        clock: clock.clone(),
        ..Config::default()
    })
    .await
}

#[tokio::test]
async fn values_and_dictionaries_travel_between_hosts_and_expire() {
    let clock = Clock::manual(NOON);
    let a = first(&clock).await;
    let b = a.join(&clock, false).await;
    let c = a.join(&clock, false).await;
    assert!(b.dht.store(regular(id(1), 7, NOON + 60.0)).await);
    assert!(b.dht.store(entry(id(2), "b", 1, NOON + 30.0)).await);
    assert!(c.dht.store(entry(id(2), "c", 2, NOON + 60.0)).await);
    for host in [&a, &b, &c] {
        assert_eq!(value(host.dht.get(id(1), Freshness::Latest).await), Some(7));
        let both = [("b".to_owned(), 1), ("c".to_owned(), 2)];
        assert_eq!(entries(host.dht.get(id(2), Freshness::Latest).await), both);
    }
    clock.advance(31.0);
    assert_eq!(
        entries(a.dht.get(id(2), Freshness::Latest).await),
        [("c".to_owned(), 2)]
    );
    clock.advance(30.0);
    for host in [&a, &b, &c] {
        assert_eq!(
            host.dht.get_many(vec![id(1), id(2)], Freshness::Latest).await,
            [None, None]
        );
    }
    let round_trip = c.dht.ping(b.p2p.peer_id(), Duration::from_secs(10)).await.unwrap();
    assert!(round_trip > Duration::ZERO);
}

#[tokio::test]
async fn a_client_on_a_host_of_its_own_is_not_in_any_table() {
    let clock = Clock::manual(NOON);
    let a = first(&clock).await;
    let b = a.join(&clock, false).await;
    let client = a.join(&clock, true).await;
    for (name, served) in [
        (names::DHT_PING, true),
        (names::DHT_STORE, false),
        (names::DHT_FIND, false),
    ] {
        assert_eq!(a.is_served(name, &client).await, served, "{name}");
    }
    assert!(client.dht.store(regular(id(1), 7, NOON + 60.0)).await);
    assert_eq!(value(b.dht.get(id(1), Freshness::Any).await), Some(7));
    assert_eq!(value(client.dht.get(id(1), Freshness::Latest).await), Some(7));
    assert_eq!((a.dht.status().nodes, b.dht.status().nodes), (1, 1));
    assert!(b.dht.status().nearest_peers.contains(&a.p2p.peer_id()));
}

#[tokio::test]
async fn a_host_that_becomes_a_client_leaves_all_tables_and_comes_back_with_its_id() {
    let clock = Clock::manual(NOON);
    let a = first(&clock).await;
    let b = a.join(&clock, false).await;
    let c = a.join(&clock, false).await;
    let knows = |host: &Host| host.dht.status().nearest_peers.contains(&c.p2p.peer_id());
    until("the others know it", || knows(&a) && knows(&b)).await;
    c.dht.set_client_mode(true);
    assert!(c.dht.is_client());
    until("the others forgot it", || !knows(&a) && !knows(&b)).await;
    assert!(!a.is_served(names::DHT_FIND, &c).await);
    a.dht.ping(c.p2p.peer_id(), Duration::from_secs(10)).await.unwrap();
    assert!(c.dht.store(regular(id(1), 7, NOON + 60.0)).await);
    assert_eq!(value(b.dht.get(id(1), Freshness::Latest).await), Some(7));
    assert_eq!(c.dht.status().stored, 0);
    c.dht.set_client_mode(false);
    until("the others know it again", || knows(&a) && knows(&b)).await;
    assert!(a.is_served(names::DHT_FIND, &c).await);
    assert!(b.dht.store(regular(id(2), 8, NOON + 60.0)).await);
    until("it holds that, and what is handed to it", || c.dht.status().stored == 2).await;
}

#[tokio::test]
async fn a_host_that_dies_is_forgotten_and_its_records_live_on() {
    let clock = Clock::manual(NOON);
    let a = first(&clock).await;
    let b = a.join(&clock, false).await;
    let c = a.join(&clock, false).await;
    assert!(c.dht.store(regular(id(1), 7, NOON + 60.0)).await);
    let gone = c.p2p.peer_id();
    c.tasks.shutdown().await;
    drop(c);
    until("the connection is gone", || !b.p2p.connected_peers().contains(&gone)).await;
    assert_eq!(value(b.dht.get(id(1), Freshness::Latest).await), Some(7));
    assert!(!b.dht.status().nearest_peers.contains(&gone));
    assert!(b.dht.store(regular(id(1), 8, NOON + 90.0)).await);
    assert_eq!(value(a.dht.get(id(1), Freshness::Latest).await), Some(8));
}
