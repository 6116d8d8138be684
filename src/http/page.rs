//! Pages: one file each, sent as it is. Its one style and one script are allowed by their hashes and nothing else is.

use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use super::App;

const MAP: &str = include_str!("page.html");
const CHAT: &str = include_str!("chat.html");

/// A page and what browsers may do with it.
#[derive(Debug)]
pub(crate) struct Page {
    html: &'static str,
    /// The content security policy of every answer.
    pub(crate) policy: HeaderValue,
}

impl Page {
    /// The health map.
    pub(crate) fn map() -> Self {
        Self::of(MAP)
    }

    /// The chat in front of the API.
    pub(crate) fn chat() -> Self {
        Self::of(CHAT)
    }

    fn of(html: &'static str) -> Self {
        let policy = policy(html);
        // A policy of hashes and ASCII words is always a header; without one, forbid all.
        let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Self { html, policy }
    }

    pub(crate) fn response(&self) -> Response {
        ([(header::CACHE_CONTROL, "no-cache")], Html(self.html)).into_response()
    }
}

/// What a browser may do with this page: run its scripts, apply its styles, ask the node that sent it, and show icons
/// that are part of it.
fn policy(html: &str) -> String {
    let hashes = |tag: &str| -> String {
        let found = contents(html, tag).into_iter().map(|content| {
            let hash = STANDARD.encode(Sha256::digest(content));
            format!(" 'sha256-{hash}'")
        });
        found.collect()
    };
    format!(
        "default-src 'none'; script-src{}; style-src{}; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hashes("script"),
        hashes("style"),
    )
}

/// What stands between `<tag>` and `</tag>`, for each tag without attributes.
fn contents<'a>(html: &'a str, tag: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let parts = html.split(open.as_str()).skip(1);
    parts
        .filter_map(|part| Some(part.split_once(close.as_str())?.0))
        .collect()
}

pub(crate) async fn page(State(app): State<App>) -> Response {
    app.page.response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_need_nothing_that_their_policies_forbid() {
        for page in [MAP, CHAT] {
            for tag in ["script", "style"] {
                let tags = page.matches(&format!("<{tag}")).count();
                assert_eq!(
                    contents(page, tag).len(),
                    tags,
                    "a <{tag}> with attributes is not allowed"
                );
                assert_eq!(tags, 1);
            }
            assert!(!page.contains(" style=") && !page.contains(" onclick="));
            assert!(!page.contains("src=\"http") && !page.contains("@import"));
        }
    }

    #[test]
    fn a_script_is_allowed_by_its_hash() {
        let policy = policy("<style>a{}</style><script>alert(1)</script>");
        // openssl dgst -sha256 -binary | base64, of the four and of the eight characters.
        assert!(
            policy.contains("script-src 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"),
            "{policy}"
        );
        assert!(policy.starts_with("default-src 'none'; "));
    }
}
