//! Nodes that cannot be dialed: relays are taken, replaced and given back; calls go through them and around them.

use std::time::Duration;

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId};

use super::{ECHO, LONG, echo, serving, soon};
use crate::{
    p2p::{
        CallError, Config, Handler, HandlerLimits, P2p, Reachability, RelayConfig, Source, Standing, StreamError,
        Verdict,
    },
    task::Tasks,
};

fn relay_config() -> Config {
    Config {
        relay: RelayConfig {
            serve: true,
            ..RelayConfig::default()
        },
        ..Config::default()
    }
}

pub(super) async fn relay(tasks: &Tasks) -> P2p {
    P2p::bind(relay_config(), tasks).await.unwrap()
}

/// A node that listens nowhere, and holds reservations when it has to.
pub(super) async fn hidden(tasks: &Tasks, known: &[&P2p], handlers: Vec<Handler>) -> P2p {
    let nowhere = Config {
        listen: Vec::new(),
        ..Config::default()
    };
    hidden_as(tasks, nowhere, known, handlers).await
}

/// The same, on a host that may listen.
pub(super) async fn hidden_as(tasks: &Tasks, host: Config, known: &[&P2p], handlers: Vec<Handler>) -> P2p {
    let config = Config {
        known_peers: known.iter().flat_map(|peer| peer.addrs()).collect(),
        relay: RelayConfig {
            auto: true,
            ..RelayConfig::default()
        },
        ..host
    };
    let node = serving(tasks, config, handlers).await;
    for peer in known {
        node.connect(peer.addrs()[0].clone()).await.unwrap();
    }
    node
}

async fn until(node: &P2p, what: &str, condition: impl Fn(&Reachability) -> bool) {
    let mut reachability = node.reachability();
    soon(what, async {
        reachability.wait_for(|now| condition(now)).await.map(drop)
    })
    .await
    .unwrap();
}

pub(super) async fn until_relayed(node: &P2p, by: &P2p) {
    let relay = by.peer_id();
    until(node, "a reservation", |now| now.relays.contains(&relay)).await;
}

pub(super) fn circuits(node: &P2p) -> Vec<Multiaddr> {
    let all = node.addrs().into_iter();
    all.filter(|addr| addr.to_string().contains("/p2p-circuit/")).collect()
}

pub(super) async fn echoes(caller: &P2p, peer: PeerId) -> Result<Bytes, CallError> {
    caller.call_unary(peer, ECHO, Bytes::from_static(b"hello"), LONG).await
}

#[tokio::test]
async fn a_private_node_is_called_through_a_relay_and_gives_it_back_when_it_is_public() {
    let tasks = Tasks::new();
    let relay = relay(&tasks).await;
    let hidden = hidden(&tasks, &[&relay], vec![echo()]).await;
    for _ in 0..2 {
        assert!(circuits(&hidden).is_empty());
        hidden.judge(Verdict::NotDialable).await;
        until_relayed(&hidden, &relay).await;
        assert_eq!(hidden.reachability().borrow().standing, Standing::Private);

        let passing = tasks.child();
        let caller = P2p::bind(Config::default(), &passing).await.unwrap();
        caller.connect(circuits(&hidden)[0].clone()).await.unwrap();
        assert_eq!(echoes(&caller, hidden.peer_id()).await.unwrap(), "hello");
        assert!(passing.shutdown().await);

        hidden.judge(Verdict::Dialable).await;
        until(&hidden, "public again", |now| {
            now.standing == Standing::Public && now.relays.is_empty()
        })
        .await;
        soon("the circuit is withdrawn", async {
            while !circuits(&hidden).is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    let evidence = hidden.reachability().borrow().evidence.clone();
    assert_eq!((evidence.len(), evidence[0].source), (1, Source::Check));
}

#[tokio::test]
async fn a_node_behind_a_relay_is_found_by_its_peer_id() {
    let tasks = Tasks::new();
    let relay = relay(&tasks).await;
    let hidden = hidden(&tasks, &[&relay], vec![echo()]).await;
    hidden.judge(Verdict::NotDialable).await;
    until_relayed(&hidden, &relay).await;
    let knowing = Config {
        known_peers: relay.addrs(),
        ..Config::default()
    };
    let caller = P2p::bind(knowing, &tasks).await.unwrap();
    caller.connect(relay.addrs()[0].clone()).await.unwrap();
    soon("the relay introduces them", async {
        // The relay learns the circuit's address through identify, a conversation of its own.
        while echoes(&caller, hidden.peer_id()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_lost_relay_is_replaced_by_another() {
    let tasks = Tasks::new();
    let passing: Vec<Tasks> = (0..3).map(|_| tasks.child()).collect();
    let mut relays = Vec::new();
    for group in &passing {
        relays.push(relay(group).await);
    }
    let hidden = hidden(&tasks, &[&relays[0], &relays[1], &relays[2]], vec![echo()]).await;
    hidden.judge(Verdict::NotDialable).await;
    until(&hidden, "two reservations", |now| now.relays.len() == 2).await;

    let held = hidden.reachability().borrow().relays.clone();
    let lost = relays.iter().position(|relay| relay.peer_id() == held[0]).unwrap();
    let spare = relays.iter().find(|relay| !held.contains(&relay.peer_id())).unwrap();
    assert!(passing[lost].shutdown().await);
    until_relayed(&hidden, spare).await;
    let now = hidden.reachability().borrow().relays.clone();
    assert!(now.contains(&held[1]) && !now.contains(&held[0]), "{now:?}");
    assert!(
        circuits(&hidden)
            .iter()
            .all(|addr| !addr.to_string().contains(&held[0].to_string()))
    );

    let caller = P2p::bind(Config::default(), &tasks).await.unwrap();
    let through_spare = spare.peer_id().to_string();
    let addr = circuits(&hidden)
        .into_iter()
        .find(|addr| addr.to_string().contains(&through_spare))
        .unwrap();
    caller.connect(addr).await.unwrap();
    assert_eq!(echoes(&caller, hidden.peer_id()).await.unwrap(), "hello");
}

#[tokio::test]
async fn trusted_relays_need_not_be_known_otherwise() {
    let tasks = Tasks::new();
    let relay = relay(&tasks).await;
    let config = Config {
        listen: Vec::new(),
        relay: RelayConfig {
            auto: true,
            trusted: relay.addrs(),
            ..RelayConfig::default()
        },
        ..Config::default()
    };
    let hidden = serving(&tasks, config, vec![echo()]).await;
    hidden.judge(Verdict::NotDialable).await;
    until_relayed(&hidden, &relay).await;
}

#[tokio::test]
async fn a_private_node_is_no_relay() {
    let tasks = Tasks::new();
    let relay = relay(&tasks).await;
    relay.judge(Verdict::NotDialable).await;
    until(&relay, "private", |now| now.standing == Standing::Private).await;
    let at_relay = relay.addrs()[0]
        .clone()
        .with(libp2p::core::multiaddr::Protocol::P2pCircuit);
    let config = Config {
        listen: vec![at_relay],
        ..Config::default()
    };
    let refused = soon("an answer", P2p::bind(config, &tasks)).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn a_host_without_relays_does_not_get_through_to_a_private_node() {
    let tasks = Tasks::new();
    let relay = relay(&tasks).await;
    let hidden = hidden(&tasks, &[&relay], vec![echo()]).await;
    hidden.judge(Verdict::NotDialable).await;
    until_relayed(&hidden, &relay).await;
    let direct_only = Config {
        relay: RelayConfig {
            dial: false,
            ..RelayConfig::default()
        },
        ..Config::default()
    };
    let caller = P2p::bind(direct_only, &tasks).await.unwrap();
    assert!(caller.connect(circuits(&hidden)[0].clone()).await.is_err());
}

#[tokio::test]
async fn a_stream_whose_relay_goes_away_ends_at_once() {
    let tasks = Tasks::new();
    let passing = tasks.child();
    let relay = relay(&passing).await;
    let name = "Test.rpc_count";
    let count = Handler::stream(name, HandlerLimits::default(), |_, mut input, mut output| async move {
        while let Some(message) = input
            .recv()
            .await
            .map_err(|error| crate::p2p::HandlerError(error.to_string()))?
        {
            let sent = output.send(message).await;
            sent.map_err(|error| crate::p2p::HandlerError(error.to_string()))?;
        }
        Ok(())
    });
    let hidden = hidden(&tasks, &[&relay], vec![count]).await;
    hidden.judge(Verdict::NotDialable).await;
    until_relayed(&hidden, &relay).await;
    let caller = P2p::bind(Config::default(), &tasks).await.unwrap();
    caller.connect(circuits(&hidden)[0].clone()).await.unwrap();
    let (mut sender, mut receiver) = caller.open_stream(hidden.peer_id(), name, LONG).await.unwrap();
    sender.send(Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "one");

    assert!(passing.shutdown().await);
    // As when the peer goes away itself: its end without an answer, or an error.
    let end = soon("the stream ends", receiver.recv()).await;
    assert!(matches!(end, Ok(None) | Err(StreamError::Io(_))), "{end:?}");
}

#[tokio::test]
async fn nodes_of_a_private_network_tell_each_other_that_they_can_be_dialed() {
    let tasks = Tasks::new();
    let config = |known: Vec<Multiaddr>| Config {
        autonat: true,
        known_peers: known,
        ..Config::default()
    };
    let first = P2p::bind(config(Vec::new()), &tasks).await.unwrap();
    let second = P2p::bind(config(first.addrs()), &tasks).await.unwrap();
    second.connect(first.addrs()[0].clone()).await.unwrap();
    until(&second, "a peer that dialed back", |now| {
        now.evidence.iter().any(|heard| {
            heard.peer == Some(first.peer_id())
                && matches!(heard.source, Source::AutoNat1 | Source::AutoNat2)
                && heard.verdict == Verdict::Dialable
        })
    })
    .await;
}
