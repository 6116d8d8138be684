//! What a node keeps to for the sake of its owner: who is served and how much of it, hours, and rests, seen from outside.

use std::time::{Duration, SystemTime};

use sepal_protocol::{
    Message, compress::Compression, metadata::StepMetadata, names, proto, record::ServerState, tensor::DType,
};

use super::{
    caller::{Session, Step, call, empty},
    setup::{Node, PREFIX, Swarm, TestServer, assert_close, config, reference, tokens, until},
};
use crate::{
    model::Hidden,
    p2p::{self, Bandwidth},
    server::{Config, Network, Politeness, Quotas, Refusals, Throughput, Who},
    swarm::directory::Directory,
};

fn with(politeness: Politeness) -> Config {
    Config {
        politeness,
        ..config(0..4)
    }
}

fn quotas(quotas: Quotas, own: &[&Node]) -> Config {
    with(Politeness {
        own: own.iter().map(|node| node.peer()).collect(),
        quotas,
        ..Politeness::default()
    })
}

async fn open(node: &Node, server: &TestServer) -> Session {
    Session::open(node, server.node.peer()).await
}

fn prompt(n: usize) -> Hidden {
    tokens(&reference().embeddings, 0..n)
}

fn pass(x: &Hidden) -> Vec<u8> {
    let tensors = [x.to_wire(DType::F32).unwrap(), empty(DType::F32)];
    proto::ExpertRequest {
        uid: format!("{PREFIX}.0"),
        tensors: tensors.map(|tensor| tensor.encode(Compression::None).unwrap()).to_vec(),
        metadata: StepMetadata::default().encode(),
    }
    .encode_to_vec()
}

#[tokio::test]
async fn nothing_is_computed_for_who_is_denied_and_the_dht_answers_all_the_same() {
    let swarm = Swarm::start().await;
    let (friend, stranger) = (swarm.caller().await, swarm.caller().await);
    let denied = "server does not compute for this peer";
    let loopback = Network::new("127.0.0.0".parse().unwrap(), 8).unwrap();
    let elsewhere = Network::new("203.0.113.0".parse().unwrap(), 24).unwrap();
    for (allow, deny) in [
        (vec![], vec![Who::Peer(stranger.peer())]),
        (vec![Who::Peer(friend.peer()), Who::At(elsewhere)], vec![]),
        (
            vec![Who::At(loopback)],
            vec![Who::At(elsewhere), Who::Peer(stranger.peer())],
        ),
    ] {
        let server = swarm
            .serve_with(with(Politeness {
                allow,
                deny,
                ..Politeness::default()
            }))
            .await;
        let step = Step::first(&prompt(2), 8);
        open(&friend, &server).await.step(&step).await.output();
        let error = open(&stranger, &server).await.step(&step).await.error();
        assert_eq!(error, denied);
        let refused = call(&stranger, server.node.peer(), names::FORWARD, pass(&prompt(2))).await;
        assert_eq!(refused.unwrap_err(), format!("PermissionError('{denied}')"));
        let snapshot = Directory::new(stranger.dht.clone(), PREFIX, 4).refresh().await;
        assert_eq!(snapshot.blocks[0][&server.node.peer()].state, ServerState::Online);
        let counted = Refusals {
            denied: 2,
            ..Refusals::default()
        };
        assert_eq!(server.server.stats().refusals, counted);
        server.server.shutdown().await;
    }
}

#[tokio::test]
async fn a_peer_with_its_quota_of_sessions_gets_another_one_when_one_ends() {
    let swarm = Swarm::start().await;
    let (owner, stranger, other) = (swarm.caller().await, swarm.caller().await, swarm.caller().await);
    let only_one = Quotas {
        sessions: Some(1),
        ..Quotas::default()
    };
    let server = swarm.serve_with(quotas(only_one, &[&owner])).await;
    let step = Step::first(&prompt(2), 8);
    let mut first = open(&stranger, &server).await;
    first.step(&step).await.output();
    let error = open(&stranger, &server).await.step(&step).await.error();
    assert_eq!(
        error,
        "quota of this peer is used up: it has 1 sessions open, the most that it may have"
    );
    first.step(&Step::next(&prompt(1))).await.output();
    let mut held = Vec::new();
    for node in [&other, &owner, &owner, &owner] {
        let mut session = open(node, &server).await;
        session.step(&step).await.output();
        held.push(session);
    }
    assert_eq!(server.server.stats().refusals.sessions, 1);
    drop(first);
    until("the session is over", || server.server.sessions().len() == held.len()).await;
    open(&stranger, &server).await.step(&step).await.output();
}

#[tokio::test]
async fn who_may_have_no_session_is_told_before_it_says_anything() {
    let swarm = Swarm::start().await;
    let (stranger, other) = (swarm.caller().await, swarm.caller().await);
    let server = swarm
        .serve_with(with(Politeness {
            deny: vec![Who::Peer(stranger.peer())],
            quotas: Quotas {
                sessions: Some(1),
                ..Quotas::default()
            },
            ..Politeness::default()
        }))
        .await;
    let error = open(&stranger, &server).await.answer().await.error();
    assert_eq!(error, "server does not compute for this peer");
    // A stream in which nothing was said takes a place as well.
    let mut silent = [open(&other, &server).await, open(&other, &server).await];
    let [first, second] = &mut silent;
    let error = tokio::select! {
        answer = first.answer() => answer.error(),
        answer = second.answer() => answer.error(),
    };
    assert!(error.contains("it has 1 sessions open"), "{error}");
}

#[tokio::test]
async fn a_peer_that_had_its_tokens_is_refused_in_sessions_and_passes_and_the_owner_is_not() {
    let swarm = Swarm::start().await;
    let (owner, stranger) = (swarm.caller().await, swarm.caller().await);
    let few = Quotas {
        tokens_per_minute: Some(4),
        ..Quotas::default()
    };
    let server = swarm.serve_with(quotas(few, &[&owner])).await;
    let mut session = open(&stranger, &server).await;
    // More than there are is computed as long as there are some.
    session.step(&Step::first(&prompt(7), 64)).await.output();
    let says = "quota of this peer is used up: 4 tokens a minute; there are some again in ";
    let error = session.step(&Step::next(&prompt(1))).await.error();
    assert!(error.starts_with(says), "{error}");
    let error = call(&stranger, server.node.peer(), names::FORWARD, pass(&prompt(2))).await;
    let error = error.unwrap_err();
    assert!(error.starts_with(&format!("RuntimeError('{says}")), "{error}");
    assert_eq!(server.server.stats().refusals.tokens, 2);
    let mut own = open(&owner, &server).await;
    own.step(&Step::first(&prompt(7), 64)).await.output();
    own.step(&Step::next(&prompt(1))).await.output();
}

#[tokio::test]
async fn a_peer_has_its_part_of_the_cache_and_no_more() {
    let swarm = Swarm::start().await;
    let (owner, stranger, other) = (swarm.caller().await, swarm.caller().await, swarm.caller().await);
    let quarter = Quotas {
        cache: Some(0.25),
        ..Quotas::default()
    };
    // Of 1024 tokens in four blocks.
    let server = swarm.serve_with(quotas(quarter, &[&owner])).await;
    let mut first = open(&stranger, &server).await;
    first.step(&Step::first(&prompt(1), 200)).await.output();
    let error = open(&stranger, &server)
        .await
        .step(&Step::first(&prompt(1), 100))
        .await
        .error();
    assert_eq!(
        error,
        "Could not allocate 102400 bytes: quota of this peer, 262144 bytes of the cache, is used up"
    );
    assert_eq!(server.server.stats().refusals.cache, 1);
    let mut others = open(&other, &server).await;
    others.step(&Step::first(&prompt(1), 250)).await.output();
    open(&owner, &server)
        .await
        .step(&Step::first(&prompt(1), 500))
        .await
        .output();
    drop((first, others));
    server.idle().await;
    open(&stranger, &server)
        .await
        .step(&Step::first(&prompt(1), 256))
        .await
        .output();
}

#[tokio::test]
async fn outside_of_its_hours_a_node_is_announced_as_joining_and_begins_nothing() {
    let swarm = Swarm::start().await;
    let (server, caller) = (swarm.serve(0..4).await, swarm.caller().await);
    let state = async || {
        let snapshot = Directory::new(caller.dht.clone(), PREFIX, 4).refresh().await;
        snapshot.blocks[0][&server.node.peer()].state
    };
    let mut session = open(&caller, &server).await;
    session.step(&Step::first(&prompt(2), 8)).await.output();
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
    assert!(server.server.set_hours(false, Some(tomorrow)));
    server.server.tell_pause().await.unwrap();
    assert_eq!(state().await, ServerState::Joining);
    let pause = server.server.overview().pause.unwrap();
    assert!(pause.by_hours && pause.until == Some(tomorrow));
    let error = open(&caller, &server)
        .await
        .step(&Step::first(&prompt(2), 8))
        .await
        .error();
    assert_eq!(error, "server takes no new sessions right now");
    assert_eq!(server.server.stats().refusals.paused, 1);
    session.step(&Step::next(&prompt(1))).await.output();
    assert!(server.server.set_hours(true, None));
    server.server.tell_pause().await.unwrap();
    assert_eq!(state().await, ServerState::Online);
    open(&caller, &server)
        .await
        .step(&Step::first(&prompt(2), 8))
        .await
        .output();
}

#[tokio::test]
async fn a_node_that_rests_on_a_narrow_line_computes_the_same_and_announces_both() {
    let swarm = Swarm::start().await;
    let caller = swarm.caller().await;
    let mut announced = Vec::new();
    for (share, bandwidth) in [
        (1.0, Bandwidth::default()),
        (0.01, Bandwidth::new(Some(100_000), Some(200_000))),
    ] {
        let host = p2p::Config {
            bandwidth,
            ..p2p::Config::default()
        };
        let config = Config {
            throughput: Throughput::Eval,
            ..with(Politeness::new(share))
        };
        let server = swarm.serve_at(host, config).await;
        let x = prompt(2);
        let output = open(&caller, &server).await.step(&Step::first(&x, 8)).await.output();
        let expected = tokens(&reference().blocks[3], 0..2);
        assert_close(&output.to_f32_vec(), &expected.data, 1e-4);
        let snapshot = Directory::new(caller.dht.clone(), PREFIX, 4).refresh().await;
        announced.push(snapshot.blocks[0][&server.node.peer()].clone());
        server.server.shutdown().await;
    }
    let [all, part] = [0, 1].map(|i| announced[i].forward_rps.unwrap());
    // However busy this machine is meanwhile, it is not a hundred times slower.
    assert!(part < all, "{part} of {all}");
    // 64 numbers of 16 bits a token.
    let network_rps = announced[1].network_rps.unwrap();
    assert!(network_rps <= 800_000.0 / 1024.0, "{network_rps}");
}
