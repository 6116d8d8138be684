//! Servers that choose their blocks, move when the swarm needs them elsewhere, and leave.

use std::time::Duration;

use super::{
    generating::{client, client_with, generate},
    setup::{Swarm, config, reference, soon, until},
};
use crate::server::{BlockChoice, Config, Server, StartError};

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
async fn a_server_that_stopped_is_gone_and_stays_away() {
    let swarm = Swarm::start().await;
    let mut always_moving = choosing(4);
    always_moving.balance_quality = 2.0;
    always_moving.mean_balance_check_period = Duration::from_millis(20);
    let server = swarm.serve_with(always_moving).await;
    soon("a move", server.server.moved()).await.unwrap();
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
