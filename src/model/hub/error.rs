//! Why a file of a repository cannot be had, by what the user can do about it.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::http::Fault;
use crate::model::ByteSize;

/// A repository or one of its files is not available. Each text names what to change.
#[derive(Debug, Error)]
pub enum HubError {
    /// Not `NAME` or `OWNER/NAME`.
    #[error("\"{name}\" is neither a folder nor a GGUF file nor the name of a hub repository (OWNER/NAME)")]
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
    /// The hub has no such file, or does not say what it lacks.
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
    /// The cache has one commit, and the hub gives files of another.
    #[error(
        "{file} is not in {}, and {endpoint} gives that of commit {found} instead: put it there, or move this folder away to \
         download all of {found}",
        snapshot.display()
    )]
    OtherCommit {
        /// The hub asked.
        endpoint: String,
        /// The file in the repository.
        file: String,
        /// The commit that the hub's file is of.
        found: String,
        /// Where the cache has the files of its commit, by whose name this ends.
        snapshot: PathBuf,
    },
    /// The hub has the repository, but no such branch, tag or commit.
    #[error("{repo} on {endpoint} has no revision {revision}: give --revision a branch, tag or commit that it has")]
    NoRevision {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
        /// As asked for.
        revision: String,
    },
    /// The hub has not, or not any more, the commit that the cache has for the revision.
    #[error(
        "{repo} on {endpoint} has no commit {commit}, the one in {}: delete that file to have the hub name one that it has",
        reference.display()
    )]
    NoCommit {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
        /// What the cache has for the revision.
        commit: String,
        /// The file of the cache that says so, named after the revision.
        reference: PathBuf,
    },
    /// The hub has no such repository.
    #[error("{endpoint} has no repository {repo}: check the name")]
    NoRepository {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
    },
    /// The hub wants to know who asks. It answers so for repositories that do not exist, too.
    #[error("{endpoint} does not show {repo} without a token: if it exists, it is gated or private; set HF_TOKEN")]
    TokenNeeded {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
    },
    /// The repository is for those who accepted its terms.
    #[error(
        "{repo} is gated: accept its terms at {endpoint}/{repo} with the account that HF_TOKEN belongs to, and try again"
    )]
    Gated {
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
    #[error("cannot download {file} of {repo} from {endpoint}; what has come is kept, try again later")]
    Unreachable {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
        /// Why.
        #[source]
        source: Box<Fault>,
    },
    /// The hub contradicts itself, every time.
    #[error("{endpoint} does not deliver {file} of {repo} as it describes it: the file is damaged there")]
    Inconsistent {
        /// The hub asked.
        endpoint: String,
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
        /// Why.
        #[source]
        source: Box<Fault>,
    },
    /// Another process uses the cache and does not get on.
    #[error("another process is busy with {} and has got nowhere for an hour: end it, and try again", what.display())]
    Busy {
        /// What it locks.
        what: PathBuf,
    },
    /// Not enough room for what is to be downloaded.
    #[error("{repo} needs {} more in {}, {}", ByteSize(*need), cache.display(), room(*free, *limit, *used))]
    NoRoom {
        /// The repository.
        repo: String,
        /// The cache.
        cache: PathBuf,
        /// Bytes to be downloaded.
        need: u64,
        /// Bytes that the disk can give, if that is known.
        free: Option<u64>,
        /// Bytes that the cache may take.
        limit: Option<u64>,
        /// Bytes that it takes.
        used: u64,
    },
    /// No space left.
    #[error("the disk that holds {} is full: free some space, or set HF_HUB_CACHE to a folder on another", cache.display())]
    DiskFull {
        /// The cache.
        cache: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
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
        source: io::Error,
    },
}

/// What is in the way, and the way out.
fn room(free: Option<u64>, limit: Option<u64>, used: u64) -> String {
    match (free, limit) {
        (free, Some(limit)) if free.is_none_or(|free| limit.saturating_sub(used) <= free) => format!(
            "but --max-disk-space allows {}, {} are taken, and files in use are not deleted: give a larger one",
            ByteSize(limit),
            ByteSize(used)
        ),
        (Some(free), _) => format!(
            "but the disk has {} beside the GiB that stays free: free some space, or set HF_HUB_CACHE to a folder on a \
             larger disk",
            ByteSize(free)
        ),
        (None, _) => "but there is no room".to_owned(),
    }
}

/// What was asked for when an error came back.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    /// What the cache has for the revision if that is something else, and the file of it that says so.
    pub(super) cached: Option<(&'a str, PathBuf)>,
    pub(super) file: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) cache: PathBuf,
    pub(super) with_token: bool,
}

impl Request<'_> {
    pub(super) fn failed(self, source: Fault) -> HubError {
        let (endpoint, repo) = (self.endpoint.to_owned(), self.repo.to_owned());
        let (revision, file) = (self.revision.to_owned(), self.file.to_owned());
        match source {
            Fault::Status {
                status: status @ (401 | 403 | 404 | 410),
                code,
                redirected: false,
                ..
            } => match (status, code.as_deref()) {
                (_, Some("GatedRepo")) if self.with_token => HubError::Gated { endpoint, repo },
                (401 | 403, _) if self.with_token => HubError::TokenRefused { endpoint, repo },
                (401 | 403, _) => HubError::TokenNeeded { endpoint, repo },
                (_, Some("RepoNotFound")) => HubError::NoRepository { endpoint, repo },
                (_, Some("RevisionNotFound")) => match self.cached {
                    Some((commit, reference)) => HubError::NoCommit {
                        endpoint,
                        repo,
                        commit: commit.to_owned(),
                        reference,
                    },
                    None => HubError::NoRevision {
                        endpoint,
                        repo,
                        revision,
                    },
                },
                _ => HubError::NotFound {
                    endpoint,
                    repo,
                    revision,
                    file,
                },
            },
            Fault::Disk(source) => self.not_written(source),
            source @ (Fault::Changed { .. } | Fault::NoRanges) => HubError::Inconsistent {
                endpoint,
                repo,
                file,
                source: Box::new(source),
            },
            source => HubError::Unreachable {
                endpoint,
                repo,
                file,
                source: Box::new(source),
            },
        }
    }

    pub(super) fn not_written(self, source: io::Error) -> HubError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => HubError::DiskFull {
                cache: self.cache,
                source,
            },
            io::ErrorKind::TimedOut => HubError::Busy { what: self.cache },
            _ => HubError::Cache {
                cache: self.cache,
                repo: self.repo.to_owned(),
                file: self.file.to_owned(),
                source,
            },
        }
    }
}
