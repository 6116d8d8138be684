//! What a command computes with: the one flag about threads. Which instructions are used is up to the CPU.

use std::num::NonZeroUsize;

use anyhow::Context;
use clap::Args;
use tracing::info;

use crate::model::Engine;

/// How much of the machine to compute with.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct ComputeArgs {
    /// Threads that compute [default: one per physical core].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl ComputeArgs {
    /// # Errors
    /// When the system gives no threads.
    pub(super) fn start(self) -> anyhow::Result<Engine> {
        let engine = Engine::new(self.threads).context("cannot start the threads that compute")?;
        info!(
            threads = engine.threads(),
            instructions = engine.instructions(),
            "what blocks are computed with"
        );
        Ok(engine)
    }
}
