//! Servers that die while somebody generates: the text is the same as without that, or the error says what is missing.

use std::collections::HashSet;

use super::{
    generating::{client, client_with, generate},
    setup::{N_BLOCKS, PREFIX, Swarm, TestServer, reference, tokens, until},
};
use crate::{
    client::{Client, ClientError},
    p2p::{Identity, PeerId},
};

/// The servers that a new session would use.
async fn on_route<'a>(client: &Client, servers: &'a [TestServer]) -> Vec<&'a TestServer> {
    let route = client.route(28).await.unwrap();
    let at = |peer: PeerId| servers.iter().find(|server| server.node.peer() == peer).unwrap();
    route.into_iter().map(|hop| at(hop.peer)).collect()
}

/// Generates 16 tokens; when `position` of them are there, the servers of the route in `victims` (by hop) die.
async fn lose(position: usize, victims: &[usize]) {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 0..2, 2..4, 2..4]).await;
    let (_node, client) = client(&swarm).await;
    let route = on_route(&client, &servers).await;
    let victims: Vec<&TestServer> = victims.iter().map(|hop| route[*hop]).collect();
    let kill = || victims.iter().for_each(|victim| victim.kill());
    if position == 0 {
        kill();
    }
    let mut n_tokens = 0;
    let mut on_text = |_: &str| {
        n_tokens += 1;
        if n_tokens == position {
            kill();
        }
    };
    let reference = reference();
    let generation = generate(&client, &reference.prompt, 16, &mut on_text).await.unwrap();
    assert_eq!(generation.token_ids, reference.greedy);
    let used: HashSet<PeerId> = generation.route.iter().map(|hop| hop.peer).collect();
    assert!(victims.iter().all(|victim| !used.contains(&victim.node.peer())));
    let spares = servers.iter().filter(|server| used.contains(&server.node.peer()));
    for server in spares {
        server.idle().await;
    }
}

#[tokio::test]
async fn the_first_server_may_die_before_it_is_used() {
    lose(0, &[0]).await;
}

#[tokio::test]
async fn the_first_server_may_die_at_any_token() {
    for position in [1, 2, 9, 15] {
        lose(position, &[0]).await;
    }
}

#[tokio::test]
async fn the_last_server_may_die_at_any_token() {
    for position in [1, 7, 14] {
        lose(position, &[1]).await;
    }
}

#[tokio::test]
async fn all_servers_of_the_route_may_die_at_once() {
    lose(5, &[0, 1]).await;
}

#[tokio::test]
async fn one_server_is_replaced_by_two() {
    let swarm = Swarm::start().await;
    let (whole, _halves) = (swarm.serve(0..4).await, swarm.serve_all(&[0..2, 2..4]).await);
    let (_node, client) = client(&swarm).await;
    assert_eq!(client.route(28).await.unwrap().len(), 1);
    let mut n_tokens = 0;
    let mut on_text = |_: &str| {
        n_tokens += 1;
        if n_tokens == 6 {
            whole.kill();
        }
    };
    let reference = reference();
    let generation = generate(&client, &reference.prompt, 16, &mut on_text).await.unwrap();
    assert_eq!(generation.token_ids, reference.greedy);
    assert_eq!(generation.route.len(), 2);
}

#[tokio::test]
async fn blocks_that_are_served_by_nobody_are_named_after_a_bounded_time() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, client) = client(&swarm).await;
    let (kept, lost) = (servers[0].node.peer(), &servers[1]);
    let mut on_text = |_: &str| lost.kill();
    let error = generate(&client, &reference().prompt, 16, &mut on_text)
        .await
        .unwrap_err();
    let text = error.to_string();
    let lost = lost.node.peer();
    assert!(
        text.starts_with(&format!("blocks 2:4 of {PREFIX} are served by nobody; known servers: ")),
        "{text}"
    );
    assert!(
        text.contains(&format!("{kept} 0:2")) && text.contains(&format!("{lost} 2:4 (failed)")),
        "{text}"
    );
    assert!(std::error::Error::source(&error).is_some(), "and what the last one did");
}

#[tokio::test]
async fn a_swarm_without_servers_is_an_error_that_says_so() {
    let swarm = Swarm::start().await;
    let (_node, client) = client(&swarm).await;
    let error = generate(&client, &[1, 2], 4, &mut |_| {}).await.unwrap_err();
    let expected = format!("blocks 0:{N_BLOCKS} of {PREFIX} are served by nobody; known servers: none");
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_server_that_comes_while_a_client_waits_is_used() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, client) = client_with(&swarm, |config| config.backoff.max_retries = 1000).await;
    let mut n_tokens = 0;
    let mut on_text = |_: &str| {
        n_tokens += 1;
        if n_tokens == 4 {
            servers[1].kill();
        }
    };
    let reference = reference();
    let replacing = async {
        until("the loss", || servers[1].node.tasks.token().is_cancelled()).await;
        swarm.serve(2..4).await
    };
    let (generation, spare) = tokio::join!(generate(&client, &reference.prompt, 16, &mut on_text), replacing);
    let generation = generation.unwrap();
    assert_eq!(generation.token_ids, reference.greedy);
    assert_eq!(generation.route[1].peer, spare.node.peer());
}

#[tokio::test]
async fn a_swarm_that_vanishes_and_returns_goes_on_with_the_text() {
    let swarm = Swarm::start().await;
    let identities = [Identity::ephemeral(), Identity::ephemeral()];
    let first = swarm.serve_as(&identities[0], 0..2).await;
    let second = swarm.serve_as(&identities[1], 2..4).await;
    let (_node, client) = client_with(&swarm, |config| config.backoff.max_retries = 1000).await;
    let mut n_tokens = 0;
    let mut on_text = |_: &str| {
        n_tokens += 1;
        if n_tokens == 4 {
            first.kill();
            second.kill();
        }
    };
    let reference = reference();
    // One server is the same as before, at another address; the other one is somebody else.
    let returning = async {
        until("all servers are lost", || second.node.tasks.token().is_cancelled()).await;
        [swarm.serve_as(&identities[0], 0..2).await, swarm.serve(2..4).await]
    };
    let (generation, returned) = tokio::join!(generate(&client, &reference.prompt, 16, &mut on_text), returning);
    let generation = generation.unwrap();
    assert_eq!(generation.token_ids, reference.greedy);
    let used: Vec<PeerId> = generation.route.iter().map(|hop| hop.peer).collect();
    assert_eq!(used, returned.map(|server| server.node.peer()));
}

#[tokio::test]
async fn a_server_that_leaves_politely_is_replaced_as_well() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..4, 0..4]).await;
    let (_node, client) = client(&swarm).await;
    let first = on_route(&client, &servers).await[0];
    let reference = reference();
    let mut session = client.session(12);
    let mut output = session.step(tokens(&reference.embeddings, 0..6)).await.unwrap().data;
    first.server.shutdown().await;
    output.extend(session.step(tokens(&reference.embeddings, 6..12)).await.unwrap().data);
    super::setup::assert_close(&output, &reference.blocks[3].data, 1e-4);
    assert_ne!(session.report()[0].peer, first.node.peer());
}

#[tokio::test]
async fn a_session_that_failed_takes_no_further_steps() {
    let swarm = Swarm::start().await;
    let server = swarm.serve(0..4).await;
    let (_node, client) = client(&swarm).await;
    let x = tokens(&reference().embeddings, 0..1);
    let mut session = client.session(8);
    session.step(x.clone()).await.unwrap();
    server.kill();
    assert!(matches!(
        session.step(x.clone()).await,
        Err(ClientError::MissingBlocks { .. })
    ));
    assert!(matches!(session.step(x.clone()).await, Err(ClientError::SessionEnded)));
    // The same after a step that nobody waited for.
    let mut session = client.session(8);
    drop(tokio::time::timeout(std::time::Duration::ZERO, session.step(x.clone())).await);
    assert!(matches!(session.step(x).await, Err(ClientError::SessionEnded)));
}
