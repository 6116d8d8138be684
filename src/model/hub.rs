//! Model repositories in the Hugging Face cache and on a hub: finds files, downloads what is missing. It does not know
//! what is in them. Every call may wait for the network: not for async tasks.
//!
//! The cache is laid out as `huggingface_hub` does (`refs/`, `snapshots/`, `blobs/`) and shared with it.

mod error;
mod options;

use std::{
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{ApiBuilder, ApiError, ApiRepo},
    },
};
use tracing::info;

pub use self::{error::HubError, options::HubOptions};

/// How often a broken download is resumed before it counts as failed.
const RETRIES: usize = 5;

/// How often to wait for another process that downloads the same file: each time is 5 s (hf-hub tries its lock for that
/// long), so this is an hour, enough for a shard of 5 GB at 1.5 MB/s. The lock of a process that died is free at once.
const MAX_WAITS: usize = 720;

/// The branch that is meant when no revision is named.
const DEFAULT_REVISION: &str = "main";

/// One revision of one repository. Once a file of it was found or downloaded, all others come from the same commit.
#[derive(Clone, Debug)]
pub(crate) struct HubRepo {
    name: String,
    revision: String,
    options: HubOptions,
    /// The commit that `revision` stands for, if the cache or the hub has said so.
    commit: Option<String>,
}

impl HubRepo {
    /// Looks the repository up in the cache; nothing is downloaded yet.
    ///
    /// # Errors
    /// The name, the revision or the endpoint is malformed.
    pub(crate) fn open(name: &str, options: &HubOptions) -> Result<Self, HubError> {
        if !is_repo_name(name) {
            return Err(HubError::Name { name: name.to_owned() });
        }
        let revision = options.revision.clone().unwrap_or_else(|| DEFAULT_REVISION.to_owned());
        if !is_revision(&revision) {
            return Err(HubError::Revision { revision });
        }
        if !options.endpoint.starts_with("https://") && !options.endpoint.starts_with("http://") {
            return Err(HubError::Endpoint {
                endpoint: options.endpoint.clone(),
            });
        }
        let mut repo = Self {
            name: name.to_owned(),
            revision,
            options: options.clone(),
            commit: None,
        };
        repo.commit = repo.cached_commit();
        Ok(repo)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The folder with the files found so far, if any.
    pub(crate) fn snapshot(&self) -> Option<PathBuf> {
        let commit = self.commit.as_ref()?;
        Some(self.folder().join("snapshots").join(commit))
    }

    /// A file of the repository: from the cache, else downloaded.
    ///
    /// # Errors
    /// The repository has no such file, or it cannot be had now.
    pub(crate) fn get(&mut self, file: &str) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cached(file) {
            return Ok(path);
        }
        if self.options.offline {
            return Err(HubError::Offline {
                repo: self.name.clone(),
                file: file.to_owned(),
                cache: self.options.cache.clone(),
            });
        }
        self.download(file)
    }

    /// A file that a repository need not have: `None` if it has not, or if there is no network to ask.
    ///
    /// # Errors
    /// As [`HubRepo::get`] for everything else.
    pub(crate) fn get_optional(&mut self, file: &str) -> Result<Option<PathBuf>, HubError> {
        match self.get(file) {
            Ok(path) => Ok(Some(path)),
            Err(HubError::NotFound { .. } | HubError::Offline { .. }) => Ok(None),
            // What is there is enough to go on with; what was asked for is optional.
            Err(HubError::Unreachable { .. }) if self.commit.is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether [`HubRepo::get`] can do without the network.
    pub(crate) fn is_cached(&self, file: &str) -> bool {
        self.cached(file).is_some()
    }

    /// Whether the repository has the file, in the cache or on the hub; unknown counts as no. Downloads nothing.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.is_cached(file)
            || (!self.options.offline && self.listing().is_ok_and(|files| files.iter().any(|name| name == file)))
    }

    fn listing(&self) -> Result<Vec<String>, ApiError> {
        let files = self.api()?.info()?.siblings;
        Ok(files.into_iter().map(|file| file.rfilename).collect())
    }

    fn cached(&self, file: &str) -> Option<PathBuf> {
        self.snapshot()
            .map(|folder| folder.join(file))
            .filter(|path| path.is_file())
    }

    fn folder(&self) -> PathBuf {
        self.options
            .cache
            .join(format!("models--{}", self.name.replace('/', "--")))
    }

    /// A branch or tag is a file with the commit; a commit is the name of a snapshot.
    fn cached_commit(&self) -> Option<String> {
        let folder = self.folder();
        match fs::read_to_string(folder.join("refs").join(&self.revision)) {
            Ok(commit) => Some(commit.trim().to_owned()).filter(|commit| is_revision(commit)),
            Err(_) => folder
                .join("snapshots")
                .join(&self.revision)
                .is_dir()
                .then(|| self.revision.clone()),
        }
    }

    fn download(&mut self, file: &str) -> Result<PathBuf, HubError> {
        for _ in 0..MAX_WAITS {
            let downloaded = self
                .api()
                .and_then(|api| api.download_with_progress(file, LoggedProgress::default()));
            match downloaded {
                Ok(path) => {
                    if self.commit.is_none() {
                        self.commit = commit_of(&path, &self.folder());
                    }
                    return Ok(path);
                }
                Err(ApiError::LockAcquisition(_)) => info!(file, "another process downloads this file; waiting for it"),
                Err(source) => return Err(HubError::from_api(source, self.request(file))),
            }
            if self.commit.is_none() {
                self.commit = self.cached_commit();
            }
            if let Some(path) = self.cached(file) {
                return Ok(path);
            }
        }
        Err(HubError::Busy {
            repo: self.name.clone(),
            file: file.to_owned(),
        })
    }

    fn api(&self) -> Result<ApiRepo, ApiError> {
        let revision = self.commit.as_ref().unwrap_or(&self.revision).clone();
        let api = ApiBuilder::from_cache(Cache::new(self.options.cache.clone()))
            .with_endpoint(self.options.endpoint.trim_end_matches('/').to_owned())
            .with_token(self.options.token.clone())
            .with_retries(RETRIES)
            .build()?;
        Ok(api.repo(Repo::with_revision(self.name.clone(), RepoType::Model, revision)))
    }

    fn request(&self, file: &str) -> error::Request {
        error::Request {
            repo: self.name.clone(),
            revision: self.revision.clone(),
            file: file.to_owned(),
            endpoint: self.options.endpoint.clone(),
            cache: self.options.cache.clone(),
            with_token: self.options.token.is_some(),
        }
    }
}

/// `…/snapshots/COMMIT/file` → `COMMIT`.
fn commit_of(path: &Path, folder: &Path) -> Option<String> {
    let inside = path.strip_prefix(folder.join("snapshots")).ok()?;
    inside.components().next()?.as_os_str().to_str().map(str::to_owned)
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

/// Tells the log how far a download is, every tenth of it.
#[derive(Debug, Default)]
struct LoggedProgress {
    file: String,
    size: usize,
    done: usize,
    tenths: usize,
}

impl Progress for LoggedProgress {
    /// Called again with the same file when a download is resumed.
    fn init(&mut self, size: usize, filename: &str) {
        if self.file.is_empty() {
            info!(file = filename, bytes = size, "downloading");
        }
        self.file = filename.to_owned();
        self.size = size;
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size;
        let tenths = (self.done * 10).checked_div(self.size).unwrap_or(0);
        if tenths > self.tenths && tenths < 10 {
            self.tenths = tenths;
            info!(file = self.file, percent = tenths * 10, "downloading");
        }
    }

    fn finish(&mut self) {
        info!(file = self.file, "downloaded");
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
