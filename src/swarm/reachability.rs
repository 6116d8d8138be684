//! Petals' `rpc_check`, the answering side: tells a peer whether it, or another peer, can be dialed from here. It judges
//! nothing itself; [`ask`] is the other side.
//!
//! Asked about itself, a node says yes: the question came through. Asked about somebody else, it puts the question to
//! that peer, through a host of its own that shares no connection with this node: a peer behind a router is often
//! connected to us, because it dialed us, and could still not be dialed by others.

use std::time::Duration;

use bytes::Bytes;
use sepal_protocol::{
    Message,
    message::decode,
    names::REACHABILITY_CHECK,
    proto::{NodeInfo, PingRequest, PingResponse},
};

use crate::{
    p2p::{self, CallError, DialError, Handler, HandlerError, HandlerLimits, Multiaddr, OpenError, P2p, PeerId},
    task::Tasks,
};

pub mod ask;

/// How long a peer has to answer, dialing included, as in `petals/server/reachability.py`.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a stranger waits before it asks for an address again.
const INTRODUCTION_PAUSE: Duration = Duration::from_millis(200);

/// Checks that run at the same time. Each costs a libp2p host of its own for up to [`CHECK_TIMEOUT`].
const MAX_CHECKS: usize = 16;

/// The handler of `rpc_check` for a node that can be dialed: servers and bootstrap nodes.
pub fn handlers(p2p: P2p, tasks: Tasks) -> Vec<Handler> {
    let check = move |_caller: PeerId, request: Bytes| answer(p2p.clone(), tasks.clone(), request);
    let limits = HandlerLimits {
        max_calls: MAX_CHECKS,
        ..HandlerLimits::default()
    };
    vec![Handler::unary(REACHABILITY_CHECK, limits, check)]
}

async fn answer(p2p: P2p, tasks: Tasks, request: Bytes) -> Result<Bytes, HandlerError> {
    let request: PingRequest = decode("PingRequest", request).map_err(|error| HandlerError(error.to_string()))?;
    let peer = request.peer.unwrap_or_default().node_id;
    let peer = PeerId::from_bytes(&peer).map_err(|error| HandlerError(error.to_string()))?;
    let available = peer == p2p.peer_id() || can_be_dialed(&p2p, &tasks, peer).await;
    let response = PingResponse {
        available,
        ..PingResponse::default()
    };
    Ok(response.encode_to_vec().into())
}

/// Whether `peer` answers a stranger.
async fn can_be_dialed(p2p: &P2p, tasks: &Tasks, peer: PeerId) -> bool {
    let tasks = tasks.child();
    // Dropping the guard stops the stranger, also when the caller gives up in the middle.
    let _guard = tasks.token().drop_guard();
    // Not through relays: a peer behind one is reached by everybody, and the question is whether it is without.
    let mut config = p2p.stranger();
    config.known_peers.extend(on_this_machine(p2p, peer).await);
    let stranger = match P2p::bind(config, &tasks).await {
        Ok(stranger) => stranger,
        Err(error) => {
            tracing::warn!(%error, "cannot check whether a peer can be dialed");
            return false;
        }
    };
    match tokio::time::timeout(CHECK_TIMEOUT, ask_itself(&stranger, peer)).await {
        Ok(answer) => answer,
        Err(_) => {
            tracing::debug!(%peer, "a peer did not answer a stranger in time");
            false
        }
    }
}

/// Where `peer` says it can be dialed by others on this very machine. Loopback addresses are told to those only who are
/// connected over one, and by which of this node's addresses the stranger comes is chance. Where this node itself reached the
/// peer is not enough: a peer that announces other addresses is dialed at those by everybody else.
async fn on_this_machine(p2p: &P2p, peer: PeerId) -> Vec<Multiaddr> {
    let contacts = p2p.contacts().await;
    let contact = contacts.into_iter().find(|contact| contact.peer == peer);
    let announced = contact.map(|contact| contact.announced).unwrap_or_default();
    announced.into_iter().filter(p2p::is_loopback).collect()
}

/// Calls `peer`, and as long as nobody tells an address of it calls again: the stranger, or the peer, may be too new to
/// have been introduced. It does not end by itself if nobody ever does.
pub(crate) async fn call_when_introduced(
    stranger: &P2p,
    peer: PeerId,
    name: &str,
    question: Bytes,
) -> Result<Bytes, CallError> {
    loop {
        match stranger.call_unary(peer, name, question.clone(), CHECK_TIMEOUT).await {
            Err(CallError::Open(OpenError::Dial(DialError::NotFound))) => tokio::time::sleep(INTRODUCTION_PAUSE).await,
            answer => return answer,
        }
    }
}

/// Asks `peer` about itself.
async fn ask_itself(stranger: &P2p, peer: PeerId) -> bool {
    match call_when_introduced(stranger, peer, REACHABILITY_CHECK, question(peer)).await {
        Ok(answer) => is_yes(answer) == Some(true),
        Err(error) => {
            tracing::debug!(%peer, %error, "a peer cannot be dialed");
            false
        }
    }
}

/// Can `peer` be dialed? The peer id goes where the DHT's own ping has a node id.
fn question(peer: PeerId) -> Bytes {
    let question = PingRequest {
        peer: Some(NodeInfo {
            node_id: peer.to_bytes(),
        }),
        ..PingRequest::default()
    };
    question.encode_to_vec().into()
}

/// What an answer says; `None` if it cannot be read.
fn is_yes(answer: Bytes) -> Option<bool> {
    let answer: PingResponse = decode("PingResponse", answer).ok()?;
    Some(answer.available)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        p2p::{BindError, Router},
        swarm::testing::{free_port, host},
    };

    async fn checking_host(tasks: &Tasks, listens: bool) -> P2p {
        let host = host(tasks, listens).await;
        let handlers = handlers(host.clone(), tasks.clone());
        Router::new(host.clone()).serve(handlers).spawn(tasks);
        host
    }

    async fn ask(asker: &P2p, asked: PeerId, about: Vec<u8>) -> Result<PingResponse, p2p::CallError> {
        let question = PingRequest {
            peer: Some(NodeInfo { node_id: about }),
            ..PingRequest::default()
        };
        let question = question.encode_to_vec().into();
        let answer = asker
            .call_unary(asked, REACHABILITY_CHECK, question, Duration::from_secs(20))
            .await?;
        Ok(PingResponse::decode(answer).unwrap())
    }

    #[tokio::test]
    async fn a_node_asked_about_itself_is_reachable() {
        let tasks = Tasks::new();
        let (asked, asker) = (checking_host(&tasks, true).await, host(&tasks, true).await);
        asker.connect(asked.addrs()[0].clone()).await.unwrap();
        let answer = ask(&asker, asked.peer_id(), asked.peer_id().to_bytes()).await.unwrap();
        assert!(answer.available);
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_peer_that_can_be_dialed_is_told_from_one_that_only_dials() {
        let tasks = Tasks::new();
        let asked = checking_host(&tasks, true).await;
        for listens in [true, false] {
            let asker = checking_host(&tasks, listens).await;
            asker.connect(asked.addrs()[0].clone()).await.unwrap();
            let answer = ask(&asker, asked.peer_id(), asker.peer_id().to_bytes()).await.unwrap();
            assert_eq!(answer.available, listens);
        }
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_peer_of_this_machine_is_found_where_it_was_dialed_whichever_way_a_stranger_comes() {
        let tasks = Tasks::new();
        let asker = checking_host(&tasks, true).await;
        let asked = checking_host(&tasks, true).await;
        asked.connect(asker.addrs()[0].clone()).await.unwrap();
        // Each has heard of the other soon after they met.
        while on_this_machine(&asked, asker.peer_id()).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(on_this_machine(&asked, asker.peer_id()).await, asker.addrs());
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_peer_that_announces_other_addresses_is_not_sought_where_this_node_reached_it() {
        let tasks = Tasks::new();
        let asked = checking_host(&tasks, true).await;
        // Nobody listens on the port of the discard service.
        let closed: Multiaddr = "/ip4/127.0.0.1/tcp/9".parse().unwrap();
        let (open, asker) = loop {
            let open: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", free_port()).parse().unwrap();
            let config = p2p::Config {
                listen: vec![open.clone()],
                announce: vec![closed.clone()],
                ..p2p::Config::default()
            };
            match P2p::bind(config, &tasks).await {
                // Another process took the port in between.
                Err(BindError::Listen { .. }) => {}
                asker => break (open, asker.unwrap()),
            }
        };
        asked.connect(open.with_p2p(asker.peer_id()).unwrap()).await.unwrap();
        while on_this_machine(&asked, asker.peer_id()).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let told = closed.with_p2p(asker.peer_id()).unwrap();
        assert_eq!(on_this_machine(&asked, asker.peer_id()).await, [told]);
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_question_about_nobody_is_an_error_and_not_a_panic() {
        let tasks = Tasks::new();
        let (asked, asker) = (checking_host(&tasks, true).await, host(&tasks, true).await);
        asker.connect(asked.addrs()[0].clone()).await.unwrap();
        for nobody in [vec![], vec![1, 2, 3]] {
            let answer = ask(&asker, asked.peer_id(), nobody).await;
            assert!(matches!(answer, Err(p2p::CallError::Remote { .. })), "{answer:?}");
        }
        let nonsense = Bytes::from_static(&[0xff; 9]);
        let answer = asker
            .call_unary(asked.peer_id(), REACHABILITY_CHECK, nonsense, Duration::from_secs(20))
            .await;
        assert!(answer.is_err());
        tasks.shutdown().await;
    }
}
