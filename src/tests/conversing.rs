//! Conversations that go on: servers are sent the new tokens only, and the text is the one without that.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    generating::{client, numbers},
    setup::{N_BLOCKS, Swarm, TestServer, config, reference, soon},
};
use crate::{
    client::{
        Client, ClientError, Constraints, Conversations, FinishReason, Generation, Limits, Params, TextCodec, Token,
    },
    model::{HubOptions, ModelSource, SamplingParams},
    server::{Config, Politeness, Quotas},
};

const NEW: usize = 4;

fn params() -> Params {
    Params {
        max_new_tokens: NEW,
        ..Params::default()
    }
}

pub(super) async fn say(conversations: &Conversations, prompt: &[u32]) -> Generation {
    let codec = numbers();
    let params = params();
    let mut ignore = |_: &Token| {};
    let generation = conversations.generate(Some(&codec), prompt, &params, &mut ignore);
    soon("an answer", generation).await.unwrap()
}

async fn alone(client: &Client, prompt: &[u32]) -> Generation {
    let codec = numbers();
    let params = params();
    let mut ignore = |_: &Token| {};
    let generation = client.generate(Some(&codec), prompt, &params, &mut ignore);
    soon("an answer", generation).await.unwrap()
}

/// Tokens that went through all blocks of the servers.
fn tokens(servers: &[TestServer]) -> usize {
    let blocks: u64 = servers.iter().map(|server| server.server.stats().block_tokens).sum();
    blocks as usize / N_BLOCKS as usize
}

#[tokio::test]
async fn a_conversation_that_goes_on_sends_its_new_tokens_only() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (node, client) = client(&swarm).await;
    let conversations = Conversations::new(client.clone(), Limits::default(), &node.tasks);
    let first = reference().prompt;
    let answer = say(&conversations, &first).await;
    assert_eq!((answer.reused_tokens, conversations.n_idle()), (0, 1));
    let before = tokens(&servers);
    assert_eq!(before, first.len() + NEW - 1);

    let mut second = [&first[..], &answer.token_ids].concat();
    second.extend([7, 8, 9]);
    let next = say(&conversations, &second).await;
    // The last token of the first answer was chosen, but never sent.
    assert_eq!(next.reused_tokens, first.len() + NEW - 1);
    assert_eq!(tokens(&servers) - before, second.len() - next.reused_tokens + NEW - 1);
    assert_eq!(next.text, alone(&client, &second).await.text);
    assert_eq!(conversations.n_idle(), 1);
}

#[tokio::test]
async fn what_was_said_differently_is_taken_back() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (node, client) = client(&swarm).await;
    let conversations = Conversations::new(client.clone(), Limits::default(), &node.tasks);
    let first = reference().prompt;
    let answer = say(&conversations, &first).await;
    let parting = answer.token_ids[1] ^ 1;
    let changed = [&first[..], &answer.token_ids[..1], &[parting, 11]].concat();
    let next = say(&conversations, &changed).await;
    assert_eq!(next.reused_tokens, first.len() + 1);
    assert_eq!(next.token_ids, alone(&client, &changed).await.token_ids);
    // The same again: all is there, but the last token has to be sent for an answer.
    let again = say(&conversations, &changed).await;
    assert_eq!(again.reused_tokens, changed.len() - 1);
    assert_eq!(again.token_ids, next.token_ids);
}

#[tokio::test]
async fn another_conversation_leaves_the_first_one_alone() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (node, client) = client(&swarm).await;
    let limits = Limits {
        max_idle: 2,
        ..Limits::default()
    };
    let conversations = Conversations::new(client.clone(), limits, &node.tasks);
    let first = reference().prompt;
    let answer = say(&conversations, &first).await;
    for start in [50, 60] {
        let other: Vec<u32> = [first[0]].into_iter().chain(start..start + 6).collect();
        assert_eq!(say(&conversations, &other).await.reused_tokens, 0);
    }
    assert_eq!(conversations.n_idle(), 2, "the oldest was closed");
    let second = [&first[..], &answer.token_ids, &[3]].concat();
    assert_eq!(say(&conversations, &second).await.reused_tokens, 0);
    conversations.close().await;
    assert_eq!(conversations.n_idle(), 0);
}

#[tokio::test]
async fn who_has_one_conversation_does_with_one_session_on_a_server() {
    let swarm = Swarm::start().await;
    let quotas = Quotas {
        sessions: Some(1),
        ..Quotas::default()
    };
    let politeness = Politeness {
        quotas,
        ..Politeness::default()
    };
    let polite = Config {
        politeness,
        ..config(0..4)
    };
    let _server = swarm.serve_with(polite).await;
    let (node, client) = client(&swarm).await;
    let limits = Limits {
        max_idle: 1,
        ..Limits::default()
    };
    let conversations = Conversations::new(client, limits, &node.tasks);
    let first = reference().prompt;
    for start in [50, 60, 70] {
        let other: Vec<u32> = [first[0]].into_iter().chain(start..start + 6).collect();
        let mut run = conversations.begin(None, &other, &params()).await.unwrap();
        while soon("a token", run.next()).await.unwrap().is_some() {}
        let answer = conversations.end(run).await.unwrap();
        assert_eq!((answer.reused_tokens, conversations.n_idle()), (0, 1));
    }
}

/// A server of the whole model that may reserve so many tokens.
async fn small(swarm: &Swarm, attn_cache_tokens: usize) -> TestServer {
    let mut config = config(0..4);
    config.limits.attn_cache_tokens = Some(attn_cache_tokens);
    swarm.serve_with(config).await
}

/// A prompt that continues no other.
fn question(number: u32) -> Vec<u32> {
    (0..40).map(|at| (number * 41 + at * 7) % 200 + 1).collect()
}

#[tokio::test]
async fn questions_that_nobody_goes_on_with_do_not_fill_a_server() {
    let swarm = Swarm::start().await;
    let server = small(&swarm, 1024).await;
    let (node, client) = client(&swarm).await;
    let limits = Limits {
        max_idle: 16,
        ..Limits::default()
    };
    let conversations = Conversations::new(client, limits, &node.tasks);
    for number in 0..20 {
        assert_eq!(say(&conversations, &question(number)).await.token_ids.len(), NEW);
        // Each holds 88 tokens or more, a quarter of what is free is 256 at most.
        assert!((1..=2).contains(&conversations.n_idle()), "{}", conversations.n_idle());
    }
    conversations.close().await;
    server.idle().await;
}

#[tokio::test]
async fn sessions_that_wait_are_closed_where_a_server_is_full() {
    let swarm = Swarm::start().await;
    let _server = small(&swarm, 100).await;
    let (node, client) = client(&swarm).await;
    let conversations = Conversations::new(client.clone(), Limits::default(), &node.tasks);
    for number in 0..2 {
        assert_eq!(say(&conversations, &question(number)).await.token_ids.len(), NEW);
        // The second could not begin beside the first, and reserves what it needs.
        assert_eq!(conversations.n_idle(), 1);
    }
    assert!(client.avoided().is_empty(), "a full server did not fail");
}

#[tokio::test]
async fn a_server_lost_between_two_messages_changes_nothing() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (node, client) = client(&swarm).await;
    let conversations = Conversations::new(client.clone(), Limits::default(), &node.tasks);
    let first = reference().prompt;
    let answer = say(&conversations, &first).await;
    let _spare = swarm.serve(2..4).await;
    servers[1].kill();
    let second = [&first[..], &answer.token_ids[..2], &[5, 6]].concat();
    let next = say(&conversations, &second).await;
    assert_eq!(next.reused_tokens, first.len() + 2);
    assert_eq!(next.token_ids, alone(&client, &second).await.token_ids);
}

#[tokio::test]
async fn an_answer_that_was_broken_off_leaves_the_session_usable() {
    let swarm = Swarm::start().await;
    let _server = swarm.serve(0..4).await;
    let (node, client) = client(&swarm).await;
    let conversations = Conversations::new(client.clone(), Limits::default(), &node.tasks);
    let first = reference().prompt;
    let mut run = conversations.begin(None, &first, &params()).await.unwrap();
    soon("a token", run.next()).await.unwrap().unwrap();
    let broken_off = conversations.end(run).await.unwrap();
    assert_eq!(broken_off.finish_reason, FinishReason::Interrupted);
    assert_eq!(broken_off.token_ids, reference().greedy[..1]);
    let second = [&first[..], &[5]].concat();
    let next = say(&conversations, &second).await;
    assert_eq!(next.reused_tokens, first.len());
    assert_eq!(next.token_ids, alone(&client, &second).await.token_ids);
}

#[tokio::test]
async fn answers_that_are_longer_than_can_be_counted_are_refused_by_servers() {
    let swarm = Swarm::start().await;
    let _server = swarm.serve(0..4).await;
    let (node, client) = client(&swarm).await;
    let conversations = Conversations::new(client, Limits::default(), &node.tasks);
    for max_new_tokens in [usize::MAX / 2, usize::MAX] {
        let params = Params {
            max_new_tokens,
            ..Params::default()
        };
        let prompt = reference().prompt;
        let mut run = conversations.begin(None, &prompt, &params).await.unwrap();
        let error = soon("a refusal", run.next()).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    }
}

#[tokio::test]
async fn sessions_that_wait_too_long_are_closed() {
    let swarm = Swarm::start().await;
    let server = swarm.serve(0..4).await;
    let (node, client) = client(&swarm).await;
    let limits = Limits {
        max_idle_time: Duration::from_millis(40),
        ..Limits::default()
    };
    let conversations = Conversations::new(client, limits, &node.tasks);
    say(&conversations, &reference().prompt).await;
    super::setup::until("the session is closed", || conversations.n_idle() == 0).await;
    server.idle().await;
}

#[tokio::test]
async fn tokens_come_one_by_one_with_what_is_known_of_them() {
    let swarm = Swarm::start().await;
    let _server = swarm.serve(0..4).await;
    let (_node, client) = client(&swarm).await;
    let reference = reference();
    let params = Params {
        sampling: SamplingParams {
            logprobs: Some(2),
            ..SamplingParams::default()
        },
        eos_token_ids: vec![reference.greedy[2]],
        ..params()
    };
    let codec = numbers();
    let mut run = client.begin(Some(&codec), &reference.prompt, &params).unwrap();
    let mut tokens = Vec::new();
    while let Some(token) = soon("a token", run.next()).await.unwrap() {
        tokens.push(token);
    }
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, reference.greedy[..3]);
    assert!(tokens[..2].iter().all(|token| token.finish.is_none()));
    assert_eq!(tokens[2].finish, Some(FinishReason::EndToken(reference.greedy[2])));
    for token in &tokens {
        let logprobs = token.logprobs.as_ref().unwrap();
        assert_eq!(logprobs.top[0], (token.id, logprobs.chosen), "the choice was greedy");
        assert!(logprobs.chosen < 0.0 && logprobs.top.len() == 2);
    }
}

#[tokio::test]
async fn a_generation_may_be_pulled_by_another_task() {
    let swarm = Swarm::start().await;
    let _server = swarm.serve(0..4).await;
    let (node, client) = client(&swarm).await;
    let reference = reference();
    let mut run = client.begin(None, &reference.prompt, &params()).unwrap();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    node.tasks.spawn_until_stopped("a reader", async move {
        let mut ids = Vec::new();
        while let Ok(Some(token)) = run.next().await {
            ids.push(token.id);
        }
        drop(sender.send(ids));
    });
    assert_eq!(soon("all tokens", receiver).await.unwrap(), reference.greedy[..NEW]);
}

/// A swarm that serves the built-in model.
pub(super) async fn demo() -> (Swarm, TextCodec) {
    let mut swarm = Swarm::start().await;
    swarm.source = ModelSource::resolve("demo", &HubOptions::from_variables(|_| None)).unwrap();
    let codec = TextCodec::from_json(&swarm.source.tokenizer_json().unwrap()).unwrap();
    (swarm, codec)
}

#[tokio::test]
async fn json_of_a_schema_comes_out_whatever_the_model_would_say() {
    let (swarm, codec) = demo().await;
    let _server = swarm.serve(0..8).await;
    let (_node, client) = client(&swarm).await;
    let ends = &swarm.source.generation_config().eos_token_ids;
    let constraints = Constraints::new(&codec, swarm.source.config().vocab_size, ends).unwrap();
    let schema = json!({
        "type": "object",
        "properties": {
            "sum": {"type": "integer", "minimum": 0, "maximum": 99},
            "words": {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 1, "maxItems": 2},
            "sure": {"type": "boolean"},
        },
        "required": ["sum", "words", "sure"], "additionalProperties": false,
    });
    for temperature in [0.0, 1.0] {
        let params = Params {
            max_new_tokens: 400,
            sampling: SamplingParams {
                temperature,
                seed: 3,
                ..SamplingParams::default()
            },
            eos_token_ids: ends.clone(),
            constraint: Some(constraints.json_schema(&schema).unwrap()),
            ..Params::default()
        };
        let prompt = codec.encode("What is 2+2?").unwrap();
        let mut ignore = |_: &Token| {};
        let generation = client.generate(Some(&codec), &prompt, &params, &mut ignore);
        let generation = soon("JSON", generation).await.unwrap();
        assert_eq!(generation.finish_reason.name(), "stop", "{}", generation.text);
        let value: Value = serde_json::from_str(&generation.text).unwrap();
        assert!(value["sum"].is_u64() && value["sure"].is_boolean() && value["words"][0].is_string());
        assert_eq!(value.as_object().unwrap().len(), 3);
    }
}
