//! Why a file of a repository cannot be had, by what the user can do about it.

use std::{io, path::PathBuf};

use hf_hub::api::sync::ApiError;
use thiserror::Error;

/// A repository or one of its files is not available. Each text names what to change.
#[derive(Debug, Error)]
pub enum HubError {
    /// Not `NAME` or `OWNER/NAME`.
    #[error("\"{name}\" is neither a folder nor the name of a hub repository (OWNER/NAME)")]
    Name {
        /// As given.
        name: String,
    },
    /// Not a branch, tag or commit.
    #[error("\"{revision}\" is not a revision (a branch, tag or commit)")]
    Revision {
        /// As given.
        revision: String,
    },
    /// Not a web address.
    #[error("HF_ENDPOINT \"{endpoint}\" does not start with http:// or https://")]
    Endpoint {
        /// As given.
        endpoint: String,
    },
    /// The cache lacks the file, and nothing may be downloaded.
    #[error("{file} of {repo} is not in the cache {} and HF_HUB_OFFLINE forbids to download it", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
        /// The cache searched.
        cache: PathBuf,
    },
    /// The hub has no such repository, revision or file.
    #[error("{endpoint} has no {file} in {repo} at revision {revision}")]
    NotFound {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
        /// As asked for.
        revision: String,
        /// The file in it.
        file: String,
    },
    /// The hub wants to know who asks. It answers so for repositories that do not exist, too.
    #[error("{endpoint} does not show {repo} without a token: if it exists, it is gated or private; set HF_TOKEN")]
    TokenNeeded {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
    },
    /// The hub knows who asks and refuses.
    #[error("{endpoint} does not show {repo} to the owner of this HF_TOKEN: accept its terms, or check the name")]
    TokenRefused {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
    },
    /// The hub cannot be reached, or broke off.
    #[error("cannot download {file} of {repo} from {endpoint}")]
    Unreachable {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
        /// Why.
        #[source]
        source: ApiError,
    },
    /// Another process has been downloading it for very long.
    #[error("another process has been downloading {file} of {repo} for an hour: wait for it, or end it and try again")]
    Busy {
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
    },
    /// No space left.
    #[error("the disk that holds {} is full: free some space, or set HF_HUB_CACHE to a folder on another", cache.display())]
    DiskFull {
        /// The cache.
        cache: PathBuf,
        /// Why.
        #[source]
        source: ApiError,
    },
    /// The cache cannot be written to for another reason.
    #[error("cannot write {file} of {repo} to the cache {}", cache.display())]
    Cache {
        /// The cache.
        cache: PathBuf,
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
        /// Why.
        #[source]
        source: ApiError,
    },
}

/// What was asked for when an error came back.
pub(super) struct Request {
    pub(super) repo: String,
    pub(super) revision: String,
    pub(super) file: String,
    pub(super) endpoint: String,
    pub(super) cache: PathBuf,
    pub(super) with_token: bool,
}

impl HubError {
    pub(super) fn from_api(source: ApiError, request: Request) -> Self {
        let Request {
            repo,
            revision,
            file,
            endpoint,
            cache,
            with_token,
        } = request;
        match (status(&source), io_kind(&source)) {
            (Some(401 | 403), _) if with_token => Self::TokenRefused { endpoint, repo },
            (Some(401 | 403), _) => Self::TokenNeeded { endpoint, repo },
            (Some(404), _) => Self::NotFound {
                endpoint,
                repo,
                revision,
                file,
            },
            (_, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) => Self::DiskFull { cache, source },
            (_, Some(_)) if is_local(&source) => Self::Cache {
                cache,
                repo,
                file,
                source,
            },
            _ => Self::Unreachable {
                endpoint,
                repo,
                file,
                source,
            },
        }
    }
}

/// The HTTP status that the hub refused with.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(request) => match **request {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(last) => status(last),
        _ => None,
    }
}

fn io_kind(error: &ApiError) -> Option<io::ErrorKind> {
    match error {
        ApiError::IoError(source) => Some(source.kind()),
        ApiError::TooManyRetries(last) => io_kind(last),
        _ => None,
    }
}

/// Errors of the operating system come from files of the cache, except those that only sockets have. Errors of the HTTP
/// client arrive wrapped in `RequestError`, those of a body that breaks off as plain I/O errors.
fn is_local(error: &ApiError) -> bool {
    matches!(
        io_kind(error),
        Some(
            io::ErrorKind::PermissionDenied
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::NotFound
        )
    )
}
