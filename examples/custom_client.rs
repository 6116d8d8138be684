//! A token loop of one's own: embed, step through the swarm, head, choose. This one looks ahead: it tries each of the two
//! most probable tokens with the two that would follow, and takes the better beginning. Servers take back what was only
//! tried, so that a session can be used for it.
//!
//! ```text
//! $ cargo run --release --example custom_client
//! > What is the capital of France?
//! The capital of France is Paris.
//! 15 tokens, 64 tried and taken back
//! ```
//!
//! That is a swarm of one server in this process; `custom_client ADDR…` asks servers of `demo` in the swarm of those nodes.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use anyhow::ensure;
use sepal::client::{self, Client, Session, TextCodec};
use sepal::model::{Engine, ModelSource};
use sepal::p2p::{Config, Multiaddr};
use sepal::server::{self, BlockChoice, LimitChoice, Server, Throughput};
use sepal::swarm::Node;

const PREFIX: &str = "demo-hf";
const PROMPT: &str = "What is the capital of France?";
const MAX_NEW_TOKENS: usize = 32;
/// Tokens of a beginning.
const AHEAD: usize = 3;

/// The two most probable tokens after `tokens`, which go through all blocks, with the logarithms of their probabilities.
async fn step(client: &Client, session: &mut Session, tokens: &[u32]) -> anyhow::Result<[(u32, f32); 2]> {
    let x = client.ends().embed(tokens)?;
    let width = x.width;
    let x = session.step(x).await?;
    let logits = client.ends().logits(&x.data[x.data.len() - width..])?;
    let mut scored: Vec<(u32, f32)> = (0..).zip(logits).collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    let best = scored[0].1;
    let all = best + scored.iter().map(|(_, logit)| (logit - best).exp()).sum::<f32>().ln();
    Ok([0, 1].map(|place| (scored[place].0, scored[place].1 - all)))
}

/// How probable the text is that begins with `first`, AHEAD tokens of it. Leaves the session as it was.
async fn look_ahead(client: &Client, session: &mut Session, first: (u32, f32)) -> anyhow::Result<f32> {
    let (here, (mut token, mut sum)) = (session.position(), first);
    for _ in 1..AHEAD {
        let [(best, logprob), _] = step(client, session, &[token]).await?;
        (token, sum) = (best, sum + logprob);
    }
    ensure!(
        session.rewind(here),
        "a server takes nothing back, as Petals before 2.3"
    );
    Ok(sum)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let given: Result<Vec<Multiaddr>, _> = std::env::args().skip(1).map(|addr| addr.parse()).collect();
    let mut peers = given?;
    let source = ModelSource::built_in()?;
    let mut own = None;
    if peers.is_empty() {
        let node = Node::join(Config::default()).await?;
        let choice = BlockChoice::Fixed(0..source.config().n_blocks);
        let config = server::Config {
            throughput: Throughput::Fixed(100.0),
            ..server::Config::new(PREFIX.to_owned(), choice, LimitChoice::default(), Engine::new(None)?)
        };
        peers = node.p2p.addrs();
        own = Some(Server::start(config, source.clone(), &node).await?);
    }
    let node = Node::join(Config::client(peers)).await?;
    let config = client::Config::new(PREFIX.to_owned());
    let client = Client::connect(config, &source, node.network(), &node.tasks).await?;
    let codec = TextCodec::from_json(&source.tokenizer_json()?)?;

    let prompt = codec.encode(PROMPT)?;
    let mut session = client.session(prompt.len() + MAX_NEW_TOKENS + AHEAD);
    let (mut answer, mut taken_back) = (Vec::new(), 0);
    let mut next = step(&client, &mut session, &prompt).await?;
    while answer.len() < MAX_NEW_TOKENS {
        let [one, other] = next;
        let score = look_ahead(&client, &mut session, one).await?;
        let is_better = look_ahead(&client, &mut session, other).await? > score;
        taken_back += 2 * (AHEAD - 1);
        let (token, _) = if is_better { other } else { one };
        if source.generation_config().eos_token_ids.contains(&token) {
            break;
        }
        answer.push(token);
        next = step(&client, &mut session, &[token]).await?;
    }
    println!("> {PROMPT}\n{}", codec.decode(&answer)?.trim());
    println!("{} tokens, {taken_back} tried and taken back", answer.len());

    session.close().await;
    if let Some(server) = own {
        server.shutdown().await;
    }
    Ok(())
}
