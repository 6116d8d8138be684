//! Every metric of the API: its name, unit, labels and meaning, in one place. Prometheus reads it at `/metrics`.
//!
//! Labels have few values: models are those that are served, routes those of the router.

use std::{
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicI64},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::{super::metrics::CONTENT_TYPE, Api};
use crate::client::Generation;

/// Requests by what they asked for and how they were answered.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRequest {
    model: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfModel {
    model: String,
}

/// Tokens of prompts, those of them that servers had in their caches, and tokens of answers.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfTokens {
    model: String,
    kind: &'static str,
}

/// What is so of a model at the moment.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// Sessions that wait for their conversation to go on.
    idle: usize,
    /// Servers that are left out for what they did.
    avoided: usize,
}

type Times = Family<OfModel, Histogram, fn() -> Histogram>;
type Current = Gauge<i64, AtomicI64>;

/// The model that a request names, once that is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct AskedFor(Arc<OnceLock<String>>);

impl AskedFor {
    /// Where the handler of a request says it.
    pub(crate) fn of(request: &Request) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    pub(crate) fn set(&self, model: &str) {
        self.0.get_or_init(|| model.to_owned());
    }

    /// Empty if the request names none that is served.
    fn get(&self) -> &str {
        self.0.get().map_or("", String::as_str)
    }
}

/// One of those that are counted, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Current);

impl Counted {
    fn one(gauge: &Current) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What is counted as it happens. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    requests: Family<OfRequest, Counter>,
    tokens: Family<OfTokens, Counter>,
    first_token: Times,
    per_token: Times,
    running: Current,
    queued: Current,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Counts {
            requests: Family::default(),
            tokens: Family::default(),
            first_token: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 15))),
            per_token: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14))),
            running: Current::default(),
            queued: Current::default(),
        }))
    }

    /// A text waits for its turn.
    pub(crate) fn waits(&self) -> Counted {
        Counted::one(&self.0.queued)
    }

    /// A text is generated.
    pub(crate) fn runs(&self) -> Counted {
        Counted::one(&self.0.running)
    }

    /// A request got its status. `route` is a path of the router.
    fn request(&self, model: &str, route: &str, status: u16) {
        let labels = OfRequest {
            model: model.to_owned(),
            route: route.to_owned(),
            status,
        };
        self.0.requests.get_or_create(&labels).inc();
    }

    /// A text came to its end, or as far as somebody wanted it.
    pub(crate) fn answered(&self, model: &str, generation: &Generation) {
        let (model, new_tokens) = (|| model.to_owned(), generation.token_ids.len());
        for (kind, n) in [
            ("prompt", generation.prompt_tokens),
            ("cached", generation.reused_tokens),
            ("completion", new_tokens),
        ] {
            self.0
                .tokens
                .get_or_create(&OfTokens { model: model(), kind })
                .inc_by(n as u64);
        }
        let labels = OfModel { model: model() };
        if new_tokens > 0 {
            let seconds = generation.time_to_first_token.as_secs_f64();
            self.0.first_token.get_or_create(&labels).observe(seconds);
        }
        let rate = generation.tokens_per_second();
        if rate > 0.0 {
            let seconds = rate.recip();
            self.0.per_token.get_or_create(&labels).observe(seconds);
        }
    }

    /// All metrics as Prometheus reads them, with what is so of each model now.
    ///
    /// # Errors
    /// None in practice: a string takes everything.
    fn exposition(&self, now: &[(&str, Now)]) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("sepal_api");
        let counts = &self.0;
        registry.register(
            "requests",
            "Requests by model, route and status",
            counts.requests.clone(),
        );
        registry.register(
            "tokens",
            "Tokens of prompts, those of them that servers still had in their caches, and tokens of answers",
            counts.tokens.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "From a request's turn to its first token",
            Unit::Seconds,
            counts.first_token.clone(),
        );
        registry.register_with_unit(
            "time_per_token",
            "Mean time of a text's tokens after the first",
            Unit::Seconds,
            counts.per_token.clone(),
        );
        registry.register("texts_running", "Texts that are generated now", counts.running.clone());
        registry.register("texts_queued", "Texts that wait for their turn", counts.queued.clone());
        let gauge = |value: fn(&Now) -> usize| {
            let family = Family::<OfModel, Current>::default();
            for (model, now) in now {
                let model = (*model).to_owned();
                let number = i64::try_from(value(now)).unwrap_or(i64::MAX);
                family.get_or_create(&OfModel { model }).set(number);
            }
            family
        };
        let help = "Sessions kept open on the servers for their conversation to go on";
        registry.register("sessions_idle", help, gauge(|now| now.idle));
        let help = "Servers that are left out because they failed, were silent or slow, or answered wrongly";
        registry.register("servers_avoided", help, gauge(|now| now.avoided));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Counts requests by the status they got.
pub(crate) async fn count(State(metrics): State<Metrics>, mut request: Request, next: Next) -> Response {
    let asked_for = AskedFor::default();
    request.extensions_mut().insert(asked_for.clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    metrics.request(asked_for.get(), route, response.status().as_u16());
    response
}

pub(crate) async fn metrics(State(api): State<Api>) -> Response {
    let models = api.models().iter();
    let now = models.map(|model| {
        let conversations = model.conversations();
        let now = Now {
            idle: conversations.n_idle(),
            avoided: conversations.client().avoided().len(),
        };
        (model.id(), now)
    });
    match api.metrics().exposition(&now.collect::<Vec<_>>()) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::{FinishReason, Guesses};

    #[test]
    fn what_happened_stands_in_the_exposition() {
        let metrics = Metrics::new();
        metrics.request("demo", "/v1/chat/completions", 200);
        metrics.request("demo", "/v1/chat/completions", 200);
        metrics.request("", "/v1/models", 401);
        let generation = Generation {
            text: String::new(),
            token_ids: vec![1, 2, 3],
            logprobs: Vec::new(),
            prompt_tokens: 10,
            reused_tokens: 4,
            guesses: Guesses::default(),
            time_to_first_token: Duration::from_millis(500),
            total_time: Duration::from_millis(700),
            route: Vec::new(),
            wrong_answers: Vec::new(),
            finish_reason: FinishReason::Length,
        };
        metrics.answered("demo", &generation);
        metrics.answered(
            "demo",
            &Generation {
                token_ids: vec![1],
                ..generation
            },
        );
        let _running = (metrics.runs(), metrics.runs());
        drop(metrics.waits());
        let text = metrics.exposition(&[("demo", Now { idle: 3, avoided: 1 })]).unwrap();
        for line in [
            "sepal_api_requests_total{model=\"demo\",route=\"/v1/chat/completions\",status=\"200\"} 2",
            "sepal_api_requests_total{model=\"\",route=\"/v1/models\",status=\"401\"} 1",
            "sepal_api_tokens_total{model=\"demo\",kind=\"cached\"} 8",
            "sepal_api_tokens_total{model=\"demo\",kind=\"completion\"} 4",
            "sepal_api_time_to_first_token_seconds_count{model=\"demo\"} 2",
            "sepal_api_time_per_token_seconds_sum{model=\"demo\"} 0.1",
            "sepal_api_time_per_token_seconds_count{model=\"demo\"} 1",
            "sepal_api_texts_running 2",
            "sepal_api_texts_queued 0",
            "sepal_api_sessions_idle{model=\"demo\"} 3",
            "sepal_api_servers_avoided{model=\"demo\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|had| had == line), "{line} is missing in\n{text}");
        }
    }
}
