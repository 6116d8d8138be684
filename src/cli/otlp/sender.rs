//! Requests to a collector, one after another on the thread that makes them. That one failed is said once, until one works
//! again.

use std::{cell::Cell, time::Duration};

use tracing::{info, warn};

use super::wire::Message;

/// How long a collector may take for one request.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Sender {
    url: String,
    agent: ureq::Agent,
    fails: Cell<bool>,
}

impl Sender {
    pub(super) fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
        Self {
            url: url.to_owned(),
            agent: config.into(),
            fails: Cell::new(false),
        }
    }

    /// Sends `message`, if it gets there.
    pub(super) fn send(&self, path: &str, message: &Message) {
        let request = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/x-protobuf");
        let problem = request.send(message.bytes()).err();
        let (failed, collector) = (self.fails.replace(problem.is_some()), &self.url);
        match problem {
            Some(error) if !failed => warn!(
                collector,
                %error,
                "the collector does not take traces and metrics; they are dropped until it does"
            ),
            None if failed => info!(collector, "the collector takes traces and metrics again"),
            _ => {}
        }
    }
}
