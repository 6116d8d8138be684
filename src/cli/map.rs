//! The health map inside a node: `--http`, and what the map has to be told about this node.

use std::net::SocketAddr;

use clap::Args as ClapArgs;

use super::{model::Model, node::Node, otlp, output, parsers::socket_addr, swarm::Swarm};
use crate::{
    http::{self, OwnNumbers},
    model::{BUILTIN_NAME, BUILTIN_REPOSITORY},
    swarm::health::{Alias, Config, Health, NamedModel},
};

#[derive(Clone, Copy, Debug, ClapArgs)]
pub(super) struct MapArgs {
    /// Serve a health map of the swarm at this address: a page, JSON, and metrics for Prometheus, for whoever can reach it.
    #[arg(long, value_name = "IP:PORT", value_parser = socket_addr)]
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
    /// Serves the map if it was asked for, and says where. A collector gets what is at its `/metrics`, or without a map
    /// what this node counts itself.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(super) async fn serve(self, node: &Node, config: Config, own: OwnNumbers) -> anyhow::Result<()> {
        let Some(addr) = self.http else {
            otlp::tell(own);
            return Ok(());
        };
        let health = Health::new(node.p2p.clone(), node.dht.clone(), config, &node.tasks);
        otlp::tell(http::numbers(&health, &own));
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
