//! Room in the cache: how much may be downloaded, and which files are deleted for it. Petals' rules
//! (`petals/utils/disk_cache.py`): a GiB of the disk stays free, the files that were not used for the longest time go
//! first, and `blocks.lock` keeps them from going while somebody reads.

use std::{
    fs::{self, FileTimes, Metadata},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use tracing::info;

use super::{
    disk::disk_space,
    lock::{self, Lock, Patience},
};

/// What Petals leaves free on a disk.
pub(crate) const RESERVE: u64 = 1 << 30;

/// Smaller files are not worth deleting: configurations, tokenizers, indices.
const WORTH_DELETING: u64 = 1 << 20;

/// Not enough room, and nothing left to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    /// Bytes that the disk has left, beside the reserve.
    pub(super) free: Option<u64>,
    /// Bytes that the cache takes.
    pub(super) used: u64,
}

/// The content of a file or a piece, whole or not.
#[derive(Debug)]
struct Candidate {
    path: PathBuf,
    /// Whoever serves or downloads it holds this.
    lock: PathBuf,
    used: SystemTime,
    /// What it takes.
    bytes: u64,
    /// What it will take beyond that: a file that grows has its length from the beginning.
    missing: u64,
}

/// The lock that keeps files from being deleted while they are read or downloaded; also Petals takes it.
///
/// # Errors
/// The cache cannot be written, or whoever deletes or, as Petals does, downloads under it does not get on.
pub(super) fn reading(cache: &Path, patience: Patience) -> io::Result<Lock> {
    let path = cache.join("blocks.lock");
    lock::wait_for(
        patience,
        || Lock::try_shared(&path),
        || usage(cache).ok(),
        || info!(lock = %path.display(), "another process makes room in the cache; waiting for it"),
    )
}

/// Held by whoever begins downloads until there is room for them: two who did so at once would count on the same room.
///
/// # Errors
/// The cache cannot be written, or whoever holds it does not get on.
pub(super) fn beginning(cache: &Path, patience: Patience) -> io::Result<Lock> {
    let path = cache.join(".locks/room.lock");
    lock::wait_for(
        patience,
        || Lock::try_exclusive(&path),
        || usage(cache).ok(),
        || info!(lock = %path.display(), "another process makes room for a download; waiting for it"),
    )
}

/// Notes that a file is used now.
pub(super) fn touch(path: &Path) {
    let now = FileTimes::new().set_accessed(SystemTime::now());
    // Of a cache that cannot be written nothing is deleted either.
    drop(fs::File::open(path).and_then(|file| file.set_times(now)));
}

/// Sees to it that `need` more bytes may be written into the files `own`, deleting what is least used. With `limit` all of
/// the cache together takes at most so many bytes. What others are writing counts with its whole length.
///
/// # Errors
/// [`Shortage`] inside; the cache cannot be read.
pub(super) fn make_room(
    cache: &Path,
    (need, own): (u64, &[PathBuf]),
    limit: Option<u64>,
    patience: Patience,
) -> io::Result<Result<(), Shortage>> {
    let shortage = || -> io::Result<(u64, Shortage)> {
        let promised = promised(cache, own)?;
        let free = disk_space(cache).map(|disk| disk.free.saturating_sub(RESERVE).saturating_sub(promised));
        let used = match limit {
            Some(_) => usage(cache)?.saturating_add(promised),
            None => 0,
        };
        let room = limit.map(|limit| limit.saturating_sub(used));
        let room = room.unwrap_or(u64::MAX).min(free.unwrap_or(u64::MAX));
        Ok((need.saturating_sub(room), Shortage { free, used }))
    };
    let (short, before) = shortage()?;
    if short == 0 {
        return Ok(Ok(()));
    }
    // Nobody is waited for if there is nothing to delete then.
    if unused(cache, short)?.is_none() {
        return Ok(Err(before));
    }
    let path = cache.join("blocks.lock");
    let _deleting = lock::wait_for(
        patience,
        || Lock::try_exclusive(&path),
        || usage(cache).ok(),
        || info!(lock = %path.display(), "the cache is full, and another process uses it; waiting for it"),
    )?;
    let (short, now) = shortage()?;
    let Some(chosen) = unused(cache, short)? else {
        return Ok(Err(now));
    };
    for (candidate, _unused) in chosen {
        info!(file = %candidate.path.display(), bytes = candidate.bytes, "deleting to make room in the cache");
        delete(&candidate)?;
    }
    Ok(Ok(()))
}

/// Bytes that others will write into what they are downloading.
fn promised(cache: &Path, own: &[PathBuf]) -> io::Result<u64> {
    let growing = contents(cache)?
        .into_iter()
        .filter(|one| one.path.extension().is_some_and(|extension| extension == "incomplete") && one.missing > 0);
    // Who goes on with what nobody is at, counts it then.
    let held = growing.filter(|one| !own.contains(&one.path) && matches!(Lock::try_shared(&one.lock), Ok(None)));
    Ok(held.fold(0, |sum, one| one.missing.saturating_add(sum)))
}

/// What was not used for the longest time and together has `bytes`, each with its lock. `None` if there is less.
fn unused(cache: &Path, bytes: u64) -> io::Result<Option<Vec<(Candidate, Lock)>>> {
    let (mut chosen, mut sum) = (Vec::new(), 0);
    for candidate in candidates(cache)? {
        if sum >= bytes {
            break;
        }
        // What cannot be locked is somebody else's.
        let lock = Lock::try_exclusive(&candidate.lock).ok().flatten();
        // A download that has ended since has given its file another name.
        if let Some(lock) = lock.filter(|_| candidate.path.exists()) {
            sum += candidate.bytes;
            chosen.push((candidate, lock));
        }
    }
    Ok((sum >= bytes).then_some(chosen))
}

/// Held by whoever downloads (exclusively) or uses a piece.
pub(super) fn piece_lock(piece: &Path) -> PathBuf {
    piece.with_extension("lock")
}

/// Bytes that the files under `folder` take; links are not followed.
fn usage(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for_all(folder, &mut |_, metadata| sum += allocated(metadata))?;
    Ok(sum)
}

/// Files with holes take less than they are long.
#[cfg(unix)]
fn allocated(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

#[cfg(not(unix))]
fn allocated(metadata: &Metadata) -> u64 {
    metadata.len()
}

fn for_all(folder: &Path, visit: &mut impl FnMut(PathBuf, &Metadata)) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        // Not that of the target of a link. Files come and go while we look.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            unless_closed(for_all(&entry.path(), visit))?;
        } else if metadata.is_file() {
            visit(entry.path(), &metadata);
        }
    }
    Ok(())
}

/// What a walk through the cache comes to in a folder that is closed to us: `lost+found` where a disk is mounted, a model of
/// another user. Nothing in there could be deleted.
fn unless_closed(walked: io::Result<()>) -> io::Result<()> {
    match walked {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        walked => walked,
    }
}

/// What may be deleted, least recently used first.
fn candidates(cache: &Path) -> io::Result<Vec<Candidate>> {
    let mut found = contents(cache)?;
    found.retain(|one| one.bytes >= WORTH_DELETING);
    found.sort_by_key(|one| one.used);
    Ok(found)
}

/// The contents of files and our pieces, of all repositories.
fn contents(cache: &Path) -> io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for repo in fs::read_dir(cache)?.flatten().map(|entry| entry.path()) {
        let name = repo.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.contains("--") {
            continue;
        }
        let locks = cache.join(".locks").join(name);
        for folder in ["blobs", "sepal/whole"] {
            unless_closed(for_all(&repo.join(folder), &mut |path, metadata| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let lock = locks.join(format!("{}.lock", name.trim_end_matches(".incomplete")));
                found.push(candidate(path, lock, metadata));
            }))?;
        }
        unless_closed(for_all(&repo.join("sepal/pieces"), &mut |path, metadata| {
            let lock = piece_lock(Path::new(path.to_string_lossy().trim_end_matches(".incomplete")));
            found.push(candidate(path, lock, metadata));
        }))?;
    }
    Ok(found)
}

fn candidate(path: PathBuf, lock: PathBuf, metadata: &Metadata) -> Candidate {
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Candidate {
        path,
        lock,
        used: metadata.accessed().unwrap_or(modified).max(modified),
        bytes: allocated(metadata),
        missing: metadata.len().saturating_sub(allocated(metadata)),
    }
}

/// Deletes the file and what links to it.
fn delete(candidate: &Candidate) -> io::Result<()> {
    let repo = candidate.path.parent().and_then(Path::parent);
    if let Some(repo) = repo.filter(|repo| candidate.path.parent() == Some(&repo.join("blobs"))) {
        for link in links(&repo.join("snapshots"))? {
            if link.canonicalize().ok() == candidate.path.canonicalize().ok() {
                fs::remove_file(link)?;
            }
        }
    }
    fs::remove_file(&candidate.path)
}

fn links(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(found);
    };
    for entry in entries.flatten() {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(links(&entry.path())?);
        } else if kind.is_symlink() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No folder is closed to root, who runs the tests in many places.
    #[test]
    fn a_closed_folder_is_passed_by_and_a_broken_disk_is_not() {
        let walked = |kind: io::ErrorKind| unless_closed(Err(kind.into()));
        assert!(walked(io::ErrorKind::PermissionDenied).is_ok());
        assert!(walked(io::ErrorKind::Other).is_err());
    }
}
