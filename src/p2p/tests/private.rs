//! Swarms with a key: who gets in, and what the others are told.

use bytes::Bytes;

use super::{ECHO, LONG, echo, serving, soon};
use crate::{
    p2p::{BindError, Config, DialError, P2p, SwarmKey},
    task::Tasks,
};

fn keyed(key: Option<&SwarmKey>) -> Config {
    Config {
        swarm_key: key.cloned(),
        ..Config::default()
    }
}

/// What a node with one key, or none, is told when it dials one with another, or none.
async fn told(dialer: Option<&SwarmKey>, listener: Option<&SwarmKey>) -> String {
    let tasks = Tasks::new();
    let listener = serving(&tasks, keyed(listener), vec![echo()]).await;
    let dialer = serving(&tasks, keyed(dialer), vec![]).await;
    let error = soon("the dial fails", dialer.connect(listener.addrs()[0].clone()))
        .await
        .unwrap_err();
    assert!(listener.connected_peers().is_empty());
    let DialError::Unreachable { tried } = error else {
        panic!("{error}");
    };
    tried[0].1.clone()
}

#[tokio::test]
async fn nodes_with_one_key_call_each_other() {
    let tasks = Tasks::new();
    let key = SwarmKey::generate();
    let callee = serving(&tasks, keyed(Some(&key)), vec![echo()]).await;
    let caller = serving(&tasks, keyed(Some(&key)), vec![]).await;
    let peer = caller.connect(callee.addrs()[0].clone()).await.unwrap();
    let large = Bytes::from(vec![7; 3 * 1024 * 1024]);
    let answer = caller.call_unary(peer, ECHO, large.clone(), LONG).await.unwrap();
    assert!(answer == large);
    // A stranger, made to see whether a peer can be dialed, is of the same swarm.
    let stranger = P2p::bind(callee.stranger(), &tasks).await.unwrap();
    stranger.connect(callee.addrs()[0].clone()).await.unwrap();
}

#[tokio::test]
async fn a_node_without_the_key_is_shut_out_and_told_of_it() {
    let key = SwarmKey::generate();
    let reason = told(None, Some(&key)).await;
    assert!(reason.contains("private swarm"), "{reason}");
}

#[tokio::test]
async fn a_node_with_another_key_is_shut_out_and_told_of_it() {
    let (key, other) = (SwarmKey::generate(), SwarmKey::generate());
    let reason = told(Some(&key), Some(&other)).await;
    assert!(
        reason.contains("does not have the swarm key of this node (--swarm-key)"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_node_with_a_key_does_not_get_into_a_swarm_without_one() {
    let key = SwarmKey::generate();
    let reason = told(Some(&key), None).await;
    assert!(reason.contains("--swarm-key"), "{reason}");
}

#[tokio::test]
async fn a_quic_address_in_a_private_swarm_is_refused_with_the_reason() {
    let config = Config {
        listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
        ..keyed(Some(&SwarmKey::generate()))
    };
    let error = P2p::bind(config, &Tasks::new()).await.unwrap_err();
    assert!(matches!(error, BindError::QuicWithSwarmKey { .. }), "{error}");
    assert!(error.to_string().contains("--swarm-key"));
}
