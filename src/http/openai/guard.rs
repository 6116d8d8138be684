//! Who may ask, and how often: a key in `Authorization`, then the limits of its holder, or of an address where no keys are
//! asked for. What is refused is refused before anything of its body is read. Keys are in no log.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::body::{Frame, SizeHint};

use super::{
    error::ApiError,
    keys::{Holder, KeyFile, KeysError},
    limits::{Caller, Limiter, Permit, Quota, Refused, Standing},
};
use crate::task::Tasks;

/// When to try again while as many requests run as may: nobody knows when one ends.
const ONE_ENDS: Duration = Duration::from_secs(1);

/// Who may use the API.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// File of keys; anybody may ask without one.
    pub keys: Option<PathBuf>,
    /// Requests a minute of one key, or of one address if there are no keys; the file may say otherwise for a key.
    pub requests_per_minute: Option<u32>,
    /// Requests of one that run at the same time, likewise.
    pub concurrent: Option<u32>,
}

/// Lets requests through or not; all of them by default. Clones share keys and counts.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    keys: Option<KeyFile>,
    general: Quota,
    limiter: Limiter,
}

impl Guard {
    /// Reads the keys, and reads them again when they change.
    ///
    /// # Errors
    /// The file cannot be read or is readable for others, or holds something else than keys.
    pub fn new(access: Access, tasks: &Tasks) -> Result<Self, KeysError> {
        Ok(Self {
            keys: access.keys.map(|path| KeyFile::open(path, tasks)).transpose()?,
            general: Quota {
                requests_per_minute: access.requests_per_minute,
                concurrent: access.concurrent,
            },
            limiter: Limiter::default(),
        })
    }

    /// Whether whoever reaches the API can use it.
    pub fn is_open(&self) -> bool {
        self.keys.is_none()
    }

    /// Whose requests are counted together, and how many there may be.
    fn caller(&self, headers: &HeaderMap, from: IpAddr) -> Result<(Caller, Quota), ApiError> {
        let Some(keys) = &self.keys else {
            return Ok((Caller::at(from), self.general));
        };
        let presented = bearer(headers).ok_or_else(ApiError::no_key)?;
        let holder = keys.keys().holder(presented);
        let Holder { name, quota } = holder.ok_or_else(ApiError::wrong_key)?;
        Ok((Caller::Key(name), quota.or(self.general)))
    }
}

/// The key of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

/// Answers requests without a known key with 401, and those beyond a limit with 429. Only what computes is counted.
pub(crate) async fn guard(
    State(guard): State<Guard>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let (caller, quota) = match guard.caller(request.headers(), from.ip()) {
        Ok(caller) => caller,
        Err(error) => {
            let mut response = error.into_response();
            let realm = HeaderValue::from_static("Bearer realm=\"sepal\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
            return response;
        }
    };
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    match guard.limiter.admit(caller.clone(), quota, Instant::now()) {
        Ok(permit) => hold(next.run(request).await, permit),
        Err(refused) => {
            tracing::debug!(?caller, ?refused, "a request is beyond the limits");
            refusal(&refused)
        }
    }
}

fn refusal(refused: &Refused) -> Response {
    match *refused {
        Refused::Rate { standing, retry_after } => {
            let pause = Duration::from_secs(retry_after.as_secs_f64().ceil() as u64);
            let message = format!(
                "Rate limit reached: {} requests per minute. Try again in {}.",
                standing.limit,
                spelled(retry_after)
            );
            let mut response = ApiError::rate_limited(message, pause).into_response();
            stand(response.headers_mut(), standing);
            response
        }
        Refused::Concurrent { limit } => {
            let message =
                format!("Rate limit reached: {limit} requests at the same time. Try again when one has ended.");
            ApiError::rate_limited(message, ONE_ENDS).into_response()
        }
    }
}

/// Says in the headers that OpenAI's API has for it where the caller stands.
fn stand(headers: &mut HeaderMap, standing: Standing) {
    let mut insert = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    insert("x-ratelimit-limit-requests", standing.limit.to_string());
    insert("x-ratelimit-remaining-requests", standing.remaining.to_string());
    insert("x-ratelimit-reset-requests", spelled(standing.reset));
}

/// A duration as OpenAI's headers spell it: `120ms`, `20s`, `1m30s`.
fn spelled(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil() as u64;
    match seconds {
        _ if time < Duration::from_secs(1) => format!("{}ms", time.as_millis()),
        0..60 => format!("{seconds}s"),
        _ => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

/// The answer, which counts as running until its last byte is sent or nobody reads it any more.
fn hold(mut response: Response, permit: Permit) -> Response {
    if let Some(standing) = permit.standing {
        stand(response.headers_mut(), standing);
    }
    response.map(|body| Body::new(Held { body, _permit: permit }))
}

struct Held {
    body: Body,
    _permit: Permit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_behind_the_word_bearer() {
        let key = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(key("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(key("bearer  abc ").as_deref(), Some("abc"));
        for wrong in ["Basic abc", "Bearer", "Bearer ", "abc"] {
            assert_eq!(key(wrong), None, "{wrong}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn durations_are_spelled_as_in_the_headers_of_openai() {
        for (milliseconds, text) in [
            (0, "0ms"),
            (120, "120ms"),
            (1000, "1s"),
            (19_200, "20s"),
            (59_500, "1m0s"),
            (90_000, "1m30s"),
        ] {
            assert_eq!(spelled(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn whoever_has_none_left_is_told_when_to_ask_again() {
        let standing = Standing {
            limit: 3,
            remaining: 0,
            reset: Duration::from_secs(59),
        };
        let response = refusal(&Refused::Rate {
            standing,
            retry_after: Duration::from_millis(18_200),
        });
        assert_eq!(response.status(), 429);
        let header = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!(header("retry-after"), "19");
        assert_eq!(header("x-ratelimit-limit-requests"), "3");
        assert_eq!(header("x-ratelimit-remaining-requests"), "0");
        assert_eq!(header("x-ratelimit-reset-requests"), "59s");
    }
}
