//! What is served over HTTP: the API of OpenAI (`openai.rs`), and the health map of a swarm, which is here: JSON for
//! programs, events for the page, metrics for Prometheus, the page itself.
//!
//! ```text
//!   GET /                          page.html, which asks for the two below and nothing else
//!   GET /api/v1/swarm              the whole picture (`swarm::health::HealthState`)
//!   GET /api/v1/events             the same as server-sent events `swarm`, one per look       events.rs
//!   GET /api/v1/state              as health.petals.dev gives it                              monitor.rs
//!   GET /api/v1/is_reachable/PEER  as Petals servers ask it when they start                   monitor.rs
//!   GET /metrics                   Prometheus exposition                                      metrics.rs
//! ```
//!
//! The map only reads: there is nothing to log in to, nothing is changed, no cookie is set. It looks at no swarm itself; that
//! is `swarm::health`. Connections, requests, listeners and their lifetimes are bounded in `serve.rs`.

mod error;
mod events;
mod headers;
mod metrics;
mod monitor;
mod openai;
mod page;
mod serve;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::{net::TcpListener, sync::Semaphore};

use self::page::Page;
pub use self::{
    error::HttpError,
    metrics::{OwnNumbers, numbers},
    openai::{Access, Api, ApiLimits, Guard, KeysError, Metrics, ModelText, Origin, ServedModel, Work, serve_api},
};
use crate::{
    swarm::health::{Health, HealthState},
    task::Tasks,
};

/// Limit for everything but events; `is_reachable` takes five seconds after a wait of three.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    health: Health,
    page: Arc<Page>,
    numbers: OwnNumbers,
    /// One for every listener to events.
    listeners: Arc<Semaphore>,
    tasks: Tasks,
}

/// A site that answers until its tasks are stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where it listens; the port is the real one if 0 was asked for.
    pub addr: SocketAddr,
}

/// Serves the map of `health` on `addr` until `tasks` are stopped; requests under way then are finished. `own` tells what
/// this node counted, for `/metrics`.
///
/// # Errors
/// [`HttpError`] if `addr` cannot be listened on.
pub async fn serve(addr: SocketAddr, health: Health, own: OwnNumbers, tasks: &Tasks) -> Result<Site, HttpError> {
    let (listener, site) = listen(addr).await?;
    let app = App {
        numbers: numbers(&health, &own),
        health,
        page: Arc::new(Page::map()),
        listeners: Arc::new(Semaphore::new(events::MAX_LISTENERS)),
        tasks: tasks.clone(),
    };
    tasks.spawn("http", serve::run(listener, router(app), tasks.clone()));
    Ok(site)
}

/// Listens on `addr`; connections wait until the site is served.
///
/// # Errors
/// [`HttpError`] if `addr` cannot be listened on.
pub async fn listen(addr: SocketAddr) -> Result<(TcpListener, Site), HttpError> {
    let cannot = |source| HttpError::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(cannot)?;
    let addr = listener.local_addr().map_err(cannot)?;
    Ok((listener, Site { addr }))
}

fn router(app: App) -> Router {
    let timed = Router::new()
        .route("/", get(page::page))
        .route("/api/v1/swarm", get(swarm))
        .route("/api/v1/state", get(monitor::state))
        .route("/api/v1/is_reachable/{peer}", get(monitor::is_reachable))
        .route("/metrics", get(metrics::metrics))
        .layer(middleware::from_fn(within_time));
    timed
        .route("/api/v1/events", get(events::events))
        .fallback(nothing_here)
        .layer(middleware::from_fn_with_state(app.clone(), protect))
        .with_state(app)
}

async fn swarm(State(app): State<App>) -> Response {
    json(&*app.latest())
}

async fn nothing_here() -> Response {
    (StatusCode::NOT_FOUND, "there is nothing here\n").into_response()
}

impl App {
    /// The last picture.
    fn latest(&self) -> Arc<HealthState> {
        self.health.watch().borrow().clone()
    }
}

/// A JSON answer. Numbers that are none (an infinite ping) become null.
fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn within_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

/// Headers that let a browser do with an answer what the page needs and nothing else.
async fn protect(State(app): State<App>, request: Request<Body>, next: Next) -> Response {
    let mut response = next.run(request).await;
    headers::protect(response.headers_mut(), app.page.policy.clone());
    response
}
