//! Single requests to a hub: what is known of a file, and ranges of its bytes. Nothing is tried twice here, and nothing
//! is written.
//!
//! A hub answers for large files with a redirect to wherever they lie; what it says of them itself (`X-Linked-*`) is
//! what counts (`huggingface_hub`, `file_download.py`).

use std::{
    io::{self, Read},
    ops::Range,
    time::Duration,
};

use thiserror::Error;
use ureq::{
    Agent, Body, RequestBuilder, Timeout,
    http::{HeaderMap, Response, StatusCode, Uri},
    typestate::WithoutBody,
};

use super::HubOptions;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest silence before an answer and within it.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Redirects until somebody answers: a renamed repository, a mirror, a store.
const MAX_REDIRECTS: usize = 5;
/// Bytes of what a redirect says to people: read, so that its connection serves again.
const MAX_REDIRECT_BODY: u64 = 64 << 10;
/// The longest file that is believed to exist, 16 TiB: what a download needs to know grows with its length.
const MAX_SIZE: u64 = 1 << 44;
/// Longest wait that a hub may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// What a hub says of one file of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    /// The commit that the revision stands for.
    pub(super) commit: String,
    /// Names this content and no other; what the cache calls the file.
    pub(super) etag: String,
    /// Bytes of the whole file.
    pub(super) size: u64,
}

/// Why a request was of no use.
#[derive(Debug, Error)]
pub enum Fault {
    /// The server refused.
    #[error("the server answered {status}")]
    Status {
        /// Of HTTP.
        status: u16,
        /// What the hub calls the reason (`X-Error-Code`).
        code: Option<String>,
        /// When to ask again.
        retry_after: Option<Duration>,
        /// It was not the hub that refused but where it sent us.
        redirected: bool,
    },
    /// Nobody answered, or not in HTTP.
    #[error("the request failed")]
    Transport(#[source] Box<ureq::Error>),
    /// The answer broke off.
    #[error("the connection broke off")]
    Cut(#[source] io::Error),
    /// The answer is about another content than what the hub described.
    #[error("the server {said}, but {sent}")]
    Changed {
        /// What was to be expected.
        said: String,
        /// What came.
        sent: String,
    },
    /// The server sends files as a whole only.
    #[error("the server ignores which bytes are asked for")]
    NoRanges,
    /// The answer lacks what every hub says.
    #[error("the server's answer has no {0}: it is no model hub")]
    NotAHub(&'static str),
    /// The cache cannot be written or read.
    #[error("the cache cannot be used")]
    Disk(#[source] io::Error),
}

impl Fault {
    /// Whether the same request may well succeed later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, redirected, .. } => {
                // A store refuses links that have run out; the hub hands out a new one.
                matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504) || (*redirected && *status == 403)
            }
            Self::Transport(error) => !matches!(**error, ureq::Error::BadUri(_) | ureq::Error::Http(_)),
            Self::Cut(_) => true,
            Self::Changed { .. } | Self::NoRanges | Self::NotAHub(_) | Self::Disk(_) => false,
        }
    }

    /// Whether it is the hub or the line that fails, so that there is nothing to do but wait. What a store refuses, or a
    /// ring of redirects, may be so for ever.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Status { status, .. } => self.is_passing() && *status != 403,
            Self::Transport(error) => self.is_passing() && !matches!(**error, ureq::Error::TooManyRedirects),
            _ => self.is_passing(),
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// How long nothing came, if that is what ended the request.
    pub(super) fn silence(&self) -> Option<Duration> {
        let error = match self {
            Self::Transport(error) => &**error,
            // Whoever reads a body is told of it in an error of reading.
            Self::Cut(error) => error.get_ref()?.downcast_ref::<ureq::Error>()?,
            _ => return None,
        };
        match error {
            ureq::Error::Timeout(Timeout::Connect) => Some(CONNECT_TIMEOUT),
            ureq::Error::Timeout(_) => Some(SILENCE_TIMEOUT),
            _ => None,
        }
    }
}

/// The hub of some options.
#[derive(Clone, Debug)]
pub(super) struct Http {
    agent: Agent,
    authorization: Option<String>,
}

/// The bytes that were asked for, to be read until `len` have come.
pub(super) struct Piece {
    pub(super) body: Body,
    /// At most the bytes asked for.
    pub(super) len: u64,
    /// Names the content where it lies, for `If-Range`.
    pub(super) validator: Option<String>,
}

impl Http {
    pub(super) fn new(options: &HubOptions) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("sepal/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build();
        Self {
            agent: Agent::new_with_config(config),
            authorization: options.token.as_ref().map(|token| format!("Bearer {token}")),
        }
    }

    /// What the hub knows of the file at `url`.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn describe(&self, url: &str) -> Result<Remote, Fault> {
        let request = |url: &str| self.agent.head(url).header("accept-encoding", "identity");
        // A store's address comes with the hub's description; a mere change of address without.
        let is_described = |headers: &HeaderMap| {
            ["x-linked-size", "x-repo-commit"]
                .iter()
                .all(|name| text(headers, name).is_some())
        };
        let (response, _) = self.follow(url, request, is_described)?;
        let (status, headers) = (response.status(), response.headers());
        if status.is_success() || (status.is_redirection() && is_described(headers)) {
            return remote(headers);
        }
        Err(refusal(&response, false))
    }

    /// The whole answer to a question that is not about a file, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn ask(&self, url: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        let (response, _) = self.follow(url, |url| self.agent.get(url), |_| false)?;
        if !response.status().is_success() {
            return Err(refusal(&response, false));
        }
        let body = response.into_body().into_with_config().limit(limit).read_to_vec();
        body.map_err(|error| Fault::Transport(Box::new(error)))
    }

    /// Asks at `url`, and where redirects lead unless `is_enough`; also says whether they led elsewhere. The token is shown to
    /// nobody but the hub: another port of its machine may be somebody else's.
    fn follow(
        &self,
        url: &str,
        request: impl Fn(&str) -> RequestBuilder<WithoutBody>,
        is_enough: impl Fn(&HeaderMap) -> bool,
    ) -> Result<(Response<Body>, bool), Fault> {
        let (mut url, mut with_token) = (url.to_owned(), true);
        for n_redirects in 0..=MAX_REDIRECTS {
            let mut request = request(&url);
            if let (true, Some(authorization)) = (with_token, &self.authorization) {
                request = request.header("authorization", authorization);
            }
            let mut response = request.call().map_err(|error| Fault::Transport(Box::new(error)))?;
            let headers = response.headers();
            let leads = response.status().is_redirection() && !is_enough(headers);
            let Some(next) = text(headers, "location").filter(|_| leads) else {
                return Ok((response, n_redirects > 0));
            };
            let next = absolute(&url, next).ok_or(Fault::NotAHub("usable redirect"))?;
            drop(response.body_mut().with_config().limit(MAX_REDIRECT_BODY).read_to_vec());
            with_token &= authority(&next) == authority(&url);
            url = next;
        }
        Err(Fault::Transport(Box::new(ureq::Error::TooManyRedirects)))
    }

    /// The bytes `range` of the file at `url`, which has `size` bytes. With `validator` only of that content.
    ///
    /// # Errors
    /// [`Fault`]; [`Fault::NoRanges`] if the file would come from its start although `range` is behind it.
    pub(super) fn bytes(
        &self,
        url: &str,
        range: &Range<u64>,
        size: u64,
        validator: Option<&str>,
    ) -> Result<Piece, Fault> {
        let request = |url: &str| {
            let request = self.agent.get(url).header("accept-encoding", "identity");
            // A file of no bytes has no range.
            if range.is_empty() {
                return request;
            }
            let request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
            match validator {
                Some(validator) => request.header("if-range", validator),
                None => request,
            }
        };
        let (response, redirected) = self.follow(url, request, |_| false)?;
        let found = validator_of(response.headers());
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let len = check_range(response.headers(), range, size)?;
                Ok(Piece {
                    body: response.into_body(),
                    len,
                    validator: found,
                })
            }
            StatusCode::OK => {
                if let (Some(expected), Some(found)) = (validator, &found)
                    && expected != found
                {
                    return Err(changed(
                        format!("had the content {expected}"),
                        format!("now has {found}"),
                    ));
                }
                let length = text(response.headers(), "content-length").and_then(|length| length.parse().ok());
                if let Some(length) = length.filter(|length: &u64| *length != size) {
                    return Err(sizes(size, length));
                }
                if range.start > 0 {
                    return Err(Fault::NoRanges);
                }
                Ok(Piece {
                    body: response.into_body(),
                    len: range.end,
                    validator: found,
                })
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Err(changed(
                format!("said that the file has {size} bytes"),
                format!("has none at {}", range.start),
            )),
            _ => Err(refusal(&response, redirected)),
        }
    }
}

impl Piece {
    /// Hands the bytes to `sink` as they come, and returns how many came; fewer than `len` if the connection broke.
    ///
    /// # Errors
    /// [`Fault::Cut`], and whatever `sink` returns.
    pub(super) fn read(self, mut sink: impl FnMut(&[u8]) -> Result<(), Fault>) -> Result<(), Fault> {
        let mut reader = self.body.into_reader().take(self.len);
        let mut left = self.len;
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            match reader.read(&mut buffer) {
                Ok(0) => return Err(Fault::Cut(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    sink(&buffer[..n])?;
                    left -= n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Cut(error)),
            }
        }
        Ok(())
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn remote(headers: &HeaderMap) -> Result<Remote, Fault> {
    let commit = text(headers, "x-repo-commit").ok_or(Fault::NotAHub("X-Repo-Commit"))?;
    if !super::is_plain(commit) {
        return Err(Fault::NotAHub("usable X-Repo-Commit"));
    }
    let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
    let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
    // It becomes a file name.
    let etag = etag.filter(|etag| super::is_plain(etag) && etag.len() <= 200);
    let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
    Ok(Remote {
        commit: commit.to_owned(),
        etag: etag.ok_or(Fault::NotAHub("usable ETag"))?.to_owned(),
        size: size
            .and_then(|size| size.parse().ok())
            .filter(|size| *size <= MAX_SIZE)
            .ok_or(Fault::NotAHub("usable size"))?,
    })
}

/// Weak tags promise too little for putting ranges together.
fn validator_of(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, "etag")?;
    (etag.starts_with('"')).then(|| etag.to_owned())
}

fn refusal(response: &Response<Body>, redirected: bool) -> Fault {
    let headers = response.headers();
    let seconds = text(headers, "retry-after").and_then(|seconds| seconds.parse().ok());
    Fault::Status {
        status: response.status().as_u16(),
        code: text(headers, "x-error-code").map(str::to_owned),
        retry_after: seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER)),
        redirected,
    }
}

/// Bytes of an answer with a part of a file, once it is clear that it is a part that was asked for.
fn check_range(headers: &HeaderMap, asked: &Range<u64>, size: u64) -> Result<u64, Fault> {
    let range = text(headers, "content-range").ok_or(Fault::NotAHub("Content-Range"))?;
    let parsed = range.strip_prefix("bytes ").and_then(|range| {
        let (range, total) = range.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total))
    });
    let (first, last, total) = parsed.ok_or(Fault::NotAHub("usable Content-Range"))?;
    if let Some(total) = total.parse().ok().filter(|total: &u64| *total != size) {
        return Err(sizes(size, total));
    }
    if first != asked.start || last < first || last >= asked.end {
        return Err(changed(
            format!(
                "was asked for the bytes {}-{}",
                asked.start,
                asked.end.saturating_sub(1)
            ),
            format!("sends {first}-{last}"),
        ));
    }
    Ok(last + 1 - first)
}

fn sizes(said: u64, sent: u64) -> Fault {
    changed(
        format!("said that the file has {said} bytes"),
        format!("sends one of {sent}"),
    )
}

fn changed(said: String, sent: String) -> Fault {
    Fault::Changed { said, sent }
}

fn authority(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

/// Where a `Location` of `base` leads.
fn absolute(base: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let host = authority(base)?;
    if let Some(elsewhere) = location.strip_prefix("//") {
        let (scheme, _) = host.split_once("://")?;
        return Some(format!("{scheme}://{elsewhere}"));
    }
    let path = location.strip_prefix('/')?;
    Some(format!("{host}/{path}"))
}
