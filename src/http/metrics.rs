//! Every metric of a health map: its name, unit, labels and meaning, in one place. Prometheus reads it at `/metrics`.
//!
//! All are gauges of the last look at the swarm, made when they are asked for; what this node counts itself comes from the
//! program.

use std::{fmt, sync::Arc};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use super::App;
use crate::{
    metrics::{CONTENT_TYPE, Family, exposition},
    swarm::health::{Condition, Health, HealthState, ModelState},
};

/// Where numbers come from that the program tells.
#[derive(Clone)]
pub struct OwnNumbers(Arc<dyn Fn() -> Vec<Family> + Send + Sync>);

impl OwnNumbers {
    /// What `read` gives whenever somebody wants to know.
    pub fn new(read: impl Fn() -> Vec<Family> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(crate) fn read(&self) -> Vec<Family> {
        (self.0)()
    }
}

impl fmt::Debug for OwnNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnNumbers")
    }
}

/// All that is at `/metrics` of a map: how the swarm is, and what the program counts itself.
pub fn numbers(health: &Health, own: &OwnNumbers) -> OwnNumbers {
    let (health, own) = (health.clone(), own.clone());
    OwnNumbers::new(move || {
        let latest = health.watch().borrow().clone();
        [of_map(&latest), own.read()].concat()
    })
}

pub(crate) async fn metrics(State(app): State<App>) -> Response {
    answer(&app.numbers.read())
}

/// Families as Prometheus gets them.
pub(crate) fn answer(families: &[Family]) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], exposition(families)).into_response()
}

fn of_map(state: &HealthState) -> Vec<Family> {
    let bootstraps = state.bootstraps.iter().filter(|bootstrap| bootstrap.ok).count();
    let mut families = vec![
        Family::gauge(
            "sepal_map_updated_timestamp_seconds",
            "When the swarm was looked at last",
        )
        .is(state.updated),
        Family::gauge("sepal_map_update_duration_seconds", "How long that took").is(state.took_seconds),
        Family::gauge("sepal_swarm_models", "Models").is(state.totals.models),
        Family::gauge("sepal_swarm_servers", "Servers in any state").is(state.totals.servers),
        Family::gauge("sepal_swarm_servers_online", "Servers that are online and answer").is(state.totals.online),
        Family::gauge("sepal_swarm_bootstraps_reachable", "Initial peers that answer").is(bootstraps),
    ];
    families.extend(of_models(&state.models));
    families
}

fn of_models(models: &[ModelState]) -> Vec<Family> {
    let family = |name, help, value: fn(&ModelState) -> f64| {
        let family = Family::gauge(name, help);
        models.iter().fold(family, |family, model| {
            family.of(&[("model", &model.prefix)], value(model))
        })
    };
    let mut servers = Family::gauge("sepal_model_servers", "Servers by state");
    for model in models {
        for state in Condition::ALL {
            let n = model.servers.iter().filter(|server| server.state == state).count();
            servers = servers.of(&[("model", &model.prefix), ("state", state.name())], n);
        }
    }
    vec![
        family(
            "sepal_model_healthy",
            "1 if every block is held by a server that answers, else 0",
            |model| f64::from(u8::from(model.holes.is_empty())),
        ),
        family("sepal_model_blocks", "Blocks", |model| f64::from(model.n_blocks)),
        family(
            "sepal_model_blocks_covered",
            "Blocks held by a server that answers",
            |model| model.coverage.iter().filter(|n| **n > 0).count() as f64,
        ),
        family(
            "sepal_model_block_servers_min",
            "Servers that hold the least held block",
            |model| f64::from(model.coverage.iter().copied().min().unwrap_or(0)),
        ),
        family(
            "sepal_model_best_route_tokens_per_second",
            "Estimated speed of the quickest chain for one reader; 0 if there is none",
            |model| model.best_route.as_ref().map_or(0.0, |route| route.tokens_per_second),
        ),
        servers,
        family(
            "sepal_model_cache_free_tokens",
            "Free cache of all servers that answer, each counted for its own span",
            free_cache,
        ),
    ]
}

fn free_cache(model: &ModelState) -> f64 {
    let online = model.servers.iter().filter(|server| server.state == Condition::Online);
    let left = online.filter_map(|server| server.cache_tokens_left);
    left.fold(0, u64::saturating_add) as f64
}
