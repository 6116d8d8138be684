//! Servers that hand their outputs to the next one: used when it comes first, and never changing what comes out.

use sepal_protocol::{
    Message,
    metadata::{NextServer, StepMetadata},
    names,
    record::BlockUid,
};

use super::{
    caller::{Answer, Session, Step, call},
    generating::{client, client_with, generate},
    setup::{PREFIX, Swarm, TestServer, assert_close, reference, tokens, until},
};
use crate::{
    client::{Activations, Config, Scout},
    model::Hidden,
    p2p::Identity,
};

const TOLERANCE: f32 = 1e-4;

fn chain(start: u32, end: u32, mut step: Step) -> Step {
    step.uid = BlockUid::format_chain(PREFIX, start..end);
    step
}

fn next(server: &TestServer, session: &str, start: u32, end: u32) -> NextServer {
    NextServer {
        peer_id: server.node.peer().to_string(),
        session_id: session.to_owned(),
        start,
        end,
    }
}

#[track_caller]
fn same(answer: Answer, expected: &Hidden) {
    assert_close(&answer.output().to_f32_vec(), &expected.data, TOLERANCE);
}

#[tokio::test]
async fn a_push_runs_down_the_chain_and_is_answered_to_the_client() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..1, 1..3, 3..4]).await;
    let node = swarm.caller().await;
    let reference = reference();
    let spans = [(0, 1), (1, 3), (3, 4)];
    let outputs = [0, 2, 3].map(|block: usize| &reference.blocks[block]);
    let inputs = [&reference.embeddings, outputs[0], outputs[1]];
    let mut sessions = Vec::new();
    for (i, (start, end)) in spans.into_iter().enumerate() {
        let mut session = Session::open(&node, servers[i].node.peer()).await;
        let step = Step::first(&tokens(inputs[i], 0..5), 16)
            .session(&format!("s{i}"))
            .id("first");
        same(session.step(&chain(start, end, step)).await, &tokens(outputs[i], 0..5));
        sessions.push(session);
    }
    // One message to the first server is answered by all three.
    let mut step = chain(
        0,
        1,
        Step::next(&tokens(inputs[0], 5..6)).session("s0").id("second").from(5),
    );
    step.metadata.next_servers = vec![next(&servers[1], "s1", 1, 3), next(&servers[2], "s2", 3, 4)];
    sessions[0].send(&step).await;
    for (session, output) in sessions.iter_mut().zip(outputs) {
        same(session.answer().await, &tokens(output, 5..6));
    }
    // The client's own copies are not computed again; what follows is.
    for (i, (start, end)) in spans.into_iter().enumerate().skip(1) {
        let copy = Step::next(&tokens(inputs[i], 5..6)).id("second").from(5);
        sessions[i].send(&chain(start, end, copy)).await;
        let third = Step::next(&tokens(inputs[i], 6..7)).id("third").from(6);
        same(
            sessions[i].step(&chain(start, end, third)).await,
            &tokens(outputs[i], 6..7),
        );
    }
    until("pushes", || servers[1].server.stats().pushes_sent == 1).await;
    let stats = [0, 1, 2].map(|i: usize| servers[i].server.stats());
    assert_eq!(stats.map(|stats| stats.steps), [2, 3, 3]);
    assert_eq!(stats.map(|stats| stats.pushes_sent), [1, 1, 0]);
    assert_eq!(stats.map(|stats| stats.pushes_received), [0, 1, 1]);
    assert_eq!(stats.map(|stats| stats.pushes_used), [0, 1, 1]);
}

#[tokio::test]
async fn answers_come_although_the_server_after_it_is_nowhere() {
    let swarm = Swarm::start().await;
    let server = swarm.serve(0..2).await;
    let node = swarm.caller().await;
    let (embeddings, output) = (&reference().embeddings, &reference().blocks[1]);
    let mut session = Session::open(&node, server.node.peer()).await;
    for position in 0..4 {
        let x = tokens(embeddings, position..position + 1);
        let mut step = if position == 0 {
            Step::first(&x, 16)
        } else {
            Step::next(&x)
        };
        step.metadata.next_servers = vec![NextServer {
            peer_id: Identity::ephemeral().peer_id().to_string(),
            session_id: "nobody's".to_owned(),
            start: 2,
            end: 4,
        }];
        let answer = session.step(&chain(0, 2, step.id(&position.to_string()))).await;
        same(answer, &tokens(output, position..position + 1));
    }
    assert_eq!(server.server.stats().pushes_sent, 0);
}

#[tokio::test]
async fn pushes_change_no_token() {
    let reference = reference();
    for push in [true, false] {
        let swarm = Swarm::start().await;
        let servers = swarm.serve_all(&[0..1, 1..2, 2..4]).await;
        let (_node, client) = client_with(&swarm, |config| config.push = push).await;
        let generation = generate(&client, &reference.prompt, 16, &mut |_| {}).await.unwrap();
        assert_eq!(generation.token_ids, reference.greedy);
        for (server, sends) in servers.iter().zip([true, true, false]) {
            let stats = server.server.stats();
            assert_eq!(stats.steps, 16);
            // The first one as well: sessions that outputs are pushed to are opened ahead.
            let expected = if push && sends { 16 } else { 0 };
            until("pushes", || server.server.stats().pushes_sent == expected).await;
        }
        let received = servers
            .iter()
            .map(|server| server.server.stats().pushes_received)
            .sum::<u64>();
        assert_eq!(received, if push { 32 } else { 0 });
    }
}

#[tokio::test]
async fn a_push_that_is_of_no_use_is_ignored() {
    let swarm = Swarm::start().await;
    let server = swarm.serve(0..4).await;
    let node = swarm.caller().await;
    let reference = reference();
    let x = |range| tokens(&reference.embeddings, range);
    let mut session = Session::open(&node, server.node.peer()).await;
    let first = Step::first(&x(0..3), 6).session("s").id("first");
    same(session.step(&first).await, &tokens(&reference.blocks[3], 0..3));
    let mut useless = Vec::new();
    let mut poisoned = x(3..4);
    poisoned.data[7] = f32::NAN;
    useless.push(Step::next(&poisoned));
    useless.push(Step::next(&Hidden::new(vec![0.0; 32], 1, 1, 32).unwrap()));
    useless.push(Step::next(&x(3..8)));
    useless.push(Step::next(&x(3..4)).from(5));
    useless.push(Step::next(&x(3..4)).rows(&[4]));
    let n_useless = useless.len() as u64;
    for step in useless {
        let request = step.session("s").id("second").request().encode_to_vec();
        call(&node, server.node.peer(), names::PUSH, request).await.unwrap();
    }
    let mut without_tensors = Step::next(&x(3..4)).session("s").request();
    without_tensors.tensors.clear();
    call(&node, server.node.peer(), names::PUSH, without_tensors.encode_to_vec())
        .await
        .unwrap();
    let own = Step::next(&x(3..4)).id("second").from(3);
    same(session.step(&own).await, &tokens(&reference.blocks[3], 3..4));
    let stats = server.server.stats();
    assert_eq!(
        (stats.pushes_received, stats.pushes_used, stats.rejected),
        (n_useless + 1, 0, 0)
    );
}

/// As Petals' servers push: the rows of a session's first step with every one, and so none where a beam search has some.
#[tokio::test]
async fn beams_are_those_of_the_client_and_not_of_a_push_that_knows_none() {
    let swarm = Swarm::start().await;
    let server = swarm.serve(0..4).await;
    let node = swarm.caller().await;
    let embeddings = &reference().embeddings;
    let twice = |a: &Hidden, b: &Hidden| Hidden::new([&*a.data, &*b.data].concat(), 2, a.tokens, a.width).unwrap();
    let prompts = twice(&tokens(embeddings, 0..4), &tokens(embeddings, 1..5));
    let next = twice(&tokens(embeddings, 5..6), &tokens(embeddings, 5..6));
    let own = Step::next(&next).rows(&[1, 1]).id("second").from(4);
    let mut undisturbed = Session::open(&node, server.node.peer()).await;
    undisturbed.step(&Step::first(&prompts, 8)).await.output();
    let expected = undisturbed.step(&own).await.output().to_f32_vec();
    let mut session = Session::open(&node, server.node.peer()).await;
    let first = |id| Step::first(&prompts, 8).session(id).id("first");
    session.step(&first("s")).await.output();
    let push = |id, current: bool| {
        let mut step = Step::next(&next).session(id).id("second").from(4);
        (step.metadata.pushed, step.metadata.current) = (true, current);
        call(&node, server.node.peer(), names::PUSH, step.request().encode_to_vec())
    };
    push("s", false).await.unwrap();
    assert_close(&session.step(&own).await.output().to_f32_vec(), &expected, 0.0);
    assert_eq!(server.server.stats().pushes_used, 0);
    // Who says that it knows the rows of the step is believed.
    let mut session = Session::open(&node, server.node.peer()).await;
    session.step(&first("t")).await.output();
    push("t", true).await.unwrap();
    assert_eq!(session.answer().await.output().shape[0], 2);
    assert_eq!(server.server.stats().pushes_used, 1);
}

#[tokio::test]
async fn next_servers_that_are_none_are_not_called() {
    let swarm = Swarm::start().await;
    let server = swarm.serve(0..4).await;
    let node = swarm.caller().await;
    let reference = reference();
    let x = tokens(&reference.embeddings, 0..1);
    let strangers = [
        next(&server, "s", 4, 4),
        next(&server, "s", 0, u32::MAX),
        NextServer {
            peer_id: "no peer".to_owned(),
            ..next(&server, "s", 0, 4)
        },
        NextServer {
            peer_id: node.peer().to_string(),
            ..next(&server, "s", 0, 4)
        },
    ];
    for stranger in strangers {
        let mut session = Session::open(&node, server.node.peer()).await;
        let mut step = Step::first(&x, 4);
        step.metadata.next_servers = vec![stranger];
        same(session.step(&step).await, &tokens(&reference.blocks[3], 0..1));
        // With rows that change places nothing is pushed at all.
        let step = Step {
            metadata: StepMetadata { ..step.metadata },
            ..Step::next(&x).rows(&[0])
        };
        session.step(&step).await.output();
    }
    assert_eq!(server.server.stats().pushes_sent, 0);
}

#[tokio::test]
async fn a_push_from_a_server_that_is_replaced_does_no_harm() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 0..2, 2..4]).await;
    let (_node, client) = client(&swarm).await;
    let reference = reference();
    let mut session = client.session(12);
    let mut output = session.step(tokens(&reference.embeddings, 0..4)).await.unwrap().data;
    for token in 4..12 {
        output.extend(
            session
                .step(tokens(&reference.embeddings, token..token + 1))
                .await
                .unwrap()
                .data,
        );
        let first = session.report()[0].peer;
        if token == 7
            && let Some(server) = servers.iter().find(|server| server.node.peer() == first)
        {
            server.kill();
        }
    }
    assert_close(&output, &reference.blocks[3].data, TOLERANCE);
    assert_eq!(servers[2].server.stats().steps, 1 + 8, "each step once");
}

#[tokio::test]
async fn rounded_activations_go_both_ways_and_through_pushes() {
    let reference = reference();
    for activations in [Activations::Bfloat16, Activations::Int8, Activations::Auto] {
        let swarm = Swarm::start().await;
        let _servers = swarm.serve_all(&[0..1, 1..2, 2..4]).await;
        let (_node, client) = client_with(&swarm, |config| config.activations = activations).await;
        let mut session = client.session(8);
        let mut output = Vec::new();
        for range in [0..4, 4..5, 5..6] {
            output.extend(session.step(tokens(&reference.embeddings, range)).await.unwrap().data);
        }
        session.close().await;
        let exact = tokens(&reference.blocks[3], 0..6).data;
        let error = output
            .iter()
            .zip(&exact)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let largest = exact.iter().copied().fold(0.0, f32::max);
        // Nothing is known of the lines here, and small messages never measure them.
        let allowed = match activations {
            Activations::Auto => 0.0..TOLERANCE,
            _ => TOLERANCE..largest / 4.0,
        };
        assert!(allowed.contains(&error), "{activations:?}: {error} of {largest}");
    }
}

#[tokio::test]
async fn what_was_measured_of_a_session_is_what_the_next_route_is_chosen_by() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let node = swarm.caller().await;
    let parts = (node.p2p.clone(), node.dht.clone());
    let scout = Scout::connect(Config::new(PREFIX.to_owned()), 4, parts, &node.tasks).await;
    let before = scout.explain(16).await.chains.unwrap();
    assert!(before[0].parts.iter().all(|part| !part.measured));
    assert!(before[0].parts.iter().all(|part| part.own > 0.018), "{before:?}");
    let mut session = scout.session(8);
    let x = reference().embeddings;
    for range in [0..1, 1..2, 2..3, 3..4] {
        session.step(tokens(&x, range)).await.unwrap();
    }
    let took: f64 = session
        .report()
        .iter()
        .filter_map(|hop| hop.per_step)
        .map(|time| time.as_secs_f64())
        .sum();
    session.close().await;
    let after = scout.explain(16).await;
    let chain = &after.chains.unwrap()[0];
    assert!(chain.parts.iter().all(|part| part.measured), "{chain:?}");
    assert!(chain.seconds < 10.0 * took, "{chain:?} after {took} s");
    let known = after.candidates.iter().filter(|candidate| candidate.rtt.is_some());
    assert_eq!(known.count(), servers.len());
}
