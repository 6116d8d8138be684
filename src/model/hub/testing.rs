//! A hub on loopback for tests: one repository, served as the real one does (small files by itself, large ones by a
//! redirect to a store, ranges, entity tags, commits), and with every kind of trouble.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::json;
use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::{HubOptions, lock::Patience, options::Tuning};

pub(crate) const REPO: &str = "owner/name";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What it has and how it behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub(crate) files: BTreeMap<String, Stored>,
    /// Answers 403 to every other token and 401 to none.
    pub(crate) token: Option<String>,
    /// Every refusal comes with this `X-Error-Code`.
    pub(crate) error_code: Option<&'static str>,
    /// The repository's old name, which redirects to the new one.
    pub(crate) old_name: Option<&'static str>,
    /// Host and port of the hub that is the store for large files; itself under another name if absent.
    pub(crate) store: Option<String>,
    /// So many requests come to nothing: the connection ends without an answer.
    pub(crate) outage: usize,
    /// Requests that came so far, those included.
    pub(crate) requests: usize,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) bytes: Vec<u8>,
    /// Lies in the store, under its SHA-256.
    pub(crate) is_large: bool,
    pub(crate) claimed_size: Option<u64>,
    pub(crate) claimed_hash: Option<String>,
    pub(crate) ignores_ranges: bool,
    /// What happens to the next requests for its bytes, one each.
    pub(crate) troubles: VecDeque<Trouble>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing but this status.
    Status(u16),
    /// The answer says that the whole file has another size.
    OtherTotal(u64),
    /// Another content from now on: every byte is one more.
    Change,
}

/// Serves until dropped.
#[derive(Debug)]
pub(crate) struct FakeHub {
    addr: SocketAddr,
    content: Arc<Mutex<Content>>,
    sent: Arc<Mutex<Vec<(String, u64)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeHub {
    pub(crate) fn start(content: Content) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let content = Arc::new(Mutex::new(content));
        let sent = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (served, log, stopped) = (Arc::clone(&content), Arc::clone(&sent), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                answer(stream.unwrap(), &served, &log);
            }
        });
        Self {
            addr,
            content,
            sent,
            stop,
            thread: Some(thread),
        }
    }

    /// With small files of the given names and contents.
    pub(crate) fn with_files(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| {
            let stored = Stored {
                bytes: bytes.to_vec(),
                ..Stored::default()
            };
            ((*name).to_owned(), stored)
        });
        Self::start(Content {
            files: files.collect(),
            ..Content::default()
        })
    }

    /// The same, but files of weights lie in the store.
    pub(crate) fn with_large_files(files: &[(&str, &[u8])]) -> Self {
        let hub = Self::with_files(files);
        for (name, stored) in &mut hub.content.lock().unwrap().files {
            stored.is_large = !name.ends_with(".json");
        }
        hub
    }

    pub(crate) fn change(&self, file: &str, change: impl FnOnce(&mut Stored)) {
        change(self.content.lock().unwrap().files.get_mut(file).unwrap());
    }

    /// Large files are sent by `store`, whose files have the same names.
    pub(crate) fn store_at(&self, store: &Self) {
        self.content.lock().unwrap().store = Some(store.addr.to_string());
    }

    /// From now on every refusal comes with this `X-Error-Code`.
    pub(crate) fn refuse_with(&self, code: &'static str) {
        self.content.lock().unwrap().error_code = Some(code);
    }

    /// From now on it asks for this token.
    pub(crate) fn demand(&self, token: &str) {
        self.content.lock().unwrap().token = Some(token.to_owned());
    }

    /// The next so many requests get no answer.
    pub(crate) fn fall_silent(&self, requests: usize) {
        self.content.lock().unwrap().outage = requests;
    }

    /// How often it was asked for anything.
    pub(crate) fn requests(&self) -> usize {
        self.content.lock().unwrap().requests
    }

    pub(crate) fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            cache: cache.to_owned(),
            endpoint: format!("http://{}", self.addr),
            ..options()
        }
    }

    /// The files whose content was sent so far, in order; several answers in a row count as one.
    pub(crate) fn asked(&self) -> Vec<String> {
        let mut files: Vec<String> = self.sent.lock().unwrap().iter().map(|(file, _)| file.clone()).collect();
        files.dedup();
        files
    }

    /// Bytes of the file that were sent so far.
    pub(crate) fn sent(&self, file: &str) -> u64 {
        let sent = self.sent.lock().unwrap();
        sent.iter()
            .filter(|(name, _)| name == file)
            .map(|(_, bytes)| bytes)
            .sum()
    }
}

/// Of nobody, with no waits, and downloads in pieces already of small files.
pub(crate) fn options() -> HubOptions {
    HubOptions {
        tuning: Tuning {
            first_wait: Duration::from_millis(1),
            last_wait: Duration::from_millis(8),
            stretch: 20_000,
            note_every: 5_000,
            max_gap: 500,
            small_file: 8_000,
            first_bytes: 10_000,
            patience: Patience {
                poll: Duration::from_millis(1),
                polls: 60_000,
            },
        },
        ..HubOptions::from_variables(|name| (name == "HOME").then(|| "/nowhere".to_owned()))
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the loop; if it has ended by itself there is nobody to connect to.
        let _ = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads one request and answers it; the connection is not kept.
fn answer(mut stream: TcpStream, content: &Mutex<Content>, log: &Mutex<Vec<(String, u64)>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(": ")
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        })
        .collect();
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut content = content.lock().unwrap();
    content.requests += 1;
    if content.outage > 0 {
        content.outage -= 1;
        return;
    }
    let is_head = method == "HEAD";
    let mut headers = headers;
    let itself = || format!("localhost:{}", stream.local_addr().unwrap().port());
    headers.insert("store".to_owned(), content.store.clone().unwrap_or_else(itself));
    let response = match (&content.token, headers.get("authorization")) {
        // The store asks for no token, and must not be shown one.
        _ if path.starts_with("/store/") => {
            assert!(!headers.contains_key("authorization") || content.token.is_none());
            respond(path, is_head, &headers, &mut content, log)
        }
        (Some(_), None) => refusal(401, &content),
        (Some(token), Some(given)) if given != &format!("Bearer {token}") => refusal(403, &content),
        _ => respond(path, is_head, &headers, &mut content, log),
    };
    let _ = stream.write_all(&response);
}

fn respond(
    path: &str,
    is_head: bool,
    headers: &BTreeMap<String, String>,
    content: &mut Content,
    log: &Mutex<Vec<(String, u64)>>,
) -> Vec<u8> {
    if let Some(old) = content.old_name
        && let Some(rest) = path.strip_prefix(&format!("/{old}/"))
    {
        return head("307 Temporary Redirect", &format!("Location: /{REPO}/{rest}\r\n"), 0);
    }
    if let Some(file) = path
        .strip_prefix("/store/")
        .and_then(|path| path.strip_suffix("?signed"))
    {
        return match content.files.get_mut(file) {
            Some(stored) => bytes_of(file, stored, headers, log),
            None => refusal(404, content),
        };
    }
    if ["main", COMMIT]
        .iter()
        .any(|revision| path == format!("/api/models/{REPO}/revision/{revision}"))
    {
        let siblings = content.files.keys().map(|file| json!({"rfilename": file}));
        let listing = json!({"siblings": siblings.collect::<Vec<_>>()}).to_string();
        let mut response = head("200 OK", "", listing.len() as u64);
        response.extend(listing.into_bytes());
        return response;
    }
    let file = ["main", COMMIT]
        .iter()
        .find_map(|revision| path.strip_prefix(&format!("/{REPO}/resolve/{revision}/")));
    let Some((file, stored)) = file.and_then(|file| Some((file, content.files.get_mut(file)?))) else {
        return refusal(404, content);
    };
    let size = stored.claimed_size.unwrap_or(stored.bytes.len() as u64);
    let etag = stored.etag();
    if stored.is_large {
        let about = format!(
            "Location: http://{}/store/{file}?signed\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Size: {size}\r\nX-Linked-Etag: \"{etag}\"\r\n",
            headers["store"]
        );
        return head("302 Found", &about, 0);
    }
    if is_head {
        return head(
            "200 OK",
            &format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n"),
            size,
        );
    }
    bytes_of(file, stored, headers, log)
}

impl Stored {
    fn etag(&self) -> String {
        let hash = if self.is_large {
            hex::encode(Sha256::digest(&self.bytes))
        } else {
            let prefix = format!("blob {}\0", self.bytes.len());
            hex::encode(Sha1::new_with_prefix(prefix).chain_update(&self.bytes).finalize())
        };
        self.claimed_hash.clone().unwrap_or(hash)
    }
}

fn bytes_of(
    file: &str,
    stored: &mut Stored,
    headers: &BTreeMap<String, String>,
    log: &Mutex<Vec<(String, u64)>>,
) -> Vec<u8> {
    let trouble = stored.troubles.pop_front();
    if let Some(Trouble::Change) = trouble {
        stored.bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
    }
    if let Some(Trouble::Status(code)) = trouble {
        return head(&format!("{code} Trouble"), "Retry-After: 0\r\n", 0);
    }
    let size = stored.bytes.len();
    let tag = format!("\"store-{}\"", stored.etag());
    let is_same = headers.get("if-range").is_none_or(|asked| *asked == tag);
    let range = headers.get("range").filter(|_| is_same && !stored.ignores_ranges);
    let range = range.map(|range| {
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (
            first.parse::<usize>().unwrap(),
            last.parse::<usize>().unwrap().min(size.saturating_sub(1)),
        )
    });
    if range.is_some_and(|(first, _)| first >= size) {
        return head("416 Range Not Satisfiable", "", 0);
    }
    let total = match trouble {
        Some(Trouble::OtherTotal(total)) => total,
        _ => size as u64,
    };
    let (status, about, mut body) = match range {
        Some((first, last)) => (
            "206 Partial Content",
            format!("Content-Range: bytes {first}-{last}/{total}\r\n"),
            stored.bytes[first..=last].to_vec(),
        ),
        None => ("200 OK", String::new(), stored.bytes.clone()),
    };
    let mut response = head(status, &format!("ETag: {tag}\r\n{about}"), body.len() as u64);
    if let Some(Trouble::Cut(len)) = trouble {
        body.truncate(len);
    }
    log.lock().unwrap().push((file.to_owned(), body.len() as u64));
    response.append(&mut body);
    response
}

fn refusal(code: u16, content: &Content) -> Vec<u8> {
    let code_line = content.error_code.map(|code| format!("X-Error-Code: {code}\r\n"));
    head(&format!("{code} No"), &code_line.unwrap_or_default(), 0)
}

fn head(status: &str, headers: &str, length: u64) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n").into_bytes()
}
