//! A hub on loopback for tests: one repository, served as the real one does (ranges, entity tags, commits).

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use serde_json::json;

use super::HubOptions;

pub(crate) const REPO: &str = "owner/name";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What it has and how it behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Answers 403 to every other token and 401 to none.
    pub(crate) token: Option<String>,
}

/// Serves until dropped.
#[derive(Debug)]
pub(crate) struct FakeHub {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeHub {
    pub(crate) fn start(content: Content) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                answer(stream.unwrap(), &content, &log);
            }
        });
        Self {
            addr,
            asked,
            stop,
            thread: Some(thread),
        }
    }

    /// With files of the given names and contents.
    pub(crate) fn with_files(files: &[(&str, &[u8])]) -> Self {
        Self::start(Content {
            files: files
                .iter()
                .map(|(name, body)| ((*name).to_owned(), body.to_vec()))
                .collect(),
            token: None,
        })
    }

    pub(crate) fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            cache: cache.to_owned(),
            offline: false,
            token: None,
            endpoint: format!("http://{}", self.addr),
            revision: None,
        }
    }

    /// The files whose content was asked for so far, in order; existing or not.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
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
fn answer(mut stream: TcpStream, content: &Content, log: &Mutex<Vec<String>>) {
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
    let path = first.split(' ').nth(1).unwrap_or_default();
    let response = match (&content.token, headers.get("authorization")) {
        (Some(_), None) => status(401),
        (Some(token), Some(given)) if given != &format!("Bearer {token}") => status(403),
        _ => respond(path, headers.get("range"), content, log),
    };
    let _ = stream.write_all(&response);
}

fn respond(path: &str, range: Option<&String>, content: &Content, log: &Mutex<Vec<String>>) -> Vec<u8> {
    for revision in ["main", COMMIT] {
        if path == format!("/api/models/{REPO}/revision/{revision}") {
            let siblings: Vec<_> = content.files.keys().map(|name| json!({"rfilename": name})).collect();
            return with_body(
                "200 OK",
                "",
                json!({"siblings": siblings, "sha": COMMIT}).to_string().as_bytes(),
            );
        }
        let Some(file) = path.strip_prefix(&format!("/{REPO}/resolve/{revision}/")) else {
            continue;
        };
        let only_metadata = range.is_some_and(|range| range == "bytes=0-0");
        if only_metadata {
            log.lock().unwrap().push(file.to_owned());
        }
        let Some(body) = content.files.get(file) else { break };
        let start: usize = range
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok())
            .unwrap_or(0);
        let end = if only_metadata { 1 } else { body.len() };
        let headers = format!(
            "ETag: \"{file}-tag\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
            end - 1,
            body.len()
        );
        return with_body("206 Partial Content", &headers, &body[start..end]);
    }
    status(404)
}

fn status(code: u16) -> Vec<u8> {
    with_body(&format!("{code} No"), "", b"")
}

fn with_body(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
