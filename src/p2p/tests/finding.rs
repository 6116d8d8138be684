//! Reaching peers: by address, by peer id alone, through a relay, over what is left when a connection breaks.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, SwarmBuilder, identify, noise, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use tokio::{io::copy_bidirectional, net::TcpListener, sync::oneshot};

use super::{ECHO, LONG, echo, host, serving, soon};
use crate::{
    p2p::{CallError, Config, DialError, Identity, OpenError, P2p, actor::Command, addr, kad_server::Found},
    task::Tasks,
};

async fn echoes(caller: &P2p, peer: PeerId) -> Result<Bytes, CallError> {
    caller.call_unary(peer, ECHO, Bytes::from_static(b"hello"), LONG).await
}

/// Waits until `node` would tell `asker` where `target` is: identify is a conversation of its own after connecting.
async fn until_known(node: &P2p, target: PeerId, asker: PeerId) {
    until_told(node, (target, asker), |found| found.peer == target).await;
}

/// Waits until there is such a peer among those that `node` would name to `asker`, who looks for `target`.
async fn until_told(node: &P2p, (target, asker): (PeerId, PeerId), mut wanted: impl FnMut(&Found) -> bool) {
    soon("the peer becomes known", async {
        loop {
            let (reply, found) = oneshot::channel();
            let question = Command::Closest {
                key: target.to_bytes().into(),
                from: asker,
                reply,
            };
            node.command(question).await.unwrap();
            if found.await.unwrap().iter().any(&mut wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn knowing(peer: &P2p) -> Config {
    Config {
        known_peers: peer.addrs(),
        ..Config::default()
    }
}

#[tokio::test]
async fn a_third_node_that_knows_only_a_peer_id_gets_through_to_it() {
    let tasks = Tasks::new();
    let first = host(&tasks).await;
    let second = serving(&tasks, knowing(&first), vec![echo()]).await;
    let third = host(&tasks).await;
    third.connect(first.addrs()[0].clone()).await.unwrap();
    until_known(&first, second.peer_id(), third.peer_id()).await;

    assert_eq!(echoes(&third, second.peer_id()).await.unwrap(), "hello");
    assert!(third.connected_peers().contains(&second.peer_id()));
}

#[tokio::test]
async fn a_peer_that_came_back_at_another_address_is_found_there() {
    let (tasks, first_life) = (Tasks::new(), Tasks::new());
    let first = host(&tasks).await;
    let caller = P2p::bind(knowing(&first), &tasks).await.unwrap();
    let identity = Identity::ephemeral();
    let with_identity = || Config {
        identity: identity.clone(),
        ..knowing(&first)
    };
    let before = serving(&first_life, with_identity(), vec![echo()]).await;
    let (peer, old) = (before.peer_id(), before.addrs());
    until_known(&first, peer, caller.peer_id()).await;
    assert_eq!(echoes(&caller, peer).await.unwrap(), "hello");
    assert!(first_life.shutdown().await);
    // While it is gone, nobody knows a better address than the old one.
    echoes(&caller, peer).await.unwrap_err();

    let after = serving(&tasks, with_identity(), vec![echo()]).await;
    assert_ne!(after.addrs(), old);
    let new = addr::without_peer(&after.addrs()[0]);
    until_told(&first, (peer, caller.peer_id()), |found| found.addrs.contains(&new)).await;
    assert_eq!(echoes(&caller, peer).await.unwrap(), "hello");
}

#[tokio::test]
async fn a_peer_that_answers_no_kad_is_found_through_a_node_it_is_connected_to() {
    let tasks = Tasks::new();
    let first = host(&tasks).await;
    let shy = Config {
        client_mode: true,
        ..knowing(&first)
    };
    let second = serving(&tasks, shy, vec![echo()]).await;
    let third = host(&tasks).await;
    third.connect(first.addrs()[0].clone()).await.unwrap();
    until_known(&first, second.peer_id(), third.peer_id()).await;

    assert_eq!(echoes(&third, second.peer_id()).await.unwrap(), "hello");
}

/// Whether `node` has `peer` in its kad table: it would name it to `asker`, who looks for somebody else.
async fn has_in_table(node: &P2p, peer: PeerId, asker: PeerId) -> bool {
    let (reply, found) = oneshot::channel();
    let question = Command::Closest {
        key: PeerId::random().to_bytes().into(),
        from: asker,
        reply,
    };
    node.command(question).await.unwrap();
    found.await.unwrap().iter().any(|found| found.peer == peer)
}

#[tokio::test]
async fn a_node_that_turns_to_client_mode_leaves_the_tables_of_others_until_it_turns_back() {
    let tasks = Tasks::new();
    let first = host(&tasks).await;
    let second = P2p::bind(knowing(&first), &tasks).await.unwrap();
    let third = host(&tasks).await;
    second.connect(first.addrs()[0].clone()).await.unwrap();
    third.connect(first.addrs()[0].clone()).await.unwrap();
    for client in [false, true, false] {
        second.set_client_mode(client);
        soon(&format!("client mode {client} is seen"), async {
            while has_in_table(&first, second.peer_id(), third.peer_id()).await == client {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    second.set_client_mode(true);
    // It is still found by those who look for it.
    until_known(&first, second.peer_id(), third.peer_id()).await;
}

#[tokio::test]
async fn a_node_asked_for_a_key_that_is_no_peer_id_names_those_it_knows() {
    let tasks = Tasks::new();
    let (first, asker) = (host(&tasks).await, host(&tasks).await);
    let second = P2p::bind(knowing(&first), &tasks).await.unwrap();
    for node in [&second, &asker] {
        node.connect(first.addrs()[0].clone()).await.unwrap();
    }
    soon("the peer is in the table", async {
        while !has_in_table(&first, second.peer_id(), asker.peer_id()).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Hivemind's daemon asks for the text of its own id when it looks for relays.
    let (reply, found) = oneshot::channel();
    let question = Command::Closest {
        key: asker.peer_id().to_string().into(),
        from: asker.peer_id(),
        reply,
    };
    first.command(question).await.unwrap();
    let named: Vec<PeerId> = found.await.unwrap().iter().map(|found| found.peer).collect();
    assert!(named.contains(&second.peer_id()), "{named:?}");
}

#[tokio::test]
async fn a_node_asked_for_itself_answers_with_itself() {
    let tasks = Tasks::new();
    let node = host(&tasks).await;
    let (reply, found) = oneshot::channel();
    let question = Command::Closest {
        key: node.peer_id().to_bytes().into(),
        from: PeerId::random(),
        reply,
    };
    node.command(question).await.unwrap();
    let found = found.await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].peer, node.peer_id());
}

#[tokio::test]
async fn a_call_to_a_peer_that_is_gone_fails_with_the_addresses_that_were_tried() {
    let tasks = Tasks::new();
    let passing = Tasks::new();
    let gone = host(&passing).await;
    let caller = P2p::bind(knowing(&gone), &tasks).await.unwrap();
    soon("connected", async {
        while caller.connected_peers().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(passing.shutdown().await);
    soon("disconnected", async {
        while !caller.connected_peers().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let error = echoes(&caller, gone.peer_id()).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Open(OpenError::Dial(DialError::Unreachable { tried })) if !tried.is_empty()),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_address_with_somebody_else_behind_it_is_an_error_that_names_them() {
    let tasks = Tasks::new();
    let (caller, callee) = (host(&tasks).await, host(&tasks).await);
    let mut addr = callee.addrs()[0].clone();
    addr.pop();
    let wrong = addr.clone().with_p2p(PeerId::random()).unwrap();
    let error = caller.connect(wrong).await.unwrap_err();
    assert!(
        matches!(&error, DialError::WrongPeer { found, .. } if *found == callee.peer_id()),
        "{error:?}"
    );
    assert!(matches!(caller.connect(addr).await, Err(DialError::NoPeerId(_))));
}

#[tokio::test]
async fn ipv6_works_as_well() {
    let tasks = Tasks::new();
    let config = Config {
        listen: vec!["/ip6/::1/tcp/0".parse().unwrap()],
        ..Config::default()
    };
    let callee = serving(&tasks, config.clone(), vec![echo()]).await;
    let caller = P2p::bind(
        Config {
            identity: Identity::ephemeral(),
            ..config
        },
        &tasks,
    )
    .await
    .unwrap();
    caller.connect(callee.addrs()[0].clone()).await.unwrap();
    assert_eq!(echoes(&caller, callee.peer_id()).await.unwrap(), "hello");
}

#[tokio::test]
async fn configured_addresses_are_announced_instead_of_the_listened_ones() {
    let tasks = Tasks::new();
    let config = Config {
        announce: vec!["/ip4/8.8.8.8/tcp/31337".parse().unwrap()],
        ..Config::default()
    };
    let node = P2p::bind(config, &tasks).await.unwrap();
    let expected: Multiaddr = format!("/ip4/8.8.8.8/tcp/31337/p2p/{}", node.peer_id())
        .parse()
        .unwrap();
    assert_eq!(node.addrs(), [expected]);
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_the_address() {
    let tasks = Tasks::new();
    let taken = host(&tasks).await;
    let mut addr = taken.addrs()[0].clone();
    addr.pop();
    let config = Config {
        listen: vec![addr.clone()],
        ..Config::default()
    };
    let error = P2p::bind(config, &tasks).await.unwrap_err();
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
}

/// Forwards one TCP connection to `target` until told to cut it.
async fn cable(target: std::net::SocketAddr, tasks: &Tasks) -> (u16, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (cut, cutting) = oneshot::channel();
    tasks.spawn_until_stopped("cable", async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => {}
            _ = cutting => {}
        }
    });
    (port, cut)
}

#[tokio::test]
async fn calls_go_on_when_one_of_two_connections_breaks() {
    let tasks = Tasks::new();
    let callee = serving(&tasks, Config::default(), vec![echo()]).await;
    let caller = host(&tasks).await;
    let port_of = |host: &P2p| -> u16 {
        let text = host.addrs()[0].to_string();
        text.split('/').nth(4).unwrap().parse().unwrap()
    };
    let target = ([127, 0, 0, 1], port_of(&callee)).into();
    let (port, cut) = cable(target, &tasks).await;
    let through_cable = format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", callee.peer_id())
        .parse()
        .unwrap();
    // Both dial at once, so that there are two connections: one through the cable, one directly.
    let (there, back) =
        futures::future::join(caller.connect(through_cable), callee.connect(caller.addrs()[0].clone())).await;
    there.unwrap();
    back.unwrap();
    assert_eq!(echoes(&caller, callee.peer_id()).await.unwrap(), "hello");
    cut.send(()).unwrap();
    soon("calls work again", async {
        // A call that is under way when the cable is cut may be lost; no later one.
        while echoes(&caller, callee.peer_id()).await.is_err() {}
    })
    .await;
    for _ in 0..10 {
        assert_eq!(echoes(&caller, callee.peer_id()).await.unwrap(), "hello");
    }
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct RelayServer {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
}

/// A relay that knows nothing of Hivemind. Returns its address.
async fn relay_server(tasks: &Tasks) -> Multiaddr {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| RelayServer {
            relay: relay::Behaviour::new(key.public().to_peer_id(), relay::Config::default()),
            identify: identify::Behaviour::new(identify::Config::new(String::new(), key.public())),
        })
        .unwrap()
        .build();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let addr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    swarm.add_external_address(addr.clone());
    let peer = *swarm.local_peer_id();
    tasks.spawn_until_stopped("relay", async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    addr.with_p2p(peer).unwrap()
}

#[tokio::test]
async fn a_peer_behind_a_relay_is_reached_through_it() {
    let tasks = Tasks::new();
    let relay = relay_server(&tasks).await;
    let hidden = Config {
        listen: vec![relay.with(libp2p::core::multiaddr::Protocol::P2pCircuit)],
        ..Config::default()
    };
    let hidden = soon("a reservation", serving(&tasks, hidden, vec![echo()])).await;
    let addr = hidden.addrs()[0].clone();
    assert!(addr.to_string().contains("/p2p-circuit/"), "{addr}");
    let caller = host(&tasks).await;
    caller.connect(addr).await.unwrap();
    assert_eq!(echoes(&caller, hidden.peer_id()).await.unwrap(), "hello");
}
