//! Appends receipts to a file, beside whoever gets them: a slow disk holds nobody up for long, a full one nobody at all.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use thiserror::Error;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::signed::Signed;
use crate::task::Tasks;

/// Lines that wait to be written; whoever has more waits. Some seconds of a fast model.
const QUEUE: usize = 1024;
/// Lines written at once.
const BATCH: usize = 256;
/// What a machine that loses its power may lose.
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// Bytes that are looked through for the end of the last whole line, more than a line has.
const LONGEST_LINE: u64 = 256 * 1024;

/// How a line begins. Something else is not cut off, because it is nothing of ours.
const LINE_START: &[u8] = b"{\"step\":";

/// Why receipts cannot be kept in a file.
#[derive(Debug, Error)]
#[error("cannot keep receipts in {}", path.display())]
pub struct KeepError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A line of the file. Not by way of a `Value`, which would change the text that is signed.
#[derive(Serialize)]
struct Line<'a> {
    step: &'a str,
    receipt: &'a Signed,
}

/// Keeps receipts in a file. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct Keeper {
    lines: mpsc::Sender<String>,
}

impl Keeper {
    /// Opens the file (mode 0600 if it is new) and writes until `tasks` stop. A last line that a crash left unfinished is
    /// cut off.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, tasks: &Tasks) -> Result<Self, KeepError> {
        let file = open(path).map_err(|source| KeepError {
            path: path.to_owned(),
            source,
        })?;
        let (lines, inbox) = mpsc::channel(QUEUE);
        let writer = Writer {
            path: path.to_owned(),
            file: Some(file),
            unsynced: None,
        };
        tasks.spawn("receipts", writer.run(inbox, tasks.token()));
        Ok(Self { lines })
    }

    /// Keeps the receipt of a step that has the same name on all servers of the chain.
    pub(crate) async fn keep(&self, step: &str, receipt: &Signed) {
        let Ok(line) = serde_json::to_string(&Line { step, receipt }) else {
            return;
        };
        // Nobody writes any more when the process is stopping.
        drop(self.lines.send(line).await);
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(file);
    }
    let start = length.saturating_sub(LONGEST_LINE);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    (&mut file).take(LONGEST_LINE).read_to_end(&mut tail)?;
    if tail.last().is_some_and(|last| *last != b'\n') {
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if !tail[whole..].starts_with(LINE_START) {
            return Err(io::Error::other("it is no file of receipts"));
        }
        warn!(file = %path.display(), "the last line was not finished and is cut off");
        file.set_len(start + whole as u64)?;
    }
    Ok(file)
}

struct Writer {
    path: PathBuf,
    /// `None` after it could not be written to.
    file: Option<File>,
    /// When the first line was written that may not be on the disk.
    unsynced: Option<Instant>,
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::Receiver<String>, stop: CancellationToken) {
        let mut lines = Vec::new();
        loop {
            let due = self.unsynced.map(|since| since + SYNC_AFTER);
            let sync = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let stopped = tokio::select! {
                biased;
                n = inbox.recv_many(&mut lines, BATCH) => n == 0,
                () = sync => false,
                () = stop.cancelled() => true,
            };
            let due = stopped || due.is_some_and(|due| due <= Instant::now());
            self.write(std::mem::take(&mut lines), due).await;
            if stopped {
                return;
            }
        }
    }

    /// Writes lines on a thread that may wait for the disk.
    async fn write(&mut self, lines: Vec<String>, sync: bool) {
        let Some(mut file) = self.file.take() else { return };
        let any = !lines.is_empty();
        let written = tokio::task::spawn_blocking(move || -> io::Result<File> {
            let text: String = lines.into_iter().map(|line| line + "\n").collect();
            file.write_all(text.as_bytes())?;
            if sync {
                file.sync_data()?;
            }
            Ok(file)
        });
        match written.await.unwrap_or_else(|_| Err(io::Error::other("interrupted"))) {
            Ok(file) => {
                self.file = Some(file);
                let since = any.then(Instant::now);
                self.unsynced = if sync { None } else { self.unsynced.or(since) };
            }
            Err(cause) => {
                self.unsynced = None;
                error!(%cause, "no more receipts are kept: {} cannot be written; the text goes on", self.path.display());
            }
        }
    }
}
