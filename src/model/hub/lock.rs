//! Locks between processes that share a cache. They are advisory (`flock` on Unix, as `huggingface_hub` and Petals take
//! them) and end with the process that holds them.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

/// How long somebody waits for a lock whose holder does not get on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Between two tries.
    pub(crate) poll: Duration,
    /// Tries without a sign of progress between them.
    pub(crate) polls: u32,
}

impl Default for Patience {
    /// An hour: who holds a lock may be checking what it has downloaded, or be waiting for the hub.
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(200),
            polls: 5 * 3600,
        }
    }
}

/// Held until dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

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

    /// Tells those who wait that its holder gets on.
    pub(super) fn beat(&self) {
        // Of a cache that keeps no times the files themselves have to do.
        drop(self.0.set_modified(SystemTime::now()));
    }
}

/// Tries until something is there, for as long as `progress` changes; `waiting` is called once if it takes longer than a
/// moment.
///
/// # Errors
/// Those of `attempt`, and [`io::ErrorKind::TimedOut`].
pub(super) fn wait_for<T, P: PartialEq>(
    patience: Patience,
    mut attempt: impl FnMut() -> io::Result<Option<T>>,
    progress: impl Fn() -> P,
    waiting: impl FnOnce(),
) -> io::Result<T> {
    if let Some(done) = attempt()? {
        return Ok(done);
    }
    waiting();
    let mut seen = progress();
    loop {
        for _ in 0..patience.polls {
            thread::sleep(patience.poll);
            if let Some(done) = attempt()? {
                return Ok(done);
            }
        }
        let now = progress();
        if now == seen {
            return Err(io::ErrorKind::TimedOut.into());
        }
        seen = now;
    }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const HASTY: Patience = Patience {
        poll: Duration::ZERO,
        polls: 3,
    };

    #[test]
    fn a_lock_is_waited_for_as_long_as_its_holder_gets_on() {
        for (steps, tries) in [(0, 4), (1, 7), (5, 19)] {
            let (step, tried, told) = (Cell::new(0), Cell::new(0), Cell::new(0));
            let progress = || {
                // The first look only says where the holder is.
                step.set(step.get() + 1);
                step.get().min(steps + 1)
            };
            let never = || -> io::Result<Option<()>> {
                tried.set(tried.get() + 1);
                Ok(None)
            };
            let outcome = wait_for(HASTY, never, progress, || told.set(told.get() + 1));
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!((tried.get(), told.get()), (tries, 1), "{steps} steps");
        }
    }

    #[test]
    fn a_beat_is_seen_by_those_who_wait() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("lock");
        let lock = Lock::try_exclusive(&path).unwrap().unwrap();
        lock.0.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(Lock::try_shared(&path).unwrap().is_none());
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH);
        lock.beat();
        assert!(fs::metadata(&path).unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH);
    }
}
