//! Tracked background tasks with cancellation and an ordered shutdown. A leaf: any layer may use it, it uses none.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug_span};

/// The target of spans that tell where the time of a request goes. They are made at the level of debugging; who exports
/// traces takes these and no others.
pub const TRACE: &str = "sepal::trace";

/// How long [`Tasks::shutdown`] waits for tasks to end by themselves after they were told to.
///
/// Longer than a DHT store (3 s per hop) so that a last record gets out, shorter than what a person accepts after Ctrl-C.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// A group of tasks that are told to stop together and waited for together. Clones share the group.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` in the background under a tracing span called `name`. The future is expected to watch
    /// [`Tasks::token`] and to return soon after it is cancelled.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let span = debug_span!("task", what = name);
        tokio::spawn(self.tracker.track_future(future.instrument(span)))
    }

    /// Runs `future` in the background and drops it as soon as the group is told to stop.
    pub fn spawn_until_stopped<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.spawn(name, async move {
            token.run_until_cancelled_owned(future).await;
        });
    }

    /// Cancelled when the group is told to stop.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// A group of its own that is also stopped when this one is.
    pub fn child(&self) -> Self {
        Self {
            tracker: TaskTracker::new(),
            token: self.token.child_token(),
        }
    }

    /// Tells every task to stop and waits for them, up to a grace period. Returns whether all of them ended in time.
    pub async fn shutdown(&self) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(SHUTDOWN_GRACE, self.tracker.wait()).await.is_ok()
    }
}
