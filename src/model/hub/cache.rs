//! Where things lie in the cache. Whole files lie as `huggingface_hub` lays them out, so that every tool finds them;
//! what only we understand lies beside, in the folder `sepal` of each repository:
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
//! CACHE/blocks.lock                                           taken by whoever reads (shared) or deletes (exclusively)
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{http::Remote, is_revision};

/// One repository in the cache.
#[derive(Clone, Debug)]
pub(super) struct RepoFolder {
    cache: PathBuf,
    folder: String,
}

/// What a file is on the hub, kept so that its pieces can be found without asking again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Source {
    pub(super) etag: String,
    pub(super) size: u64,
}

impl RepoFolder {
    pub(super) fn new(cache: &Path, name: &str) -> Self {
        Self {
            cache: cache.to_owned(),
            folder: format!("models--{}", name.replace('/', "--")),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.cache.join(&self.folder)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.path().join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.path().join("blobs").join(etag)
    }

    /// Where the content grows: other tools take what lies among the blobs for its beginning without holes.
    pub(super) fn blob_workplace(&self, etag: &str) -> PathBuf {
        self.path().join("sepal/whole").join(etag)
    }

    pub(super) fn blob_lock(&self, etag: &str) -> PathBuf {
        self.cache
            .join(".locks")
            .join(&self.folder)
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

    /// A branch or tag is a file with the commit; a commit is the name of a snapshot.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        match fs::read_to_string(self.path().join("refs").join(revision)) {
            Ok(commit) => Some(commit.trim().to_owned()).filter(|commit| is_revision(commit)),
            Err(_) => self.snapshot(revision).is_dir().then(|| revision.to_owned()),
        }
    }

    /// # Errors
    /// The cache cannot be written.
    pub(super) fn remember_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit {
            return fs::create_dir_all(self.snapshot(commit));
        }
        write(&self.path().join("refs").join(revision), commit.as_bytes())
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
        let temporary = beside(&path);
        drop(fs::remove_file(&temporary));
        symlink(&format!("{up}blobs/{etag}"), &self.blob(etag), &temporary)?;
        fs::rename(&temporary, &path)?;
        Ok(path)
    }
}

#[cfg(unix)]
fn symlink(content: &str, _blob: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(content, link)
}

/// Where links need privileges other tools keep the content itself in the snapshot.
#[cfg(not(unix))]
fn symlink(_content: &str, blob: &Path, link: &Path) -> io::Result<()> {
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
