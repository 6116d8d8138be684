//! `sepal bootstrap`: a DHT node that others join through, the equal of Petals' `run_dht`.

use clap::Args as ClapArgs;

use super::{
    node::{self, ListenArgs},
    output, signals,
};
use crate::p2p::Multiaddr;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    listen: ListenArgs,
    /// Nodes of a swarm to join; without them this node is the first of a new one.
    #[arg(long, value_name = "ADDR", num_args = 1.., alias = "initial_peers")]
    initial_peers: Vec<Multiaddr>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = signals::stop_requested();
    let node = node::listen(&args.listen, &args.initial_peers).await?;
    node.router().spawn(&node.tasks);
    if !args.initial_peers.is_empty() {
        node.join().await?;
    }
    let addrs = node.p2p.addrs();
    for addr in &addrs {
        output::line(format_args!("listening {addr}"));
    }
    if let Some(addr) = addrs.first() {
        output::line(format_args!("join with: --initial-peers {addr}"));
    }
    stop.await?;
    node.tasks.shutdown().await;
    Ok(())
}
