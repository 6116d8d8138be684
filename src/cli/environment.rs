//! The only place that reads environment variables, all of them other people's conventions.
#![expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]

use std::{env, path::PathBuf};

use crate::model::HubOptions;

/// Where models are found and how the hub is reached, as every Hugging Face tool reads it; flags come before variables.
pub(super) fn hub_options(token: Option<String>, revision: Option<String>) -> HubOptions {
    let from_environment = HubOptions::from_variables(|name| env::var(name).ok());
    HubOptions {
        token: token.or(from_environment.token),
        revision,
        ..from_environment
    }
}

/// The folder for what this program remembers between runs.
pub(super) fn cache_folder() -> PathBuf {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(env::temp_dir).join("sepal")
}
