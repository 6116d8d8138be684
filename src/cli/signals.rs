//! Ctrl-C and SIGTERM as something to wait for.

use anyhow::Context;
use tokio_util::sync::CancellationToken;

/// Each time that a person presses Ctrl-C, which then does not end the program.
#[derive(Debug)]
pub(super) struct Interrupts {
    #[cfg(unix)]
    signals: tokio::signal::unix::Signal,
    #[cfg(windows)]
    signals: tokio::signal::windows::CtrlC,
}

impl Interrupts {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the system lets nobody listen for signals.
    pub(super) fn listen() -> anyhow::Result<Self> {
        #[cfg(unix)]
        let signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
        #[cfg(windows)]
        let signals = tokio::signal::windows::ctrl_c();
        Ok(Self {
            signals: signals.context("cannot listen for Ctrl-C")?,
        })
    }

    /// The next time. None is lost while nobody waits.
    pub(super) async fn next(&mut self) {
        // The end of the stream would be the end of the program.
        if self.signals.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// The same, or when `asked` is cancelled: somebody asks on the control socket.
///
/// # Errors
/// As [`stop_requested`].
pub(super) async fn stop_requested_or(asked: CancellationToken) -> anyhow::Result<()> {
    asked.run_until_cancelled(stop_requested()).await.unwrap_or(Ok(()))
}

/// Returns when the person or the system asks the program to stop.
///
/// # Errors
/// When the system lets nobody listen for signals.
pub(super) async fn stop_requested() -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await.context("cannot listen for Ctrl-C")
}
