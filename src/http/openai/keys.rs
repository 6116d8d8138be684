//! API keys: read from a file, kept as hashes, compared in constant time. It knows no requests and no limits' state.
//!
//! ```text
//! # one key a line, and what it is allowed
//! 0Jv2kq8ZbXn4sT7yLr5w
//! 9f86d081884c7d659a2feaa0 name=alice requests_per_minute=60 concurrent=4
//! ```
//!
//! What a line holds is never shown: errors name the line by its number.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::watch;

use super::limits::Quota;
use crate::task::Tasks;

/// Fewer characters could be guessed.
const MIN_KEY_CHARACTERS: usize = 16;
/// Larger files are no lists of keys, and are not read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// How often a change of the file is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Hash = [u8; 32];

/// Why there are no keys.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file is not there, or cannot be read.
    #[error("cannot read the API keys in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Whoever else uses this machine could read them.
    #[error("others can read the API keys in {path} (mode {mode:04o}): chmod 600 {path}", path = path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not a list of keys.
    #[error("{}, line {line}: {wrong}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, without a word of the line.
        wrong: &'static str,
    },
    /// A list without keys lets nobody in.
    #[error("{} has no keys: write one a line, such as what `openssl rand -hex 24` prints", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Who a key belongs to, and what it is allowed. The key itself is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// For logs: the name beside the key, else the number of its line.
    pub(crate) name: Arc<str>,
    /// What is said of limits beside the key.
    pub(crate) quota: Quota,
}

/// All keys of a file.
#[derive(Debug, Default)]
pub(crate) struct Keys(Vec<(Hash, Holder)>);

impl Keys {
    /// Reads lines of a key and `name=…`, `requests_per_minute=…`, `concurrent=…`.
    ///
    /// # Errors
    /// The number of a line that is none, from 1, and what is wrong with it.
    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut keys = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (hash, holder) = entry(line, number).map_err(|wrong| (number, wrong))?;
            if keys.0.iter().any(|(known, _)| *known == hash) {
                return Err((number, "this key stands in a line before"));
            }
            if keys.0.iter().any(|(_, known)| known.name == holder.name) {
                return Err((number, "this name stands in a line before"));
            }
            keys.0.push((hash, holder));
        }
        Ok(keys)
    }

    /// Whose key this is. The time it takes does not depend on the key, only on how many there are.
    pub(crate) fn holder(&self, presented: &str) -> Option<Holder> {
        let hash = hash(presented);
        let mut found = None;
        for (at, (known, _)) in self.0.iter().enumerate() {
            if equal(known, &hash) {
                found = Some(at);
            }
        }
        found.map(|at| self.0[at].1.clone())
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

fn entry(line: &str, number: usize) -> Result<(Hash, Holder), &'static str> {
    let mut words = line.split_whitespace();
    let key = words.next().unwrap_or_default();
    if key.len() < MIN_KEY_CHARACTERS {
        return Err("a key needs 16 characters at least, or it could be guessed");
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a key is made of letters, digits and signs of ASCII");
    }
    let mut holder = Holder {
        name: number.to_string().into(),
        quota: Quota::default(),
    };
    for word in words {
        let (name, value) = word
            .split_once('=')
            .ok_or("after the key only name=…, requests_per_minute=… and concurrent=… are known")?;
        match name {
            "name" if !value.is_empty() => holder.name = value.into(),
            "requests_per_minute" => holder.quota.requests_per_minute = Some(limit(value)?),
            "concurrent" => holder.quota.concurrent = Some(limit(value)?),
            "name" => return Err("the name is empty"),
            _ => return Err("after the key only name=…, requests_per_minute=… and concurrent=… are known"),
        }
    }
    Ok((hash(key), holder))
}

fn limit(text: &str) -> Result<u32, &'static str> {
    let limit = text.parse().ok().filter(|limit| *limit > 0);
    limit.ok_or("a limit is a whole number from 1")
}

fn hash(key: &str) -> Hash {
    Sha256::digest(key).into()
}

/// Looks at every byte, wherever the first difference is.
fn equal(a: &Hash, b: &Hash) -> bool {
    let different = a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b));
    std::hint::black_box(different) == 0
}

/// The keys of a file, as they are now. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct KeyFile {
    keys: watch::Receiver<Arc<Keys>>,
}

impl KeyFile {
    /// Reads the keys, and reads them again whenever the file changes until `tasks` are stopped. A change that cannot be
    /// used changes nothing, and is said in the log.
    ///
    /// # Errors
    /// The file cannot be read or is readable for others, or holds something else than keys.
    pub(crate) fn open(path: PathBuf, tasks: &Tasks) -> Result<Self, KeysError> {
        let (keys, mut seen) = load(&path)?;
        let (sender, receiver) = watch::channel(Arc::new(keys));
        tasks.spawn_until_stopped("API keys", async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                seen = look(&path, seen, &sender);
            }
        });
        Ok(Self { keys: receiver })
    }

    /// As of now.
    pub(crate) fn keys(&self) -> Arc<Keys> {
        self.keys.borrow().clone()
    }
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    bytes: u64,
    modified: Option<SystemTime>,
    mode: u32,
}

impl Version {
    fn of(path: &Path) -> Option<Self> {
        Some(Self::from(&path.metadata().ok()?))
    }

    /// Whether only the owner may read it.
    fn is_private(self) -> bool {
        self.mode & 0o077 == 0
    }
}

impl From<&std::fs::Metadata> for Version {
    fn from(metadata: &std::fs::Metadata) -> Self {
        #[cfg(unix)]
        let mode = std::os::unix::fs::MetadataExt::mode(metadata) & 0o7777;
        #[cfg(not(unix))]
        let mode = 0;
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            mode,
        }
    }
}

/// Reads the file if it is not as it was `seen`; what it is now.
fn look(path: &Path, seen: Option<Version>, keys: &watch::Sender<Arc<Keys>>) -> Option<Version> {
    let now = Version::of(path);
    if now == seen {
        return seen;
    }
    match load(path) {
        Ok((read, version)) => {
            tracing::info!(path = %path.display(), keys = read.len(), "API keys read again");
            keys.send_replace(Arc::new(read));
            version
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the API keys stay as they were");
            now
        }
    }
}

fn load(path: &Path) -> Result<(Keys, Option<Version>), KeysError> {
    let path = path.to_owned();
    let read = || -> io::Result<(String, Version)> {
        let file = File::open(&path)?;
        let version = Version::from(&file.metadata()?);
        refuse_too_large(version.bytes)?;
        let mut text = String::new();
        // It may have grown since.
        let bytes = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
        refuse_too_large(bytes as u64)?;
        Ok((text, version))
    };
    let (text, version) = match read() {
        Ok(read) => read,
        Err(source) => return Err(KeysError::Read { path, source }),
    };
    if !version.is_private() {
        let mode = version.mode;
        return Err(KeysError::Readable { path, mode });
    }
    match Keys::parse(&text) {
        Ok(keys) if keys.len() == 0 => Err(KeysError::Empty { path }),
        Ok(keys) => Ok((keys, Some(version))),
        Err((line, wrong)) => Err(KeysError::Line { path, line, wrong }),
    }
}

/// A part of a file would be a list without its end, and the last line of it perhaps a key that is none.
fn refuse_too_large(bytes: u64) -> io::Result<()> {
    if bytes <= MAX_FILE_BYTES {
        return Ok(());
    }
    let why = format!("it has {bytes} bytes, lists of keys have {MAX_FILE_BYTES} at most: remove what is not needed");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, why))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ONE: &str = "0123456789abcdef";
    const TWO: &str = "0123456789abcdeg";

    fn written(folder: &Path, text: &str, mode: u32) -> PathBuf {
        let path = folder.join("keys");
        fs::write(&path, text).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        path
    }

    #[test]
    fn a_key_is_known_by_every_character() {
        let keys = Keys::parse(&format!("# ours\n\n  {ONE}  \n{TWO} name=alice\n")).unwrap();
        assert_eq!(&*keys.holder(ONE).unwrap().name, "3");
        assert_eq!(&*keys.holder(TWO).unwrap().name, "alice");
        for wrong in ["", "0123456789abcde", "0123456789abcdef ", "0123456789abcdeF", "# ours"] {
            assert_eq!(keys.holder(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_a_key_is_allowed_stands_beside_it() {
        let keys = Keys::parse(&format!("{ONE} concurrent=4 name=bob requests_per_minute=60\n{TWO}")).unwrap();
        let quota = Quota {
            requests_per_minute: Some(60),
            concurrent: Some(4),
        };
        assert_eq!(keys.holder(ONE).unwrap().quota, quota);
        assert_eq!(keys.holder(TWO).unwrap().quota, Quota::default());
    }

    #[test]
    fn a_line_that_is_no_key_is_named_by_its_number_and_not_shown() {
        for line in [
            "short",
            "0123456789abcdeé",
            "0123456789abcdefg secret",
            "0123456789abcdefg name=",
            "0123456789abcdefg name=known",
            "0123456789abcdefg concurrent=0",
            "0123456789abcdefg concurrent=-1",
            "0123456789abcdefg requests_per_minute=many",
            "0123456789abcdefg tokens=3",
            ONE,
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = written(folder.path(), &format!("{ONE} name=known\n\n{line}\n"), 0o600);
            let error = load(&path).unwrap_err();
            assert!(matches!(error, KeysError::Line { line: 3, .. }), "{error:?}");
            let said = format!("{error:?} {error}");
            assert!(!said.contains("0123") && !said.contains("short"), "{said}");
        }
    }

    #[test]
    fn keys_and_their_hashes_are_in_no_message() {
        let keys = Keys::parse(ONE).unwrap();
        let said = format!("{:?}", keys.holder(ONE));
        assert!(!said.contains(ONE), "{said}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o644, 0o640, 0o604] {
            let error = load(&written(folder.path(), ONE, mode)).unwrap_err().to_string();
            assert!(
                error.contains("chmod 600") && error.contains(&format!("{mode:04o}")),
                "{error}"
            );
        }
        for mode in [0o600, 0o400] {
            fs::remove_file(folder.path().join("keys")).unwrap();
            assert_eq!(load(&written(folder.path(), ONE, mode)).unwrap().0.len(), 1);
        }
    }

    #[test]
    fn a_file_without_keys_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = load(&written(folder.path(), "# none yet\n", 0o600)).unwrap_err();
        assert!(matches!(error, KeysError::Empty { .. }), "{error:?}");
        let error = load(&folder.path().join("nowhere")).unwrap_err();
        assert!(matches!(error, KeysError::Read { .. }), "{error:?}");
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_and_not_cut() {
        let folder = tempfile::tempdir().unwrap();
        let key = format!("\n{ONE}");
        let fitting = "#".repeat(MAX_FILE_BYTES as usize - key.len()) + &key;
        let (keys, _) = load(&written(folder.path(), &fitting, 0o600)).unwrap();
        assert!(keys.holder(ONE).is_some());
        let error = load(&written(folder.path(), &format!("{fitting}0"), 0o600)).unwrap_err();
        let KeysError::Read { source, .. } = error else {
            panic!("it is no matter of lines");
        };
        assert_eq!(source.kind(), io::ErrorKind::FileTooLarge);
        assert!(source.to_string().starts_with("it has 1048577 bytes"), "{source}");
    }

    #[test]
    fn a_changed_file_counts_and_a_wrong_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), ONE, 0o600);
        let (keys, seen) = load(&path).unwrap();
        let (sender, receiver) = watch::channel(Arc::new(keys));
        let knows = |key| receiver.borrow().holder(key).is_some();
        fs::write(&path, "too short").unwrap();
        let seen = look(&path, seen, &sender);
        assert!(knows(ONE));
        assert_eq!(look(&path, seen, &sender), seen, "it is complained of once");
        fs::write(&path, format!("{TWO} name=alice\n")).unwrap();
        let seen = look(&path, seen, &sender);
        assert!(knows(TWO) && !knows(ONE));
        fs::remove_file(&path).unwrap();
        look(&path, seen, &sender);
        assert!(knows(TWO));
    }
}
