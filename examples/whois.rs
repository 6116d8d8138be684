//! Prints who serves each block of a model: joins the DHT as a client, reads the records, goes.
//!
//! ```text
//! $ cargo run --release --example whois -- demo-hf 8 /ip4/127.0.0.1/tcp/31337/p2p/12D3KooW…
//!   0  12D3KooWQ… online    1530 tokens/s  0:4  server 1
//!   …
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use anyhow::{Context, ensure};
use sepal::p2p::{Config, Multiaddr};
use sepal::swarm::{Directory, Node};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: whois DHT_PREFIX NUMBER_OF_BLOCKS INITIAL_PEER…";
    let prefix = args.next().context(usage)?;
    let n_blocks: u32 = args.next().context(usage)?.parse().context(usage)?;
    let initial_peers = args
        .map(|addr| addr.parse())
        .collect::<Result<Vec<Multiaddr>, _>>()
        .context(usage)?;
    ensure!(!initial_peers.is_empty(), usage);

    let node = Node::join(Config::client(initial_peers)).await?;
    let directory = Directory::new(node.dht.clone(), prefix, n_blocks);
    let snapshot = directory.refresh().await;
    for (block, servers) in snapshot.blocks.iter().enumerate() {
        if servers.is_empty() {
            println!("{block:>3}  nobody");
        }
        for (peer, info) in servers {
            let state = format!("{:?}", info.state).to_lowercase();
            let span = format!(
                "{}:{}",
                info.start_block.unwrap_or_default(),
                info.end_block.unwrap_or_default()
            );
            let name = info.public_name.as_deref().unwrap_or("");
            println!(
                "{block:>3}  {peer} {state:<8} {:>7.0} tokens/s  {span}  {name}",
                info.throughput
            );
        }
    }
    for flawed in &snapshot.flawed {
        let peer = flawed
            .peer
            .map_or_else(|| "somebody".to_string(), |peer| peer.to_string());
        println!(
            "{:>3}  {peer} not believed: its record {}",
            flawed.block, flawed.problem
        );
    }
    node.stop().await;
    Ok(())
}
