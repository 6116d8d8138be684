//! What health.petals.dev answers, for programs made for it: `/api/v1/state` and `/api/v1/is_reachable/PEER`.
//!
//! Source of names and shapes: its `state_updater.py`, `health.py` and `app.py`. Times are Unix seconds, enums words in
//! small letters, infinity is null. Left out is where in the world servers are (`peer_ip_info` is always "unknown"): this
//! program asks nobody outside of the swarm.

use std::{collections::BTreeMap, net::SocketAddr};

use axum::{
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use sepal_protocol::record::ServerState;
use serde_json::{Map, Value, json};

use super::{App, json};
use crate::{
    p2p::PeerId,
    swarm::health::{Bootstrap, HealthState, ModelState, ServerView, named},
};

pub(crate) async fn state(State(app): State<App>) -> Response {
    json(&petals_state(&app.latest()))
}

/// Whether `peer` can be dialed. A Petals server that joins the public swarm asks this before it announces itself
/// (`petals/server/reachability.py`, `validate_reachability`), and goes on when `success` is true.
pub(crate) async fn is_reachable(
    State(app): State<App>,
    ConnectInfo(asker): ConnectInfo<SocketAddr>,
    Path(peer): Path<String>,
) -> Response {
    let Ok(peer) = peer.parse::<PeerId>() else {
        return (StatusCode::BAD_REQUEST, "that is no peer id\n").into_response();
    };
    match app.health.is_reachable(peer).await {
        Ok(answer) => json(&json!({
            "success": answer.error.is_none(),
            "message": answer.error,
            "your_ip": asker.ip().to_canonical().to_string(),
        })),
        // Petals takes any failure for "the monitor is down" and goes on.
        Err(busy) => (StatusCode::SERVICE_UNAVAILABLE, format!("{busy}\n")).into_response(),
    }
}

fn petals_state(state: &HealthState) -> Value {
    json!({
        "bootstrap_states": state.bootstraps.iter().map(bootstrap_state).collect::<Vec<_>>(),
        "top_contributors": top_contributors(state),
        "model_reports": state.models.iter().map(model_report).collect::<Vec<_>>(),
        "reachability_issues": reachability_issues(state),
        "last_updated": state.updated,
        "update_period": state.refresh_seconds,
        "update_duration": state.took_seconds,
    })
}

fn bootstrap_state(bootstrap: &Bootstrap) -> &'static str {
    if bootstrap.ok { "online" } else { "unreachable" }
}

fn top_contributors(state: &HealthState) -> Map<String, Value> {
    let by_name = state.contributors.iter().map(|contributor| {
        let name = contributor.url.as_ref().unwrap_or(&contributor.name);
        (name.clone(), json!(contributor.blocks))
    });
    by_name.collect()
}

fn reachability_issues(state: &HealthState) -> Vec<Value> {
    let bootstraps = state
        .bootstraps
        .iter()
        .filter_map(|bootstrap| Some((&bootstrap.peer_id, bootstrap.error.as_ref()?)));
    let servers = state
        .models
        .iter()
        .flat_map(|model| &model.servers)
        .filter_map(|server| Some((&server.peer_id, server.reach_error.as_ref()?)));
    // Each peer once, in the order of ids.
    let by_peer: BTreeMap<_, _> = bootstraps.chain(servers).collect();
    let issues = by_peer
        .into_iter()
        .map(|(peer_id, error)| json!({"peer_id": peer_id, "err": error}));
    issues.collect()
}

fn model_report(model: &ModelState) -> Value {
    let short_name = model.name.rsplit('/').next().unwrap_or(&model.name);
    json!({
        "name": model.name,
        "short_name": short_name,
        "state": model.state,
        "server_rows": model.servers.iter().map(|server| server_row(server, model)).collect::<Vec<_>>(),
        "num_blocks": model.n_blocks,
        "repository": model.repository,
        "dht_prefix": model.prefix,
        "official": false,
        "limited": false,
    })
}

fn server_row(server: &ServerView, model: &ModelState) -> Value {
    let adapters = server.adapters.iter().map(|name| {
        let short_name = name.rsplit('/').next().unwrap_or(name);
        json!({"name": name, "short_name": short_name})
    });
    let pings_to_me = model.servers.iter().filter_map(|origin| {
        let rtt = origin.pings.get(&server.peer_id)?;
        Some((origin.peer_id.clone(), json!(rtt)))
    });
    let mut row = json!({
        "short_peer_id": server.short_id.replace('…', "..."),
        "peer_id": server.peer_id,
        "peer_ip_info": "unknown",
        "show_public_name": named(server).is_some(),
        "state": server.state,
        "span": {
            "peer_id": server.peer_id,
            "start": server.start,
            "end": server.end,
            "server_info": server_info(server),
        },
        "adapters": adapters.collect::<Vec<_>>(),
        "pings_to_me": pings_to_me.collect::<Map<_, _>>(),
    });
    if let Some(left) = server.cache_tokens_left {
        row["cache_tokens_left_per_block"] = json!(left);
    }
    row
}

/// The record, with the names that Petals gives its fields.
fn server_info(server: &ServerView) -> Value {
    let info = &server.info;
    let state = match info.state {
        ServerState::Offline => "offline",
        ServerState::Joining => "joining",
        ServerState::Online => "online",
    };
    json!({
        "state": state,
        "throughput": info.throughput,
        "start_block": info.start_block,
        "end_block": info.end_block,
        "public_name": server.public_name,
        "version": server.version,
        "network_rps": info.network_rps,
        "forward_rps": info.forward_rps,
        "inference_rps": info.inference_rps,
        "adapters": server.adapters,
        "torch_dtype": server.dtype,
        "quant_type": server.quant,
        "using_relay": info.using_relay,
        "cache_tokens_left": info.cache_tokens_left,
        "next_pings": info.next_pings.as_ref().map(|_| &server.pings),
    })
}
