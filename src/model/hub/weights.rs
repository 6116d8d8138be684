//! From what somebody wants of a repository to files on this machine: looks what is here, decides what is downloaded
//! whole and what in pieces, makes room, and lets `fetch` do it. Other processes may do the same at the same time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    thread,
};

use tracing::{debug, info, warn};

use super::{
    HubError, HubRepo, Tensors,
    fetch::{Assembly, Part},
    http::{Fault, Remote},
    jobs::{self, Job},
    lock::Lock,
    pieces::{self, Header},
    reach::{self, Tries},
    space,
};
use crate::model::gguf;

/// A file of which this share is wanted is downloaded whole, so that other tools have it as well.
const MOSTLY: f64 = 0.8;
/// How often a hub may send something else than it says, or change what it says, until it is given up.
const MAX_SURPRISES: u32 = 3;
/// What is wanted of a file of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) file: String,
    /// The group's name and tensors; `None` is the whole file.
    pub(crate) group: Option<(String, Tensors)>,
}

/// Files that are here.
#[derive(Debug, Default)]
pub(crate) struct Local {
    /// In the order of the wants, each once.
    pub(crate) files: Vec<PathBuf>,
    /// To be kept as long as the files are used.
    pub(crate) lease: Lease,
    /// To be kept until they are open, and no longer: Petals respects only this one, and waits for it.
    pub(crate) reading: Option<Lock>,
}

/// Keeps files of the cache from being deleted by other nodes that need room: a lock for each.
#[derive(Debug, Default)]
pub(crate) struct Lease(Vec<Lock>);

impl HubRepo {
    pub(super) fn download_whole(&mut self, file: &str) -> Result<PathBuf, HubError> {
        let want = Want {
            file: file.to_owned(),
            group: None,
        };
        let local = self.weights(&[want])?;
        Ok(local.files.into_iter().next().unwrap_or_default())
    }

    /// Files that together have everything that is wanted, downloaded as far as they are not here.
    ///
    /// # Errors
    /// The repository has no such file, or it cannot be had now.
    pub(crate) fn weights(&mut self, wants: &[Want]) -> Result<Local, HubError> {
        let mut surprises = 0;
        let mut unranged = BTreeSet::new();
        loop {
            let reading = space::reading(&self.options.cache, self.options.tuning.patience)
                .inspect_err(|error| debug!(%error, "reading the cache without its lock"))
                .ok();
            let (mut local, missing, busy) = self.look(wants);
            let Some(first) = missing.first() else {
                let Some(busy) = busy.first() else {
                    local.reading = reading;
                    return Ok(local);
                };
                // Whoever is at it may be waiting for these.
                drop((local, reading));
                self.wait_for(busy)?;
                continue;
            };
            let alone = missing.iter().filter_map(|want| self.piece(want));
            for piece in alone.filter(|piece| piece.is_file() && !pieces::is_whole(piece)) {
                warn!(
                    file = %piece.display(),
                    "this file of the cache is damaged; its tensors have to be downloaded again"
                );
            }
            if self.options.offline {
                return Err(self.offline(&first.file));
            }
            drop(reading);
            let (file, fault) = match self.download(&missing, &local, &unranged)? {
                Ok(()) => continue,
                Err(failed) => failed,
            };
            match fault {
                Fault::NoRanges if unranged.insert(file.clone()) => {
                    info!(file, "the server sends whole files only; downloading all of it");
                }
                Fault::Changed { .. } if surprises < MAX_SURPRISES => {
                    surprises += 1;
                    warn!(
                        file,
                        error = &fault as &dyn std::error::Error,
                        "downloading this file anew"
                    );
                    thread::sleep(self.options.tuning.first_wait);
                }
                fault => return Err(self.failed(&file, fault)),
            }
        }
    }

    /// The files with wants that [`HubRepo::weights`] would download, each once.
    pub(crate) fn missing(&self, wants: &[Want]) -> Vec<String> {
        let files: BTreeSet<String> = self.look(wants).1.into_iter().map(|want| want.file).collect();
        files.into_iter().collect()
    }

    /// What is here, what is not, and what is here but is just being written anew or deleted.
    fn look(&self, wants: &[Want]) -> (Local, Vec<Want>, Vec<Want>) {
        let (mut local, mut missing, mut busy) = (Local::default(), Vec::new(), Vec::new());
        for want in wants {
            match self.local(want) {
                Some((path, _)) if local.files.contains(&path) => {}
                Some((path, lock)) => {
                    // A cache that cannot be written is used without locks.
                    match Lock::try_shared(&lock) {
                        Ok(Some(lock)) => local.lease.0.push(lock),
                        Ok(None) => {
                            busy.push(want.clone());
                            continue;
                        }
                        Err(error) => debug!(%error, "using a file of the cache without its lock"),
                    }
                    space::touch(&path);
                    local.files.push(path);
                }
                None => missing.push(want.clone()),
            }
        }
        (local, missing, busy)
    }

    /// Waits until nobody writes or deletes any more what is here of `want`.
    fn wait_for(&self, want: &Want) -> Result<(), HubError> {
        let Some((path, lock)) = self.local(want) else {
            return Ok(());
        };
        let waited = jobs::wait_for_release(&path, &lock, self.options.tuning.patience);
        waited.map_err(self.not_written(&want.file))
    }

    /// Where the wanted is, and what locks it.
    fn local(&self, want: &Want) -> Option<(PathBuf, PathBuf)> {
        let commit = self.commit.as_ref()?;
        if let Some(path) = self.folder.file(commit, &want.file) {
            // The name of the content. Where there are no links the file is the content, and its own name has to do.
            let content = fs::read_link(&path).unwrap_or_else(|_| path.clone());
            let name = content.file_name()?.to_str()?.to_owned();
            return Some((path, self.folder.blob_lock(&name)));
        }
        let piece = self.piece(want)?;
        let lock = space::piece_lock(&piece);
        pieces::is_whole(&piece).then_some((piece, lock))
    }

    /// Where the wanted group of a file is if it was downloaded alone.
    fn piece(&self, want: &Want) -> Option<PathBuf> {
        let (group, _) = want.group.as_ref()?;
        let source = self.folder.source(self.commit.as_ref()?, &want.file)?;
        Some(self.folder.piece(&source.etag, group))
    }

    /// Downloads what of `missing` nobody else is downloading, or waits for one of the others. Inside are the failures
    /// that may be mended by planning anew.
    fn download(
        &mut self,
        missing: &[Want],
        here: &Local,
        unranged: &BTreeSet<String>,
    ) -> Result<Result<(), (String, Fault)>, HubError> {
        let mut jobs = Vec::new();
        let by_file = missing
            .iter()
            .fold(BTreeMap::<&str, Vec<&Want>>::new(), |mut files, want| {
                files.entry(&want.file).or_default().push(want);
                files
            });
        for (file, wants) in by_file {
            match self.plan(file, &wants, (here, unranged.contains(file)))? {
                Ok(planned) => jobs.extend(planned),
                Err(fault) => return Ok(Err((file.to_owned(), fault))),
            }
        }
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for job in jobs {
            let lock = Lock::try_exclusive(&job.lock).map_err(self.not_written(&job.assembly.file))?;
            match lock {
                Some(lock) if !job.is_done() => mine.push((job, lock)),
                Some(_) => {}
                None => theirs.push(job),
            }
        }
        if !mine.is_empty() {
            return self.carry_out(mine);
        }
        for job in theirs {
            job.wait(self.options.tuning.patience)
                .map_err(self.not_written(&job.assembly.file))?;
        }
        Ok(Ok(()))
    }

    /// Which downloads give the wanted parts of one file.
    fn plan(
        &mut self,
        file: &str,
        wants: &[&Want],
        (here, is_unranged): (&Local, bool),
    ) -> Result<Result<Vec<Job>, Fault>, HubError> {
        let remote = self.describe(file, Tries::of(&self.options))?;
        if self.folder.blob(&remote.etag).is_file() {
            self.folder
                .link(&remote.commit, file, &remote.etag)
                .map_err(self.not_written(file))?;
            return Ok(Ok(Vec::new()));
        }
        let groups: Option<Vec<&(String, Tensors)>> = wants.iter().map(|want| want.group.as_ref()).collect();
        let whole = |ranged| vec![self.whole(file, &remote, ranged)];
        let Some(groups) = groups.filter(|_| !is_unranged && remote.size > self.options.tuning.small_file) else {
            return Ok(Ok(whole(!is_unranged)));
        };
        let url = self.url(file);
        let header = match reach::retrying(
            &url,
            &self.options,
            Tries::of(&self.options),
            || false,
            || (self.header(file, &url, &remote), false),
        ) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let wanted: u64 = groups.iter().map(|(_, tensors)| header.bytes_of(tensors)).sum();
        let folder = self.folder.piece(&remote.etag, "any");
        let has_pieces = here.files.iter().any(|path| path.parent() == folder.parent());
        if !has_pieces && wanted as f64 >= remote.size as f64 * MOSTLY {
            return Ok(Ok(whole(true)));
        }
        self.folder
            .remember_source(&remote, file)
            .map_err(self.not_written(file))?;
        let jobs = groups.into_iter().map(|(group, tensors)| {
            let (head, parts) = header.piece(tensors, (&self.name, file), &remote);
            let target = self.folder.piece(&remote.etag, group);
            Job {
                lock: space::piece_lock(&target),
                is_whole: false,
                assembly: Assembly {
                    file: file.to_owned(),
                    url: url.clone(),
                    remote: remote.clone(),
                    workplace: target.clone(),
                    target,
                    head,
                    parts,
                    is_ranged: true,
                },
            }
        });
        Ok(Ok(jobs.collect()))
    }

    fn whole(&self, file: &str, remote: &Remote, is_ranged: bool) -> Job {
        Job {
            lock: self.folder.blob_lock(&remote.etag),
            is_whole: true,
            assembly: Assembly {
                file: file.to_owned(),
                url: self.url(file),
                target: self.folder.blob(&remote.etag),
                workplace: self.folder.blob_workplace(&remote.etag),
                head: Vec::new(),
                parts: vec![Part {
                    source: 0..remote.size,
                    at: 0,
                }],
                remote: remote.clone(),
                is_ranged,
            },
        }
    }

    /// The header of a remote file, in one request or two; that of a GGUF file, which says nowhere how long it is, in a few.
    fn header(&self, file: &str, url: &str, remote: &Remote) -> Result<Header, Fault> {
        let is_gguf = gguf::is_gguf(Path::new(file));
        if is_gguf {
            let (group, _) = gguf::group_of_header();
            if let Some(known) = pieces::gguf_header(&self.folder.piece(&remote.etag, &group), remote.size) {
                return Ok(known);
            }
        }
        let mut bytes = Vec::new();
        let mut end = self.options.tuning.first_bytes.min(remote.size);
        loop {
            let piece = self.http.bytes(url, &(bytes.len() as u64..end), remote.size, None)?;
            piece.read(|more| {
                bytes.extend_from_slice(more);
                Ok(())
            })?;
            if is_gguf {
                if let Some(header) = Header::of_gguf(bytes.clone(), remote.size)? {
                    return Ok(header);
                }
                end = (2 * end).min(remote.size);
                continue;
            }
            let needed = pieces::header_end(&bytes, remote.size)?;
            if needed <= bytes.len() as u64 {
                bytes.truncate(needed as usize);
                return Header::parse(&bytes, remote.size);
            }
            end = needed;
        }
    }
}
