//! Servers whose answers are wrong but look right: with verification they are found out, named and left out, and the text is
//! right. And honest ones in different formats: they are not accused.

use std::collections::HashSet;

use super::{
    faulty::{N_TOKENS, chain, reason, text},
    generating::{client_with, generate},
    setup::{Swarm, config, reference},
    spoiling::{FIRST, Fault, SECOND, Scene, Spoiler, THIRD},
};
use crate::{
    client::{Generation, WrongAnswer},
    model::{WeightDType, WeightFormat},
    p2p::PeerId,
};

/// What is wrong by this much is noticed between float32 servers.
const LITTLE: f32 = 1e-3;

fn assert_right(what: &str, generation: &Generation) {
    let n = generation.token_ids.len();
    assert_eq!(generation.token_ids, reference().greedy[..n], "{what}");
}

#[tokio::test]
async fn a_liar_is_found_named_and_left_out_and_the_text_is_right() {
    let scene = Scene::start().await;
    let [liar, other] = &scene.faulty;
    // Always, from the fourth answer on, every other one; much and little.
    let lies = [
        (Fault::OffBy(0.5), 0, 1),
        (Fault::OffBy(0.5), 3, 1),
        (Fault::OffBy(-1.0), 1, 2),
        (Fault::OffBy(LITTLE), 0, 1),
        (Fault::OffBy(LITTLE), 2, 3),
    ];
    for (lie, after, every) in lies {
        let what = format!("{lie:?} after {after}, one in {every}");
        liar.spoil_every(lie, after, every);
        let client = scene.client(1.0, &[liar.peer(), other.peer(), scene.spare()]).await;
        let generation = text(&client).await.unwrap();
        assert_right(&what, &generation);
        let prompt = reference().prompt.len();
        let found = WrongAnswer {
            peer: liar.peer(),
            blocks: 2..4,
            position: if after == 0 { 0 } else { prompt + after - 1 },
        };
        assert_eq!(generation.wrong_answers, [found], "{what}");
        let reason = reason(&client, liar.peer()).unwrap();
        assert_eq!(reason, "wrong activations: others agree on different ones", "{what}");
        assert!(generation.route.iter().all(|hop| hop.peer != liar.peer()), "{what}");
    }
}

#[tokio::test]
async fn a_liar_at_the_front_is_found_and_what_came_after_it_is_computed_anew() {
    let swarm = Swarm::start().await;
    let behind = swarm.serve(0..2).await;
    let liar = Spoiler::serve(&swarm, &behind, 0..2, FIRST).await;
    // Two more, because it takes two to accuse one.
    let honest = [SECOND, THIRD].map(|rps| Spoiler::serve(&swarm, &behind, 0..2, rps));
    let honest = futures::future::join_all(honest).await;
    let second_half = swarm.serve(2..4).await;
    liar.spoil(Fault::OffBy(0.3), 5);
    // Not whoever computes for them: it announces what it measured, and may look better than the liar.
    let mut seen: HashSet<PeerId> = honest.iter().map(Spoiler::peer).collect();
    seen.extend([liar.peer(), second_half.node.peer()]);
    let (_node, client) = client_with(&swarm, |config| {
        config.verify = 1.0;
        config.filter.allowed = Some(seen);
    })
    .await;
    let reference = reference();
    let generation = generate(&client, &reference.prompt, 16, &mut |_| {}).await.unwrap();
    assert_right("at the front", &generation);
    assert_eq!(generation.wrong_answers.len(), 1);
    assert_eq!(generation.wrong_answers[0].peer, liar.peer());
}

#[tokio::test]
async fn some_looks_are_enough_to_find_who_lies_often() {
    let scene = Scene::start().await;
    let [liar, other] = &scene.faulty;
    liar.spoil(Fault::OffBy(0.5), 2);
    let client = scene.client(0.5, &[liar.peer(), other.peer(), scene.spare()]).await;
    let generation = generate(&client, &reference().prompt, 24, &mut |_| {}).await.unwrap();
    assert_eq!(generation.wrong_answers[0].peer, liar.peer());
}

#[tokio::test]
async fn a_witness_that_lies_is_found_as_well() {
    let scene = Scene::start().await;
    let [used, liar] = &scene.faulty;
    liar.spoil(Fault::OffBy(0.1), 0);
    let client = scene.client(1.0, &[used.peer(), liar.peer(), scene.spare()]).await;
    // Who is asked is chance.
    for _ in 0..40 {
        let generation = text(&client).await.unwrap();
        assert_right("witness", &generation);
        assert_eq!(generation.route[1].peer, used.peer());
        assert_eq!(generation.route[1].verified as usize, N_TOKENS);
        if let Some(found) = generation.wrong_answers.first() {
            assert_eq!(found.peer, liar.peer());
            return;
        }
    }
    panic!("the liar was never asked");
}

#[tokio::test]
async fn two_that_differ_and_nobody_to_decide_end_in_an_error_that_names_both() {
    let scene = Scene::start().await;
    let liar = &scene.faulty[0];
    liar.spoil(Fault::OffBy(0.1), 2);
    let client = scene.client(1.0, &[liar.peer(), scene.spare()]).await;
    let error = text(&client).await.unwrap_err().to_string();
    assert!(error.contains("2:4"), "{error}");
    for peer in [liar.peer(), scene.spare()] {
        assert!(error.contains(&peer.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_liar_is_not_used_even_if_nobody_else_is_left() {
    let scene = Scene::start().await;
    let [liar, dying] = &scene.faulty;
    liar.spoil(Fault::OffBy(0.1), 2);
    let spare = scene.spare();
    let client = scene.client(1.0, &[liar.peer(), dying.peer(), spare]).await;
    text(&client).await.unwrap();
    dying.spoil(Fault::Closes, 0);
    scene.kill_spare();
    let error = chain(&text(&client).await.unwrap_err());
    assert!(error.starts_with("blocks 2:4 of "), "{error}");
    assert!(error.contains(&format!("{} 2:4 (failed)", liar.peer())), "{error}");
    assert_eq!(
        reason(&client, liar.peer()).unwrap(),
        "wrong activations: others agree on different ones"
    );
}

#[tokio::test]
async fn what_only_one_server_has_is_used_unverified() {
    let scene = Scene::start().await;
    let client = scene.client(1.0, &[scene.spare()]).await;
    let generation = text(&client).await.unwrap();
    assert_right("alone", &generation);
    assert!(generation.route.iter().all(|hop| hop.verified == 0));
}

#[tokio::test]
async fn a_witness_that_is_full_is_not_left_out_for_that() {
    let scene = Scene::start().await;
    let [used, full] = &scene.faulty;
    full.spoil(Fault::Says("Could not allocate"), 0);
    let client = scene.client(1.0, &[used.peer(), full.peer()]).await;
    let generation = text(&client).await.unwrap();
    assert_right("a full witness", &generation);
    assert_eq!(generation.route[1].verified, 0);
    assert_eq!(full.answered(), N_TOKENS, "it is asked again each time");
    assert_eq!(reason(&client, full.peer()), None);
}

#[tokio::test]
async fn honest_servers_in_other_formats_verify_each_other() {
    let swarm = Swarm::start().await;
    let mut servers = Vec::new();
    for (dtype, quant) in [
        (WeightDType::F32, None),
        (WeightDType::Bf16, None),
        (WeightDType::F16, None),
        (WeightDType::Bf16, Some(WeightFormat::Q8_0)),
    ] {
        let server = crate::server::Config {
            dtype: Some(dtype),
            quant,
            ..config(0..4)
        };
        servers.push(swarm.serve_with(server).await);
    }
    let peers: Vec<PeerId> = servers.iter().map(|server| server.node.peer()).collect();
    for (i, first) in peers.iter().enumerate() {
        for second in &peers[..i] {
            let (_node, client) = client_with(&swarm, |config| {
                config.verify = 1.0;
                config.filter.allowed = Some([*first, *second].into());
            })
            .await;
            let generation = text(&client).await.unwrap();
            assert_eq!(generation.route[0].verified as usize, N_TOKENS);
        }
    }
}

#[tokio::test]
async fn a_liar_with_all_blocks_is_found_by_chains_of_others() {
    let swarm = Swarm::start().await;
    let behind = swarm.serve(0..4).await;
    let liar = Spoiler::serve(&swarm, &behind, 0..4, FIRST).await;
    let halves = swarm.serve_all(&[0..2, 2..4, 0..2, 2..4]).await;
    liar.spoil(Fault::OffBy(0.1), 3);
    let mut allowed: HashSet<PeerId> = halves.iter().map(|server| server.node.peer()).collect();
    allowed.insert(liar.peer());
    let (_node, client) = client_with(&swarm, |config| {
        config.verify = 1.0;
        config.filter.allowed = Some(allowed);
    })
    .await;
    let generation = text(&client).await.unwrap();
    assert_right("all blocks", &generation);
    let found: Vec<PeerId> = generation.wrong_answers.iter().map(|wrong| wrong.peer).collect();
    assert_eq!(found, [liar.peer()]);
    assert_eq!(generation.route.len(), 2, "the halves went on");
}

#[tokio::test]
async fn nobody_is_accused_of_what_one_of_several_witnesses_in_a_row_computed() {
    let swarm = Swarm::start().await;
    let behind = swarm.serve(0..4).await;
    let used = Spoiler::serve(&swarm, &behind, 0..4, FIRST).await;
    let first_half = swarm.serve(0..2).await;
    let liar = Spoiler::serve(&swarm, &first_half, 0..2, SECOND).await;
    let others = swarm.serve_all(&[2..4, 2..4]).await;
    liar.spoil(Fault::OffBy(0.1), 0);
    let mut allowed: HashSet<PeerId> = others.iter().map(|server| server.node.peer()).collect();
    allowed.extend([used.peer(), liar.peer(), first_half.node.peer()]);
    let (_node, client) = client_with(&swarm, |config| {
        config.verify = 1.0;
        config.filter.allowed = Some(allowed);
    })
    .await;
    // Who is asked is chance.
    for _ in 0..40 {
        let generation = text(&client).await.unwrap();
        assert_right("in a row", &generation);
        assert_eq!(generation.route[0].verified as usize, N_TOKENS);
        assert_eq!(generation.wrong_answers, []);
        if liar.answered() > 0 {
            return;
        }
    }
    panic!("the liar was never asked");
}
