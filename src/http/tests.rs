//! The site as programs see it: requests as bytes on a socket, answers by what they say.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    metrics::{Family, testing},
    swarm::{health, testing::node},
};

/// Limit for anything a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn site(tasks: &Tasks) -> (Site, Health) {
    let (p2p, dht) = node(tasks, Vec::new()).await;
    let health = Health::new(p2p, dht, health::Config::default(), tasks);
    let own = OwnNumbers::new(|| {
        vec![
            Family::counter("sepal_server_steps", "Steps").is(7_u64),
            Family::gauge("sepal_server_queue_length", "Steps that wait").is(3_u32),
        ]
    });
    let site = serve("127.0.0.1:0".parse().unwrap(), health.clone(), own, tasks);
    (site.await.unwrap(), health)
}

async fn open(site: &Site, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(site.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn get(site: &Site, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut stream = open(site, &request).await;
    let mut text = String::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text));
    read.await.unwrap().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_string(),
    }
}

/// Reads until `text` has come.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&read).contains(text) {
            let mut part = [0; 4096];
            let n = stream.read(&mut part).await.unwrap();
            assert!(n > 0, "ended after {:?}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&part[..n]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn every_answer_forbids_browsers_what_the_page_does_not_need() {
    let tasks = Tasks::new();
    let (site, _) = site(&tasks).await;
    for path in ["/", "/api/v1/swarm", "/metrics", "/nothing"] {
        let answer = get(&site, path).await;
        assert_eq!(answer.status, if path == "/nothing" { 404 } else { 200 });
        assert!(
            answer
                .head
                .contains("content-security-policy: default-src 'none'; script-src 'sha256-")
        );
        assert!(answer.head.contains("x-content-type-options: nosniff"));
        assert!(answer.head.contains("cache-control: no-"));
    }
    tasks.shutdown().await;
}

#[tokio::test]
async fn the_picture_is_the_same_in_all_its_forms() {
    let tasks = Tasks::new();
    let (site, health) = site(&tasks).await;
    assert_eq!(get(&site, "/api/v1/swarm").await.json()["updated"], 0.0);
    let state = health.collect().await;
    let swarm = get(&site, "/api/v1/swarm").await.json();
    // `serde_json` reads the last bit of a number differently now and then.
    let told = |time: &serde_json::Value| (time.as_f64().unwrap() - state.updated).abs() < 1e-6;
    assert!(told(&swarm["updated"]), "{swarm}");
    assert_eq!(swarm["peer_id"], state.peer_id);
    let petals = get(&site, "/api/v1/state").await.json();
    assert!(told(&petals["last_updated"]), "{petals}");
    assert_eq!(petals["model_reports"], serde_json::json!([]));
    let metrics = get(&site, "/metrics").await.body;
    assert!(metrics.contains("\nsepal_swarm_models 0\n"), "{metrics}");
    assert!(metrics.contains("\nsepal_server_steps_total 7\n"), "{metrics}");
    assert!(metrics.contains("\nsepal_server_queue_length 3\n"), "{metrics}");
    testing::check(&metrics);
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_peer_is_said_to_be_reachable_in_the_words_that_petals_understands() {
    let tasks = Tasks::new();
    let (site, health) = site(&tasks).await;
    let own = health.collect().await.peer_id.clone();
    let answer = get(&site, &format!("/api/v1/is_reachable/{own}")).await.json();
    let expected = serde_json::json!({"success": true, "message": null, "your_ip": "127.0.0.1"});
    assert_eq!(answer, expected);
    let nobody = crate::swarm::testing::peer(9);
    let answer = get(&site, &format!("/api/v1/is_reachable/{nobody}")).await.json();
    assert_eq!(answer["success"], false);
    assert!(answer["message"].as_str().unwrap().contains("firewall"), "{answer}");
    assert_eq!(get(&site, "/api/v1/is_reachable/nonsense").await.status, 400);
    tasks.shutdown().await;
}

#[tokio::test]
async fn listeners_get_every_new_picture_and_are_let_go_when_the_node_stops() {
    let tasks = Tasks::new();
    let (site, health) = site(&tasks).await;
    let mut stream = open(&site, "GET /api/v1/events HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let first = until(&mut stream, "\"updated\":0.0").await;
    assert!(
        first.contains("content-type: text/event-stream") && first.contains("event: swarm"),
        "{first}"
    );
    let state = health.collect().await;
    let updated = serde_json::to_string(&state.updated).unwrap();
    until(&mut stream, &format!("\"updated\":{updated}")).await;
    assert!(tasks.shutdown().await, "a listener holds the node up");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    ended.unwrap().unwrap();
}

#[tokio::test]
async fn more_listeners_than_allowed_are_told_so() {
    let tasks = Tasks::new();
    let (site, _) = site(&tasks).await;
    let mut listeners = Vec::new();
    for _ in 0..events::MAX_LISTENERS {
        let mut stream = open(&site, "GET /api/v1/events HTTP/1.1\r\nhost: x\r\n\r\n").await;
        until(&mut stream, "event: swarm").await;
        listeners.push(stream);
    }
    assert_eq!(get(&site, "/api/v1/events").await.status, 503);
    assert_eq!(get(&site, "/api/v1/swarm").await.status, 200);
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_request_that_is_too_long_or_changes_something_is_refused() {
    let tasks = Tasks::new();
    let (site, _) = site(&tasks).await;
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024));
    let mut stream = TcpStream::connect(site.addr).await.unwrap();
    // The site may hang up before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    let mut stream = open(
        &site,
        "POST /api/v1/swarm HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    until(&mut stream, " 405 ").await;
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_flag() {
    let tasks = Tasks::new();
    let (site, health) = site(&tasks).await;
    let error = serve(site.addr, health, OwnNumbers::new(Vec::new), &tasks)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&format!("--http {}", site.addr)), "{error}");
    tasks.shutdown().await;
}
