//! Requests to the API as bytes on a socket, and its answers taken apart. It serves nothing.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::setup::soon;

/// Whoever asks an API.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) addr: SocketAddr,
    /// Besides those that all requests have, each with its line end.
    pub(super) headers: String,
}

pub(super) struct Answer {
    pub(super) status: u16,
    /// In small letters.
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    /// The field `name` of the error.
    #[track_caller]
    pub(super) fn error(&self, name: &str) -> Value {
        self.json()["error"][name].clone()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(had, _)| *had == name).map(|(_, value)| value).next()
    }

    /// The objects of a stream, which has to come to its end.
    #[track_caller]
    pub(super) fn events(&self) -> Vec<Value> {
        assert!(self.head.contains("content-type: text/event-stream"), "{}", self.head);
        let mut data: Vec<&str> = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }
}

impl Asker {
    pub(super) fn new(addr: SocketAddr) -> Self {
        let headers = String::new();
        Self { addr, headers }
    }

    /// The same with this key.
    pub(super) fn with_key(&self, key: &str) -> Self {
        Self {
            headers: format!("authorization: Bearer {key}\r\n"),
            ..self.clone()
        }
    }

    pub(super) async fn open(&self, path: &str, body: &Value) -> TcpStream {
        self.open_text(path, &body.to_string()).await
    }

    async fn open_text(&self, path: &str, body: &str) -> TcpStream {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}\
             connection: close\r\n\r\n",
            body.len(),
            self.headers
        );
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all((head + body).as_bytes()).await.unwrap();
        stream
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        answer(self.open(path, &body).await).await
    }

    /// A body that may be no JSON.
    pub(super) async fn post_text(&self, path: &str, body: &str) -> Answer {
        answer(self.open_text(path, body).await).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1")).await
    }

    /// A request without a body.
    pub(super) async fn ask(&self, head: &str) -> Answer {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request = format!("{head}\r\nhost: x\r\n{}connection: close\r\n\r\n", self.headers);
        stream.write_all(request.as_bytes()).await.unwrap();
        answer(stream).await
    }

    /// Asks `demo` a question greedily, with more fields or others.
    pub(super) async fn chat(&self, more: Value) -> Answer {
        let mut body = json!({"model": "demo", "temperature": 0, "messages": [user("What is 2+2?")]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.post("/v1/chat/completions", body).await
    }
}

pub(super) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// Reads to the end of the connection.
pub(super) async fn answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    soon("an answer", stream.read_to_end(&mut bytes)).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    let body = if head.contains("transfer-encoding: chunked") {
        unchunked(body)
    } else {
        body.to_owned()
    };
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body,
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&after[..size]);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    body
}
