//! Every metric of a health map: its name, unit, labels and meaning, in one place. Prometheus reads it at `/metrics`.
//!
//! All are gauges of the last look at the swarm, made when they are asked for; counts of what this node did itself come
//! from the program and are counters.

use std::{fmt, sync::Arc, sync::atomic::AtomicU64};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};

use super::App;
use crate::swarm::health::{Condition, Health, HealthState, ModelState};

/// What Prometheus calls the format.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Something this node knows of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OwnNumber {
    /// Without prefix and without `_total`.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// How much.
    pub value: OwnValue,
}

/// How Prometheus is to read a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OwnValue {
    /// Counted since the node started: it only grows.
    Count(u64),
    /// What it is now.
    Now(f64),
}

/// Where the program's own numbers come from.
#[derive(Clone)]
pub(crate) struct OwnNumbers(Arc<dyn Fn() -> Vec<OwnNumber> + Send + Sync>);

impl OwnNumbers {
    pub(crate) fn new(read: impl Fn() -> Vec<OwnNumber> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl fmt::Debug for OwnNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnNumbers")
    }
}

impl Collector for OwnNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for OwnNumber { name, help, value } in (self.0)() {
            match value {
                OwnValue::Count(count) => {
                    let counter = ConstCounter::new(count);
                    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
                }
                OwnValue::Now(value) => {
                    let gauge = ConstGauge::new(value);
                    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
                }
            }
        }
        Ok(())
    }
}

/// A model by its name in the DHT.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfModel {
    model: String,
}

/// A model's servers in one state.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfServers {
    model: String,
    state: &'static str,
}

type Number = Gauge<f64, AtomicU64>;

pub(crate) async fn metrics(State(app): State<App>) -> Response {
    match exposition(&app.latest(), &app.health, app.own.clone()) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn exposition(state: &HealthState, health: &Health, own: OwnNumbers) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("sepal");
    of_map(&mut registry, state, health);
    of_models(&mut registry, &state.models);
    registry.register_collector(Box::new(own));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// The map as a whole, and the node that draws it.
fn of_map(registry: &mut Registry, state: &HealthState, health: &Health) {
    let mut number = |name: &str, help: &str, value: f64| {
        let gauge = Number::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    let node = health.node();
    number(
        "map_updated_timestamp_seconds",
        "When the swarm was looked at last",
        state.updated,
    );
    number("map_update_duration_seconds", "How long that took", state.took_seconds);
    number("swarm_models", "Models", count(state.totals.models));
    number("swarm_servers", "Servers in any state", count(state.totals.servers));
    number(
        "swarm_servers_online",
        "Servers that are online and answer",
        count(state.totals.online),
    );
    let bootstraps = state.bootstraps.iter().filter(|bootstrap| bootstrap.ok).count();
    number(
        "swarm_bootstraps_reachable",
        "Initial peers that answer",
        count(bootstraps),
    );
    number(
        "node_connected_peers",
        "Peers there is a connection to",
        count(node.connected),
    );
    number(
        "node_dht_neighbors",
        "Nodes in the routing table",
        count(node.dht.nodes),
    );
    number(
        "node_dht_stored_keys",
        "Keys stored for the DHT",
        count(node.dht.stored),
    );
    number(
        "node_dht_cached_keys",
        "Keys kept to answer faster",
        count(node.dht.cached),
    );
}

fn of_models(registry: &mut Registry, models: &[ModelState]) {
    let mut family = |name: &str, help: &str, value: fn(&ModelState) -> f64| {
        let family = Family::<OfModel, Number>::default();
        for model in models {
            let labels = OfModel {
                model: model.prefix.clone(),
            };
            family.get_or_create(&labels).set(value(model));
        }
        registry.register(name, help, family);
    };
    family(
        "model_healthy",
        "1 if every block is held by a server that answers, else 0",
        |model| f64::from(u8::from(model.holes.is_empty())),
    );
    family("model_blocks", "Blocks", |model| f64::from(model.n_blocks));
    family(
        "model_blocks_covered",
        "Blocks held by a server that answers",
        |model| count(model.coverage.iter().filter(|n| **n > 0).count()),
    );
    family(
        "model_block_servers_min",
        "Servers that hold the least held block",
        |model| f64::from(model.coverage.iter().copied().min().unwrap_or(0)),
    );
    family(
        "model_best_route_tokens_per_second",
        "Estimated speed of the quickest chain for one reader; 0 if there is none",
        |model| model.best_route.as_ref().map_or(0.0, |route| route.tokens_per_second),
    );
    let servers = Family::<OfServers, Number>::default();
    let cache = Family::<OfModel, Number>::default();
    for model in models {
        for state in Condition::ALL {
            let labels = OfServers {
                model: model.prefix.clone(),
                state: state.name(),
            };
            let n = model.servers.iter().filter(|server| server.state == state).count();
            servers.get_or_create(&labels).set(count(n));
        }
        let labels = OfModel {
            model: model.prefix.clone(),
        };
        let online = model.servers.iter().filter(|server| server.state == Condition::Online);
        let left: u64 = online
            .filter_map(|server| server.cache_tokens_left)
            .fold(0, u64::saturating_add);
        cache.get_or_create(&labels).set(left as f64);
    }
    registry.register("model_servers", "Servers by state", servers);
    registry.register_with_unit(
        "model_cache_free",
        "Free cache of all servers that answer, each counted for its own span",
        Unit::Other("tokens".to_string()),
        cache,
    );
}

fn count(n: usize) -> f64 {
    n as f64
}
