//! Servers that choose their blocks, move when the swarm needs them elsewhere, and leave.

use std::time::Duration;

use futures::FutureExt;
use sepal_protocol::record::{BlockUid, ServerState};

use super::{
    caller::{Answer, Session, Step},
    generating::{client, client_with, generate},
    setup::{N_BLOCKS, PREFIX, Swarm, assert_close, config, reference, soon, tokens, until},
    swarms::{announced, recorded},
};
use crate::{
    p2p::{self, Identity},
    server::{BlockChoice, Config, Server, StartError, Throughput},
    swarm::{
        Directory,
        announce::{AnnounceConfig, Announcer},
        testing,
    },
};

fn choosing(count: u32) -> Config {
    Config {
        blocks: BlockChoice::Count(count),
        mean_balance_check_period: Duration::from_millis(100),
        ..config(0..4)
    }
}

#[tokio::test]
async fn servers_choose_the_blocks_that_nobody_has() {
    let swarm = Swarm::start().await;
    let _first = swarm.serve_with(choosing(2)).await;
    let _second = swarm.serve_with(choosing(2)).await;
    let (_node, client) = client(&swarm).await;
    let reference = reference();
    let generation = generate(&client, &reference.prompt, 4, &mut |_| {}).await.unwrap();
    assert_eq!(generation.token_ids, reference.greedy[..4]);
    let hops: Vec<_> = generation.route.iter().map(|hop| hop.blocks.clone()).collect();
    assert_eq!(hops, [0..2, 2..4]);
}

#[tokio::test]
async fn a_server_that_crashed_returns_to_the_blocks_that_nobody_has_since() {
    let swarm = Swarm::start().await;
    let _other = swarm.serve(0..2).await;
    let host = p2p::Config {
        identity: Identity::ephemeral(),
        ..p2p::Config::default()
    };
    let crashed = swarm.serve_at(host.clone(), choosing(2)).await;
    assert_eq!(crashed.server.overview().blocks, Some(2..4));
    crashed.kill();
    let again = swarm.serve_at(host, choosing(2)).await;
    assert_eq!(again.server.overview().blocks, Some(2..4));
}

#[tokio::test]
async fn what_a_server_said_before_it_crashed_is_taken_back_where_it_is_not_again() {
    let (swarm, identity) = (Swarm::start().await, Identity::ephemeral());
    let crashed = swarm.serve_as(&identity, 0..4).await;
    let reader = swarm.caller().await;
    announced(&reader, crashed.node.peer(), 0..4, ServerState::Online).await;
    crashed.kill();
    let again = swarm.serve_as(&identity, 1..3).await;
    announced(&reader, again.node.peer(), 1..3, ServerState::Online).await;
}

#[tokio::test]
async fn a_server_of_which_the_records_say_too_much_stays_until_they_do_not() {
    let swarm = Swarm::start().await;
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let mut restless = choosing(2);
    restless.balance_quality = 0.5;
    restless.mean_balance_check_period = Duration::from_millis(20);
    let server = swarm.serve_with(restless).await;
    let me = server.node.peer();
    let left = AnnounceConfig {
        peer: me,
        prefix: PREFIX.to_owned(),
        blocks: 2..3,
        n_model_blocks: N_BLOCKS,
        repository: None,
        period: Duration::from_secs(60),
        expiration: Duration::from_secs(120),
    };
    let describe = || testing::server(ServerState::Online, 2..3);
    let left = Announcer::spawn(server.node.dht.clone(), left, describe, &server.node.tasks);
    left.set_state(ServerState::Online).await.unwrap();
    fixed[1].server.shutdown().await;
    // Three blocks would be needed most at 1..4.
    let reader = swarm.caller().await;
    let [here, gone] = [Some(ServerState::Online), None];
    for _ in 0..30 {
        assert_eq!(recorded(&reader, me).await, [here, here, here, gone]);
    }
    left.set_state(ServerState::Offline).await.unwrap();
    assert_eq!(soon("the move", server.server.moved()).await.unwrap(), 2..4);
}

#[tokio::test]
async fn a_server_moves_to_where_the_only_other_one_left() {
    let swarm = Swarm::start().await;
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let mut choosing = choosing(2);
    // Never worth moving while all blocks are there.
    choosing.balance_quality = 0.5;
    let mover = swarm.serve_with(choosing).await;
    let (_node, client) = client_with(&swarm, |config| config.backoff.max_retries = 1000).await;
    let reference = reference();
    fixed[1].server.shutdown().await;
    assert_eq!(soon("the move", mover.server.moved()).await.unwrap(), 2..4);
    client.refresh().await;
    let generation = generate(&client, &reference.prompt, 4, &mut |_| {}).await.unwrap();
    assert_eq!(generation.token_ids, reference.greedy[..4]);
    assert_eq!(generation.route[1].peer, mover.node.peer());
}

#[tokio::test]
async fn a_server_whose_blocks_were_given_stays_at_them() {
    let swarm = Swarm::start().await;
    let restless = |blocks, period| Config {
        blocks,
        balance_quality: 2.0,
        mean_balance_check_period: Duration::from_millis(period),
        ..config(0..2)
    };
    let last = Config {
        throughput: Throughput::Fixed(1000.0),
        ..config(2..4)
    };
    let last = swarm.serve_with(last).await;
    let mut given = Vec::new();
    for _ in 0..3 {
        given.push(swarm.serve_with(restless(BlockChoice::Fixed(0..2), 10)).await);
    }
    // It looks less often than they would.
    let mover = swarm.serve_with(restless(BlockChoice::Count(2), 200)).await;
    assert_eq!(mover.server.overview().blocks, Some(0..2));
    last.server.shutdown().await;
    assert_eq!(soon("the move", mover.server.moved()).await.unwrap(), 2..4);
    for given in given {
        assert!(given.server.moved().now_or_never().is_none());
        assert_eq!(given.server.overview().blocks, Some(0..2));
    }
}

/// A step through the first two blocks.
fn step(range: std::ops::Range<usize>) -> Step {
    let x = tokens(&reference().embeddings, range.clone());
    let step = if range.start == 0 {
        Step::first(&x, 12)
    } else {
        Step::next(&x)
    };
    Step {
        uid: BlockUid::format_chain(PREFIX, 0..2),
        ..step
    }
}

#[tokio::test]
async fn a_session_that_runs_through_a_move_gets_the_same_numbers_as_undisturbed() {
    let swarm = Swarm::start().await;
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let mut config = choosing(2);
    config.balance_quality = 0.5;
    config.linger = Duration::from_millis(1);
    let mover = swarm.serve_with(config).await;
    let caller = swarm.caller().await;
    let mut session = Session::open(&caller, mover.node.peer()).await;
    let first = session.step(&step(0..4)).await.output();
    let n_pages = mover.server.stats().cache.total;
    fixed[1].server.shutdown().await;
    assert_eq!(soon("the move", mover.server.moved()).await.unwrap(), 2..4);
    // The old blocks take no new sessions any more; the open one does not notice.
    let refused = async {
        loop {
            let mut late = Session::open(&caller, mover.node.peer()).await;
            if let Answer::Error(text) = late.step(&step(0..1)).await {
                return text;
            }
        }
    };
    let refusal = soon("a refusal", refused).await;
    assert_eq!(refusal, "Remote peer does not serve tiny-llama-hf.0");
    let second = session.step(&step(4..9)).await.output();
    assert_close(&second.to_f32_vec(), &tokens(&reference().blocks[1], 4..9).data, 1e-4);
    let mut undisturbed = Session::open(&caller, fixed[0].node.peer()).await;
    assert_eq!(undisturbed.step(&step(0..4)).await.output(), first);
    assert_eq!(undisturbed.step(&step(4..9)).await.output(), second);
    // The old blocks are there for the session, and gone with it.
    assert_eq!(mover.server.n_spans(), 2);
    // Both have the same cache.
    assert!(n_pages > 0);
    assert_eq!(mover.server.stats().cache.total, n_pages);
    drop(session);
    until("the old span is gone", || mover.server.n_spans() == 1).await;
    until("idle", || mover.server.is_idle()).await;
}

#[tokio::test]
async fn at_no_moment_of_a_move_is_a_server_without_a_record() {
    let swarm = Swarm::start().await;
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let mut config = choosing(3);
    config.balance_quality = 0.5;
    let mover = swarm.serve_with(config).await;
    let directory = Directory::new(swarm.bootstrap.dht.clone(), PREFIX.to_owned(), N_BLOCKS);
    fixed[1].server.shutdown().await;
    let moved = soon("the move", mover.server.moved());
    tokio::pin!(moved);
    loop {
        let snapshot = directory.refresh().await;
        let mine = snapshot.spans.iter().find(|span| span.peer == mover.node.peer());
        assert!(mine.is_some(), "{:?}", snapshot.spans);
        if let Some(span) = (&mut moved).now_or_never() {
            assert_eq!(span.unwrap(), 1..4);
            break;
        }
    }
    let snapshot = directory.refresh().await;
    let mine = snapshot.spans.iter().find(|span| span.peer == mover.node.peer());
    assert_eq!(mine.unwrap().blocks, 1..4);
}

#[tokio::test]
async fn a_server_that_stopped_is_gone_and_stays_away() {
    let swarm = Swarm::start().await;
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let mut restless = choosing(2);
    restless.balance_quality = 2.0;
    restless.mean_balance_check_period = Duration::from_millis(20);
    let server = swarm.serve_with(restless).await;
    fixed[1].server.shutdown().await;
    soon("a move", server.server.moved()).await.unwrap();
    fixed[0].server.shutdown().await;
    soon("stopping", server.server.shutdown()).await;
    let (_node, client) = client(&swarm).await;
    assert!(client.snapshot().spans.is_empty());
    // Nothing is left that could announce or compute.
    assert!(!server.server.is_idle());
    client.refresh().await;
    assert!(client.snapshot().spans.is_empty());
}

#[tokio::test]
async fn blocks_that_cannot_be_loaded_are_announced_and_taken_back() {
    let swarm = Swarm::start().await;
    let node = swarm.node().await;
    let parts = (node.p2p.clone(), node.dht.clone());
    let server = Server::new(config(2..9), swarm.source.clone(), parts, &node.tasks);
    node.join(server.handlers()).await;
    let error = soon("the error", server.bring_up()).await.unwrap_err();
    assert!(matches!(error, StartError::Load { start: 2, end: 9, .. }), "{error}");
    let (_node, client) = client(&swarm).await;
    assert!(client.snapshot().spans.is_empty());
}

#[tokio::test]
async fn free_cache_is_announced() {
    let swarm = Swarm::start().await;
    let mut config = config(0..4);
    config.update_period = Duration::from_millis(200);
    let server = swarm.serve_with(config).await;
    let (_node, client) = client(&swarm).await;
    let left = || client.snapshot().spans[0].info.cache_tokens_left.unwrap();
    // Counted for keys and values and for each of four blocks.
    assert_eq!(left(), 1024 * 2 * 4);
    let mut session = client.session(256);
    session
        .step(super::setup::tokens(&reference().embeddings, 0..1))
        .await
        .unwrap();
    let announced = async {
        while left() != (1024 - 256) * 2 * 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.refresh().await;
        }
    };
    soon("the announcement", announced).await;
    session.close().await;
    until("free", || server.server.is_idle()).await;
}
