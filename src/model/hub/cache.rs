//! Where things lie in the cache. Whole files lie where `hf_hub` says, as every tool has them; what only we understand
//! lies beside, in the folder `sepal` of each repository, and links are made so that nobody sees half of one:
//!
//! ```text
//! CACHE/models--OWNER--NAME/refs/main                        the commit that main was
//!                          /blobs/ETAG                        content of a file
//!                          /snapshots/COMMIT/FILE             link to its content
//!                          /.no_exist/COMMIT/FILE             empty: the hub has no such file
//!                          /sepal/sources/COMMIT/FILE         which content the file has on the hub (JSON)
//!                          /sepal/whole/ETAG.incomplete       content that is being downloaded
//!                          /sepal/pieces/ETAG/block-3.safetensors     the tensors of one block, of a file that is not here
//! CACHE/.locks/models--OWNER--NAME/ETAG.lock                  taken by whoever downloads the content
//! CACHE/.locks/room.lock                                      taken by whoever begins downloads, until there is room for them
//! CACHE/blocks.lock                                           taken by whoever reads (shared) or deletes (exclusively)
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, CacheRepo, Repo};
use serde::{Deserialize, Serialize};

use super::http::Remote;

/// One revision of one repository in the cache.
#[derive(Clone, Debug)]
pub(super) struct RepoFolder {
    cache: Cache,
    repo: Repo,
}

/// What a file is on the hub, kept so that its pieces can be found without asking again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Source {
    pub(super) etag: String,
    pub(super) size: u64,
}

impl RepoFolder {
    pub(super) fn new(cache: &Path, repo: Repo) -> Self {
        Self {
            cache: Cache::new(cache.to_owned()),
            repo,
        }
    }

    fn repo(&self) -> CacheRepo {
        self.cache.repo(self.repo.clone())
    }

    fn path(&self) -> PathBuf {
        self.cache.path().join(self.repo.folder_name())
    }

    /// Where the files of a commit are.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo().pointer_path(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.repo().blob_path(etag)
    }

    /// Where the content grows: other tools take what lies among the blobs for its beginning without holes.
    pub(super) fn blob_workplace(&self, etag: &str) -> PathBuf {
        self.path().join("sepal/whole").join(etag)
    }

    pub(super) fn blob_lock(&self, etag: &str) -> PathBuf {
        self.cache
            .path()
            .join(".locks")
            .join(self.repo.folder_name())
            .join(format!("{etag}.lock"))
    }

    pub(super) fn piece(&self, etag: &str, group: &str) -> PathBuf {
        self.path()
            .join("sepal/pieces")
            .join(etag)
            .join(format!("{group}.safetensors"))
    }

    fn source_path(&self, commit: &str, file: &str) -> PathBuf {
        self.path().join("sepal/sources").join(commit).join(file)
    }

    /// What is known of a file that is not here as a whole.
    pub(super) fn source(&self, commit: &str, file: &str) -> Option<Source> {
        let source: Source = serde_json::from_slice(&fs::read(self.source_path(commit, file)).ok()?).ok()?;
        super::is_plain(&source.etag).then_some(source)
    }

    /// # Errors
    /// The cache cannot be written.
    pub(super) fn remember_source(&self, remote: &Remote, file: &str) -> io::Result<()> {
        let source = Source {
            etag: remote.etag.clone(),
            size: remote.size,
        };
        write(&self.source_path(&remote.commit, file), &serde_json::to_vec(&source)?)
    }

    /// The commit that the revision stands for: a branch or tag names a snapshot, a commit is the name of one.
    pub(super) fn commit(&self) -> Option<String> {
        let (repo, revision) = (self.repo(), self.repo.revision());
        // The file of no name is the snapshot itself.
        let named = repo.get("").and_then(|snapshot| {
            let commit = snapshot.file_name()?.to_str()?.to_owned();
            // Somebody may be writing the name just now, or have written another path.
            (super::is_plain(&commit) && repo.pointer_path(&commit) == snapshot).then_some(commit)
        });
        named.or_else(|| self.snapshot(revision).is_dir().then(|| revision.to_owned()))
    }

    /// The file that says which commit the revision stands for.
    pub(super) fn reference(&self) -> PathBuf {
        self.path().join("refs").join(self.repo.revision())
    }

    /// # Errors
    /// The cache cannot be written.
    pub(super) fn remember_commit(&self, commit: &str) -> io::Result<()> {
        fs::create_dir_all(self.snapshot(commit))?;
        if self.repo.revision() == commit {
            return Ok(());
        }
        self.repo().create_ref(commit)
    }

    fn absence(&self, commit: &str, file: &str) -> PathBuf {
        self.path().join(".no_exist").join(commit).join(file)
    }

    pub(super) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absence(commit, file).is_file()
    }

    /// # Errors
    /// The cache cannot be written.
    pub(super) fn remember_absence(&self, commit: &str, file: &str) -> io::Result<()> {
        write(&self.absence(commit, file), b"")
    }

    /// The file in the snapshot, if its content is there.
    pub(super) fn file(&self, commit: &str, file: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit).join(file)).filter(|path| path.is_file())
    }

    /// Lets the file of the snapshot be the content `etag`, which is there.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> io::Result<PathBuf> {
        let path = self.snapshot(commit).join(file);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // From the folder of the link up to the repository's.
        let up = "../".repeat(2 + file.matches('/').count());
        let blob = self.blob(etag);
        let content = blob.strip_prefix(self.path()).unwrap_or(&blob);
        let temporary = beside(&path);
        drop(fs::remove_file(&temporary));
        symlink(&Path::new(&up).join(content), &blob, &temporary)?;
        fs::rename(&temporary, &path)?;
        Ok(path)
    }
}

#[cfg(unix)]
fn symlink(content: &Path, _blob: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(content, link)
}

/// Where links need privileges other tools keep the content itself in the snapshot.
#[cfg(not(unix))]
fn symlink(_content: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::rename(blob, link)
}

/// Writes a small file so that nobody ever sees half of it.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = beside(path);
    fs::write(&temporary, content)?;
    fs::rename(temporary, path)
}

/// A name of this process in the same folder.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.{:?}.new", std::process::id(), std::thread::current().id()));
    PathBuf::from(name)
}
