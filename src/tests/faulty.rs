//! Servers that answer, but not what they should, or not in time: each is left out with a reason and the text is the same,
//! or one error says what is wrong with whom. And servers that are right to refuse: they are not left out.

use std::{error::Error, time::Duration};

use super::{
    generating::{client, client_with, generate},
    setup::{Swarm, TestServer, config, reference},
    spoiling::{Fault, Scene},
};
use crate::{
    client::{Client, ClientError, Generation},
    p2p::PeerId,
};

/// New tokens of each generation.
pub(super) const N_TOKENS: usize = 8;
/// Every fault that shows in an answer, what is said of it, and whether the server is left out by other sessions too.
const FAULTS: [(Fault, &str, bool); 19] = [
    (Fault::OtherShape, "answer of shape [1, 1, 8] to a step of shape", true),
    (Fault::TwoDimensions, "answer of shape", true),
    (Fault::MoreTokens, "answer of shape", true),
    (Fault::NoTokens, "answer of shape [1, 0, 64] to a step of shape", true),
    (Fault::OtherBatch, "answer of shape [2, ", true),
    (Fault::OtherDtype, "the answer is no activations", true),
    (Fault::Truncated, "malformed answer", true),
    (Fault::NoData, "malformed answer", true),
    (Fault::NoTensor, "answer of 0 tensors", true),
    (Fault::ExtraTensor, "answer of 2 tensors", true),
    (Fault::NotANumber, "not finite", true),
    (Fault::Infinity, "not finite", true),
    (Fault::HugeShape, "answer", true),
    (Fault::Garbage, "malformed answer", true),
    (Fault::Twice, "answer", true),
    (Fault::Closes, "gone", true),
    (Fault::Says("CUDA error: out of luck"), "CUDA error: out of luck", true),
    (Fault::Says(""), "the peer reports an error", true),
    (
        Fault::Says("Could not allocate 1 bytes immediately"),
        "Could not allocate",
        false,
    ),
];

pub(super) async fn text(client: &Client) -> Result<Generation, ClientError> {
    generate(client, &reference().prompt, N_TOKENS, &mut |_| {}).await
}

/// The error and its causes.
pub(super) fn chain(error: &ClientError) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The text is right, and `faulty` is not on the route.
fn assert_survived(what: &str, faulty: PeerId, outcome: &Result<Generation, ClientError>) {
    let generation = outcome
        .as_ref()
        .unwrap_or_else(|error| panic!("{what}: {}", chain(error)));
    assert_eq!(generation.token_ids, reference().greedy[..N_TOKENS], "{what}");
    assert!(generation.route.iter().all(|hop| hop.peer != faulty), "{what}");
}

pub(super) fn reason(client: &Client, peer: PeerId) -> Option<String> {
    let avoided = client.avoided().into_iter().find(|avoided| avoided.peer == peer);
    avoided.map(|avoided| avoided.reason)
}

/// Every fault, from the answer after `after` right ones on.
async fn survives_every_fault(after: usize) {
    let scene = Scene::start().await;
    let faulty = &scene.faulty[0];
    for (fault, cause, is_banned) in FAULTS {
        faulty.spoil(fault, after);
        let client = scene.client(0.0, &[faulty.peer(), scene.spare()]).await;
        let outcome = text(&client).await;
        assert!(faulty.answered() > after, "{fault:?} was not tried");
        assert_survived(&format!("{fault:?}"), faulty.peer(), &outcome);
        let reason = reason(&client, faulty.peer());
        assert_eq!(reason.is_some(), is_banned, "{fault:?}");
        if let Some(reason) = reason {
            assert!(reason.contains(cause), "{fault:?}: {reason}");
        }
    }
}

#[tokio::test]
async fn a_fault_in_the_first_answer_changes_no_text() {
    survives_every_fault(0).await;
}

#[tokio::test]
async fn a_fault_in_the_middle_changes_no_text() {
    survives_every_fault(4).await;
}

#[tokio::test]
async fn a_fault_during_a_replay_changes_no_text() {
    let scene = Scene::start().await;
    let [lost, faulty] = &scene.faulty;
    for (fault, cause, is_banned) in FAULTS {
        lost.spoil(Fault::Closes, 4);
        faulty.spoil(fault, 0);
        let client = scene.client(0.0, &[lost.peer(), faulty.peer(), scene.spare()]).await;
        let outcome = text(&client).await;
        assert_eq!(lost.answered(), 5, "{fault:?}");
        assert!(faulty.answered() > 0, "{fault:?} was not tried");
        assert_survived(&format!("{fault:?}"), faulty.peer(), &outcome);
        let reason = reason(&client, faulty.peer());
        assert_eq!(reason.is_some(), is_banned, "{fault:?}");
        assert!(reason.is_none_or(|reason| reason.contains(cause)), "{fault:?}");
    }
}

#[tokio::test]
async fn a_fault_of_the_only_server_is_told_with_its_name_its_blocks_and_the_cause() {
    let scene = Scene::start().await;
    let faulty = &scene.faulty[0];
    for (after, (fault, cause, _)) in [0, 4].into_iter().flat_map(|after| FAULTS.map(|fault| (after, fault))) {
        faulty.spoil(fault, after);
        let client = scene.client(0.0, &[faulty.peer()]).await;
        let error = chain(&text(&client).await.unwrap_err());
        let peer = faulty.peer().to_string();
        assert!(error.contains("2:4") && error.contains(&peer), "{fault:?}: {error}");
        assert!(error.contains(cause), "{fault:?}: {error}");
    }
}

#[tokio::test]
async fn an_answer_to_the_step_before_is_noticed() {
    let scene = Scene::start().await;
    let faulty = &scene.faulty[0];
    faulty.spoil(Fault::Stale, 3);
    let client = scene.client(0.0, &[faulty.peer(), scene.spare()]).await;
    assert_survived("stale", faulty.peer(), &text(&client).await);
    let reason = reason(&client, faulty.peer()).unwrap();
    assert_eq!(reason, "the answer is that to the step before");
}

/// A server that says nothing any more after so many answers, while another one has its blocks.
async fn freeze(after: usize) {
    let scene = Scene::start().await;
    let faulty = &scene.faulty[0];
    faulty.spoil(Fault::Silent, after);
    let client = scene.client(0.0, &[faulty.peer(), scene.spare()]).await;
    assert_survived("silent", faulty.peer(), &text(&client).await);
    let reason = reason(&client, faulty.peer()).unwrap();
    assert!(reason.starts_with("silent for "), "{reason}");
}

/// An answer takes minutes so.
const DRIP: Fault = Fault::Drips(Duration::from_millis(300));

#[tokio::test]
async fn a_server_whose_answers_come_byte_by_byte_is_overtaken() {
    for after in [0, 4] {
        let scene = Scene::start().await;
        let faulty = &scene.faulty[0];
        faulty.spoil(DRIP, after);
        let client = scene.client(0.0, &[faulty.peer(), scene.spare()]).await;
        assert_survived("drips", faulty.peer(), &text(&client).await);
        let reason = reason(&client, faulty.peer()).unwrap();
        assert!(reason.starts_with("silent for "), "{reason}");
    }
}

#[tokio::test]
async fn bytes_that_come_do_not_make_the_time_for_a_step_longer() {
    let scene = Scene::start().await;
    let faulty = &scene.faulty[0];
    faulty.spoil(DRIP, 2);
    let client = scene
        .client_with(&[faulty.peer()], |config| {
            config.request_timeout = Duration::from_secs(1);
            config.backoff.max_retries = 0;
        })
        .await;
    let error = chain(&text(&client).await.unwrap_err());
    let peer = faulty.peer().to_string();
    assert!(
        error.contains("no answer within 1s") && error.contains(&peer),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_freezes_before_its_first_answer_is_overtaken() {
    freeze(0).await;
}

#[tokio::test]
async fn a_server_that_freezes_in_the_middle_is_overtaken() {
    freeze(4).await;
}

#[tokio::test]
async fn a_server_that_freezes_during_a_replay_is_given_up() {
    let scene = Scene::start().await;
    let [lost, faulty] = &scene.faulty;
    lost.spoil(Fault::Closes, 4);
    faulty.spoil(Fault::Silent, 0);
    let client = scene.client(0.0, &[lost.peer(), faulty.peer(), scene.spare()]).await;
    assert_survived("silent", faulty.peer(), &text(&client).await);
    assert!(reason(&client, faulty.peer()).unwrap().starts_with("silent for "));
}

#[tokio::test]
async fn the_only_server_is_waited_for_when_it_is_silent() {
    let scene = Scene::start().await;
    let faulty = &scene.faulty[0];
    faulty.spoil(Fault::Silent, 4);
    let client = scene.client(0.0, &[faulty.peer()]).await;
    let thawing = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        faulty.thaw();
    };
    let (generation, ()) = tokio::join!(text(&client), thawing);
    assert_eq!(generation.unwrap().token_ids, reference().greedy[..N_TOKENS]);
    assert!(client.avoided().is_empty());
}

#[tokio::test]
async fn a_silent_server_that_answers_before_others_are_ready_goes_on() {
    let scene = Scene::start().await;
    let [faulty, other] = &scene.faulty;
    faulty.spoil(Fault::Silent, 4);
    other.spoil(Fault::Silent, 0);
    let client = scene.client(0.0, &[faulty.peer(), other.peer()]).await;
    let thawing = async {
        super::setup::until("the other was asked", || other.answered() > 0).await;
        faulty.thaw();
    };
    let (generation, ()) = tokio::join!(text(&client), thawing);
    let generation = generation.unwrap();
    assert_eq!(generation.token_ids, reference().greedy[..N_TOKENS]);
    assert_eq!(generation.route[1].peer, faulty.peer());
    assert!(client.avoided().is_empty());
}

#[tokio::test]
async fn a_server_that_becomes_slow_is_left() {
    let scene = Scene::start().await;
    let [faulty, other] = &scene.faulty;
    faulty.spoil(Fault::Late(Duration::from_millis(1200)), 6);
    let client = scene.client(0.0, &[faulty.peer(), other.peer()]).await;
    let reference = reference();
    let generation = generate(&client, &reference.prompt, 16, &mut |_| {}).await.unwrap();
    assert_eq!(generation.token_ids, reference.greedy);
    assert_eq!(generation.route[1].peer, other.peer());
    let reason = reason(&client, faulty.peer()).unwrap();
    assert!(reason.starts_with("slow: steps take "), "{reason}");
}

#[tokio::test]
async fn a_session_ends_at_once_though_a_server_is_frozen() {
    let scene = Scene::start().await;
    let faulty = &scene.faulty[0];
    let client = scene.client(0.0, &[faulty.peer()]).await;
    let x = super::setup::tokens(&reference().embeddings, 0..1);
    let mut session = client.session(8);
    session.step(x.clone()).await.unwrap();
    faulty.spoil(Fault::Silent, 0);
    drop(tokio::time::timeout(Duration::from_millis(50), session.step(x)).await);
    session.close().await;
}

#[tokio::test]
async fn a_swarm_of_nothing_but_faulty_servers_is_given_up() {
    let scene = Scene::start().await;
    let [first, second] = &scene.faulty;
    let fault = Fault::Says("CUDA error: out of luck");
    first.spoil(fault, 0);
    second.spoil(fault, 0);
    let client = scene.client(0.0, &[first.peer(), second.peer()]).await;
    let error = text(&client).await.unwrap_err();
    assert!(matches!(error, ClientError::MissingBlocks { .. }), "{error}");
    assert!(chain(&error).contains("the peer reports an error: CUDA error: out of luck"));
    let asked = first.answered() + second.answered();
    assert_eq!(asked, 2 * 4, "each once, and once after each of three pauses");
}
/// Three servers of all blocks with the same limits.
async fn limited(swarm: &Swarm, change: impl Fn(&mut crate::server::LimitChoice)) -> Vec<TestServer> {
    let mut servers = Vec::new();
    for _ in 0..3 {
        let mut config = config(0..4);
        change(&mut config.limits);
        servers.push(swarm.serve_with(config).await);
    }
    servers
}

#[tokio::test]
async fn what_no_server_would_do_is_asked_of_two_and_bans_none() {
    let reference = reference();
    type Change = fn(&mut crate::server::LimitChoice);
    let cases: [(Change, &str); 2] = [
        (
            |limits| limits.max_batch_size = Some(4),
            "Task size greater than max_batch_size (4), it can't be processed",
        ),
        (
            |limits| limits.inference_max_length = Some(8),
            "Cannot allocate KV cache for 16 tokens, max = 8",
        ),
    ];
    for (change, expected) in cases {
        let swarm = Swarm::start().await;
        let servers = limited(&swarm, change).await;
        let (_node, client) = client(&swarm).await;
        let error = generate(&client, &reference.prompt, 4, &mut |_| {}).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused { .. }), "{error}");
        let cause = error.source().and_then(Error::source).unwrap().to_string();
        assert_eq!(cause, format!("the peer reports an error: {expected}"));
        let rejected: u64 = servers.iter().map(|server| server.server.stats().rejected).sum();
        assert_eq!(rejected, 2);
        // All of them are still good for what they do.
        generate(&client, &reference.prompt[..3], 4, &mut |_| {}).await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_of_the_only_server_is_told_without_waiting() {
    let swarm = Swarm::start().await;
    let mut config = config(0..4);
    config.limits.max_batch_size = Some(4);
    let server = swarm.serve_with(config).await;
    let (_node, client) = client_with(&swarm, |config| config.backoff.min = Duration::from_secs(3600)).await;
    let error = generate(&client, &reference().prompt, 4, &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the request is refused by {}", server.node.peer())
    );
}

#[tokio::test]
async fn a_server_without_room_says_so_in_the_end() {
    let swarm = Swarm::start().await;
    let mut config = config(0..4);
    config.limits.attn_cache_tokens = Some(8);
    let _server = swarm.serve_with(config).await;
    let (_node, client) = client(&swarm).await;
    let error = generate(&client, &reference().prompt, 4, &mut |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::RetriesExhausted { attempts: 4, .. }),
        "{error}"
    );
    let cause = error.source().and_then(Error::source).unwrap().to_string();
    assert_eq!(
        cause,
        "the peer reports an error: Could not allocate 16384 bytes, max cache size = 8192 bytes"
    );
}
