//! Puts files together from ranges of the hub's: several at a time, resumed where they broke off, also after the end of
//! the process. It does not know what is in them.
//!
//! A file grows elsewhere as `NAME.incomplete`, with a journal of the stretches that are on the disk for good, and
//! is renamed when all of it is there: whatever has its final name is whole.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    HubOptions, Tuning,
    http::{Fault, Http, Remote},
    progress::Transfer,
    reach::{self, Tries},
};

/// Requests at a time: one rarely fills a line to a distant store, and many are impolite.
const CONNECTIONS: usize = 4;

/// A range of a remote file and where it goes in the local one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) source: Range<u64>,
    pub(super) at: u64,
}

/// A file to be put together.
#[derive(Debug)]
pub(super) struct Assembly {
    /// Of the remote file, for progress and errors.
    pub(super) file: String,
    pub(super) url: String,
    pub(super) remote: Remote,
    /// Where it will be.
    pub(super) target: PathBuf,
    /// Where it grows, with `.incomplete` behind it; on the same disk.
    pub(super) workplace: PathBuf,
    /// Begins the file; not downloaded.
    pub(super) head: Vec<u8>,
    /// What follows, without holes between the parts.
    pub(super) parts: Vec<Part>,
    /// Whether the server can send parts. If not, the file comes in one answer, from its start at every try.
    pub(super) is_ranged: bool,
}

/// One request of an assembly.
#[derive(Debug)]
struct Stretch {
    source: Range<u64>,
    parts: Vec<Part>,
}

/// An assembly that has begun: its file is open, and what an earlier process left of it is known.
#[derive(Debug)]
pub(super) struct Begun {
    assembly: Assembly,
    stretches: Vec<Stretch>,
    done: HashSet<usize>,
    /// Held while writing a line.
    journal: Mutex<File>,
    /// What the store calls the content, once it has said so.
    validator: Mutex<Option<String>>,
}

impl Assembly {
    fn bytes(&self) -> u64 {
        let parts = self.parts.iter().map(|part| part.source.end - part.source.start);
        self.head.len() as u64 + parts.sum::<u64>()
    }

    pub(super) fn incomplete(&self) -> PathBuf {
        beside(&self.workplace, ".incomplete")
    }

    /// Where other tools let the file grow.
    pub(super) fn of_others(&self) -> PathBuf {
        beside(&self.target, ".incomplete")
    }

    fn journal(&self) -> PathBuf {
        beside(&self.workplace, ".journal")
    }

    /// Forgets what came so far.
    pub(super) fn discard(&self) {
        for path in [self.incomplete(), self.journal()] {
            drop(fs::remove_file(path));
        }
    }

    /// Opens the file. Whoever calls this holds the lock of the target.
    ///
    /// # Errors
    /// [`Fault::Disk`].
    pub(super) fn begin(self, tuning: &Tuning) -> Result<Begun, Fault> {
        let in_one = Tuning {
            stretch: u64::MAX,
            ..*tuning
        };
        let stretches = stretches(&self.parts, if self.is_ranged { tuning } else { &in_one });
        let title = format!(
            "sepal 1 {} {} {} {}\n",
            self.remote.etag,
            self.remote.size,
            self.bytes(),
            stretches.len()
        );
        let begun = || {
            for folder in [self.target.parent(), self.workplace.parent()].into_iter().flatten() {
                fs::create_dir_all(folder)?;
            }
            let written = fs::read_to_string(self.journal()).unwrap_or_default();
            let done = match written.strip_prefix(&title) {
                Some(lines) if fs::metadata(self.incomplete()).is_ok_and(|file| file.len() == self.bytes()) => {
                    completed(lines, stretches.len())
                }
                _ => HashSet::new(),
            };
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(done.is_empty())
                .write(true)
                .open(self.incomplete())?;
            file.set_len(self.bytes())?;
            file.write_all(&self.head)?;
            let mut journal = File::create(self.journal())?;
            journal.write_all(title.as_bytes())?;
            for stretch in &done {
                writeln!(journal, "{stretch}.")?;
            }
            Ok((done, journal))
        };
        let (done, journal) = begun().map_err(Fault::Disk)?;
        Ok(Begun {
            assembly: self,
            stretches,
            done,
            journal: Mutex::new(journal),
            validator: Mutex::default(),
        })
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A line that was cut short has no full stop.
fn completed(lines: &str, stretches: usize) -> HashSet<usize> {
    let numbers = lines.lines().filter_map(|line| line.strip_suffix('.')?.parse().ok());
    numbers.filter(|number| *number < stretches).collect()
}

/// Few requests for many parts: those close to each other become one, long ones several.
fn stretches(parts: &[Part], tuning: &Tuning) -> Vec<Stretch> {
    let mut pieces: Vec<Part> = Vec::new();
    for part in parts {
        let (mut from, mut at) = (part.source.start, part.at);
        while from < part.source.end {
            let to = part.source.end.min(from.saturating_add(tuning.stretch));
            pieces.push(Part { source: from..to, at });
            at += to - from;
            from = to;
        }
    }
    pieces.sort_by_key(|part| part.source.start);
    let mut stretches: Vec<Stretch> = Vec::new();
    for part in pieces {
        match stretches.last_mut() {
            Some(last)
                if part.source.start <= last.source.end + tuning.max_gap
                    && part.source.end - last.source.start <= tuning.stretch =>
            {
                last.source.end = last.source.end.max(part.source.end);
                last.parts.push(part);
            }
            _ => stretches.push(Stretch {
                source: part.source.clone(),
                parts: vec![part],
            }),
        }
    }
    stretches
}

impl Begun {
    pub(super) fn assembly(&self) -> &Assembly {
        &self.assembly
    }

    /// Bytes that are to come.
    pub(super) fn missing(&self) -> u64 {
        let open = self
            .stretches
            .iter()
            .enumerate()
            .filter(|(i, _)| !self.done.contains(i));
        open.map(|(_, stretch)| stretch.source.end - stretch.source.start).sum()
    }

    /// Bytes that are here.
    pub(super) fn present(&self) -> u64 {
        let done = self.done.iter().filter_map(|i| self.stretches.get(*i));
        done.map(|stretch| stretch.source.end - stretch.source.start).sum()
    }

    /// Makes the file what its name says; `check` may look at it once more, and if it is another content, nothing of it
    /// is kept.
    ///
    /// # Errors
    /// Those of `check`; [`Fault::Disk`].
    pub(super) fn finish(&self, check: impl FnOnce(&Path) -> Result<(), Fault>) -> Result<(), Fault> {
        let incomplete = self.assembly.incomplete();
        check(&incomplete).inspect_err(|_| self.assembly.discard())?;
        let published = || {
            File::open(&incomplete)?.sync_all()?;
            fs::rename(&incomplete, &self.assembly.target)
        };
        published().map_err(Fault::Disk)?;
        drop(fs::remove_file(self.assembly.journal()));
        Ok(())
    }

    /// Requests that are still to be made.
    fn open(&self) -> usize {
        self.stretches.len() - self.done.len()
    }

    fn fetch(&self, idx: usize, downloads: &Downloads<'_>) -> Result<(), Fault> {
        let Some(stretch) = self.stretches.get(idx) else {
            return Ok(());
        };
        let mut file = OpenOptions::new()
            .write(true)
            .open(self.assembly.incomplete())
            .map_err(Fault::Disk)?;
        let mut position = stretch.source.start;
        reach::retrying(
            &self.assembly.url,
            downloads.options,
            Tries::of(downloads.options),
            || downloads.stop.load(Ordering::Relaxed),
            || {
                if !self.assembly.is_ranged {
                    position = stretch.source.start;
                }
                let before = position;
                downloads.watch.alive();
                let outcome = self.receive(stretch, &mut file, &mut position, downloads);
                (outcome, self.assembly.is_ranged && position > before)
            },
        )?;
        let record = || {
            // First what it says, then the journal.
            file.sync_data()?;
            writeln!(self.journal.lock().unwrap_or_else(PoisonError::into_inner), "{idx}.")
        };
        record().map_err(Fault::Disk)
    }

    /// Takes what one answer brings; `position` is the next byte to come, of the remote file.
    fn receive(
        &self,
        stretch: &Stretch,
        file: &mut File,
        position: &mut u64,
        downloads: &Downloads<'_>,
    ) -> Result<(), Fault> {
        let Assembly {
            url,
            remote,
            file: name,
            ..
        } = &self.assembly;
        while *position < stretch.source.end {
            let known = self.validator.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let range = *position..stretch.source.end;
            let piece = downloads.http.bytes(url, &range, remote.size, known.as_deref())?;
            if known.is_none() {
                *self.validator.lock().unwrap_or_else(PoisonError::into_inner) = piece.validator.clone();
            }
            piece.read(|bytes| {
                if downloads.stop.load(Ordering::Relaxed) {
                    return Err(Fault::Cut(io::ErrorKind::Interrupted.into()));
                }
                place(&stretch.parts, *position, bytes, file).map_err(Fault::Disk)?;
                *position += bytes.len() as u64;
                downloads.transfer.received(name, bytes.len() as u64);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Writes those of `bytes`, which begin at `position` of the remote file, that belong to a part.
fn place(parts: &[Part], position: u64, bytes: &[u8], file: &mut File) -> io::Result<()> {
    let end = position + bytes.len() as u64;
    for part in parts {
        let (from, to) = (part.source.start.max(position), part.source.end.min(end));
        if from < to {
            file.seek(SeekFrom::Start(part.at + (from - part.source.start)))?;
            file.write_all(&bytes[(from - position) as usize..(to - position) as usize])?;
        }
    }
    Ok(())
}

/// Is told how several downloads go, by their threads.
pub(super) trait Watch: Sync {
    /// They get on, or try to.
    fn alive(&self);

    /// All of one is on the disk.
    ///
    /// # Errors
    /// It is of no use; then the others are given up, too.
    fn complete(&self, idx: usize) -> Result<(), Fault>;
}

/// What all threads of a download share.
struct Downloads<'a> {
    http: &'a Http,
    options: &'a HubOptions,
    transfer: &'a dyn Transfer,
    watch: &'a dyn Watch,
    /// Of each, the requests that are not done yet.
    open: Vec<AtomicUsize>,
    /// One has failed for good.
    stop: AtomicBool,
}

impl Downloads<'_> {
    /// Makes one request of the `i`th download, which may be its last.
    fn advance(&self, begun: &[Begun], (i, stretch): (usize, usize)) -> Result<(), Fault> {
        begun[i].fetch(stretch, self)?;
        match self.open[i].fetch_sub(1, Ordering::AcqRel) {
            1 => self.watch.complete(i),
            _ => Ok(()),
        }
    }
}

/// Downloads what is missing of all of them; `watch` knows them by their places.
///
/// # Errors
/// The first that cannot be had, by its place in `begun`; what came of the others stays.
pub(super) fn fetch_all(
    begun: &[Begun],
    http: &Http,
    options: &HubOptions,
    (transfer, watch): (&dyn Transfer, &dyn Watch),
) -> Result<(), (usize, Fault)> {
    for (i, _) in begun.iter().enumerate().filter(|(_, one)| one.open() == 0) {
        watch.complete(i).map_err(|fault| (i, fault))?;
    }
    let work: Vec<(usize, usize)> = begun
        .iter()
        .enumerate()
        .flat_map(|(i, one)| (0..one.stretches.len()).map(move |stretch| (i, stretch)))
        .filter(|(i, stretch)| !begun[*i].done.contains(stretch))
        .collect();
    let downloads = Downloads {
        http,
        options,
        transfer,
        watch,
        open: begun.iter().map(|one| AtomicUsize::new(one.open())).collect(),
        stop: AtomicBool::new(false),
    };
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS.min(work.len()) {
            scope.spawn(|| {
                while let Some(&(i, stretch)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if downloads.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(fault) = downloads.advance(begun, (i, stretch)) {
                        // Those that stop because of it are no causes.
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert((i, fault));
                        downloads.stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}
