//! Receipts from servers to a file: what whole swarms give, and who gives false ones.

use std::{fs, path::Path};

use super::{
    generating::{client_with, generate},
    setup::{Swarm, config, reference},
    spoiling::{FIRST, Fault, Spoiler},
};
use crate::{
    client::Generation,
    model::WeightDType,
    receipt::{Audit, Keeper},
    server,
    task::Tasks,
};

/// Generates with receipts; returns what came of it and the file's text.
async fn with_receipts(swarm: &Swarm, path: &Path, n_tokens: usize) -> (Generation, Audit) {
    let tasks = Tasks::new();
    let keeper = Keeper::open(path, &tasks).unwrap();
    let (node, client) = client_with(swarm, |config| config.receipts = Some(keeper)).await;
    let prompt = reference().prompt;
    let generation = generate(&client, &prompt, n_tokens, &mut |_| {}).await.unwrap();
    assert!(tasks.shutdown().await);
    node.tasks.shutdown().await;
    let mut audit = Audit::default();
    for line in fs::read_to_string(path).unwrap().lines() {
        audit.line(line).unwrap();
    }
    (generation, audit)
}

#[tokio::test]
async fn every_step_of_every_server_leaves_a_receipt_and_the_file_shows_the_route() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let folder = tempfile::tempdir().unwrap();
    let (generation, audit) = with_receipts(&swarm, &folder.path().join("receipts"), 8).await;
    assert_eq!(generation.token_ids, reference().greedy[..8]);
    assert_eq!((audit.lines(), audit.links()), (16, 8));
    for (server, blocks) in servers.iter().zip([(0, 2), (2, 4)]) {
        let summary = &audit.peers()[&server.node.peer().to_string()];
        assert_eq!((summary.sessions, summary.steps), (1, 8));
        assert_eq!(summary.tokens as usize, reference().prompt.len() + 7);
        let (model, start, end) = summary.blocks.first().unwrap();
        assert_eq!((model.as_str(), (*start, *end)), (super::setup::PREFIX, blocks));
    }
}

#[tokio::test]
async fn servers_that_answer_in_other_types_are_checked_each_by_itself() {
    let swarm = Swarm::start().await;
    let _first = swarm
        .serve_with(server::Config {
            dtype: Some(WeightDType::Bf16),
            ..config(0..2)
        })
        .await;
    let _second = swarm.serve(2..4).await;
    let folder = tempfile::tempdir().unwrap();
    let (generation, audit) = with_receipts(&swarm, &folder.path().join("receipts"), 6).await;
    assert_eq!(generation.token_ids.len(), 6);
    assert!(generation.wrong_answers.is_empty());
    assert_eq!(audit.lines(), 12);
}

#[tokio::test]
async fn a_server_that_hands_on_the_receipts_of_another_is_named_and_left_out() {
    let swarm = Swarm::start().await;
    let _first = swarm.serve(0..2).await;
    let behind = swarm.serve(2..4).await;
    let thief = Spoiler::serve(&swarm, &behind, 2..4, FIRST).await;
    let folder = tempfile::tempdir().unwrap();
    let (generation, audit) = with_receipts(&swarm, &folder.path().join("receipts"), 6).await;
    assert_eq!(generation.token_ids, reference().greedy[..6]);
    assert!(generation.route.iter().all(|hop| hop.peer != thief.peer()));
    let named: Vec<_> = generation.wrong_answers.iter().map(|wrong| wrong.peer).collect();
    assert_eq!(named, [thief.peer()]);
    assert!(!audit.peers().contains_key(&thief.peer().to_string()));
}

#[tokio::test]
async fn who_computed_what_another_pushed_is_not_blamed_for_it() {
    let swarm = Swarm::start().await;
    let behind = swarm.serve(0..2).await;
    // What the server behind it pushes is a little different.
    let liar = Spoiler::serve(&swarm, &behind, 0..2, FIRST).await;
    liar.spoil(Fault::OffBy(1e-6), 0);
    let pushed_to = swarm.serve(2..4).await;
    let folder = tempfile::tempdir().unwrap();
    let (generation, audit) = with_receipts(&swarm, &folder.path().join("receipts"), 6).await;
    assert_eq!(generation.token_ids, reference().greedy[..6]);
    let route: Vec<_> = generation.route.iter().map(|hop| hop.peer).collect();
    assert_eq!(route, [liar.peer(), pushed_to.node.peer()]);
    assert_eq!(generation.wrong_answers, []);
    // From the session in which nothing is pushed any more.
    let summary = &audit.peers()[&pushed_to.node.peer().to_string()];
    assert_eq!((summary.sessions, summary.steps), (1, 6));
}
