//! `sepal bootstrap`: a DHT node that others join through, the equal of Petals' `run_dht`.

use clap::Args as ClapArgs;
use tokio_util::sync::CancellationToken;

use super::{
    control::{self, ControlArgs},
    figures::Figures,
    map::{self, MapArgs},
    node::{self, ListenArgs, Node},
    output, signals,
    standing::{Standing, StandingArgs},
    swarm::{Swarm, SwarmArgs},
};
use crate::control::Subject;

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
    #[command(flatten)]
    control: ControlArgs,
    /// Let others reach this node through relays when they cannot dial it.
    #[arg(long, alias = "use_auto_relay")]
    use_auto_relay: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let asked = CancellationToken::new();
    let stop = signals::stop_requested_or(asked.clone());
    tokio::pin!(stop);
    let swarm = args.swarm.new_or_joined()?;
    let node = node::listen(&args.listen, &swarm, args.use_auto_relay).await?;
    let standing = Standing::of(&node, &args.standing);
    node.router().spawn(&node.tasks);
    let subject = control::subject("bootstrap", (&node, &swarm), &asked).map(|subject| Subject {
        access: Some(standing.access()),
        ..subject
    });
    let control = args.control.open(subject).await?;
    let outcome = tokio::select! {
        outcome = stay(&args, &swarm, &node, standing) => outcome,
        outcome = &mut stop => outcome,
    };
    node.tasks.shutdown().await;
    control::close(control).await;
    outcome
}

/// Joins, says where it is, and does not return unless something is wrong.
async fn stay(args: &Args, swarm: &Swarm, node: &Node, mut standing: Standing) -> anyhow::Result<()> {
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
    let config = map::config(swarm, Vec::new());
    args.map.serve(node, config, Figures::of(node).own()).await?;
    std::future::pending().await
}
