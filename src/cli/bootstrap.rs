//! `sepal bootstrap`: a DHT node that others join through, the equal of Petals' `run_dht`.

use clap::Args as ClapArgs;

use super::{
    map::{self, MapArgs},
    node::{self, ListenArgs},
    output, signals,
    standing::{Standing, StandingArgs},
    swarm::SwarmArgs,
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    swarm: SwarmArgs,
    #[command(flatten)]
    standing: StandingArgs,
    #[command(flatten)]
    map: MapArgs,
    /// Let others reach this node through relays when they cannot dial it.
    #[arg(long, alias = "use_auto_relay")]
    use_auto_relay: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = signals::stop_requested();
    let swarm = args.swarm.new_or_joined()?;
    let node = node::listen(&args.listen, &swarm, args.use_auto_relay).await?;
    let mut standing = Standing::of(&node, &args.standing);
    node.router().spawn(&node.tasks);
    if swarm.initial_peers.is_empty() {
        // There is nobody to ask, and whoever finds this node cannot join through a client.
        standing.begin(&node.tasks);
    }
    node.join().await?;
    standing.begin(&node.tasks);
    // Nobody can join through a client.
    standing.known().await;
    let addrs = node.p2p.addrs();
    for addr in &addrs {
        output::line(format_args!("listening {addr}"));
    }
    if let Some(addr) = addrs.first() {
        output::line(format_args!("join with: --initial-peers {addr}{}", swarm.flags));
    }
    let config = map::config(&swarm, Vec::new());
    args.map.serve(&node, config, Vec::new).await?;
    stop.await?;
    node.tasks.shutdown().await;
    Ok(())
}
