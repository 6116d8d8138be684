//! Our client through our servers: the same tokens as transformers, however the blocks are spread.

use std::{ops::Range, sync::Arc, time::Duration};

use serde_json::json;

use super::setup::{
    N_BLOCKS, Node, PREFIX, Swarm, WIDTH, assert_close, config, engine, model, reference, soon, tokens,
};
use crate::{
    client::{Backoff, Client, ClientError, Config, Generation, Params, TextCodec, Token},
    model::{Blocks, Ends, Hidden, Precision, WeightDType, WeightFormat},
    server,
};

/// A client with a node of its own that does not wait long for what is not there.
pub(super) async fn client(swarm: &Swarm) -> (Node, Client) {
    client_with(swarm, |_| {}).await
}

pub(super) async fn client_with(swarm: &Swarm, change: impl FnOnce(&mut Config)) -> (Node, Client) {
    let node = swarm.caller().await;
    let client = client_on(&node, swarm, change).await;
    (node, client)
}

/// Another client of the same node.
pub(super) async fn client_on(node: &Node, swarm: &Swarm, change: impl FnOnce(&mut Config)) -> Client {
    let mut config = Config {
        backoff: Backoff {
            max_retries: 3,
            min: Duration::from_millis(10),
            max: Duration::from_millis(100),
        },
        ..Config::new(PREFIX.to_owned())
    };
    change(&mut config);
    let parts = (node.p2p.clone(), node.dht.clone());
    Client::connect(config, &swarm.source, parts, &node.tasks)
        .await
        .unwrap()
}

/// A tokenizer whose words are the numbers of the tokens. The tiny model was never trained on text.
pub(super) fn numbers() -> TextCodec {
    let vocab: serde_json::Map<String, serde_json::Value> = (0..256).map(|id| (id.to_string(), json!(id))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "0"},
    });
    TextCodec::from_json(json.to_string().as_bytes()).unwrap()
}

/// Generates greedily, and tells `on_text` about each token.
pub(super) async fn generate(
    client: &Client,
    prompt: &[u32],
    max_new_tokens: usize,
    on_text: &mut (dyn FnMut(&str) + Send),
) -> Result<Generation, ClientError> {
    let params = Params {
        max_new_tokens,
        ..Params::default()
    };
    let codec = numbers();
    let mut on_token = |token: &Token| {
        if !token.text.is_empty() {
            on_text(&token.text);
        }
    };
    soon(
        "a generation",
        client.generate(Some(&codec), prompt, &params, &mut on_token),
    )
    .await
}

async fn greedy(spans: &[Range<u32>]) {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(spans).await;
    let (_node, client) = client(&swarm).await;
    let reference = reference();
    let mut streamed = String::new();
    let mut on_text = |text: &str| streamed.push_str(text);
    let generation = generate(&client, &reference.prompt, 16, &mut on_text).await.unwrap();
    assert_eq!(generation.token_ids, reference.greedy);
    assert_eq!(generation.prompt_tokens, reference.prompt.len());
    assert_eq!(streamed, generation.text);
    let hops: Vec<_> = generation.route.iter().map(|hop| hop.blocks.clone()).collect();
    assert_eq!(hops, spans);
    assert!(generation.route.iter().all(|hop| hop.per_step.is_some()));
    for server in &servers {
        server.idle().await;
        assert_eq!(server.server.stats().steps, 16);
    }
}

#[tokio::test]
async fn one_server_gives_the_tokens_of_transformers() {
    greedy(&[Range { start: 0, end: 4 }]).await;
}

#[tokio::test]
async fn two_servers_give_the_tokens_of_transformers() {
    greedy(&[0..2, 2..4]).await;
}

#[tokio::test]
async fn a_server_for_each_block_gives_the_tokens_of_transformers() {
    greedy(&[0..1, 1..2, 2..3, 3..4]).await;
}

#[tokio::test]
async fn servers_with_quantised_weights_generate_what_one_machine_with_them_does() {
    let prompt = reference().prompt;
    for weights in [
        WeightFormat::Q8_0,
        WeightFormat::Q4_0,
        WeightFormat::Q4K,
        WeightFormat::Nf4,
    ] {
        let swarm = Swarm::start().await;
        let mut servers = Vec::new();
        for blocks in [0..3, 3..4] {
            let quantised = server::Config {
                quant: Some(weights),
                ..config(blocks)
            };
            servers.push(swarm.serve_with(quantised).await);
        }
        let dtype = WeightDType::F32;
        let expected = Local::with(Precision { weights, dtype }).greedy(&prompt, 12);
        let (_node, client) = client(&swarm).await;
        let found = generate(&client, &prompt, 12, &mut |_| {}).await.unwrap();
        assert_eq!(found.token_ids, expected, "{}", weights.as_str());
    }
}

/// What one machine with the whole model computes.
struct Local {
    blocks: Blocks,
    ends: Ends,
}

impl Local {
    fn load() -> Self {
        Self::with(WeightDType::F32)
    }

    fn with(precision: impl Into<Precision>) -> Self {
        let source = model();
        let files = source.files_for_span(0..N_BLOCKS).unwrap();
        let blocks = Blocks::load(&files, 0..N_BLOCKS, precision, engine()).unwrap();
        let ends = Ends::load(&source.files_for_ends().unwrap(), WeightDType::F32, &engine()).unwrap();
        Self { blocks, ends }
    }

    fn greedy(&self, prompt: &[u32], n: usize) -> Vec<u32> {
        let mut tokens = prompt.to_vec();
        for _ in 0..n {
            let x = self.forward(self.ends.embed(&tokens).unwrap());
            let logits = self.ends.logits(&x.data[x.data.len() - WIDTH..]).unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            tokens.push(best.unwrap() as u32);
        }
        tokens.split_off(prompt.len())
    }

    fn forward(&self, mut x: Hidden) -> Hidden {
        for block in 0..N_BLOCKS {
            self.blocks.forward(block, &mut x).unwrap();
        }
        x
    }
}

#[tokio::test]
async fn a_prompt_of_several_messages_gives_what_one_machine_computes() {
    let swarm = Swarm::start().await;
    let mut servers = Vec::new();
    for blocks in [0..3, 3..4] {
        let mut config = config(blocks);
        config.limits.attn_cache_tokens = Some(4096);
        servers.push(swarm.serve_with(config).await);
    }
    let (_node, client) = client(&swarm).await;
    let local = Local::load();
    let prompt: Vec<u32> = (0..1500).map(|i| (i * 37 + i * i % 101) % 256).collect();
    let x = local.ends.embed(&prompt).unwrap();
    let mut session = client.session(1501);
    let output = soon("a long prompt", session.step(x.clone())).await.unwrap();
    assert_eq!(session.position(), 1500);
    assert_close(&output.data, &local.forward(x).data, 2e-4);
    // The session is full after one more token, and says so without harm.
    let one = tokens(&reference().embeddings, 0..1);
    assert!(matches!(
        session.step(tokens(&reference().embeddings, 0..2)).await,
        Err(ClientError::SessionFull {
            max_length: 1501,
            wanted: 1502
        })
    ));
    session.step(one).await.unwrap();
    session.close().await;
    assert_eq!(servers[0].server.stats().steps, 3, "1024 tokens, 476, 1");
    for server in &servers {
        server.idle().await;
    }
}

#[tokio::test]
async fn clients_at_the_same_time_do_not_disturb_each_other() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, client) = client(&swarm).await;
    let (reference, local) = (reference(), Arc::new(Local::load()));
    let sessions = (1..=8).map(|length| {
        let (client, local) = (client.clone(), local.clone());
        let x = tokens(&reference.embeddings, 0..length + 4);
        async move {
            let mut session = client.session(16);
            let mut outputs = Vec::new();
            // Prompts of different lengths, the rest token by token.
            let first = session.step(tokens(&x, 0..length)).await.unwrap();
            outputs.extend(first.data);
            for token in length..length + 4 {
                outputs.extend(session.step(tokens(&x, token..token + 1)).await.unwrap().data);
            }
            session.close().await;
            assert_close(&outputs, &local.forward(x).data, 1e-4);
        }
    });
    soon("all sessions", futures::future::join_all(sessions)).await;
    for server in &servers {
        server.idle().await;
        assert_eq!(server.server.stats().steps, 8 * 5);
    }
}

#[tokio::test]
async fn eight_generations_at_once_give_the_same_tokens() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, client) = client(&swarm).await;
    let reference = reference();
    let generations = (0..8).map(|_| {
        let (client, prompt) = (client.clone(), reference.prompt.clone());
        async move { generate(&client, &prompt, 16, &mut |_| {}).await.unwrap().token_ids }
    });
    for tokens in futures::future::join_all(generations).await {
        assert_eq!(tokens, reference.greedy);
    }
}

#[tokio::test]
async fn a_batch_goes_through_a_session_as_well() {
    let swarm = Swarm::start().await;
    let _servers = swarm.serve_all(&[0..2, 2..4]).await;
    let (_node, client) = client(&swarm).await;
    let reference = reference();
    let row = tokens(&reference.embeddings, 0..6);
    let batch = Hidden::new([&*row.data, &*row.data].concat(), 2, 6, WIDTH).unwrap();
    let mut session = client.session(8);
    let output = session.step(batch).await.unwrap();
    let expected = tokens(&reference.blocks[3], 0..6);
    assert_close(&output.data, &[&*expected.data, &*expected.data].concat(), 1e-4);
}

#[tokio::test]
async fn a_prompt_without_tokens_is_refused() {
    let swarm = Swarm::start().await;
    let (_node, client) = client(&swarm).await;
    assert!(matches!(
        generate(&client, &[], 4, &mut |_| {}).await,
        Err(ClientError::EmptyPrompt)
    ));
}
