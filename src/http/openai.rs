//! The API of OpenAI over the swarm: what software that knows that API asks of it, unchanged.
//!
//! ```text
//!   GET  /v1/models, /v1/models/ID     what is served                                    model.rs
//!   POST /v1/chat/completions          messages in, the next message out                 chat.rs
//!   POST /v1/completions               texts or tokens in, what follows them out         completions.rs
//!   GET  /                             a chat for browsers, which asks for the above     chat.html
//!   GET  /health                       whether every block of the models is served       health.rs
//!   GET  /metrics                      Prometheus exposition                             metrics.rs
//!
//!   body.rs ─▶ fields.rs, params.rs, messages.rs, tools.rs ─▶ Job ─▶ answers.rs ─▶ deliver.rs ─▶ one object, or events
//!   bounded     what is asked for, or an error that names it         one task each    calls.rs, logprobs.rs, */writer.rs
//! ```
//!
//! Whoever asks for /v1 passes `guard.rs` first: keys and limits. Requests and generations are bounded by [`ApiLimits`],
//! connections in `serve.rs`. It finds no servers and computes nothing itself; that is [`crate::client`].

mod answers;
mod body;
mod calls;
mod chat;
mod completions;
mod deliver;
mod error;
mod fields;
mod guard;
mod health;
mod keys;
mod limits;
mod logprobs;
mod messages;
mod metrics;
mod model;
mod origins;
mod params;
mod tools;

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderName, HeaderValue, Method, Uri},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tracing::Instrument;

use self::{answers::Gate, error::ApiError, fields::Fields};
pub use self::{
    guard::{Access, Guard},
    keys::KeysError,
    metrics::{Metrics, Work},
    model::{ModelText, ServedModel},
    origins::Origin,
};
use super::{OwnNumbers, headers, page::Page, serve};
use crate::{
    metrics::Family,
    task::{TRACE, Tasks},
};

/// What all paths of OpenAI's API begin with.
const V1: &str = "/v1";

/// Clients put it into their errors; it stands in the log as well.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How much the API takes on.
#[derive(Clone, Debug)]
pub struct ApiLimits {
    /// Generations at the same time; each choice of a request is one.
    pub parallel: usize,
    /// Requests that may wait for others to end; more are refused at once.
    pub queue: usize,
    /// Longest answer of a chat, in tokens, where the request does not say.
    pub default_max_tokens: usize,
    /// Pages of other sites that may use it.
    pub origins: Vec<Origin>,
}

/// What the handlers share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    models: Vec<Arc<ServedModel>>,
    gate: Gate,
    guard: Guard,
    metrics: Metrics,
    page: Page,
    default_max_tokens: usize,
    origins: Vec<Origin>,
    /// What the node knows of itself besides.
    own: OnceLock<OwnNumbers>,
    tasks: Tasks,
}

impl Api {
    /// An API of these models, the first of which is the default of nobody: requests name theirs. Its generations run in
    /// `tasks` and have a few seconds to end when these are stopped.
    pub fn new(models: Vec<ServedModel>, limits: ApiLimits, guard: Guard, tasks: &Tasks) -> Self {
        let metrics = Metrics::new();
        let shared = Shared {
            models: models.into_iter().map(Arc::new).collect(),
            gate: Gate::new(limits.parallel, limits.queue, metrics.clone()),
            guard,
            metrics,
            page: Page::chat(),
            default_max_tokens: limits.default_max_tokens,
            origins: limits.origins,
            own: OnceLock::new(),
            tasks: tasks.clone(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    pub(crate) fn models(&self) -> &[Arc<ServedModel>] {
        &self.shared.models
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// With what `own` tells at `/metrics` besides; the first who is named tells.
    #[must_use]
    pub fn telling(self, own: OwnNumbers) -> Self {
        self.shared.own.get_or_init(|| own);
        self
    }

    fn own_numbers(&self) -> Vec<Family> {
        self.shared.own.get().map(OwnNumbers::read).unwrap_or_default()
    }

    fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    fn default_max_tokens(&self) -> usize {
        self.shared.default_max_tokens
    }

    fn origins(&self) -> &[Origin] {
        &self.shared.origins
    }

    fn tasks(&self) -> &Tasks {
        &self.shared.tasks
    }

    /// The model that a request names.
    ///
    /// # Errors
    /// It names none, or one that is not served.
    fn model_of(&self, request: &Map<String, Value>) -> Result<Arc<ServedModel>, ApiError> {
        let fields = Fields::of_request(request);
        let id = fields
            .text("model")?
            .ok_or_else(|| fields.wrong("model", "is missing"))?;
        self.model(id).cloned()
    }
}

/// Serves `api` to whoever comes to `listener` until its tasks are stopped.
pub fn serve_api(listener: TcpListener, api: Api) {
    let tasks = api.tasks().clone();
    tasks.spawn("api", serve::run(listener, router(api), tasks.clone()));
}

fn router(api: Api) -> Router {
    let v1 = Router::new()
        .route("/models", get(model::list))
        .route("/models/{*id}", get(model::describe))
        .route("/chat/completions", post(chat::chat))
        .route("/completions", post(completions::completions))
        .route("/embeddings", post(embeddings))
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(api.shared.guard.clone(), guard::guard))
        .layer(middleware::from_fn_with_state(api.metrics().clone(), metrics::count));
    Router::new()
        .route("/", get(page))
        .route("/health", get(health::health))
        .route("/metrics", get(metrics::metrics))
        .nest(V1, v1)
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(body::MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), origins::allow))
        .layer(middleware::from_fn_with_state(api.clone(), protect))
        .with_state(api)
}

async fn page(State(api): State<Api>) -> Response {
    api.shared.page.response()
}

async fn embeddings() -> ApiError {
    ApiError::no_embeddings()
}

async fn nothing_here(method: Method, uri: Uri) -> ApiError {
    ApiError::no_path(method.as_str(), uri.path())
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    // Within a nested router the path is what is left of it.
    ApiError::no_method(method.as_str(), &format!("{V1}{}", uri.path()))
}

async fn protect(State(api): State<Api>, request: Request, next: Next) -> Response {
    let id = format!("req_{}", uuid::Uuid::new_v4().simple());
    let span = tracing::info_span!(target: TRACE, "request", id);
    let mut response = next.run(request).instrument(span).await;
    let headers = response.headers_mut();
    headers::protect(headers, api.shared.page.policy.clone());
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// Does what takes its time on a thread for such things.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("reading the request failed")))
}
