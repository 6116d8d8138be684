//! Who may use the API: the flags that say it.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::{
    http::{Access, Guard, KeysError},
    task::Tasks,
};

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct AccessArgs {
    /// File of API keys, one a line, of which requests must have one. Behind a key may stand name=NAME,
    /// requests_per_minute=N and concurrent=N. Changes count at once.
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Requests a minute of each key, or of each address without keys [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// Requests of each that are answered at the same time [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrent_requests: Option<u32>,
}

impl AccessArgs {
    /// Reads the keys.
    ///
    /// # Errors
    /// They cannot be read, others can read them, or they are none.
    pub(super) fn guard(&self, tasks: &Tasks) -> Result<Guard, KeysError> {
        let access = Access {
            keys: self.api_keys.clone(),
            requests_per_minute: self.requests_per_minute,
            concurrent: self.concurrent_requests,
        };
        Guard::new(access, tasks)
    }
}
