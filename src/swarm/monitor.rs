//! Asks a health monitor whether it can reach this node, as Petals servers do in the public swarm before they say that
//! they serve (`petals/server/reachability.py`, `validate_reachability`).
//!
//! The monitor is somebody's web server, and may be gone: then the question is dropped, and nothing follows from it.

use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::p2p::PeerId;

/// The monitor of the public swarm.
pub const PUBLIC_MONITOR: &str = "https://health.petals.dev";

/// Limit for one question, as in Petals.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Largest answer that is read, bytes. It is one small JSON object.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Characters of the monitor's explanation that are shown.
const MAX_MESSAGE_CHARS: usize = 500;

/// A health monitor, and for how long to ask it.
#[derive(Clone, Debug)]
pub struct Monitor {
    /// Its address, `http://…` or `https://…`; the path is added.
    pub url: String,
    /// Pause between two questions.
    pub retry: Duration,
    /// How long to go on asking while the answer is no: relays may take minutes to be found.
    pub patience: Duration,
}

impl Monitor {
    /// With Petals' pauses: every 15 s for 7 min.
    pub fn new(url: &str) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            retry: Duration::from_secs(15),
            patience: Duration::from_secs(7 * 60),
        }
    }
}

/// What the monitor makes of a node that it cannot reach. The text is the monitor's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the health monitor at {url} cannot reach this node: {message}; forward a port to it and give --port and \
     --public-ip{}, or --skip-reachability-check",
    your_ip.as_ref().map(|ip| format!(" {ip}")).unwrap_or_default()
)]
pub struct NotReachable {
    /// The monitor.
    pub url: String,
    /// Its explanation.
    pub message: String,
    /// The address that our question came from.
    pub your_ip: Option<std::net::IpAddr>,
}

#[derive(Debug, Error)]
enum AskError {
    #[error("no answer")]
    Http(#[from] ureq::Error),
    #[error("no answer that can be understood")]
    Json(#[from] serde_json::Error),
    #[error("interrupted")]
    Stopping(#[from] tokio::task::JoinError),
}

/// `GET /api/v1/is_reachable/PEER`, in the shape of health.petals.dev.
#[derive(Debug, Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    your_ip: Option<String>,
}

/// Asks until the monitor reaches `peer`. A monitor that gives no answer is not asked again.
///
/// # Errors
/// If it does not reach the peer for all of its [`Monitor::patience`].
pub async fn confirm(monitor: &Monitor, peer: PeerId) -> Result<(), NotReachable> {
    let started = Instant::now();
    loop {
        let answer = match is_reachable(monitor, peer).await {
            Ok(answer) => answer,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(
                    error,
                    url = monitor.url,
                    "the health monitor was not asked whether it can reach this node"
                );
                return Ok(());
            }
        };
        if answer.success {
            info!(url = monitor.url, "the health monitor reaches this node");
            return Ok(());
        }
        let message = readable(&answer.message.unwrap_or_default());
        if started.elapsed() + monitor.retry > monitor.patience {
            return Err(NotReachable {
                url: monitor.url.clone(),
                message,
                your_ip: answer.your_ip.and_then(|ip| ip.parse().ok()),
            });
        }
        info!(
            url = monitor.url,
            message, "the health monitor does not reach this node yet"
        );
        sleep(monitor.retry).await;
    }
}

async fn is_reachable(monitor: &Monitor, peer: PeerId) -> Result<Answer, AskError> {
    let url = format!("{}/api/v1/is_reachable/{peer}", monitor.url);
    let text = tokio::task::spawn_blocking(move || {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
        let mut response = ureq::Agent::new_with_config(config).get(&url).call()?;
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES);
        body.read_to_string()
    });
    Ok(serde_json::from_str(&text.await??)?)
}

/// A stranger's text on one line, without control characters, and not too long.
fn readable(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    let kept = line.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS);
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::testing::{MONITOR_SAYS_NO as NO, free_port, monitor};

    const YES: &str = r#"{"success": true, "message": null, "your_ip": "192.0.2.7"}"#;

    #[tokio::test]
    async fn a_monitor_is_asked_until_it_reaches_the_node() {
        let (monitor, questions) = monitor(vec![(200, NO), (200, YES)]);
        let monitor = Monitor {
            patience: Duration::from_secs(60),
            ..monitor
        };
        let peer = PeerId::random();
        assert_eq!(confirm(&monitor, peer).await, Ok(()));
        let question = format!("GET /api/v1/is_reachable/{peer} HTTP/1.1");
        assert_eq!(questions.iter().collect::<Vec<_>>(), [question.clone(), question]);
    }

    #[tokio::test]
    async fn a_monitor_that_never_reaches_the_node_says_why() {
        let (monitor, _questions) = monitor(vec![(200, NO); 8]);
        let error = confirm(&monitor, PeerId::random()).await.unwrap_err();
        assert_eq!(error.message, "Failed to connect[31m");
        let text = error.to_string();
        assert!(text.contains("--public-ip 192.0.2.7"), "{text}");
    }

    #[tokio::test]
    async fn a_monitor_that_is_gone_or_broken_changes_nothing() {
        let peer = PeerId::random();
        for (status, answer) in [(500, YES), (404, "gone"), (200, "<html>"), (200, "{}"), (200, "")] {
            let (monitor, _questions) = monitor(vec![(status, answer)]);
            assert_eq!(confirm(&monitor, peer).await, Ok(()), "{status} {answer}");
        }
        let url = format!("http://127.0.0.1:{}", free_port());
        assert_eq!(confirm(&Monitor::new(&url), peer).await, Ok(()));
    }
}
