//! Tokens guessed ahead: the same texts as without, in fewer steps, whatever happens to servers and sessions.

use std::time::Duration;

use sepal_protocol::record::{ServerInfo, ServerState};
use serde_json::json;

use super::{
    generating::{client_with, numbers},
    setup::{N_BLOCKS, Node, PREFIX, Swarm, TestServer, reference, soon},
};
use crate::{
    client::{
        Client, Constraints, Conversations, FinishReason, Generation, Limits, Params, Speculate, TextCodec, Token,
    },
    model::{HubOptions, ModelSource, SamplingParams},
    swarm::announce::{AnnounceConfig, Announcer},
};

const GUESSES: usize = 4;

async fn client(swarm: &Swarm, speculate: Speculate) -> (Node, Client) {
    client_with(swarm, |config| config.speculate = speculate).await
}

/// Greedy; with so many logits told that two runs that agree in them went through the same numbers.
fn params(max_new_tokens: usize) -> Params {
    Params {
        max_new_tokens,
        sampling: SamplingParams {
            logprobs: Some(20),
            ..SamplingParams::default()
        },
        ..Params::default()
    }
}

pub(super) async fn generate(client: &Client, prompt: &[u32], params: &Params) -> Generation {
    generate_and(client, prompt, params, &mut |_| {}).await
}

async fn generate_and(
    client: &Client,
    prompt: &[u32],
    params: &Params,
    on_token: &mut (dyn FnMut(&Token) + Send),
) -> Generation {
    let codec = numbers();
    let generation = client.generate(Some(&codec), prompt, params, on_token);
    soon("a text", generation).await.unwrap()
}

/// Prompts in which much is repeated.
fn prompts() -> Vec<Vec<u32>> {
    let once = reference().prompt;
    vec![
        once.repeat(3),
        [&once[..], &reference().greedy, &once].concat(),
        vec![7; 9],
        (0..40).map(|n| 20 + n % 5).collect(),
    ]
}

/// Texts and all that is told of them, guesses left out.
pub(super) fn assert_same(found: &Generation, expected: &Generation) {
    assert_eq!(found.token_ids, expected.token_ids);
    assert_eq!(found.logprobs, expected.logprobs);
    assert_eq!(found.text, expected.text);
    assert_eq!(found.finish_reason, expected.finish_reason);
}

#[tokio::test]
async fn texts_are_the_same_to_the_last_bit_in_fewer_steps() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..3, 3..4]).await;
    let (_node, plain) = client(&swarm, Speculate::Off).await;
    let (_other, guessing) = client(&swarm, Speculate::Always(GUESSES)).await;
    let (mut drafted, mut accepted) = (0, 0);
    for prompt in prompts() {
        let expected = generate(&plain, &prompt, &params(40)).await;
        assert_eq!(expected.guesses.drafted, 0);
        let before = servers[2].server.stats().steps;
        let found = generate(&guessing, &prompt, &params(40)).await;
        assert_same(&found, &expected);
        let steps = servers[2].server.stats().steps - before;
        assert_eq!(steps as usize, 40 - found.guesses.accepted);
        drafted += found.guesses.drafted;
        accepted += found.guesses.accepted;
    }
    assert!(accepted > 10, "{accepted}");
    assert!(drafted > accepted, "some were taken back");
    for server in &servers {
        server.idle().await;
    }
}

#[tokio::test]
async fn drawn_texts_are_the_same_seed_for_seed() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = client(&swarm, Speculate::Off).await;
    let (_other, guessing) = client(&swarm, Speculate::Always(GUESSES)).await;
    let mut accepted = 0;
    for (seed, prompt) in prompts().into_iter().enumerate() {
        let mut params = params(24);
        params.sampling = SamplingParams {
            temperature: 0.7,
            top_k: 20,
            top_p: 0.9,
            repetition_penalty: 1.05,
            presence_penalty: -0.5,
            frequency_penalty: -0.5,
            logit_bias: vec![(7, 1.0)],
            seed: seed as u64,
            ..params.sampling
        };
        let expected = generate(&plain, &prompt, &params).await;
        let found = generate(&guessing, &prompt, &params).await;
        assert_same(&found, &expected);
        accepted += found.guesses.accepted;
    }
    assert!(accepted > 0);
}

#[tokio::test]
async fn no_text_is_longer_than_was_asked_for() {
    let swarm = Swarm::start().await;
    let _server = swarm.serve(0..4).await;
    let (_node, plain) = client(&swarm, Speculate::Off).await;
    let (_other, guessing) = client(&swarm, Speculate::Always(16)).await;
    let prompt = vec![7; 9];
    for length in 1..6 {
        let found = generate(&guessing, &prompt, &params(length)).await;
        assert_same(&found, &generate(&plain, &prompt, &params(length)).await);
        assert_eq!(found.token_ids.len(), length);
    }
}

#[tokio::test]
async fn end_tokens_and_stop_texts_end_a_text_amid_right_guesses() {
    let swarm = Swarm::start().await;
    let _server = swarm.serve(0..4).await;
    let (_node, plain) = client(&swarm, Speculate::Off).await;
    let (_other, guessing) = client(&swarm, Speculate::Always(GUESSES)).await;
    let prompt = &prompts()[0];
    let whole = generate(&plain, prompt, &params(40)).await.token_ids;
    for at in 20..24 {
        let ended = Params {
            eos_token_ids: vec![whole[at]],
            ..params(40)
        };
        let stopped = Params {
            stop: vec![format!("{} {}", whole[at - 1], whole[at])],
            ..params(40)
        };
        for params in [ended, stopped] {
            let found = generate(&guessing, prompt, &params).await;
            assert_same(&found, &generate(&plain, prompt, &params).await);
            assert_ne!(found.finish_reason, FinishReason::Length);
        }
    }
}

#[tokio::test]
async fn servers_may_die_amid_guesses() {
    for (victim, position) in [(0, 9), (1, 17)] {
        let swarm = Swarm::start().await;
        let servers = swarm.serve_all(&[0..2, 2..4]).await;
        let (_node, plain) = client(&swarm, Speculate::Off).await;
        let prompt = &prompts()[0];
        let expected = generate(&plain, prompt, &params(24)).await;
        let (_other, guessing) = client(&swarm, Speculate::Always(GUESSES)).await;
        let _spares = swarm.serve_all(&[0..2, 2..4]).await;
        guessing.refresh().await;
        let mut n_tokens = 0;
        let mut kill = |_: &Token| {
            n_tokens += 1;
            if n_tokens == position {
                servers[victim].kill();
            }
        };
        let found = generate_and(&guessing, prompt, &params(24), &mut kill).await;
        assert_same(&found, &expected);
        assert!(found.guesses.accepted > 0);
    }
}

/// Says of a server that it is one of those that do not take tokens back: they announce another version, this one none.
async fn forget_version(server: &TestServer) -> Announcer {
    let config = AnnounceConfig {
        prefix: PREFIX.to_owned(),
        peer: server.node.peer(),
        blocks: 0..N_BLOCKS,
        n_model_blocks: N_BLOCKS,
        repository: None,
        period: Duration::from_secs(600),
        expiration: Duration::from_secs(1200),
    };
    let describe = || ServerInfo::new(ServerState::Online, 100.0);
    let announcer = Announcer::spawn(server.node.dht.clone(), config, describe, &server.node.tasks);
    soon("announced", announcer.set_state(ServerState::Online))
        .await
        .unwrap();
    announcer
}

#[tokio::test]
async fn nothing_is_guessed_where_a_server_does_not_take_tokens_back() {
    let swarm = Swarm::start().await;
    let old = swarm.serve(0..4).await;
    let _announcer = forget_version(&old).await;
    let (_node, client) = client(&swarm, Speculate::Always(GUESSES)).await;
    let reference = reference();
    let found = generate(&client, &reference.prompt, &params(16)).await;
    assert_eq!(found.token_ids, reference.greedy);
    assert_eq!(found.guesses.drafted, 0);
}

#[tokio::test]
async fn a_text_goes_on_where_a_new_server_does_not_take_tokens_back() {
    let swarm = Swarm::start().await;
    let first = swarm.serve(0..4).await;
    let (_node, plain) = client(&swarm, Speculate::Off).await;
    let prompt = &prompts()[0];
    let expected = generate(&plain, prompt, &params(40)).await;
    let (_other, guessing) = client(&swarm, Speculate::Always(GUESSES)).await;
    let old = swarm.serve(0..4).await;
    let _announcer = forget_version(&old).await;
    let mut n_tokens = 0;
    let mut kill = |_: &Token| {
        n_tokens += 1;
        if n_tokens == 5 {
            first.kill();
        }
    };
    let found = generate_and(&guessing, prompt, &params(40), &mut kill).await;
    assert_same(&found, &expected);
    assert_eq!(found.route[0].peer, old.node.peer());
}

#[tokio::test]
async fn conversations_go_on_after_texts_that_ended_amid_guesses() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = client(&swarm, Speculate::Off).await;
    let (node, guessing) = client(&swarm, Speculate::Always(GUESSES)).await;
    let conversations = Conversations::new(guessing, Limits::default(), &node.tasks);
    let mut prompt = prompts().remove(0);
    for n_read in [2, 3, 5, 6, 7, 9, 11] {
        let mut run = conversations.begin(None, &prompt, &params(24)).await.unwrap();
        let mut read = Vec::new();
        for _ in 0..n_read {
            read.push(soon("a token", run.next()).await.unwrap().unwrap().id);
        }
        let broken_off = conversations.end(run).await.unwrap();
        assert_eq!(broken_off.token_ids, read);
        let expected = generate(&plain, &prompt, &params(n_read)).await;
        assert_eq!(read, expected.token_ids);
        assert_eq!(broken_off.logprobs, expected.logprobs);
        prompt.extend(read);
        prompt.extend([3, 1, 4]);
    }
    assert_eq!(conversations.n_idle(), 1, "one session all the time");
}

#[tokio::test]
async fn json_of_a_schema_is_the_same_with_guesses() {
    let mut swarm = Swarm::start().await;
    swarm.source = ModelSource::resolve("demo", &HubOptions::from_variables(|_| None)).unwrap();
    let codec = TextCodec::from_json(&swarm.source.tokenizer_json().unwrap()).unwrap();
    let _server = swarm.serve(0..8).await;
    let ends = &swarm.source.generation_config().eos_token_ids;
    let constraints = Constraints::new(&codec, swarm.source.config().vocab_size, ends).unwrap();
    let item = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 2}, "sure": {"type": "boolean"}},
        "required": ["name", "sure"], "additionalProperties": false,
    });
    let schema = json!({"type": "array", "items": item, "minItems": 2, "maxItems": 2});
    let params = Params {
        max_new_tokens: 400,
        eos_token_ids: ends.clone(),
        constraint: Some(constraints.json_schema(&schema).unwrap()),
        ..params(400)
    };
    let prompt = codec.encode("Names?").unwrap();
    let (_node, plain) = client(&swarm, Speculate::Off).await;
    let (_other, guessing) = client(&swarm, Speculate::Always(GUESSES)).await;
    let mut ignore = |_: &Token| {};
    let expected = plain.generate(Some(&codec), &prompt, &params, &mut ignore);
    let expected = soon("JSON", expected).await.unwrap();
    let mut ignore = |_: &Token| {};
    let found = guessing.generate(Some(&codec), &prompt, &params, &mut ignore);
    let found = soon("JSON", found).await.unwrap();
    assert_same(&found, &expected);
    serde_json::from_str::<serde_json::Value>(&found.text).unwrap();
    assert!(found.guesses.accepted > 0, "{}", found.text);
}

#[tokio::test]
async fn guesses_that_are_left_to_themselves_change_no_text() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = client(&swarm, Speculate::Off).await;
    let (_other, guessing) = client(&swarm, Speculate::Auto).await;
    for prompt in prompts().into_iter().skip(1) {
        let found = generate(&guessing, &prompt, &params(32)).await;
        assert_same(&found, &generate(&plain, &prompt, &params(32)).await);
    }
}
