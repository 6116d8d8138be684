//! Peers of another network that speak kad under the same name.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, kad, noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};

use super::{ECHO, LONG, echo, host, serving, soon};
use crate::{
    p2p::{Config, Limits, P2p, actor::Command, kad_server},
    task::Tasks,
};

const N_FOREIGN: usize = 200;

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Foreign {
    identify: identify::Behaviour,
    kad: kad::Behaviour<kad::store::MemoryStore>,
}

/// A node of the public IPFS network, as far as others can see.
fn foreign() -> Swarm<Foreign> {
    let behaviour = |key: &libp2p::identity::Keypair| {
        let peer = key.public().to_peer_id();
        let config = kad::Config::new(StreamProtocol::new(kad_server::NAME));
        let mut kad = kad::Behaviour::with_config(peer, kad::store::MemoryStore::new(peer), config);
        kad.set_mode(Some(kad::Mode::Server));
        let identity = identify::Config::new("ipfs/0.1.0".to_owned(), key.public());
        Foreign {
            identify: identify::Behaviour::new(identity.with_agent_version("kubo/0.30.0".to_owned())),
            kad,
        }
    };
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(behaviour)
        .unwrap()
        .build()
}

/// Connects to `node` again and again, asks it over kad, and offers itself.
async fn knock(node: PeerId, at: Multiaddr) {
    let mut swarm = foreign();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    swarm.dial(at.clone()).unwrap();
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { .. } => {
                swarm.behaviour_mut().kad.add_address(&node, at.clone());
                swarm.behaviour_mut().kad.get_closest_peers(PeerId::random());
            }
            SwarmEvent::ConnectionClosed { .. } | SwarmEvent::OutgoingConnectionError { .. } => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                // It may be connecting already, for a query.
                let _ = swarm.dial(at.clone());
            }
            _ => {}
        }
    }
}

/// Whom `node` tells others of when they look for `target`.
async fn told(node: &P2p, target: PeerId, asker: PeerId) -> Vec<PeerId> {
    let (reply, found) = tokio::sync::oneshot::channel();
    let (key, from) = (target.to_bytes().into(), asker);
    node.command(Command::Closest { key, from, reply }).await.unwrap();
    found.await.unwrap().iter().map(|found| found.peer).collect()
}

#[tokio::test]
async fn two_hundred_foreign_kad_peers_neither_stay_nor_are_told_of() {
    let tasks = Tasks::new();
    let config = Config {
        limits: Limits {
            stranger_grace: Duration::from_secs(1),
            ..Limits::default()
        },
        ..Config::default()
    };
    let node = serving(&tasks, config, vec![echo()]).await;
    let member = host(&tasks).await;
    member.connect(node.addrs()[0].clone()).await.unwrap();
    let (peer, at) = (node.peer_id(), node.addrs()[0].clone());
    for _ in 0..N_FOREIGN {
        let at = at.clone();
        tasks.spawn_until_stopped("foreign peer", async move { knock(peer, at).await });
    }
    let mut seen = std::collections::BTreeSet::new();
    soon("all of them were here", async {
        while seen.len() < N_FOREIGN {
            seen.extend(
                node.connected_peers()
                    .into_iter()
                    .filter(|peer| *peer != member.peer_id()),
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    soon("only the member is left", async {
        while node.connected_peers() != [member.peer_id()] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    for target in seen {
        assert!(
            told(&node, target, member.peer_id())
                .await
                .iter()
                .all(|peer| *peer == member.peer_id())
        );
    }
    let answer = member
        .call_unary(peer, ECHO, Bytes::from_static(b"still here"), LONG)
        .await;
    assert_eq!(answer.unwrap(), "still here");
    tasks.shutdown().await;
}
