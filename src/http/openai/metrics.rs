//! Every metric of the API: its name, unit, labels and meaning, in one place. Prometheus reads it at `/metrics`.
//!
//! Labels have few values: models are those that are served, routes those of the router.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};

use super::{super::metrics::answer, Api};
use crate::{
    client::Generation,
    metrics::{Counters, Family, Histograms},
};

/// What is so of a model at the moment.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// Sessions that wait for their conversation to go on.
    idle: usize,
    /// Servers that are left out for what they did.
    avoided: usize,
}

/// How many of something there are.
type Current = Arc<AtomicUsize>;

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
    fn one(of: &Current) -> Self {
        of.fetch_add(1, Ordering::Relaxed);
        Self(of.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is counted as it happens. Clones share it.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// By model, route and status; the model is empty where a request names none that is served.
    requests: Counters<3>,
    /// By model and kind: of prompts, those of them that servers had in their caches, and of answers.
    tokens: Counters<2>,
    first_token: Histograms<1>,
    per_token: Histograms<1>,
    running: Current,
    queued: Current,
}

/// What an API did so far and does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Requests under /v1.
    pub requests: u64,
    /// Those of them that were answered with an error of theirs (4xx).
    pub refused: u64,
    /// Those of them that were answered with an error of ours (5xx).
    pub failed: u64,
    /// Texts that are generated.
    pub running: usize,
    /// Texts that wait for their turn.
    pub waiting: usize,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Those of them that servers had in their caches.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub new_tokens: u64,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Counts {
            requests: Counters::new(["model", "route", "status"]),
            tokens: Counters::new(["model", "kind"]),
            first_token: Histograms::doubling(["model"], 0.01, 15),
            per_token: Histograms::doubling(["model"], 0.001, 14),
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
        self.0.requests.add([model, route, &status.to_string()], 1);
    }

    /// A text came to its end, or as far as somebody wanted it.
    pub(crate) fn answered(&self, model: &str, generation: &Generation) {
        let new_tokens = generation.token_ids.len();
        for (kind, n) in [
            ("prompt", generation.prompt_tokens),
            ("cached", generation.reused_tokens),
            ("completion", new_tokens),
        ] {
            self.0.tokens.add([model, kind], n as u64);
        }
        if new_tokens > 0 {
            let seconds = generation.time_to_first_token.as_secs_f64();
            self.0.first_token.observe([model], seconds);
        }
        let rate = generation.tokens_per_second();
        if rate > 0.0 {
            self.0.per_token.observe([model], rate.recip());
        }
    }

    /// What the API did so far and does now, for all its models.
    pub fn work(&self) -> Work {
        let counts = &self.0;
        let answered = |with: char| counts.requests.total_of(|[.., status]| status.starts_with(with));
        let tokens = |of: &str| counts.tokens.total_of(|[_, kind]| kind == of);
        Work {
            requests: counts.requests.total(),
            refused: answered('4'),
            failed: answered('5'),
            running: counts.running.load(Ordering::Relaxed),
            waiting: counts.queued.load(Ordering::Relaxed),
            prompt_tokens: tokens("prompt"),
            cached_tokens: tokens("cached"),
            new_tokens: tokens("completion"),
        }
    }

    /// All metrics, with what is so of each model now.
    fn families(&self, now: &[(&str, Now)]) -> Vec<Family> {
        let counts = &self.0;
        let gauge = |name, help, value: fn(&Now) -> usize| {
            let family = Family::gauge(name, help);
            now.iter().fold(family, |family, (model, now)| {
                family.of(&[("model", model)], value(now))
            })
        };
        let current = |counted: &Current| counted.load(Ordering::Relaxed);
        vec![
            counts
                .requests
                .family("sepal_api_requests", "Requests by model, route and status"),
            counts.tokens.family(
                "sepal_api_tokens",
                "Tokens of prompts, those of them that servers still had in their caches, and tokens of answers",
            ),
            counts.first_token.family(
                "sepal_api_time_to_first_token_seconds",
                "From a request's turn to its first token",
            ),
            counts.per_token.family(
                "sepal_api_time_per_token_seconds",
                "Mean time of a text's tokens after the first",
            ),
            Family::gauge("sepal_api_texts_running", "Texts that are generated now").is(current(&counts.running)),
            Family::gauge("sepal_api_texts_queued", "Texts that wait for their turn").is(current(&counts.queued)),
            gauge(
                "sepal_api_sessions_idle",
                "Sessions kept open on the servers for their conversation to go on",
                |now| now.idle,
            ),
            gauge(
                "sepal_api_servers_avoided",
                "Servers that are left out because they failed, were silent or slow, or answered wrongly",
                |now| now.avoided,
            ),
        ]
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

impl Api {
    /// Every metric of it, as it is now.
    pub fn families(&self) -> Vec<Family> {
        let models = self.models().iter();
        let now = models.map(|model| {
            let conversations = model.conversations();
            let now = Now {
                idle: conversations.n_idle(),
                avoided: conversations.client().avoided().len(),
            };
            (model.id(), now)
        });
        self.metrics().families(&now.collect::<Vec<_>>())
    }
}

pub(crate) async fn metrics(State(api): State<Api>) -> Response {
    let mut families = api.families();
    families.extend(api.own_numbers());
    answer(&families)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::{FinishReason, Guesses};
    use crate::metrics::{exposition, testing};

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
        let text = exposition(&metrics.families(&[("demo", Now { idle: 3, avoided: 1 })]));
        testing::check(&text);
        assert_eq!(
            metrics.work(),
            Work {
                requests: 3,
                refused: 1,
                failed: 0,
                running: 2,
                waiting: 0,
                prompt_tokens: 20,
                cached_tokens: 8,
                new_tokens: 4,
            }
        );
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
