//! The same calls over every way bytes can travel: TCP alone, QUIC alone, either of both.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use bytes::Bytes;
use libp2p::{PeerId, core::multiaddr::Protocol};
use tokio::sync::Notify;

use super::{ECHO, LONG, echo, serving, soon};
use crate::{
    p2p::{CallError, Config, DialError, Handler, HandlerLimits, Multiaddr, OpenError, P2p, StreamError},
    task::Tasks,
};

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const HELD: &str = "Test.rpc_held";
const COUNT: &str = "Test.rpc_count";

fn listening(on: &[&str]) -> Config {
    Config {
        listen: on.iter().map(|addr| addr.parse().unwrap()).collect(),
        ..Config::default()
    }
}

fn is_quic(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::QuicV1)
}

/// A handler that never answers, and tells when it starts and when it is dropped.
fn held(started: &Arc<Notify>, dropped: &Arc<Notify>) -> Handler {
    struct OnDrop(Arc<Notify>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (started, dropped) = (started.clone(), dropped.clone());
    Handler::unary(HELD, HandlerLimits::default(), move |_, _| {
        let (guard, started) = (OnDrop(dropped.clone()), started.clone());
        async move {
            let _guard = guard;
            started.notify_one();
            std::future::pending().await
        }
    })
}

/// A handler that answers with the lengths of what it got, after the last request.
fn count() -> Handler {
    Handler::stream(
        COUNT,
        HandlerLimits::default(),
        |_, mut receiver, mut sender| async move {
            let mut bytes = 0;
            while let Ok(Some(message)) = receiver.recv().await {
                bytes += message.len();
            }
            let _ = sender.send(Bytes::from(bytes.to_string())).await;
            Ok(())
        },
    )
}

/// Unary calls, streams, refused names and cancellation between two nodes that listen on `listen` and nothing else.
async fn everything_works_over(listen: &str) {
    let tasks = Tasks::new();
    let (started, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handlers = vec![echo(), held(&started, &dropped), count()];
    let callee = serving(&tasks, listening(&[listen]), handlers).await;
    let caller = serving(&tasks, listening(&[listen]), vec![echo()]).await;
    assert_eq!(callee.addrs().len(), 1);
    assert_eq!(is_quic(&callee.addrs()[0]), listen == QUIC);
    let peer = caller.connect(callee.addrs()[0].clone()).await.unwrap();

    let large = Bytes::from(vec![7; 3 * 1024 * 1024]);
    let answer = caller.call_unary(peer, ECHO, large.clone(), LONG).await.unwrap();
    assert!(answer == large);
    let back = callee.call_unary(caller.peer_id(), ECHO, Bytes::from_static(b"back"), LONG);
    assert_eq!(back.await.unwrap(), "back");
    a_stream_is_counted(&caller, peer).await;

    let unknown = caller.call_unary(peer, "Test.rpc_nothing", Bytes::new(), LONG).await;
    assert!(
        matches!(unknown, Err(CallError::Open(OpenError::UnknownName))),
        "{unknown:?}"
    );
    let (mut sender, mut receiver) = caller.open_stream(peer, "Test.rpc_nothing", LONG).await.unwrap();
    let _ = sender.send(Bytes::new()).await;
    assert!(matches!(
        soon("the name is refused", receiver.recv()).await,
        Err(StreamError::UnknownName)
    ));

    tokio::select! {
        answer = caller.call_unary(peer, HELD, Bytes::new(), LONG) => panic!("answered: {answer:?}"),
        () = soon("started", started.notified()) => {}
    }
    soon("the handler is dropped", dropped.notified()).await;
    assert!(tasks.shutdown().await);
}

async fn a_stream_is_counted(caller: &P2p, peer: PeerId) {
    let (mut sender, mut receiver) = caller.open_stream(peer, COUNT, LONG).await.unwrap();
    for _ in 0..20 {
        sender.send(Bytes::from(vec![1; 100_000])).await.unwrap();
    }
    sender.finish().await.unwrap();
    let total = soon("the count", receiver.recv()).await.unwrap();
    assert_eq!(total.unwrap(), "2000000");
    assert!(soon("the end", receiver.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn everything_works_over_tcp_alone() {
    everything_works_over(TCP).await;
}

#[tokio::test]
async fn everything_works_over_quic_alone() {
    everything_works_over(QUIC).await;
}

#[tokio::test]
async fn quic_works_over_ipv6() {
    let tasks = Tasks::new();
    let callee = serving(&tasks, listening(&["/ip6/::1/udp/0/quic-v1"]), vec![echo()]).await;
    let caller = serving(&tasks, listening(&["/ip6/::1/tcp/0"]), vec![]).await;
    let peer = caller.connect(callee.addrs()[0].clone()).await.unwrap();
    let answer = caller.call_unary(peer, ECHO, Bytes::from_static(b"v6"), LONG).await;
    assert_eq!(answer.unwrap(), "v6");
}

#[tokio::test]
async fn whom_a_name_leads_to_is_known_by_the_address_behind_it() {
    for listen in [TCP, QUIC] {
        let tasks = Tasks::new();
        let callee = serving(&tasks, listening(&[listen]), vec![]).await;
        let caller = serving(&tasks, listening(&[listen]), vec![]).await;
        let addr = callee.addrs()[0].to_string();
        let named = addr.replace("/ip4/127.0.0.1/", "/dns4/localhost/");
        let peer = caller.connect(named.parse().unwrap()).await.unwrap();
        assert_eq!(caller.origins(&peer), [IpAddr::from(Ipv4Addr::LOCALHOST)], "{named}");
    }
}

#[tokio::test]
async fn listeners_that_may_choose_share_one_port_number() {
    let tasks = Tasks::new();
    let node = serving(&tasks, listening(&[TCP, QUIC, "/ip6/::1/tcp/0"]), vec![]).await;
    let ports: Vec<u16> = node
        .addrs()
        .iter()
        .filter_map(|addr| super::super::addr::socket(addr).map(|(_, _, port)| port))
        .collect();
    assert_eq!(ports.len(), 3);
    assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    // A second listener of the same kind cannot share it, and gets another one.
    let twice = serving(&tasks, listening(&[TCP, TCP]), vec![]).await;
    assert_eq!(twice.addrs().len(), 2);
}

#[tokio::test]
async fn a_peer_that_answers_at_one_of_its_addresses_is_reached_there() {
    let tasks = Tasks::new();
    let callee = serving(&tasks, listening(&[TCP, QUIC]), vec![echo()]).await;
    for kept in callee.addrs() {
        // The other address is one where nobody answers.
        let dead = if is_quic(&kept) {
            "/ip4/127.0.0.1/tcp/9"
        } else {
            "/ip4/127.0.0.1/udp/9/quic-v1"
        };
        let dead: Multiaddr = format!("{dead}/p2p/{}", callee.peer_id()).parse().unwrap();
        let config = Config {
            listen: Vec::new(),
            known_peers: vec![dead, kept],
            ..Config::default()
        };
        let caller = serving(&tasks, config, vec![]).await;
        let answer = caller
            .call_unary(callee.peer_id(), ECHO, Bytes::from_static(b"hello"), LONG)
            .await;
        assert_eq!(answer.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_udp_port_in_use_is_an_error_that_names_the_address() {
    let tasks = Tasks::new();
    let first = serving(&tasks, listening(&[QUIC]), vec![]).await;
    let taken = super::super::addr::without_peer(&first.addrs()[0]);
    let second = P2p::bind(listening(&[&taken.to_string()]), &tasks).await.unwrap_err();
    assert!(second.to_string().contains(&taken.to_string()), "{second}");
}

#[tokio::test]
async fn somebody_else_at_a_quic_address_is_an_error_that_names_them() {
    let tasks = Tasks::new();
    let callee = serving(&tasks, listening(&[QUIC]), vec![]).await;
    let caller = serving(&tasks, listening(&[TCP]), vec![]).await;
    let addr = super::super::addr::without_peer(&callee.addrs()[0]).with(Protocol::P2p(PeerId::random()));
    let error = caller.connect(addr).await.unwrap_err();
    assert!(matches!(error, DialError::WrongPeer { found, .. } if found == callee.peer_id()));
}
