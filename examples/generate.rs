//! Text through a swarm, token by token as it comes. The last line says which servers computed it.
//!
//! ```text
//! $ cargo run --release --example generate
//! > What is 7 plus 5?
//! 7 + 5 = 12.
//! … tokens, … tokens/s, through 12D3KooW… (0:8)
//! ```
//!
//! That is a swarm of one server in this process. With arguments it uses one that is there:
//! `generate org/model "A cat in French is" ADDR…`, where each address ends in /p2p/PEER_ID.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]
#![expect(clippy::disallowed_methods, reason = "an example reads its environment itself")]

use std::io::Write;

use sepal::client::{self, Client, Params, TextCodec, Token};
use sepal::model::{Engine, HubOptions, ModelSource};
use sepal::p2p::{Config, Multiaddr};
use sepal::server::{self, BlockChoice, LimitChoice, Server, Throughput};
use sepal::swarm::{Node, models::dht_prefix};

/// A server of the whole model, alone in its swarm, and where it is.
async fn serve(source: &ModelSource, prefix: &str) -> anyhow::Result<(Server, Vec<Multiaddr>)> {
    let node = Node::join(Config::default()).await?;
    let choice = BlockChoice::Fixed(0..source.config().n_blocks);
    let config = server::Config {
        throughput: Throughput::Fixed(100.0),
        ..server::Config::new(prefix.to_owned(), choice, LimitChoice::default(), Engine::new(None)?)
    };
    let server = Server::start(config, source.clone(), &node).await?;
    Ok((server, node.p2p.addrs()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "demo".to_owned());
    let prompt = args.next().unwrap_or_else(|| "What is 7 plus 5?".to_owned());
    let mut peers = args.map(|addr| addr.parse()).collect::<Result<Vec<Multiaddr>, _>>()?;
    let source = ModelSource::resolve(&model, &HubOptions::from_variables(|name| std::env::var(name).ok()))?;
    let prefix = dht_prefix(source.model_type(), source.repo_name().unwrap_or(&model));
    let mut own = None;
    if peers.is_empty() {
        let (server, addrs) = serve(&source, &prefix).await?;
        own = Some(server);
        peers = addrs;
    }

    let node = Node::join(Config::client(peers)).await?;
    // Downloads embeddings and head if they are not in the cache of Hugging Face; blocks stay with the servers.
    let config = client::Config::new(prefix);
    let client = Client::connect(config, &source, node.network(), &node.tasks).await?;
    let codec = TextCodec::from_json(&source.tokenizer_json()?)?;
    let defaults = source.generation_config();
    let params = Params {
        max_new_tokens: 64,
        sampling: defaults.sampling(),
        eos_token_ids: defaults.eos_token_ids.clone(),
        ..Params::default()
    };
    println!("> {prompt}");
    let mut begun = false;
    let mut on_token = |token: &Token| {
        // The built-in model begins its answers with a line break.
        let text = if begun { &*token.text } else { token.text.trim_start() };
        begun |= !text.is_empty();
        print!("{text}");
        // Whoever reads may have gone; the text is not for them alone.
        let _ = std::io::stdout().flush();
    };
    let prompt = codec.encode(&prompt)?;
    let done = client.generate(Some(&codec), &prompt, &params, &mut on_token).await?;
    let hops = done
        .route
        .iter()
        .map(|hop| format!("{} ({}:{})", hop.peer, hop.blocks.start, hop.blocks.end));
    let (tokens, speed) = (done.token_ids.len(), done.tokens_per_second());
    println!(
        "\n{tokens} tokens, {speed:.0} tokens/s, through {}",
        hops.collect::<Vec<_>>().join(" → ")
    );

    if let Some(server) = own {
        server.shutdown().await;
    }
    Ok(())
}
