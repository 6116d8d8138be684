//! How this program calls servers of a model: the flags that `generate`, `chat` and `api` share, and the client that they make.

use clap::Args as ClapArgs;

use super::{
    model::Model,
    models::{ForModel, of},
    node::Node,
};
use crate::{
    client::{self, Client},
    swarm::directory::Filter,
};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct CallerArgs {
    /// Do not let servers send activations straight to each other.
    #[arg(long)]
    no_push: bool,
    /// LoRA adapter to use; only servers that have it are.
    #[arg(long, value_name = "[MODEL=]NAME", alias = "active_adapter", value_parser = ForModel::<String>::parse)]
    pub(super) adapter: Vec<ForModel<String>>,
    /// Failed servers, and pauses for missing blocks, before giving up.
    #[arg(long, value_name = "N", default_value_t = 5, alias = "max_retries")]
    max_retries: usize,
}

impl CallerArgs {
    /// Joins the swarm of `node` and loads the client's part of the model.
    ///
    /// # Errors
    /// Nobody of the swarm answers, or the weights cannot be had.
    pub(super) async fn connect(&self, model: &Model, node: &Node) -> anyhow::Result<Client> {
        node.join().await?;
        let config = client::Config {
            push: !self.no_push,
            backoff: client::Backoff {
                max_retries: self.max_retries,
                ..client::Backoff::default()
            },
            filter: Filter {
                adapter: of(&self.adapter, &model.name).cloned(),
                ..Filter::default()
            },
            ..client::Config::new(model.prefix.clone())
        };
        let parts = (node.p2p.clone(), node.dht.clone());
        Ok(Client::connect(config, &model.source, parts, &node.tasks).await?)
    }
}
