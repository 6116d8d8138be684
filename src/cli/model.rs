//! The `MODEL` argument: from a name on the command line to files on disk and a prefix in the DHT.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args as ClapArgs;

use super::{environment, progress::Bars};
use crate::{
    model::{HubOptions, ModelSource},
    swarm::models,
};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct ModelArgs {
    /// A folder or GGUF file, a Hugging Face repository such as org/name, or org/name:FILE.gguf for a GGUF file in one, or
    /// `demo` for the built-in model.
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
    pub(super) dht_prefix: Option<String>,
    /// Branch, tag or commit of the repository.
    #[arg(long, value_name = "REV")]
    pub(super) revision: Option<String>,
    #[command(flatten)]
    pub(super) hub: HubArgs,
}

/// How weights are fetched, and where they are kept.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(super) struct HubArgs {
    /// Access token for the hub [default: HF_TOKEN, or the one that was logged in with].
    #[arg(long, value_name = "TOKEN", alias = "use_auth_token")]
    token: Option<String>,
    /// Folder that downloads are kept in [default: HF_HUB_CACHE, or the one of all Hugging Face tools].
    #[arg(long, value_name = "FOLDER", alias = "cache_dir")]
    cache_dir: Option<PathBuf>,
    /// Most that this folder may take, such as 50GB or 100GiB; what was not used for the longest time is deleted
    /// [default: all of the disk but one GiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_size, alias = "max_disk_space")]
    max_disk_space: Option<u64>,
    /// For commands that nobody watches: wait for a hub that cannot be reached.
    #[arg(skip)]
    pub(super) keep_trying: bool,
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
    /// How files are had, of the model and of what goes with it.
    pub(super) hub: HubOptions,
}

impl HubArgs {
    /// How to get files, of a model or of something else; `revision` is a branch, tag or commit of it.
    ///
    /// # Errors
    /// When there is no working folder that `--cache-dir` could be meant from.
    pub(super) fn options(&self, revision: Option<String>) -> anyhow::Result<HubOptions> {
        let from_environment = environment::hub_options(self.token.clone(), revision);
        let cache_dir = self.cache_dir.as_deref().map(std::path::absolute).transpose();
        Ok(HubOptions {
            cache: cache_dir.context("--cache-dir")?.unwrap_or(from_environment.cache),
            max_disk_space: self.max_disk_space,
            keep_trying: self.keep_trying,
            progress: Arc::new(Bars),
            ..from_environment
        })
    }
}

impl ModelArgs {
    /// A model without any of the other flags.
    pub(super) fn named(model: &str) -> Self {
        Self {
            model: Some(model.to_owned()),
            converted_model: None,
            dht_prefix: None,
            revision: None,
            hub: HubArgs::default(),
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
        let options = self.hub.options(self.revision.clone())?;
        let (wanted, hub) = (name.clone(), options.clone());
        let source = tokio::task::spawn_blocking(move || ModelSource::resolve(&wanted, &options))
            .await
            .context("interrupted")??;
        let prefix = match &self.dht_prefix {
            Some(prefix) => prefix.clone(),
            None => models::dht_prefix(source.model_type(), &plain_name(&source, &name)),
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
            hub,
        })
    }
}

/// Bytes as people and Petals write them: a number with B, KB, MB, GB, TB (powers of 1000) or KiB … TiB (of 1024).
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a size such as 50GB or 100GiB, got {text:?}");
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_lowercase();
    let power = "kmgt"
        .find(unit.chars().next().unwrap_or('b'))
        .map_or(0, |at| at as i32 + 1);
    let base: f64 = match unit.get(1..).unwrap_or_default() {
        "" | "b" => 1000.0,
        "ib" if power > 0 => 1024.0,
        _ => return Err(wrong()),
    };
    if power == 0 && !["", "b"].contains(&unit.as_str()) {
        return Err(wrong());
    }
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * base.powi(power);
    if bytes < 1.0 || bytes > u64::MAX as f64 {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

/// Petals refuses a folder without a prefix; its last component is what people would type. GGUF files say what they are.
fn plain_name(source: &ModelSource, path: &str) -> String {
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    let repository = source.repo_name().map(str::to_owned);
    repository.or_else(|| source.title()).unwrap_or_else(|| last.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_understood_as_petals_writes_them() {
        for (text, bytes) in [
            ("50GB", 50_000_000_000),
            ("100GiB", 100 << 30),
            ("1.5 TiB", 3 << 39),
            ("700mb", 700_000_000),
            ("4096", 4096),
            ("10B", 10),
            ("2g", 2_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "GB", "-1GB", "5XB", "1e3GB", "5GBs", "0", "5iB", "nan", "5bb"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
