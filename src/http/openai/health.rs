//! `GET /health`: whether the models can answer now, for those who watch over the API. No key is needed.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Api, model::ServedModel};

/// 200 if every block of every model is held by a server that did not fail lately, else 503. What the servers say of
/// themselves is read again every minute.
pub(crate) async fn health(State(api): State<Api>) -> Response {
    let models: Vec<Value> = api.models().iter().map(|model| state(model)).collect();
    let is_well = models.iter().all(|model| model["status"] == "ok");
    let (status, word) = if is_well {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "blocks missing")
    };
    (status, Json(json!({"status": word, "models": models}))).into_response()
}

fn state(model: &ServedModel) -> Value {
    let missing = model.conversations().client().missing();
    let ranges: Vec<[u32; 2]> = missing.iter().map(|blocks| [blocks.start, blocks.end]).collect();
    let word = if missing.is_empty() { "ok" } else { "blocks missing" };
    json!({"id": model.id(), "status": word, "missing_blocks": ranges})
}
