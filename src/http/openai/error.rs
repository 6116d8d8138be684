//! What can go wrong with a request, as OpenAI's API says it: a status and `{"error": {message, type, param, code}}`.

use std::{error::Error, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{
    client::{ClientError, ConstraintError, RemoteError},
    model::SampleError,
};

/// How long a client should wait before it asks again, where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Beginnings of the texts with which servers refuse sessions that are longer than they allow, ours and Petals'.
const TOO_LONG: [&str; 2] = ["Maximum length exceeded", "Cannot allocate KV cache for"];

/// A request that is not answered, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// The parameter at fault.
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// The request is wrong; nothing of it was done.
    fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: "invalid_request_error",
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// The request is right, but cannot be answered.
    fn failed(status: StatusCode, message: impl Into<String>, code: &'static str) -> Self {
        Self {
            kind: "server_error",
            code: Some(code),
            ..Self::refused(status, message)
        }
    }

    /// A parameter is missing, malformed, or asks for what is not supported.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::refused(StatusCode::BAD_REQUEST, message)
        }
    }

    /// The body is not what a request is.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, message)
    }

    /// The body is not announced as JSON. Browsers send that to other sites only if these allow it.
    pub(crate) fn not_json() -> Self {
        let message = "the body has to be JSON, with the header content-type: application/json";
        Self::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    /// The body is longer than allowed.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is longer than {limit} bytes");
        Self::refused(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// The body did not come in time.
    pub(crate) fn too_slow() -> Self {
        Self::refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")
    }

    /// Nothing is at this path.
    pub(crate) fn no_path(method: &str, path: &str) -> Self {
        let message = format!("there is no {method} {path}; see /v1/models, /v1/chat/completions and /v1/completions");
        Self {
            code: Some("unknown_url"),
            ..Self::refused(StatusCode::NOT_FOUND, message)
        }
    }

    /// The path is there, but for another method.
    pub(crate) fn no_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self {
            code: Some("method_not_supported"),
            ..Self::refused(StatusCode::METHOD_NOT_ALLOWED, message)
        }
    }

    /// What the models cannot do honestly.
    pub(crate) fn no_embeddings() -> Self {
        let message = "these models generate text: what they compute on the way is not trained to be an embedding, so none \
                       is given out";
        Self {
            code: Some("not_implemented"),
            ..Self::refused(StatusCode::NOT_IMPLEMENTED, message)
        }
    }

    /// This model is not served.
    pub(crate) fn no_model(id: &str, served: &[&str]) -> Self {
        let message = format!("the model {id:?} does not exist here; there is {}", served.join(", "));
        Self {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Self::refused(StatusCode::NOT_FOUND, message)
        }
    }

    /// Prompt and answer do not fit into the model's context.
    pub(crate) fn too_long(param: &str, message: String) -> Self {
        Self {
            param: Some(param.to_owned()),
            code: Some("context_length_exceeded"),
            ..Self::refused(StatusCode::BAD_REQUEST, message)
        }
    }

    /// As many requests as may wait do.
    pub(crate) fn overloaded() -> Self {
        Self {
            kind: "rate_limit_error",
            code: Some("overloaded"),
            retry_after: Some(RETRY_AFTER),
            ..Self::refused(
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests wait already: try again later",
            )
        }
    }

    /// No key came with the request, where one is needed.
    pub(crate) fn no_key() -> Self {
        let message = "You didn't provide an API key. Provide it in an Authorization header using Bearer auth (i.e. \
                       Authorization: Bearer YOUR_KEY).";
        Self {
            code: Some("invalid_api_key"),
            ..Self::refused(StatusCode::UNAUTHORIZED, message)
        }
    }

    /// The key is none of those that are known. It is not repeated: answers end up in logs.
    pub(crate) fn wrong_key() -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::refused(StatusCode::UNAUTHORIZED, "Incorrect API key provided.")
        }
    }

    /// The caller asks more often than it may.
    pub(crate) fn rate_limited(message: String, retry_after: Duration) -> Self {
        Self {
            kind: "requests",
            code: Some("rate_limit_exceeded"),
            retry_after: Some(retry_after),
            ..Self::refused(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// The process ends.
    pub(crate) fn stopping() -> Self {
        let message = "the API is shutting down";
        Self::failed(StatusCode::SERVICE_UNAVAILABLE, message, "shutting_down")
    }

    /// A fault of this program.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::failed(StatusCode::INTERNAL_SERVER_ERROR, message, "internal_error")
    }

    /// As clients get it.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    /// Whether it is this side's fault or the swarm's.
    pub(crate) fn is_ours(&self) -> bool {
        self.status.is_server_error()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(pause) = self.retry_after {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(pause.as_secs().max(1)));
        }
        if self.status == StatusCode::NOT_IMPLEMENTED {
            // OpenAI's clients try again after any status above 500 that does not say so.
            response
                .headers_mut()
                .insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

impl From<SampleError> for ApiError {
    fn from(error: SampleError) -> Self {
        let param = match error {
            SampleError::Temperature(_) => "temperature",
            SampleError::TopP(_) => "top_p",
            SampleError::MinP(_) => "min_p",
            SampleError::RepetitionPenalty(_) => "repetition_penalty",
            SampleError::Penalty(_) => "presence_penalty",
            SampleError::Bias(_) => "logit_bias",
            SampleError::Logprobs(_) => "top_logprobs",
            SampleError::NotANumber | SampleError::NoCandidate => {
                return Self::failed(StatusCode::BAD_GATEWAY, error.to_string(), "bad_output");
            }
        };
        Self::invalid(param, error.to_string())
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        let message = with_causes(&error);
        match error {
            ClientError::MissingBlocks { .. } => Self {
                retry_after: Some(RETRY_AFTER),
                ..Self::failed(StatusCode::SERVICE_UNAVAILABLE, message, "blocks_missing")
            },
            ClientError::Refused { source, .. } if refuses_length(&source) => Self::too_long("max_tokens", message),
            ClientError::Full { source, .. } | ClientError::RetriesExhausted { source, .. } if source.is_passing() => {
                Self {
                    retry_after: Some(RETRY_AFTER),
                    ..Self::failed(StatusCode::SERVICE_UNAVAILABLE, message, "servers_busy")
                }
            }
            ClientError::Refused { .. } | ClientError::RetriesExhausted { .. } | ClientError::Disputed { .. } => {
                Self::failed(StatusCode::BAD_GATEWAY, message, "servers_failed")
            }
            ClientError::Sample(error) => error.into(),
            ClientError::Constraint(ConstraintError::Grammar(_)) => Self::invalid("response_format", message),
            ClientError::EmptyPrompt => Self::invalid("prompt", message),
            ClientError::Interrupted => Self::stopping(),
            _ => Self::internal(message),
        }
    }
}

fn refuses_length(error: &RemoteError) -> bool {
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    TOO_LONG.iter().any(|start| text.contains(start))
}

/// The error and what caused it, in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_four_fields_that_clients_read() {
        let body = ApiError::invalid("top_p", "wrong").body();
        let expected = json!({"error": {
            "message": "wrong", "type": "invalid_request_error", "param": "top_p", "code": null,
        }});
        assert_eq!(body, expected);
        let response = ApiError::overloaded().into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert!(response.headers().get("x-should-retry").is_none());
        let response = ApiError::no_embeddings().into_response();
        assert_eq!(response.headers()["x-should-retry"], "false");
    }

    #[test]
    fn parameters_out_of_range_are_named_as_the_api_spells_them() {
        let error = ApiError::from(SampleError::TopP(2.0));
        assert_eq!(
            (error.status, error.param.as_deref()),
            (StatusCode::BAD_REQUEST, Some("top_p"))
        );
        let error = ApiError::from(SampleError::NotANumber);
        assert!(error.is_ours() && error.status == 502);
    }
}
