//! What a server does not do, in size and in time, and that it forgets everything about whom it sends away.

use std::time::Duration;

use sepal_protocol::{Message, names};

use super::{
    caller::{Answer, Session, Step, call, forward},
    setup::{PREFIX, Swarm, WIDTH, config, reference, tokens, until},
};
use crate::model::Hidden;

fn zeros(batch: usize, tokens: usize) -> Hidden {
    Hidden::new(vec![0.0; batch * tokens * WIDTH], batch, tokens, WIDTH).unwrap()
}

#[tokio::test]
async fn a_silent_session_is_closed_without_an_error() {
    let mut config = config(0..4);
    config.limits.step_timeout = Duration::from_millis(500);
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    let x = tokens(&reference().embeddings, 0..1);
    let mut silent_at_once = Session::open(&node, server.node.peer()).await;
    let mut session = Session::open(&node, server.node.peer()).await;
    session.step(&Step::first(&x, 8).session("s")).await.output();
    assert!(matches!(session.answer().await, Answer::End));
    assert!(matches!(silent_at_once.answer().await, Answer::End));
    server.idle().await;
    let mut again = Session::open(&node, server.node.peer()).await;
    again.step(&Step::first(&x, 8).session("s")).await.output();
    assert_eq!(server.server.stats().rejected, 0);
}

#[tokio::test]
async fn a_session_that_lasts_too_long_ends_with_an_empty_error() {
    let mut config = config(0..4);
    config.limits.session_timeout = Duration::from_secs(1);
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    let x = tokens(&reference().embeddings, 0..1);
    let mut session = Session::open(&node, server.node.peer()).await;
    session.step(&Step::first(&x, 8)).await.output();
    assert_eq!(session.answer().await.error(), "");
    server.idle().await;
}

#[tokio::test]
async fn who_waits_for_cache_gets_it_when_another_one_leaves() {
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve(0..4).await, swarm.caller().await);
    let x = tokens(&reference().embeddings, 0..1);
    let mut first = Session::open(&node, server.node.peer()).await;
    first.step(&Step::first(&x, 1000)).await.output();
    let mut impatient = Session::open(&node, server.node.peer()).await;
    let error = impatient.step(&Step::first(&x, 25)).await.error();
    assert_eq!(error, "Could not allocate 25600 bytes immediately: out of memory");
    let mut patient = Session::open(&node, server.node.peer()).await;
    let mut step = Step::first(&x, 1000);
    step.metadata.alloc_timeout = Some(60.0);
    patient.send(&step).await;
    // Dropping a stream is leaving as well.
    drop(first);
    patient.answer().await.output();
    drop(patient);
    server.idle().await;
}

#[tokio::test]
async fn nobody_waits_longer_for_cache_than_the_server_allows() {
    let mut config = config(0..4);
    config.limits.max_alloc_timeout = Duration::from_millis(50);
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    let x = tokens(&reference().embeddings, 0..1);
    let mut first = Session::open(&node, server.node.peer()).await;
    first.step(&Step::first(&x, 1024)).await.output();
    for alloc_timeout in [1e300, f64::INFINITY, 3600.0] {
        let mut second = Session::open(&node, server.node.peer()).await;
        let mut step = Step::first(&x, 10);
        step.metadata.alloc_timeout = Some(alloc_timeout);
        let error = second.step(&step).await.error();
        assert_eq!(error, "Could not allocate 10240 within 0.05 seconds");
    }
}

#[tokio::test]
async fn rows_without_length_are_not_free() {
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve(0..4).await, swarm.caller().await);
    // Claims rows that are not there; the shape alone reserves memory.
    let mut request = Step::first(&zeros(1, 0), 0).request();
    for (rows, expected) in [
        (
            u32::MAX,
            "Could not allocate 4398046510080 bytes immediately: out of memory",
        ),
        (1025, "Could not allocate 1049600 bytes immediately: out of memory"),
    ] {
        request.tensors[0].size = vec![rows, 0, 64];
        let mut session = Session::open(&node, server.node.peer()).await;
        session.send_bytes(request.encode_to_vec()).await;
        assert_eq!(session.answer().await.error(), expected);
    }
    server.idle().await;
}

#[tokio::test]
async fn requests_are_limited_in_tokens() {
    let mut config = config(0..4);
    config.limits.max_batch_size = Some(16);
    config.limits.inference_max_length = Some(64);
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    let too_many = "Task size greater than max_batch_size (16), it can't be processed";
    for (batch, tokens, length, expected) in [
        (1, 17, 20, too_many),
        (4, 5, 20, too_many),
        (17, 0, 1, too_many),
        (1, 1, 65, "Cannot allocate KV cache for 65 tokens, max = 64"),
    ] {
        let mut session = Session::open(&node, server.node.peer()).await;
        let error = session.step(&Step::first(&zeros(batch, tokens), length)).await.error();
        assert_eq!(error, expected);
    }
    let mut session = Session::open(&node, server.node.peer()).await;
    session.step(&Step::first(&zeros(4, 4), 20)).await.output();
    let request = forward(&format!("{PREFIX}.0"), &zeros(1, 17));
    let error = call(&node, server.node.peer(), names::FORWARD, request)
        .await
        .unwrap_err();
    assert_eq!(error, format!("ValueError(\"{too_many}\")"));
}

#[tokio::test]
async fn a_forward_pass_that_takes_too_long_is_given_up() {
    let mut config = config(0..4);
    config.limits.request_timeout = Duration::from_millis(100);
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    let chain = vec![format!("{PREFIX}.0"); 1000].join(" ");
    let request = forward(&chain, &zeros(1, 4096));
    let error = call(&node, server.node.peer(), names::FORWARD, request)
        .await
        .unwrap_err();
    assert_eq!(error, "TimeoutError('request took longer than 0.1 seconds')");
    until("the compute thread stops", || server.server.is_idle()).await;
}
