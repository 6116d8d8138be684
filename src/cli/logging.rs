//! Where logs go: stderr, at the level that was asked for.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::progress;

/// Starts logging. `quieter` is for commands that tell their own story on stdout.
pub(super) fn init(verbose: u8, quiet: bool, quieter: bool) {
    let level = match (quiet || quieter, verbose) {
        (true, 0) => "error",
        // libp2p warns that the first node of a swarm knows nobody.
        (false, 0) => "warn,libp2p_kad=error,sepal=info",
        (_, 1) => "info,sepal=debug",
        (_, _) => "debug,sepal=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(progress::AroundBars::default)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
