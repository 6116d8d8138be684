//! Export to an OpenTelemetry collector (`--otlp`): where the time of requests goes, as traces, and the numbers of
//! `/metrics`, both as OTLP in protobuf over HTTP.
//!
//! ```text
//!   spans of TRACE ─ spans.rs ─▶ a queue of 2048, the rest is dropped ─┐
//!   figures.rs ─ numbers.rs, read every 15 s ──────────────────────────┴▶ sender.rs, one thread ──▶ URL/v1/traces, metrics
//! ```
//!
//! Nobody waits for the collector: if it is away, what it would have got is gone, and the log says so once. Traces end at
//! this process: nothing of them is sent to other nodes. The two requests of OTLP are written here (`wire.rs`), because
//! OpenTelemetry's own crates are six, and bring metrics of their own that would have to be kept beside these.

mod numbers;
mod sender;
mod spans;
mod wire;

use std::{
    sync::{
        OnceLock,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use tracing_subscriber::{Layer, Registry, filter::filter_fn};

use self::{
    sender::Sender,
    spans::{Ended, Spans},
};
use crate::{http::OwnNumbers, task::TRACE};

/// Spans that wait to be sent; more are dropped.
const MAX_SPANS: usize = 2048;

/// Spans that are sent together, at most.
const MAX_BATCH: usize = 512;

/// How long spans wait for others to be sent with.
const SPANS_WAIT: Duration = Duration::from_secs(2);

/// How often numbers are sent, as often as Prometheus usually asks for them.
const NUMBERS_PERIOD: Duration = Duration::from_secs(15);

/// How long the end of the process waits for the last spans and numbers to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What there is to be sent, once a command says so.
static NUMBERS: OnceLock<OwnNumbers> = OnceLock::new();

/// Where a collector is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Collector {
    url: String,
}

impl Collector {
    /// # Errors
    /// What was expected instead.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let rest = ["http://", "https://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let host = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
        // Names and passwords would end up in logs.
        if host.is_empty() || host.contains('@') || text.contains(char::is_whitespace) || text.contains(['?', '#']) {
            return Err(format!(
                "expected the address of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318, got {text:?}"
            ));
        }
        Ok(Self {
            url: text.trim_end_matches('/').to_owned(),
        })
    }
}

/// Has these numbers sent if there is a collector. The first who are named are.
pub(super) fn tell(numbers: OwnNumbers) {
    NUMBERS.get_or_init(|| numbers);
}

/// What the thread learns.
#[derive(Debug)]
enum Note {
    Ended(Ended),
    Stop,
}

/// An export that goes on until it is finished.
#[derive(Debug)]
pub(super) struct Export {
    notes: SyncSender<Note>,
    thread: JoinHandle<()>,
}

impl Export {
    /// Begins it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(collector: &Collector) -> anyhow::Result<Self> {
        let (notes, inbox) = sync_channel(MAX_SPANS);
        let sender = Sender::new(&collector.url);
        let run = move || {
            let (began, mut told) = (SystemTime::now(), Instant::now());
            let mut stopped = false;
            while !stopped {
                let (due, mut batch) = (Instant::now() + SPANS_WAIT, Vec::new());
                while batch.len() < MAX_BATCH && !stopped {
                    match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
                        Ok(Note::Ended(span)) => batch.push(span),
                        Ok(Note::Stop) | Err(RecvTimeoutError::Disconnected) => stopped = true,
                        Err(RecvTimeoutError::Timeout) => break,
                    }
                }
                if !batch.is_empty() {
                    sender.send("/v1/traces", &spans::request(&batch));
                }
                if let Some(numbers) = NUMBERS.get().filter(|_| stopped || told.elapsed() >= NUMBERS_PERIOD) {
                    sender.send("/v1/metrics", &numbers::request(&numbers.read(), began));
                    told = Instant::now();
                }
            }
        };
        let thread = thread::Builder::new().name("otlp".into()).spawn(run)?;
        Ok(Self { notes, thread })
    }

    /// What takes part in logging so that spans are sent.
    pub(super) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let notes = self.notes.clone();
        // A full queue means that the collector is slower than this node, which does not wait.
        Spans::new(move |ended| drop(notes.try_send(Note::Ended(ended))))
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TRACE))
            .boxed()
    }

    /// Sends what is left, if the collector takes it soon.
    pub(super) fn finish(self) {
        let waiting = Instant::now();
        let soon = || waiting.elapsed() < LAST_WORDS;
        let mut stop = Note::Stop;
        while let Err(std::sync::mpsc::TrySendError::Full(full)) = self.notes.try_send(stop) {
            if !soon() {
                return;
            }
            stop = full;
            thread::sleep(Duration::from_millis(10));
        }
        while !self.thread.is_finished() && soon() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_refused_with_what_was_expected() {
        let url = |text: &str| Collector::parse(text).map(|collector| collector.url);
        assert_eq!(url("http://127.0.0.1:4318/").unwrap(), "http://127.0.0.1:4318");
        assert_eq!(url("https://otel.example/sepal").unwrap(), "https://otel.example/sepal");
        for wrong in [
            "",
            "127.0.0.1:4318",
            "http://",
            "grpc://x:4317",
            "http://a:b@x",
            "http://x y",
            "http://x?k=v",
        ] {
            let error = url(wrong).unwrap_err();
            assert!(
                error.contains("OTLP over HTTP, such as http://127.0.0.1:4318") && error.contains(wrong),
                "{error}"
            );
        }
    }
}
