//! The health map inside a node: `--http`, and what the map has to be told about this node.

use std::net::SocketAddr;

use clap::Args as ClapArgs;

use super::{model::Model, node::Node, output, swarm::Swarm};
use crate::{
    http::{self, OwnNumber, OwnValue},
    model::{BUILTIN_NAME, BUILTIN_REPOSITORY, CacheCounts},
    server::Stats,
    swarm::health::{Alias, Config, Health, NamedModel},
};

#[derive(Clone, Copy, Debug, ClapArgs)]
pub(super) struct MapArgs {
    /// Serve a health map of the swarm at this address: a page, JSON, and metrics for Prometheus, for whoever can reach it.
    #[arg(long, value_name = "IP:PORT")]
    pub(super) http: Option<SocketAddr>,
}

/// What a map of this swarm is made from here, with these models besides those of the registry.
pub(super) fn config(swarm: &Swarm, models: Vec<NamedModel>) -> Config {
    Config {
        models,
        aliases: vec![Alias {
            repository: BUILTIN_REPOSITORY.to_string(),
            name: BUILTIN_NAME.to_string(),
        }],
        initial_peers: swarm.initial_peers.clone(),
        // Everyone has the key somewhere else, and a map shows nobody's folders.
        join_flags: swarm
            .key
            .as_ref()
            .map(|_| " --swarm-key FILE".to_string())
            .unwrap_or_default(),
        ..Config::default()
    }
}

/// A model as the map shows it although the registry may not have it: a server's own.
pub(super) fn own_model(model: &Model) -> NamedModel {
    NamedModel {
        prefix: model.prefix.clone(),
        n_blocks: model.source.config().n_blocks,
        // Nobody else has this machine's folders.
        name: model.source.repo_name().map(|_| model.name.clone()),
    }
}

impl MapArgs {
    /// Serves the map if it was asked for, and says where.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(super) async fn serve(
        self,
        node: &Node,
        config: Config,
        own: impl Fn() -> Vec<OwnNumber> + Send + Sync + 'static,
    ) -> anyhow::Result<()> {
        let Some(addr) = self.http else { return Ok(()) };
        let health = Health::new(node.p2p.clone(), node.dht.clone(), config, &node.tasks);
        let site = http::serve(addr, health.clone(), own, &node.tasks).await?;
        health.keep_looking(&node.tasks);
        announce(site);
        Ok(())
    }
}

/// The line that says where the map is.
pub(super) fn announce(site: http::Site) {
    output::line(format_args!("health map http://{}/", site.addr));
}

/// What a server knows of itself, under the names that `/metrics` gives it.
pub(super) fn numbers(stats: Stats) -> Vec<OwnNumber> {
    let mut numbers = work(&stats);
    numbers.extend(times(&stats));
    numbers.extend(cache(stats.cache));
    numbers
}

fn work(stats: &Stats) -> Vec<OwnNumber> {
    vec![
        count("server_steps", "Steps of sessions that were computed", stats.steps),
        count(
            "server_pushes_sent",
            "Outputs that the next server took",
            stats.pushes_sent,
        ),
        count(
            "server_pushes_received",
            "Steps that came from the server before",
            stats.pushes_received,
        ),
        count(
            "server_pushes_used",
            "Steps that came from the server before and were computed",
            stats.pushes_used,
        ),
        count(
            "server_rejected",
            "Requests and sessions that ended with an error",
            stats.rejected,
        ),
        count(
            "server_block_runs",
            "Times that one block was run for steps of sessions",
            stats.block_runs,
        ),
        count(
            "server_block_tokens",
            "Tokens that went through those blocks: divided by the runs, the size of a batch",
            stats.block_tokens,
        ),
        now(
            "server_queue_length",
            "Steps and requests that wait or are computed",
            stats.queued as f64,
        ),
    ]
}

fn times(Stats { waits, step_times, .. }: &Stats) -> [OwnNumber; 4] {
    [
        now(
            "server_wait_seconds_p50",
            "How long the last steps waited before they were begun, half of them less",
            waits.p50.as_secs_f64(),
        ),
        now(
            "server_wait_seconds_p99",
            "How long the last steps waited before they were begun, one in a hundred more",
            waits.p99.as_secs_f64(),
        ),
        now(
            "server_step_seconds_p50",
            "How long the last steps took, waiting included, half of them less",
            step_times.p50.as_secs_f64(),
        ),
        now(
            "server_step_seconds_p99",
            "How long the last steps took, waiting included, one in a hundred more",
            step_times.p99.as_secs_f64(),
        ),
    ]
}

/// A page is 16 tokens of one block.
fn cache(counts: CacheCounts) -> [OwnNumber; 6] {
    [
        now(
            "server_cache_pages",
            "Pages that were allocated for all caches",
            counts.total as f64,
        ),
        now("server_cache_pages_free", "Pages that hold nothing", counts.free as f64),
        now(
            "server_cache_pages_kept",
            "Pages that only hold known prefixes, and go to whoever needs them",
            counts.kept as f64,
        ),
        now(
            "server_cache_pages_overflow",
            "Pages beyond those that were allocated",
            counts.overflow as f64,
        ),
        now(
            "server_cache_pages_shared",
            "Pages that sharing saves: users of pages beyond the first of each",
            counts.shared as f64,
        ),
        count(
            "server_cache_reused_tokens",
            "Tokens that were not computed because their prefix was known",
            counts.reused_tokens,
        ),
    ]
}

fn count(name: &'static str, help: &'static str, count: u64) -> OwnNumber {
    OwnNumber {
        name,
        help,
        value: OwnValue::Count(count),
    }
}

fn now(name: &'static str, help: &'static str, value: f64) -> OwnNumber {
    OwnNumber {
        name,
        help,
        value: OwnValue::Now(value),
    }
}
