//! Puts files together from ranges of the hub's: several at a time, resumed where they broke off, also after the end of
//! the process. It does not know what is in them.
//!
//! A file grows elsewhere as `NAME.incomplete`, with a journal of what is on the disk for good of each stretch, and is
//! renamed when all of it is there: whatever has its final name is whole.

use std::{
    collections::HashMap,
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

impl Stretch {
    fn len(&self) -> u64 {
        self.source.end - self.source.start
    }
}

/// A stretch that is being downloaded.
#[derive(Debug)]
struct Arriving<'a> {
    idx: usize,
    stretch: &'a Stretch,
    file: File,
    /// The next byte to come, of the remote file.
    position: u64,
    /// Where the journal says that it is.
    noted: u64,
}

/// An assembly that has begun: its file is open, and what an earlier process left of it is known.
#[derive(Debug)]
pub(super) struct Begun {
    assembly: Assembly,
    stretches: Vec<Stretch>,
    /// How many bytes of each were here at the beginning.
    kept: Vec<u64>,
    /// Held while writing a line.
    journal: Mutex<File>,
    /// What the store calls the content, once it has said so.
    validator: Mutex<Option<String>>,
}

impl Assembly {
    /// Of the whole file.
    pub(super) fn bytes(&self) -> u64 {
        let parts = self.parts.iter().map(|part| part.source.end - part.source.start);
        self.head.len() as u64 + parts.sum::<u64>()
    }

    pub(super) fn incomplete(&self) -> PathBuf {
        incomplete(&self.workplace)
    }

    /// Where other tools let the file grow.
    pub(super) fn of_others(&self) -> PathBuf {
        incomplete(&self.target)
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
            let is_same = fs::metadata(self.incomplete()).is_ok_and(|file| file.len() == self.bytes());
            let lines = written.strip_prefix(&title).filter(|_| is_same);
            let kept = kept(lines.unwrap_or_default(), &stretches, self.is_ranged);
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(kept.iter().all(|bytes| *bytes == 0))
                .write(true)
                .open(self.incomplete())?;
            file.set_len(self.bytes())?;
            file.write_all(&self.head)?;
            let mut journal = File::create(self.journal())?;
            journal.write_all(title.as_bytes())?;
            for (idx, bytes) in kept.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
                writeln!(journal, "{idx}+{bytes}.")?;
            }
            Ok((kept, journal))
        };
        let (kept, journal) = begun().map_err(Fault::Disk)?;
        Ok(Begun {
            assembly: self,
            stretches,
            kept,
            journal: Mutex::new(journal),
            validator: Mutex::default(),
        })
    }
}

/// What a file is called while it grows.
pub(super) fn incomplete(path: &Path) -> PathBuf {
    beside(path, ".incomplete")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// How many bytes of each stretch are here by the lines of a journal, `STRETCH+BYTES.`; a line that was cut short has no full
/// stop. Of a file that comes from its start at every try only all is of use.
fn kept(lines: &str, stretches: &[Stretch], is_ranged: bool) -> Vec<u64> {
    let noted = lines.lines().filter_map(|line| {
        let (idx, bytes) = line.strip_suffix('.')?.split_once('+')?;
        Some((idx.parse().ok()?, bytes.parse().ok()?))
    });
    // The last line of a stretch counts.
    let noted: HashMap<usize, u64> = noted.collect();
    let of_each = stretches.iter().enumerate().map(|(idx, stretch)| {
        let bytes = noted.get(&idx).copied().unwrap_or(0).min(stretch.len());
        if is_ranged || bytes == stretch.len() { bytes } else { 0 }
    });
    of_each.collect()
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
        self.stretches.iter().map(Stretch::len).sum::<u64>() - self.present()
    }

    /// Bytes that are here.
    pub(super) fn present(&self) -> u64 {
        self.kept.iter().sum()
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

    /// The stretches of which something is missing.
    fn open(&self) -> impl Iterator<Item = usize> {
        let with_kept = self.stretches.iter().zip(&self.kept).enumerate();
        with_kept
            .filter(|(_, (stretch, kept))| **kept < stretch.len())
            .map(|(idx, _)| idx)
    }

    fn fetch(&self, idx: usize, downloads: &Downloads<'_>) -> Result<(), Fault> {
        let (stretch, kept) = (&self.stretches[idx], self.kept[idx]);
        let file = OpenOptions::new().write(true).open(self.assembly.incomplete());
        let start = stretch.source.start;
        let mut arriving = Arriving {
            idx,
            stretch,
            file: file.map_err(Fault::Disk)?,
            position: start + kept,
            noted: start + kept,
        };
        reach::retrying(
            &self.assembly.url,
            downloads.options,
            Tries::of(downloads.options),
            || downloads.stop.load(Ordering::Relaxed),
            || {
                if !self.assembly.is_ranged {
                    (arriving.position, arriving.noted) = (start, start);
                }
                let before = arriving.position;
                downloads.watch.alive();
                let outcome = self.receive(&mut arriving, downloads);
                let noted = self.note(&mut arriving).map_err(Fault::Disk);
                let advanced = self.assembly.is_ranged && arriving.position > before;
                (noted.and(outcome), advanced)
            },
        )
    }

    /// Takes what one answer brings.
    fn receive(&self, arriving: &mut Arriving<'_>, downloads: &Downloads<'_>) -> Result<(), Fault> {
        let Assembly {
            url,
            remote,
            file: name,
            ..
        } = &self.assembly;
        let end = arriving.stretch.source.end;
        while arriving.position < end {
            let known = self.validator.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let range = arriving.position..end;
            let piece = downloads.http.bytes(url, &range, remote.size, known.as_deref())?;
            if known.is_none() {
                *self.validator.lock().unwrap_or_else(PoisonError::into_inner) = piece.validator.clone();
            }
            piece.read(|bytes| {
                if downloads.stop.load(Ordering::Relaxed) {
                    return Err(Fault::Cut(io::ErrorKind::Interrupted.into()));
                }
                place(&arriving.stretch.parts, arriving.position, bytes, &mut arriving.file).map_err(Fault::Disk)?;
                arriving.position += bytes.len() as u64;
                if arriving.position - arriving.noted >= downloads.options.tuning.note_every {
                    self.note(arriving).map_err(Fault::Disk)?;
                    downloads.watch.alive();
                }
                downloads.transfer.received(name, bytes.len() as u64);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Sees to it that what has come is found again, by another process too.
    fn note(&self, arriving: &mut Arriving<'_>) -> io::Result<()> {
        if arriving.position == arriving.noted {
            return Ok(());
        }
        let bytes = arriving.position - arriving.stretch.source.start;
        // First what it says, then the journal.
        arriving.file.sync_data()?;
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(journal, "{}+{bytes}.", arriving.idx)?;
        arriving.noted = arriving.position;
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
    for (i, _) in begun.iter().enumerate().filter(|(_, one)| one.open().next().is_none()) {
        watch.complete(i).map_err(|fault| (i, fault))?;
    }
    let work: Vec<(usize, usize)> = begun
        .iter()
        .enumerate()
        .flat_map(|(i, one)| one.open().map(move |stretch| (i, stretch)))
        .collect();
    let downloads = Downloads {
        http,
        options,
        transfer,
        watch,
        open: begun.iter().map(|one| AtomicUsize::new(one.open().count())).collect(),
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
