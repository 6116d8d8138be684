//! Model repositories in the Hugging Face cache and on a hub: finds files, downloads what is missing, and of large
//! weight files only the tensors that are asked for. Every call may wait for the network: not for async tasks.
//!
//! ```text
//! get, weights ──▶ cache (what is here) ──▶ http (one request) ◀── reach (again) ◀── fetch (many: ranges, resumed) ◀── jobs
//!      │                                                                                                                │
//!      └── pieces (which bytes some tensors are), space (room on the disk), lock (other processes), check (hashes) ─────┘
//! ```
//!
//! The cache is laid out as `huggingface_hub` does and shared with it, by `hf_hub`; see `cache`. That crate downloads
//! whole files only, and is not asked to.

mod cache;
mod check;
mod disk;
mod error;
mod fetch;
mod http;
mod jobs;
mod lock;
mod names;
mod options;
mod pieces;
mod progress;
mod reach;
mod space;
mod weights;

use std::{io, path::PathBuf};

use cache::RepoFolder;
use hf_hub::{Repo, RepoType};
use http::{Fault, Http, Remote};
use reach::{Standing, Tries};
use serde::Deserialize;
use tracing::warn;

use self::options::Tuning;
pub use self::{
    disk::{DiskSpace, disk_space},
    error::HubError,
    http::Fault as HubFault,
    options::HubOptions,
    progress::{Download, Progress, Transfer},
};
pub(crate) use self::{
    lock::Lock,
    pieces::Tensors,
    weights::{Lease, Local, Want},
};

/// The branch that is meant when no revision is named.
const DEFAULT_REVISION: &str = "main";
/// Bytes of a list of files: that of thousands of files, with what else the hub says of the repository.
const MAX_LISTING: u64 = 4 << 20;

/// One revision of one repository. Once a file of it was found or downloaded, all others come from the same commit.
#[derive(Clone, Debug)]
pub(crate) struct HubRepo {
    name: String,
    revision: String,
    options: HubOptions,
    folder: RepoFolder,
    http: Http,
    /// The commit that `revision` stands for, if the cache or the hub has said so.
    commit: Option<String>,
}

impl HubRepo {
    /// Looks the repository up in the cache; nothing is downloaded yet.
    ///
    /// # Errors
    /// The name, the revision or the endpoint is malformed.
    pub(crate) fn open(name: &str, options: &HubOptions) -> Result<Self, HubError> {
        let name = names::original(name);
        if !is_repo_name(name) {
            return Err(HubError::Name { name: name.to_owned() });
        }
        let usual = names::pinned_revision(name).unwrap_or(DEFAULT_REVISION);
        let revision = options.revision.clone().unwrap_or_else(|| usual.to_owned());
        if !is_revision(&revision) {
            return Err(HubError::Revision { revision });
        }
        if !options.endpoint.starts_with("https://") && !options.endpoint.starts_with("http://") {
            return Err(HubError::Endpoint {
                endpoint: options.endpoint.clone(),
            });
        }
        let folder = RepoFolder::new(&options.cache, model(name, &revision));
        Ok(Self {
            name: name.to_owned(),
            commit: folder.commit(),
            revision,
            http: Http::new(options),
            folder,
            options: options.clone(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A file of the repository, whole: from the cache, else downloaded.
    ///
    /// # Errors
    /// The repository has no such file, or it cannot be had now.
    pub(crate) fn get(&mut self, file: &str) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cached(file) {
            return Ok(path);
        }
        if self.options.offline {
            return Err(self.offline(file));
        }
        self.download_whole(file)
    }

    /// A file that a repository need not have: `None` if it has not, or if the hub cannot be asked or has that of another
    /// commit. A hub of which nothing is known is asked once, and one that was given up not at all.
    ///
    /// # Errors
    /// As [`HubRepo::get`] for everything else.
    pub(crate) fn get_optional(&mut self, file: &str) -> Result<Option<PathBuf>, HubError> {
        let is_here = self.is_cached(file) || self.is_known_absent(file);
        if self.commit.is_some() && !is_here && !self.options.offline {
            match self.options.reach.standing() {
                Standing::Answers => {}
                Standing::Silent => return Ok(None),
                Standing::Unknown => {
                    // Whatever else was said is remembered, and told below.
                    if let Err(HubError::Unreachable { .. }) = self.describe(file, Tries::Once) {
                        return Ok(None);
                    }
                }
            }
        }
        match self.get_decisive(file) {
            // What is there is enough to go on with; what was asked for is optional.
            Err(HubError::Unreachable { .. }) if self.commit.is_some() => Ok(None),
            Err(error @ HubError::OtherCommit { .. }) => {
                warn!(%error, "going on without this file");
                Ok(None)
            }
            found => found,
        }
    }

    /// A file that a repository need not have, but which says what else it has: `None` if it has not, or if nobody may be
    /// asked.
    ///
    /// # Errors
    /// As [`HubRepo::get`] for everything else.
    pub(crate) fn get_decisive(&mut self, file: &str) -> Result<Option<PathBuf>, HubError> {
        if self.is_known_absent(file) {
            return Ok(None);
        }
        match self.get(file) {
            Ok(path) => Ok(Some(path)),
            Err(HubError::NotFound { .. } | HubError::Offline { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_known_absent(&self, file: &str) -> bool {
        let commit = self.commit.as_ref();
        commit.is_some_and(|commit| self.folder.is_absent(commit, file))
    }

    /// Whether [`HubRepo::get`] can do without the network.
    pub(crate) fn is_cached(&self, file: &str) -> bool {
        self.cached(file).is_some()
    }

    /// Whether the repository has the file, in the cache or on the hub; unknown counts as no. Downloads nothing.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.is_cached(file) || (!self.options.offline && self.http.describe(&self.url(file)).is_ok())
    }

    /// The names of all files, as far as the hub lists them; none without a network. Downloads nothing.
    pub(crate) fn list(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct Listing {
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        if self.options.offline {
            return Vec::new();
        }
        let repo = model(&self.name, self.commit.as_ref().unwrap_or(&self.revision));
        let endpoint = self.options.endpoint.trim_end_matches('/');
        let url = format!("{endpoint}/api/models/{}/revision/{}", self.name, repo.url_revision());
        let listing = self.http.ask(&url, MAX_LISTING).ok();
        let listing: Option<Listing> = listing.and_then(|json| serde_json::from_slice(&json).ok());
        let siblings = listing.map(|listing| listing.siblings).unwrap_or_default();
        siblings.into_iter().map(|sibling| sibling.rfilename).collect()
    }

    fn cached(&self, file: &str) -> Option<PathBuf> {
        self.folder.file(self.commit.as_ref()?, file)
    }

    /// What the hub says of a file. The first answer decides which commit this is about.
    fn describe(&mut self, file: &str, tries: Tries) -> Result<Remote, HubError> {
        let url = self.url(file);
        let described = reach::retrying(
            &url,
            &self.options,
            tries,
            || false,
            || (self.http.describe(&url), false),
        );
        let remote = match described {
            Ok(remote) => remote,
            Err(fault) => {
                let error = self.request(file).failed(fault);
                if let (HubError::NotFound { .. }, Some(commit)) = (&error, &self.commit) {
                    // Not worth a failure: the hub is asked again then.
                    drop(self.folder.remember_absence(commit, file));
                }
                return Err(error);
            }
        };
        match &self.commit {
            None => {
                self.folder
                    .remember_commit(&remote.commit)
                    .map_err(|error| self.request(file).not_written(error))?;
                self.commit = Some(remote.commit.clone());
            }
            // Of a folder filled by hand, which has the name of a branch, or of a mirror that has only the newest commit.
            Some(asked) if *asked != remote.commit => return Err(self.other_commit(file, asked, remote.commit)),
            Some(_) => {}
        }
        Ok(remote)
    }

    fn url(&self, file: &str) -> String {
        let repo = model(&self.name, self.commit.as_ref().unwrap_or(&self.revision));
        let endpoint = self.options.endpoint.trim_end_matches('/');
        format!(
            "{endpoint}/{}/resolve/{}/{}",
            repo.url(),
            repo.url_revision(),
            encoded(file)
        )
    }

    fn offline(&self, file: &str) -> HubError {
        HubError::Offline {
            repo: self.name.clone(),
            file: file.to_owned(),
            cache: self.options.cache.clone(),
        }
    }

    fn other_commit(&self, file: &str, asked: &str, found: String) -> HubError {
        HubError::OtherCommit {
            endpoint: self.options.endpoint.clone(),
            file: file.to_owned(),
            found,
            snapshot: self.folder.snapshot(asked),
        }
    }

    fn request<'a>(&'a self, file: &'a str) -> error::Request<'a> {
        let commit = self.commit.as_deref().filter(|commit| *commit != self.revision);
        error::Request {
            repo: &self.name,
            revision: &self.revision,
            cached: commit.map(|commit| (commit, self.folder.reference())),
            file,
            endpoint: &self.options.endpoint,
            cache: self.options.cache.clone(),
            with_token: self.options.token.is_some(),
        }
    }

    fn failed(&self, file: &str, fault: Fault) -> HubError {
        self.request(file).failed(fault)
    }

    fn not_written(&self, file: &str) -> impl Fn(io::Error) -> HubError {
        move |error| self.request(file).not_written(error)
    }
}

fn model(name: &str, revision: &str) -> Repo {
    Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned())
}

/// A path as part of a URL.
fn encoded(path: &str) -> String {
    let plain = |c: &u8| c.is_ascii_alphanumeric() || b"-_.~/".contains(c);
    path.bytes()
        .map(|c| {
            if plain(&c) {
                char::from(c).to_string()
            } else {
                format!("%{c:02X}")
            }
        })
        .collect()
}

/// `NAME` or `OWNER/NAME` of letters, digits, `-`, `_` and `.`, as the hub allows. Everything that would leave the
/// cache folder or break a URL is refused.
fn is_repo_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|part| is_plain(part))
}

fn is_revision(revision: &str) -> bool {
    revision.split('/').all(is_plain)
}

fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
