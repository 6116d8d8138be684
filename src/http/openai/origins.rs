//! Which pages of other sites may use the API from a browser (CORS). Without permission browsers keep answers from them, and
//! do not even send requests in JSON.

use std::{convert::Infallible, str::FromStr};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::Api;

/// How long a browser may remember what it was allowed, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Pages that may use the API: `https://chat.example`, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl FromStr for Origin {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

/// Answers what browsers ask before, and tells them whether a page may read the answer.
pub(crate) async fn allow(State(api): State<Api>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let Some(origin) = origin.filter(|origin| is_allowed(api.origins(), origin)) else {
        return next.run(request).await;
    };
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if request.method() == Method::OPTIONS && asked.is_some() {
        may_ask(request.headers())
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    response
}

fn is_allowed(origins: &[Origin], origin: &HeaderValue) -> bool {
    origins
        .iter()
        .any(|allowed| allowed.0 == "*" || allowed.0.as_bytes() == origin.as_bytes())
}

/// Any header may be sent: clients of OpenAI's API send a dozen that say what they are.
fn may_ask(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST"),
    );
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_origins_that_were_named_are_allowed() {
        let allowed = |origins: &[&str], origin: &'static str| {
            let origins: Vec<Origin> = origins.iter().map(|origin| origin.parse().unwrap()).collect();
            is_allowed(&origins, &HeaderValue::from_static(origin))
        };
        assert!(allowed(&["https://chat.example/"], "https://chat.example"));
        assert!(allowed(&["*"], "null"));
        assert!(!allowed(&["https://chat.example"], "https://chat.example.evil"));
        assert!(!allowed(&[], "https://chat.example"));
    }
}
