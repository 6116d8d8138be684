//! Who leaves costs nothing any more: no cache, no session id, no computing.

use sepal_protocol::names;

use super::{
    caller::{Session, Step},
    setup::{Node, PREFIX, Swarm, TestServer, WIDTH, reference, soon, tokens, until},
};
use crate::model::Hidden;

/// Blocks of a chain that takes minutes to run. Blocks may come several times.
const LONG_CHAIN: usize = 250;

async fn scene() -> (Swarm, TestServer, Node) {
    let swarm = Swarm::start().await;
    let mut config = super::setup::config(0..4);
    config.limits.attn_cache_tokens = Some(300_000);
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    (swarm, server, node)
}

fn endless(max_length: usize) -> Step {
    let x = Hidden::new(vec![0.1; 4096 * WIDTH], 1, 4096, WIDTH).unwrap();
    let mut step = Step::first(&x, max_length).session("endless");
    step.uid = vec![format!("{PREFIX}.0"); LONG_CHAIN].join(" ");
    step
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_step_stops_it() {
    let (_swarm, server, node) = scene().await;
    let mut session = Session::open(&node, server.node.peer()).await;
    session.send(&endless(4096)).await;
    until("the step runs", || !server.server.is_idle()).await;
    drop(session);
    server.idle().await;
    assert_eq!(server.server.stats().steps, 0);
    // Its id is free.
    let x = tokens(&reference().embeddings, 0..1);
    let mut session = Session::open(&node, server.node.peer()).await;
    session.step(&Step::first(&x, 8).session("endless")).await.output();
}

#[tokio::test]
async fn a_client_whose_host_disappears_stops_its_step() {
    let (_swarm, server, node) = scene().await;
    let mut session = Session::open(&node, server.node.peer()).await;
    session.send(&endless(4096)).await;
    until("the step runs", || !server.server.is_idle()).await;
    node.tasks.shutdown().await;
    server.idle().await;
    assert_eq!(server.server.stats().steps, 0);
}

#[tokio::test]
async fn short_steps_slip_in_between_the_blocks_of_long_ones() {
    let (_swarm, server, node) = scene().await;
    let mut long = Session::open(&node, server.node.peer()).await;
    long.send(&endless(4096)).await;
    until("the step runs", || !server.server.is_idle()).await;
    let x = tokens(&reference().embeddings, 0..1);
    let mut short = Session::open(&node, server.node.peer()).await;
    short.step(&Step::first(&x, 8)).await.output();
    assert_eq!(server.server.stats().steps, 1, "the long one is not done");
    drop(long);
    drop(short);
    server.idle().await;
}

#[tokio::test]
async fn a_server_that_stops_tells_its_clients_and_stops_computing() {
    let (_swarm, server, node) = scene().await;
    let mut session = Session::open(&node, server.node.peer()).await;
    session.send(&endless(4096)).await;
    until("the step runs", || !server.server.is_idle()).await;
    soon("the server stops", server.server.shutdown()).await;
    assert_eq!(
        session.answer().await.error(),
        "server is not serving any blocks right now"
    );
    let mut late = Session::open_named(&node, server.node.peer(), names::INFERENCE).await;
    let x = tokens(&reference().embeddings, 0..1);
    assert_eq!(
        late.step(&Step::first(&x, 8)).await.error(),
        "server is not serving any blocks right now"
    );
}
