//! A whole swarm in one process: three servers that hold the built-in model together, and a client that knows one address.
//! Each is a node of its own, with its own key, host and DHT, and they talk TCP.
//!
//! ```text
//! $ cargo run --release --example tiny_swarm
//! the swarm begins at /ip4/127.0.0.1/tcp/…/p2p/12D3KooW…
//! server 1 holds blocks 0:3
//! server 2 holds blocks 3:6
//! server 3 holds blocks 6:8
//! the client goes through blocks 0:3, 3:6, 6:8
//! > What is 2+2?
//! 2 + 2 = 4.
//! ```
//!
//! With the address of a node (`tiny_swarm ADDR`) the servers join that swarm.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use sepal::client::{self, Client, Params, TextCodec};
use sepal::model::{Engine, ModelSource};
use sepal::p2p::{Config, Multiaddr};
use sepal::server::{self, BlockChoice, LimitChoice, Server, Throughput};
use sepal::swarm::Node;

/// What the model is called in the DHT.
const PREFIX: &str = "tiny-swarm-hf";
const PROMPT: &str = "What is 2+2?";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let given: Result<Vec<Multiaddr>, _> = std::env::args().skip(1).map(|addr| addr.parse()).collect();
    let source = ModelSource::built_in()?;
    let engine = Engine::new(None)?;
    let first = Node::join(Config::on_loopback(given?)).await?;
    println!("the swarm begins at {}", first.p2p.addrs()[0]);

    let mut servers = Vec::new();
    for (number, blocks) in [(1, 0..3), (2, 3..6), (3, 6..8)] {
        let node = Node::join(Config::on_loopback(first.p2p.addrs())).await?;
        let choice = BlockChoice::Fixed(blocks);
        let config = server::Config {
            // Measuring what this machine can do would take some seconds.
            throughput: Throughput::Fixed(100.0),
            public_name: Some(format!("server {number}")),
            ..server::Config::new(PREFIX.to_owned(), choice, LimitChoice::default(), &engine)
        };
        let server = Server::start(config, source.clone(), &node).await?;
        servers.push((node, server));
    }

    let node = Node::join(Config::client(first.p2p.addrs())).await?;
    let config = client::Config::new(PREFIX.to_owned());
    let client = Client::connect(config, &source, node.network(), &node.tasks).await?;
    let mut spans = client.snapshot().spans.clone();
    spans.sort_by_key(|span| span.blocks.start);
    for span in spans {
        let name = span.info.public_name.unwrap_or_default();
        println!("{name} holds blocks {}:{}", span.blocks.start, span.blocks.end);
    }

    let codec = TextCodec::from_json(&source.tokenizer_json()?)?;
    let prompt = codec.encode(PROMPT)?;
    let params = Params {
        max_new_tokens: 32,
        eos_token_ids: source.generation_config().eos_token_ids.clone(),
        ..Params::default()
    };
    let answer = client.generate(Some(&codec), &prompt, &params, &mut |_| {}).await?;
    let hops = answer
        .route
        .iter()
        .map(|hop| format!("{}:{}", hop.blocks.start, hop.blocks.end));
    println!("the client goes through blocks {}", hops.collect::<Vec<_>>().join(", "));
    println!("> {PROMPT}\n{}", answer.text.trim());

    // Servers say goodbye, so that nobody looks for them.
    for (node, server) in servers {
        server.shutdown().await;
        node.stop().await;
    }
    node.stop().await;
    first.stop().await;
    Ok(())
}
