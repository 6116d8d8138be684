//! Downloads that this process is at, each with the lock that tells others so. A file is published, and others may use
//! it, as soon as all of it is here, whatever becomes of the rest.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tracing::info;

use super::{
    Download, HubError, HubRepo, Transfer,
    cache::RepoFolder,
    check,
    fetch::{self, Assembly, Begun, Watch},
    http::Fault,
    lock::{self, Lock, Patience},
    pieces,
    progress::{Progress, Silent},
    space,
};

/// Downloads below are not worth telling of, nor looking for room.
const WORTH_TELLING: u64 = 1 << 20;

/// A file to be downloaded, by us or by somebody else.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) assembly: Assembly,
    pub(super) lock: PathBuf,
    pub(super) is_whole: bool,
}

impl Job {
    /// Whether somebody has done it.
    pub(super) fn is_done(&self) -> bool {
        let target = &self.assembly.target;
        if self.is_whole {
            target.is_file()
        } else {
            pieces::is_whole(target)
        }
    }

    /// Waits until somebody else has done it, or is not at it any more.
    ///
    /// # Errors
    /// That somebody does not get on; the lock cannot be taken.
    pub(super) fn wait(&self, patience: Patience) -> io::Result<()> {
        let attempt = || {
            let is_written = Lock::try_shared(&self.lock)?.is_none();
            if !is_written && self.is_done() {
                return Ok(Some(()));
            }
            Ok(Lock::try_exclusive(&self.lock)?.map(drop))
        };
        lock::wait_for(
            patience,
            attempt,
            || last_sign(&[self.lock.clone(), self.assembly.incomplete(), self.assembly.of_others()]),
            || info!(lock = %self.lock.display(), "another process downloads this; waiting for it"),
        )
    }
}

/// Waits until nobody is at it any more to write the file at `path`, which is here, anew, or to delete it.
///
/// # Errors
/// That somebody does not get on; the lock cannot be taken.
pub(super) fn wait_for_release(path: &Path, lock: &Path, patience: Patience) -> io::Result<()> {
    // Other tools write what the link leads to.
    let content = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let signs = [lock.to_owned(), fetch::incomplete(&content)];
    lock::wait_for(
        patience,
        || Ok(Lock::try_shared(lock)?.map(drop)),
        || last_sign(&signs),
        || info!(file = %path.display(), "another process writes or deletes this; waiting for it"),
    )
}

/// When whoever is at it last showed that it gets on.
fn last_sign(signs: &[PathBuf]) -> Option<SystemTime> {
    let modified = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    signs.iter().filter_map(modified).max()
}

/// The jobs that are under way, in the order of their downloads.
struct Running<'a> {
    folder: &'a RepoFolder,
    begun: &'a [Begun],
    jobs: Vec<Locked>,
}

struct Locked {
    path: PathBuf,
    is_whole: bool,
    /// Exclusive until it is done. Then it keeps others from deleting the file before we use it.
    lock: Mutex<Option<Lock>>,
}

impl Locked {
    fn lock(&self) -> MutexGuard<'_, Option<Lock>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Running<'_> {
    fn alive(&self) {
        for job in &self.jobs {
            if let Some(lock) = &*job.lock() {
                lock.beat();
            }
        }
    }

    fn complete(&self, idx: usize) -> Result<(), Fault> {
        let (begun, job) = (&self.begun[idx], &self.jobs[idx]);
        let Assembly { file, remote, .. } = begun.assembly();
        begun.finish(|path: &Path| match job.is_whole {
            true => check::check(path, &remote.etag),
            false => Ok(()),
        })?;
        if job.is_whole {
            let linked = self.folder.link(&remote.commit, file, &remote.etag);
            linked.map_err(Fault::Disk)?;
        }
        let mut lock = job.lock();
        *lock = None;
        *lock = Lock::try_shared(&job.path).ok().flatten();
        Ok(())
    }
}

impl HubRepo {
    /// Downloads what nobody else is at. Inside are the failures that may be mended by planning anew.
    pub(super) fn carry_out(&self, jobs: Vec<(Job, Lock)>) -> Result<Result<(), (String, Fault)>, HubError> {
        let (begun, locked) = self.begin(jobs)?;
        let transfer = self.tell(&begun);
        let running = Running {
            folder: &self.folder,
            begun: &begun,
            jobs: locked,
        };
        let fetched = fetch::fetch_all(&begun, &self.http, &self.options, (&*transfer, &running));
        Ok(fetched.map_err(|(i, fault)| {
            let assembly = begun[i].assembly();
            if matches!(fault, Fault::Changed { .. }) {
                assembly.discard();
            }
            (assembly.file.clone(), fault)
        }))
    }

    /// Opens the files of the downloads, and makes room for them.
    fn begin(&self, jobs: Vec<(Job, Lock)>) -> Result<(Vec<Begun>, Vec<Locked>), HubError> {
        let (cache, patience) = (&self.options.cache, self.options.tuning.patience);
        let bytes = jobs.iter().map(|(job, _)| job.assembly.bytes()).sum();
        let alone = self.needs_room(bytes).then(|| space::beginning(cache, patience));
        let _alone = alone.transpose().map_err(self.not_written("room"))?;
        let (mut begun, mut locked) = (Vec::new(), Vec::new());
        for (job, lock) in jobs {
            let file = job.assembly.file.clone();
            let one = job.assembly.begin(&self.options.tuning);
            begun.push(one.map_err(|fault| self.failed(&file, fault))?);
            locked.push(Locked {
                path: job.lock,
                is_whole: job.is_whole,
                lock: Mutex::new(Some(lock)),
            });
        }
        let need = missing(&begun);
        if self.needs_room(need) {
            let own: Vec<PathBuf> = begun.iter().map(|one| one.assembly().incomplete()).collect();
            let limit = self.options.max_disk_space;
            let room = space::make_room(cache, (need, &own), limit, patience).map_err(self.not_written("room"))?;
            room.map_err(|shortage| HubError::NoRoom {
                repo: self.name.clone(),
                cache: cache.clone(),
                need,
                free: shortage.free,
                limit,
                used: shortage.used,
            })?;
        }
        Ok((begun, locked))
    }

    fn needs_room(&self, bytes: u64) -> bool {
        bytes >= WORTH_TELLING || self.options.max_disk_space.is_some()
    }

    /// Announces a download.
    fn tell(&self, begun: &[Begun]) -> Box<dyn Transfer> {
        let need = missing(begun);
        if !self.needs_room(need) {
            return Silent.begin(&Download::default());
        }
        let present = begun.iter().map(Begun::present).sum();
        self.options.progress.begin(&Download {
            what: self.name.clone(),
            total: need + present,
            present,
        })
    }
}

fn missing(begun: &[Begun]) -> u64 {
    begun.iter().map(Begun::missing).sum()
}
