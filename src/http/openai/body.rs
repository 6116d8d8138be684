//! The body of a request: bounded in length and time, JSON, an object.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
};
use serde_json::{Map, Value};

use super::error::ApiError;

/// Longest body in bytes: a conversation of some hundred thousand tokens, escaped.
pub(crate) const MAX_BODY_BYTES: usize = 8 << 20;

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The object that is the request.
///
/// # Errors
/// The body is no JSON object, too long, or does not come.
pub(crate) async fn read(request: Request) -> Result<Map<String, Value>, ApiError> {
    if !is_json(&request) {
        return Err(ApiError::not_json());
    }
    let reading = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &()));
    let bytes = match reading.await {
        Err(_) => return Err(ApiError::too_slow()),
        Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return Err(ApiError::too_large(MAX_BODY_BYTES));
        }
        Ok(Err(_)) => return Err(ApiError::malformed("the body did not come to its end")),
        Ok(Ok(bytes)) => bytes,
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::malformed("the body has to be a JSON object")),
        Err(error) => Err(ApiError::malformed(format!("the body is not JSON: {error}"))),
    }
}

fn is_json(request: &Request) -> bool {
    let value = request.headers().get(header::CONTENT_TYPE);
    let kind = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}
