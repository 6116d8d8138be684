//! The `MODEL` argument: from a name on the command line to files on disk and a prefix in the DHT.

use anyhow::Context;
use clap::Args as ClapArgs;

use super::environment;
use crate::{model::ModelSource, swarm::models};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct ModelArgs {
    /// A folder, a Hugging Face repository such as org/name, or `demo` for the built-in model.
    #[arg(value_name = "MODEL", required_unless_present = "converted_model")]
    model: Option<String>,
    /// The same, as Petals spells it.
    #[arg(
        long = "converted_model_name_or_path",
        value_name = "MODEL",
        hide = true,
        conflicts_with = "model"
    )]
    converted_model: Option<String>,
    /// Name under which the model's blocks stand in the DHT [default: derived from MODEL as Petals does].
    #[arg(long, value_name = "PREFIX", alias = "dht_prefix")]
    dht_prefix: Option<String>,
    /// Branch, tag or commit of the repository.
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// Access token for the hub [default: HF_TOKEN, or the one that was logged in with].
    #[arg(long, value_name = "TOKEN", alias = "use_auth_token")]
    token: Option<String>,
}

/// A model and where it stands in the DHT.
#[derive(Debug)]
pub(super) struct Model {
    /// As given; what others type to serve the same.
    pub(super) name: String,
    /// The flags they need beside it, each with a space before it.
    pub(super) flags: String,
    pub(super) source: ModelSource,
    pub(super) prefix: String,
}

impl ModelArgs {
    /// A model without any of the other flags.
    pub(super) fn named(model: &str) -> Self {
        Self {
            model: Some(model.to_owned()),
            converted_model: None,
            dht_prefix: None,
            revision: None,
            token: None,
        }
    }

    /// Finds the model and reads its configuration; weights are loaded later, by those who need them.
    ///
    /// # Errors
    /// When it is nowhere, or a prefix was given that no DHT key can have.
    pub(super) async fn resolve(&self) -> anyhow::Result<Model> {
        let name = self
            .model
            .clone()
            .or_else(|| self.converted_model.clone())
            .unwrap_or_default();
        let options = environment::hub_options(self.token.clone(), self.revision.clone());
        let wanted = name.clone();
        let source = tokio::task::spawn_blocking(move || ModelSource::resolve(&wanted, &options))
            .await
            .context("interrupted")??;
        let prefix = match &self.dht_prefix {
            Some(prefix) => prefix.clone(),
            None => models::dht_prefix(source.model_type(), source.repo_name().unwrap_or(folder_name(&name)))
                .with_context(|| format!("give --dht-prefix: {} models have no usual one", source.model_type()))?,
        };
        models::check_prefix(&prefix).context("--dht-prefix cannot be used")?;
        let given = [("--dht-prefix", &self.dht_prefix), ("--revision", &self.revision)];
        let flags = given
            .into_iter()
            .filter_map(|(flag, value)| Some(format!(" {flag} {}", value.as_ref()?)))
            .collect();
        Ok(Model {
            name,
            flags,
            source,
            prefix,
        })
    }
}

/// Petals refuses a folder without a prefix; its last component is what people would type.
fn folder_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}
