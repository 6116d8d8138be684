//! A small model of the client's own guesses tokens: the same texts as without, whatever it is worth.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    conversing,
    generating::{client_with, numbers},
    setup::{Node, Swarm, model, reference, soon, vectors_folder},
    speculating::{assert_same, generate},
};
use crate::{
    client::{Client, Constraints, Conversations, DraftModel, Limits, LocalOptions, Params, Speculate, Token},
    model::{HubOptions, ModelSource, SamplingParams, WeightFormat},
};

const GUESSES: usize = 4;

fn resolve(name: &str) -> ModelSource {
    ModelSource::resolve(name, &HubOptions::from_variables(|_| None)).unwrap()
}

fn kept(source: ModelSource, quant: Option<WeightFormat>) -> DraftModel {
    let options = LocalOptions {
        quant,
        ..LocalOptions::default()
    };
    DraftModel { source, options }
}

/// The built-in model, to guess for itself.
pub(super) fn demo() -> DraftModel {
    kept(resolve("demo"), None)
}

/// The tiny model with another head: what it takes for the least probable token is the most probable one.
fn contrary() -> (TempDir, DraftModel) {
    let folder = tempfile::tempdir().unwrap();
    let from = vectors_folder("petals/tiny-llama");
    fs::copy(Path::new(&from).join("config.json"), folder.path().join("config.json")).unwrap();
    let mut weights = fs::read(Path::new(&from).join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&weights[8..header]).unwrap();
    let head = &tensors["lm_head.weight"];
    assert_eq!(head["dtype"], "F32");
    let [from, to] = [0, 1].map(|at| header + head["data_offsets"][at].as_u64().unwrap() as usize);
    for number in weights[from..to].chunks_exact_mut(4) {
        number[3] ^= 0x80;
    }
    fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    let source = resolve(folder.path().to_str().unwrap());
    (folder, kept(source, None))
}

async fn client(swarm: &Swarm, speculate: Speculate, draft: Option<DraftModel>) -> (Node, Client) {
    client_with(swarm, |config| {
        config.speculate = speculate;
        config.draft = draft;
    })
    .await
}

async fn plain(swarm: &Swarm) -> (Node, Client) {
    client(swarm, Speculate::Off, None).await
}

/// With so many logits told that two runs that agree in them went through the same numbers.
fn params(max_new_tokens: usize, seed: u64) -> Params {
    let greedy = SamplingParams {
        logprobs: Some(20),
        ..SamplingParams::default()
    };
    let drawn = SamplingParams {
        temperature: 0.8,
        top_p: 0.95,
        repetition_penalty: 1.1,
        frequency_penalty: 0.2,
        seed,
        ..greedy.clone()
    };
    Params {
        max_new_tokens,
        sampling: if seed == 0 { greedy } else { drawn },
        ..Params::default()
    }
}

#[tokio::test]
async fn a_model_that_guesses_for_itself_is_always_right() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = plain(&swarm).await;
    let (_other, drafting) = client(&swarm, Speculate::Always(GUESSES), Some(kept(model(), None))).await;
    // Nothing in it repeats itself. It is also longer than what is read on the way to a guess.
    let prompt: Vec<u32> = (20..60).collect();
    for seed in [0, 3] {
        let expected = generate(&plain, &prompt, &params(21, seed)).await;
        let before = servers[1].server.stats().steps;
        let found = generate(&drafting, &prompt, &params(21, seed)).await;
        assert_same(&found, &expected);
        let guesses = found.guesses;
        assert_eq!(guesses.drafted_by_model, guesses.accepted_by_model);
        assert!(guesses.accepted_by_model > 8, "{guesses:?}");
        let steps = servers[1].server.stats().steps - before;
        assert_eq!(steps as usize, 21 - guesses.accepted);
    }
}

#[tokio::test]
async fn a_worse_model_changes_no_text() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = plain(&swarm).await;
    let prompt = reference().prompt;
    let (mut drafted, mut accepted) = (0, 0);
    for mode in [Speculate::Always(GUESSES), Speculate::Auto] {
        let (_node, drafting) = client(&swarm, mode, Some(kept(model(), Some(WeightFormat::Nf4)))).await;
        for seed in 0..3 {
            let found = generate(&drafting, &prompt, &params(24, seed)).await;
            assert_same(&found, &generate(&plain, &prompt, &params(24, seed)).await);
            drafted += found.guesses.drafted_by_model;
            accepted += found.guesses.accepted_by_model;
        }
    }
    assert!(accepted > 10 && drafted > accepted, "{accepted} of {drafted}");
    for server in &servers {
        server.idle().await;
    }
}

#[tokio::test]
async fn a_model_that_is_always_wrong_is_asked_no_more() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = plain(&swarm).await;
    let (_folder, draft) = contrary();
    let (_other, drafting) = client(&swarm, Speculate::Auto, Some(draft)).await;
    let prompt = reference().prompt;
    let found = generate(&drafting, &prompt, &params(120, 0)).await;
    assert_same(&found, &generate(&plain, &prompt, &params(120, 0)).await);
    let guesses = found.guesses;
    assert_eq!(guesses.accepted_by_model, 0);
    assert!((1..60).contains(&guesses.drafted_by_model), "{guesses:?}");
}

#[tokio::test]
async fn a_model_that_fails_is_done_without() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = plain(&swarm).await;
    // It has no embeddings of most of the tokens.
    let small = kept(resolve(&vectors_folder("petals/tiny-llama31")), None);
    let (_other, drafting) = client(&swarm, Speculate::Always(GUESSES), Some(small)).await;
    let prompt: Vec<u32> = (150..190).collect();
    let found = generate(&drafting, &prompt, &params(16, 0)).await;
    assert_same(&found, &generate(&plain, &prompt, &params(16, 0)).await);
    assert_eq!(found.guesses.drafted_by_model, 0);
}

#[tokio::test]
async fn a_server_may_die_amid_guesses_of_a_model() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = plain(&swarm).await;
    let prompt = reference().prompt;
    let expected = generate(&plain, &prompt, &params(24, 5)).await;
    let worse = kept(model(), Some(WeightFormat::Nf4));
    let (_other, drafting) = client(&swarm, Speculate::Always(GUESSES), Some(worse)).await;
    let _spare = swarm.serve(2..4).await;
    drafting.refresh().await;
    let (codec, mut n_tokens) = (numbers(), 0);
    let mut kill = |_: &Token| {
        n_tokens += 1;
        if n_tokens == 9 {
            servers[1].kill();
        }
    };
    let params = params(24, 5);
    let generation = drafting.generate(Some(&codec), &prompt, &params, &mut kill);
    assert_same(&soon("a text", generation).await.unwrap(), &expected);
}

#[tokio::test]
async fn conversations_and_texts_broken_off_go_on_with_a_model() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = plain(&swarm).await;
    let worse = kept(model(), Some(WeightFormat::Nf4));
    let (node, drafting) = client(&swarm, Speculate::Always(GUESSES), Some(worse)).await;
    let conversations = Conversations::new(drafting, Limits::default(), &node.tasks);
    let mut prompt = reference().prompt;
    for n_read in [2, 5, 7] {
        let mut run = conversations.begin(None, &prompt, &params(24, 0)).await.unwrap();
        let mut read = Vec::new();
        for _ in 0..n_read {
            read.push(soon("a token", run.next()).await.unwrap().unwrap().id);
        }
        conversations.end(run).await.unwrap();
        assert_eq!(read, generate(&plain, &prompt, &params(n_read, 0)).await.token_ids);
        prompt.extend(read);
        prompt.extend([3, 1, 4]);
    }
    assert_eq!(conversations.n_idle(), 1, "one session all the time");
    // Somebody does not even wait for a token: guesses and steps are dropped wherever they are.
    for n_polls in [1, 3, 8] {
        let mut run = conversations.begin(None, &prompt, &params(24, 0)).await.unwrap();
        soon("a token", run.next()).await.unwrap();
        {
            let mut next = Box::pin(run.next());
            for _ in 0..n_polls {
                if futures::poll!(next.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        drop(conversations.end(run).await);
        let mut again = conversations.begin(None, &prompt, &params(8, 0)).await.unwrap();
        let mut read = Vec::new();
        while let Some(token) = soon("a token", again.next()).await.unwrap() {
            read.push(token.id);
        }
        conversations.end(again).await.unwrap();
        assert_eq!(read, generate(&plain, &prompt, &params(8, 0)).await.token_ids);
    }
}

#[tokio::test]
async fn texts_at_the_same_time_share_a_model() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, plain) = plain(&swarm).await;
    let worse = kept(model(), Some(WeightFormat::Nf4));
    let (_other, drafting) = client(&swarm, Speculate::Always(GUESSES), Some(worse)).await;
    let prompt = reference().prompt;
    let texts = (0..5).map(|seed| {
        let (plain, drafting, prompt) = (&plain, &drafting, &prompt);
        async move {
            let found = generate(drafting, prompt, &params(16, seed)).await;
            assert_same(&found, &generate(plain, prompt, &params(16, seed)).await);
        }
    });
    futures::future::join_all(texts).await;
}

#[tokio::test]
async fn json_of_a_schema_is_guessed_by_a_model_that_keeps_to_it() {
    let (swarm, codec) = conversing::demo().await;
    let _server = swarm.serve(0..8).await;
    let ends = &swarm.source.generation_config().eos_token_ids;
    let constraints = Constraints::new(&codec, swarm.source.config().vocab_size, ends).unwrap();
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 4}, "sure": {"type": "boolean"}},
        "required": ["name", "sure"], "additionalProperties": false,
    });
    let (_node, plain) = plain(&swarm).await;
    let (_other, drafting) = client(&swarm, Speculate::Always(GUESSES), Some(demo())).await;
    let prompt = codec.encode("A name?").unwrap();
    for seed in 0..2 {
        let params = Params {
            eos_token_ids: ends.clone(),
            constraint: Some(constraints.json_schema(&schema).unwrap()),
            ..params(200, seed)
        };
        let mut texts = Vec::new();
        for client in [&plain, &drafting] {
            let mut ignore = |_: &Token| {};
            let generation = client.generate(Some(&codec), &prompt, &params, &mut ignore);
            texts.push(soon("JSON", generation).await.unwrap());
        }
        assert_same(&texts[1], &texts[0]);
        serde_json::from_str::<Value>(&texts[1].text).unwrap();
        let guesses = texts[1].guesses;
        assert!(guesses.accepted_by_model > 8, "{guesses:?}");
        assert!(
            guesses.accepted_by_model * 10 > guesses.drafted_by_model * 8,
            "{guesses:?}"
        );
        assert!(guesses.accepted_per_step() > 1.5, "{guesses:?}");
    }
}
