//! What a node is told: to take no new sessions, to take some again, to stop, how much to log, and which swarms to be in.
//!
//! ```text
//!   online ──pause──▶ paused ──resume──▶ online        open sessions go on all the time
//!      └─────drain──▶ draining ──the last session ends, or the time is up──▶ stopping
//! ```

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Node, Refusal,
    protocol::{Answer, Change, Connect, FailureCode, State, SwarmRow},
};
use crate::server::Hold;

/// How long somebody who orders a pause waits until the swarm knows of it. It is told in any case.
const TELL_PATIENCE: Duration = Duration::from_secs(10);

/// How often a node that drains looks whether its sessions are over. Nobody is told when a session ends.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// What was ordered.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Gives up the drain that is under way.
    draining: Mutex<Option<CancellationToken>>,
}

impl Orders {
    pub(super) fn is_draining(&self) -> bool {
        self.lock().is_some()
    }

    /// Ends the drain before, if there is one, and begins the next, if there is to be one.
    fn replace(&self, next: Option<CancellationToken>) {
        let before = std::mem::replace(&mut *self.lock(), next);
        if let Some(before) = before {
            before.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<CancellationToken>> {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    pub(super) async fn pause(self: &Arc<Self>) -> Answer {
        let before = self.state();
        if self.subject.servers.is_empty() {
            return nothing_served();
        }
        self.orders.replace(None);
        let announced = self.set_paused(true, Hold::WhileHours).await;
        self.changed(before, announced)
    }

    pub(super) async fn resume(self: &Arc<Self>) -> Answer {
        let before = self.state();
        if self.subject.servers.is_empty() {
            return nothing_served();
        }
        self.orders.replace(None);
        let announced = self.set_paused(false, Hold::WhileHours).await;
        self.changed(before, announced)
    }

    pub(super) async fn drain(self: &Arc<Self>, timeout_s: Option<f64>) -> Answer {
        let limit = match limit(timeout_s) {
            Ok(limit) => limit,
            Err(refusal) => return Err(refusal).into(),
        };
        let (before, given_up) = (self.state(), CancellationToken::new());
        self.orders.replace(Some(given_up.clone()));
        let limit_s = limit.map(|limit| limit.as_secs_f64());
        info!(limit_s, "draining: no new sessions, and an end after the last one");
        let announced = self.set_paused(true, Hold::ForGood).await;
        let this = self.clone();
        self.tasks.spawn_until_stopped("drain", async move {
            given_up.run_until_cancelled(this.stop_after_sessions(limit)).await;
        });
        self.changed(before, announced)
    }

    async fn stop_after_sessions(&self, limit: Option<Duration>) {
        let over = async {
            while self.n_busy() > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        let ended = match limit {
            Some(limit) => tokio::time::timeout(limit, over).await.is_ok(),
            None => {
                over.await;
                true
            }
        };
        match ended {
            true => info!("drained: stopping"),
            false => warn!(
                open = self.n_sessions(),
                "stopping although sessions are open: the time is up"
            ),
        }
        self.subject.stop.cancel();
    }

    pub(super) fn stop(&self) -> Answer {
        let before = self.state();
        info!("told to stop");
        self.subject.stop.cancel();
        self.changed(before, false)
    }

    pub(super) async fn connect(&self, asked: Connect) -> Answer {
        self.subject.swarms.connect(asked).await.into()
    }

    pub(super) fn disconnect(&self, swarm: &str, timeout_s: Option<f64>) -> Answer {
        let limit = limit(timeout_s);
        limit
            .and_then(|limit| self.subject.swarms.disconnect(swarm, limit))
            .into()
    }

    pub(super) fn log(&self, level: Option<&str>) -> Answer {
        let log = &self.subject.log;
        let before = log.level();
        if let Some(level) = level {
            if let Err(message) = log.set_level(level) {
                return Answer::failed(FailureCode::BadRequest, message);
            }
            info!(before, now = log.level(), "logging something else");
        }
        Answer::Log {
            before,
            now: log.level(),
        }
    }

    /// Returns whether the swarm knows of it.
    async fn set_paused(self: &Arc<Self>, paused: bool, hold: Hold) -> bool {
        // Servers of one node share the pause: each of them has to tell of it, whoever came first.
        let changes: Vec<bool> = self
            .subject
            .servers
            .iter()
            .map(|server| server.set_paused(paused, hold))
            .collect();
        if !changes.contains(&true) {
            return true;
        }
        info!(paused, "told whether to take new sessions");
        let this = self.clone();
        let telling = self.tasks.spawn("tell of a pause", async move {
            let stop = this.subject.stop.clone();
            let told = futures::future::join_all(this.subject.servers.iter().map(|server| server.tell_pause()));
            let told = stop.run_until_cancelled(told).await.unwrap_or_default();
            let mut all = true;
            for error in told.into_iter().filter_map(Result::err) {
                all = false;
                warn!(
                    error = &error as &dyn std::error::Error,
                    "the swarm does not learn of the pause"
                );
            }
            all
        });
        matches!(tokio::time::timeout(TELL_PATIENCE, telling).await, Ok(Ok(true)))
    }

    fn changed(&self, before: State, announced: bool) -> Answer {
        Answer::State(Change {
            before,
            now: self.state(),
            sessions: self.n_sessions(),
            announced,
        })
    }

    fn n_sessions(&self) -> usize {
        self.overviews().iter().map(|overview| overview.sessions).sum()
    }

    /// Sessions, and passes over whole sequences, that are not over.
    fn n_busy(&self) -> usize {
        let overviews = self.overviews();
        overviews
            .iter()
            .map(|overview| overview.sessions + overview.waits.total())
            .sum()
    }
}

impl From<Result<SwarmRow, Refusal>> for Answer {
    fn from(outcome: Result<SwarmRow, Refusal>) -> Self {
        match outcome {
            Ok(row) => Self::Swarm(Box::new(row)),
            Err(Refusal { code, message }) => Self::failed(code, message),
        }
    }
}

/// # Errors
/// A time that is none.
fn limit(timeout_s: Option<f64>) -> Result<Option<Duration>, Refusal> {
    let limit = |seconds| {
        Duration::try_from_secs_f64(seconds).map_err(|_| Refusal {
            code: FailureCode::BadRequest,
            message: format!(
                "a timeout of {seconds} seconds is none: give 0 or more, or leave it out to wait to the end"
            ),
        })
    };
    timeout_s.map(limit).transpose()
}

fn nothing_served() -> Answer {
    let message = "this node serves no blocks, so there is nothing to pause; sepal stop ends it";
    Answer::failed(FailureCode::NotHere, message)
}
