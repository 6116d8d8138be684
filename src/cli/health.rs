//! `sepal health`: how a swarm is. A table, JSON, a live view in the terminal, or a map for browsers.

mod table;
mod watch;

use clap::Args as ClapArgs;

use super::{
    figures::Figures,
    map::{self, MapArgs},
    node, otlp, output, signals,
    swarm::SwarmArgs,
};
use crate::{
    http,
    swarm::{
        health::{Health, NamedModel},
        models,
    },
};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Exits with 0 when the swarm could be read, however it is.")]
pub(super) struct Args {
    #[command(flatten)]
    swarm: SwarmArgs,
    /// Also show this model, which is not in the registry: its DHT prefix and number of blocks, such as _mine:32.
    #[arg(long = "model", value_name = "PREFIX:BLOCKS", value_parser = parse_model)]
    models: Vec<NamedModel>,
    /// Print everything as one JSON object, the same that /api/v1/swarm gives.
    #[arg(long, conflicts_with_all = ["watch", "http"])]
    json: bool,
    /// Show a live view that fills the terminal; q ends it.
    #[arg(long, conflicts_with = "http")]
    watch: bool,
    #[command(flatten)]
    map: MapArgs,
}

impl Args {
    /// Whether the terminal is used for something that log lines would break.
    pub(super) fn fills_the_terminal(&self) -> bool {
        self.watch
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = signals::stop_requested();
    tokio::pin!(stop);
    let swarm = args.swarm.joined()?;
    let node = node::client(&swarm).await?;
    let config = map::config(&swarm, args.models.clone());
    let health = Health::new(node.p2p.clone(), node.dht.clone(), config, &node.tasks);
    let outcome = tokio::select! {
        outcome = look(&args, &node, &health) => outcome,
        outcome = &mut stop => outcome,
    };
    node.tasks.shutdown().await;
    outcome
}

async fn look(args: &Args, node: &node::Node, health: &Health) -> anyhow::Result<()> {
    let own = Figures::of(node).own();
    otlp::tell(http::numbers(health, &own));
    // A taken port is said before the swarm is waited for.
    if let Some(addr) = args.map.http {
        let site = http::serve(addr, health.clone(), own, &node.tasks).await?;
        node.join().await?;
        let mut looked = health.watch();
        health.keep_looking(&node.tasks);
        // The line says that there is something to see.
        looked.changed().await?;
        map::announce(site);
        return std::future::pending().await;
    }
    node.join().await?;
    if args.watch {
        health.keep_looking(&node.tasks);
        return watch::run(health, &node.tasks).await;
    }
    let state = health.collect().await;
    if args.json {
        output::line(serde_json::to_string_pretty(&*state)?);
    } else {
        for row in table::rows(&state) {
            output::line(row.text);
        }
    }
    Ok(())
}

fn parse_model(text: &str) -> Result<NamedModel, String> {
    let wrong = || format!("expected PREFIX:BLOCKS such as demo-hf:8, got {text:?}");
    let (prefix, n_blocks) = text.rsplit_once(':').ok_or_else(wrong)?;
    models::check_prefix(prefix).map_err(|error| error.to_string())?;
    let n_blocks = n_blocks.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
    Ok(NamedModel {
        prefix: prefix.to_string(),
        n_blocks,
        name: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_by_prefix_and_number_of_blocks() {
        assert_eq!(parse_model("_mine:32").unwrap().n_blocks, 32);
        assert_eq!(parse_model("a/b-petals:70").unwrap().prefix, "a/b-petals");
        for wrong in ["demo-hf", "demo-hf:0", "demo-hf:many", "a.b:3", ":3"] {
            assert!(parse_model(wrong).is_err(), "{wrong}");
        }
    }
}
