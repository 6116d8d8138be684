//! Many nodes in memory: joining, storing, losing nodes.

use std::{sync::Arc, time::Duration};

use sepal_protocol::{dht_id::DhtId, names};

use super::{NOON, regular, value};
use crate::{
    dht::{
        Clock, Config, Freshness, Unusable,
        node::Node,
        testing::{Lan, contact, id, until},
    },
    task::Tasks,
};

fn config(clock: &Clock, initial: &[u64]) -> Config {
    Config {
        clock: clock.clone(),
        initial_peers: initial.iter().map(|number| Lan::addr(*number)).collect(),
        ..Config::default()
    }
}

/// Nodes 0 to n − 1, all of which joined through node 0.
async fn swarm(lan: &Arc<Lan>, clock: &Clock, n_nodes: u64) -> Vec<Arc<Node>> {
    let tasks = Tasks::new();
    let mut nodes = vec![lan.node(0, config(clock, &[]), &tasks)];
    for number in 1..n_nodes {
        let node = lan.node(number, config(clock, &[0]), &tasks);
        assert_eq!(node.bootstrap().await.unwrap(), 1);
        nodes.push(node);
    }
    nodes
}

#[tokio::test]
async fn five_nodes_hold_a_record_and_all_can_read_it() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let nodes = swarm(&lan, &clock, 30).await;
    let items = (1000..1020)
        .map(|key| regular(id(key), key as i64, NOON + 60.0))
        .collect();
    assert_eq!(nodes[3].store_many(items).await, [true; 20]);
    for key in 1000..1020 {
        let mut nearest: Vec<&Arc<Node>> = nodes.iter().collect();
        nearest.sort_by_key(|node| node.id.distance(&id(key)));
        for (rank, node) in nearest.iter().enumerate() {
            let holds = node.state().storage.get(&id(key), NOON).is_some();
            assert_eq!(holds, rank < 5, "node {rank} in the order of distance");
        }
    }
    let keys: Vec<_> = (1000..1020).map(id).collect();
    for node in &nodes {
        for freshness in [Freshness::Any, Freshness::Latest] {
            let found: Vec<_> = node
                .get_many(keys.clone(), freshness)
                .await
                .into_iter()
                .map(value)
                .collect();
            assert_eq!(found, (1000..1020).map(Some).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn records_survive_the_loss_of_most_of_their_holders() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let nodes = swarm(&lan, &clock, 30).await;
    let key = id(1000);
    assert_eq!(nodes[0].store_many(vec![regular(key, 7, NOON + 60.0)]).await, [true]);
    let mut order: Vec<u64> = (0..30).collect();
    order.sort_by_key(|number| id(*number).distance(&key));
    for number in &order[..4] {
        lan.unplug(*number);
    }
    let reader = &nodes[usize::try_from(order[20]).unwrap()];
    let found = reader.get_many(vec![key], Freshness::Latest).await.pop().flatten();
    assert_eq!(value(found), Some(7));
    for number in &order[..4] {
        assert!(!reader.state().table.contains(&id(*number)), "dead nodes are forgotten");
    }
    assert_eq!(reader.store_many(vec![regular(key, 8, NOON + 90.0)]).await, [true]);
    let holders = nodes
        .iter()
        .zip(0..)
        .filter(|(_, number)| !order[..4].contains(number))
        .filter(|(node, _)| {
            node.state()
                .storage
                .get(&key, NOON)
                .is_some_and(|record| record.expiration() > NOON + 80.0)
        })
        .count();
    assert_eq!(holders, 5, "other nodes took the places of the dead ones");
}

#[tokio::test]
async fn a_new_node_gets_the_records_it_should_have() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let tasks = Tasks::new();
    let first = lan.node(0, config(&clock, &[]), &tasks);
    let items = (1000..1010).map(|key| regular(id(key), 1, NOON + 60.0)).collect();
    assert_eq!(
        first.store_many(items).await,
        [true; 10],
        "a lone node keeps records itself"
    );
    let second = lan.node(1, config(&clock, &[0]), &tasks);
    second.bootstrap().await.unwrap();
    until("the records are handed over", || second.state().storage.len() == 10).await;
}

#[tokio::test]
async fn a_client_uses_the_dht_and_is_not_part_of_it() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let nodes = swarm(&lan, &clock, 8).await;
    let client_config = Config {
        client_mode: true,
        ..config(&clock, &[0])
    };
    let client = lan.node(50, client_config.clone(), &Tasks::new());
    assert_eq!(client.bootstrap().await.unwrap(), 1);
    assert_eq!(client.store_many(vec![regular(id(1000), 7, NOON + 60.0)]).await, [true]);
    let found = client.get_many(vec![id(1000)], Freshness::Latest).await.pop().flatten();
    assert_eq!(value(found), Some(7));
    assert!(nodes.iter().all(|node| !node.state().table.contains(&client.id)));
    let holders = nodes
        .iter()
        .filter(|node| node.state().storage.get(&id(1000), NOON).is_some())
        .count();
    assert_eq!((holders, client.state().storage.len()), (5, 0));

    let lonely = lan.node(
        51,
        Config {
            initial_peers: Vec::new(),
            ..client_config
        },
        &Tasks::new(),
    );
    assert_eq!(
        lonely.store_many(vec![regular(id(1000), 7, NOON + 60.0)]).await,
        [false]
    );
}

#[tokio::test]
async fn stores_that_no_node_would_take_are_not_even_offered() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let node = lan.node(0, config(&clock, &[]), &Tasks::new());
    let mut large = regular(id(1), 1, NOON + 60.0);
    large.value = vec![0; 3 << 20];
    let items = vec![
        regular(id(2), 1, NOON - 1.0),
        regular(id(3), 1, f64::NAN),
        large,
        regular(id(4), 1, NOON + 60.0),
    ];
    assert_eq!(node.store_many(items).await, [false, false, false, true]);
    assert!(node.store_many(Vec::new()).await.is_empty());
    assert!(node.get_many(Vec::new(), Freshness::Latest).await.is_empty());
}

#[tokio::test]
async fn an_initial_peer_with_another_time_is_refused_with_the_difference() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let tasks = Tasks::new();
    lan.node(0, config(&Clock::manual(NOON + 10.0), &[]), &tasks);
    lan.node(1, config(&Clock::manual(NOON - 2.5), &[]), &tasks);
    let error = lan
        .node(10, config(&clock, &[0]), &tasks)
        .bootstrap()
        .await
        .unwrap_err();
    assert!(error.is_clock());
    let [failure] = error.failures.as_slice() else {
        panic!("{error}");
    };
    assert_eq!(failure.addr, Lan::addr(0));
    assert!(matches!(failure.reason, Unusable::ClockSkew { offset_s, .. } if (offset_s - 10.0).abs() < 0.001));
    let text = error.to_string();
    assert!(
        text.contains(&contact(0).peer.to_string()) && text.contains("10.0 s ahead of ours"),
        "{text}"
    );

    let node = lan.node(11, config(&clock, &[0, 1]), &tasks);
    assert_eq!(node.bootstrap().await.unwrap(), 1, "one usable peer is enough");
    assert!(!node.state().table.contains(&id(0)));
}

#[tokio::test]
async fn a_node_that_becomes_a_client_is_forgotten_by_those_it_tells_and_holds_nothing_new() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let nodes = swarm(&lan, &clock, 5).await;
    let (turned, others) = nodes.split_last().unwrap();
    let knowing = || {
        others
            .iter()
            .filter(|node| node.state().table.contains(&turned.id))
            .count()
    };
    assert_eq!(knowing(), 4);
    turned.set_client_mode(true);
    until("nobody knows it", || knowing() == 0).await;
    assert_eq!(
        nodes[0].store_many(vec![regular(id(1000), 7, NOON + 60.0)]).await,
        [true]
    );
    assert_eq!(turned.state().storage.len(), 0);
    assert_eq!(turned.store_many(vec![regular(id(1001), 7, NOON + 60.0)]).await, [true]);
    assert_eq!(turned.state().storage.len(), 0);
    let before = lan.calls(names::DHT_FIND);
    turned.set_client_mode(true);
    turned.set_client_mode(false);
    until("everybody knows it again", || knowing() == 4).await;
    assert!(lan.calls(names::DHT_FIND) > before);
}

#[tokio::test]
async fn initial_peers_that_are_away_or_clients_are_not_usable() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let tasks = Tasks::new();
    let client = Config {
        client_mode: true,
        ..config(&clock, &[])
    };
    lan.node(1, client, &tasks);
    let node = lan.node(10, config(&clock, &[0, 1]), &tasks);
    let error = node.bootstrap().await.unwrap_err();
    assert!(!error.is_clock());
    assert!(matches!(error.failures[0].reason, Unusable::Dial(_)));
    let text = error.to_string();
    assert!(
        text.contains("it cannot be connected to: no address of the peer is known"),
        "{text}"
    );
    assert!(matches!(error.failures[1].reason, Unusable::Client));
    assert_eq!(node.state().table.len(), 0);
}

#[tokio::test]
async fn a_node_that_cannot_be_called_back_must_be_a_client() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let tasks = Tasks::new();
    lan.node(0, config(&clock, &[]), &tasks);
    let hidden = lan.node(10, config(&clock, &[0]), &tasks);
    lan.unplug(10);
    let error = hidden.bootstrap().await.unwrap_err();
    assert!(matches!(error.failures[0].reason, Unusable::NoWayBack), "{error}");
    let client = Config {
        client_mode: true,
        ..config(&clock, &[0])
    };
    let client = lan.node(11, client, &tasks);
    lan.unplug(11);
    assert_eq!(client.bootstrap().await.unwrap(), 1);
}

#[tokio::test]
async fn a_node_without_neighbors_joins_again() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let tasks = Tasks::new();
    let impatient = Config {
        heartbeat: Some(Duration::from_millis(1)),
        ..config(&clock, &[0])
    };
    let node = lan.node(1, impatient, &tasks);
    tasks.spawn_until_stopped("maintain", node.clone().maintain());
    let first = lan.node(0, config(&clock, &[]), &tasks);
    until("the node joined", || node.state().table.len() == 1).await;
    assert!(first.state().table.contains(&node.id));
    let searches = lan.calls(names::DHT_FIND);
    until("it searches for random ids", || {
        lan.calls(names::DHT_FIND) > searches + 1
    })
    .await;
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_node_that_kept_some_neighbors_looks_for_a_lost_initial_peer() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let tasks = Tasks::new();
    let impatient = Config {
        heartbeat: Some(Duration::from_millis(1)),
        ..config(&clock, &[0, 2])
    };
    lan.node(0, config(&clock, &[]), &tasks);
    lan.node(2, config(&clock, &[]), &tasks);
    let node = lan.node(1, impatient, &tasks);
    assert_eq!(node.bootstrap().await.unwrap(), 2);
    lan.unplug(0);
    node.lost(&contact(0).peer);
    tasks.spawn_until_stopped("maintain", node.clone().maintain());
    let back = lan.node(0, config(&clock, &[]), &tasks);
    until("it is a neighbor again", || node.state().table.contains(&id(0))).await;
    assert!(back.state().table.contains(&node.id));
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_dead_member_of_a_full_bucket_makes_room_for_a_newcomer() {
    let (lan, clock) = (Arc::new(Lan::default()), Clock::manual(NOON));
    let tasks = Tasks::new();
    let narrow = Config {
        bucket_size: 2,
        depth_modulo: 1,
        ..config(&clock, &[])
    };
    let node = lan.node(0, narrow, &tasks);
    let far: Vec<u64> = (1..100)
        .filter(|number| id(*number).bit(0) != id(0).bit(0))
        .take(4)
        .collect();
    for number in &far {
        lan.node(*number, config(&clock, &[]), &tasks);
    }
    lan.unplug(far[0]);
    for number in &far[..3] {
        node.heard_from(contact(*number));
    }
    let members = || -> Vec<DhtId> {
        node.state()
            .neighbors(&node.id, None)
            .iter()
            .map(|member| member.id)
            .collect()
    };
    until("the dead one is gone", || !members().contains(&id(far[0]))).await;
    assert!(members().contains(&id(far[2])));
    node.heard_from(contact(far[3]));
    assert_eq!(lan.calls(names::DHT_PING), 1, "not so soon after the last time");
    clock.advance(10.0);
    node.heard_from(contact(far[3]));
    until("the oldest was asked", || lan.calls(names::DHT_PING) == 2).await;
    assert!(!members().contains(&id(far[3])), "the members are alive");
}
