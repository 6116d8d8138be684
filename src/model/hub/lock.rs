//! Locks between processes that share a cache. They are advisory (`flock` on Unix, as `huggingface_hub` and Petals take
//! them) and end with the process that holds them.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::Path,
    thread,
    time::Duration,
};

/// How often a lock that somebody else holds is tried.
const POLL: Duration = Duration::from_millis(200);
/// How long: enough for a shard of 5 GB at 1.5 MB/s.
const MAX_POLLS: u32 = 5 * 3600;

/// Held until dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "closing the file ends the lock")] File);

impl Lock {
    /// `None` if somebody uses or writes the thing.
    ///
    /// # Errors
    /// The lock file cannot be created.
    pub(super) fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        held(file.try_lock(), file)
    }

    /// `None` if somebody writes the thing.
    ///
    /// # Errors
    /// The lock file cannot be created.
    pub(super) fn try_shared(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        held(file.try_lock_shared(), file)
    }
}

/// Tries until something is there or an hour has passed; `waiting` is called once if it takes longer than a moment.
///
/// # Errors
/// Those of `attempt`, and [`io::ErrorKind::TimedOut`].
pub(super) fn wait_for<T>(mut attempt: impl FnMut() -> io::Result<Option<T>>, waiting: impl FnOnce()) -> io::Result<T> {
    let mut waiting = Some(waiting);
    for _ in 0..MAX_POLLS {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
        if let Some(waiting) = waiting.take() {
            waiting();
        }
        thread::sleep(POLL);
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

/// File systems without locks are used without, as other tools do.
fn held(outcome: Result<(), TryLockError>, file: File) -> io::Result<Option<Lock>> {
    match outcome {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(Some(Lock(file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
