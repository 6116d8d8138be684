//! What circuits cost a relay: they end when both peers meet directly, and there are only so many.

use std::time::Duration;

use libp2p::{Multiaddr, core::multiaddr::Protocol};

use super::{
    echo,
    relays::{circuits, echoes, hidden, hidden_as, relay, until_relayed},
    soon,
};
use crate::{
    p2p::{BindError, Config, DialError, P2p, RelayConfig, RelayLimits, Verdict},
    task::Tasks,
};

/// What a relay says that has enough to do, in the words of libp2p.
const REFUSAL: &str = "resource limit exceeded";

async fn strict_relay(tasks: &Tasks, limits: RelayLimits) -> P2p {
    let config = Config {
        relay: RelayConfig {
            serve: true,
            limits,
            ..RelayConfig::default()
        },
        ..Config::default()
    };
    P2p::bind(config, tasks).await.unwrap()
}

fn one_circuit() -> RelayLimits {
    RelayLimits {
        circuits_per_peer: 1,
        ..RelayLimits::default()
    }
}

/// A host that asks `relay` for a reservation, and cannot do without.
async fn at(relay: &P2p, tasks: &Tasks) -> Result<P2p, BindError> {
    let config = Config {
        listen: vec![relay.addrs()[0].clone().with(Protocol::P2pCircuit)],
        ..Config::default()
    };
    soon("an answer of the relay", P2p::bind(config, tasks)).await
}

#[tokio::test]
async fn a_client_that_nobody_can_find_meets_a_relayed_node_directly_and_frees_the_circuit() {
    let tasks = Tasks::new();
    let passing = tasks.child();
    let relay = strict_relay(&passing, one_circuit()).await;
    // As behind a router: the address at which others see it is none of those that it announces.
    let announcing_another = Config {
        announce: vec!["/ip4/127.0.0.2/tcp/9".parse().unwrap()],
        ..Config::default()
    };
    let callee = hidden_as(&tasks, announcing_another, &[&relay], vec![echo()]).await;
    let other = hidden(&tasks, &[&relay], Vec::new()).await;
    for node in [&callee, &other] {
        node.judge(Verdict::NotDialable).await;
        until_relayed(node, &relay).await;
    }
    let unlisted = Config {
        unlisted: true,
        client_mode: true,
        ..Config::default()
    };
    let client = P2p::bind(unlisted, &tasks).await.unwrap();
    assert_eq!(client.addrs(), Vec::<Multiaddr>::new());
    client.connect(relay.addrs()[0].clone()).await.unwrap();
    client.connect(circuits(&callee)[0].clone()).await.unwrap();
    assert_eq!(echoes(&client, callee.peer_id()).await.unwrap(), "hello");

    soon("the circuit is closed, so that the relay grants another", async {
        while client.connect(circuits(&other)[0].clone()).await.is_err() {
            // More than a few attempts a minute are refused for that alone.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert!(client.connected_peers().contains(&callee.peer_id()));
    assert!(passing.shutdown().await);
    assert_eq!(
        echoes(&client, callee.peer_id()).await.unwrap(),
        "hello",
        "without a relay"
    );
}

#[tokio::test]
async fn a_relay_refuses_a_circuit_too_many_of_one_peer_and_serves_others() {
    let tasks = Tasks::new();
    let relay = strict_relay(&tasks, one_circuit()).await;
    let (first, second) = (
        hidden(&tasks, &[&relay], vec![echo()]).await,
        hidden(&tasks, &[&relay], vec![echo()]).await,
    );
    for node in [&first, &second] {
        node.judge(Verdict::NotDialable).await;
        until_relayed(node, &relay).await;
    }
    let (greedy, modest) = (
        P2p::bind(Config::default(), &tasks).await.unwrap(),
        P2p::bind(Config::default(), &tasks).await.unwrap(),
    );
    greedy.connect(circuits(&first)[0].clone()).await.unwrap();
    let refused = soon("an answer of the relay", greedy.connect(circuits(&second)[0].clone())).await;
    let Err(DialError::Unreachable { tried }) = refused else {
        panic!("{refused:?}");
    };
    assert!(tried[0].1.contains(REFUSAL), "{tried:?}");
    modest.connect(circuits(&second)[0].clone()).await.unwrap();
    for (caller, callee) in [(&greedy, &first), (&modest, &second)] {
        assert_eq!(echoes(caller, callee.peer_id()).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_relay_refuses_a_reservation_too_many_and_another_relay_is_asked() {
    let tasks = Tasks::new();
    let limits = RelayLimits {
        reservations: 1,
        ..RelayLimits::default()
    };
    let (full, free) = (strict_relay(&tasks, limits).await, relay(&tasks).await);
    let _first = at(&full, &tasks).await.unwrap();
    let Err(BindError::Listen { source, .. }) = at(&full, &tasks).await else {
        panic!("a reservation too many");
    };
    assert!(format!("{source:?}").contains("ResourceLimitExceeded"), "{source:?}");

    let node = hidden(&tasks, &[&full, &free], vec![echo()]).await;
    node.judge(Verdict::NotDialable).await;
    until_relayed(&node, &free).await;
    assert_eq!(node.reachability().borrow().relays, [free.peer_id()]);
}
