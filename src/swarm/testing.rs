//! What the tests of this layer share: peers, records and vectors recorded from Petals. Compiled for tests only.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    ops::Range,
    sync::mpsc,
    time::Duration,
};

use sepal_protocol::record::{ServerInfo, ServerState};
use serde_json::Value;

use crate::{
    dht::{self, Dht},
    p2p::{self, Multiaddr, P2p, PeerId, Router},
    swarm::{monitor::Monitor, spans::BlockRecords},
    task::Tasks,
};

/// A libp2p host on the loopback interface, or one that only dials.
pub(crate) async fn host(tasks: &Tasks, listens: bool) -> P2p {
    let mut config = p2p::Config::default();
    if !listens {
        config.listen = Vec::new();
        config.client_mode = true;
    }
    P2p::bind(config, tasks).await.unwrap()
}

/// A port of loopback on which nobody listens. Another process may take it before it is used.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A DHT node that is reachable and has joined the others through `initial_peers`.
pub(crate) async fn node(tasks: &Tasks, initial_peers: Vec<Multiaddr>) -> (P2p, Dht) {
    let p2p = host(tasks, true).await;
    let config = dht::Config {
        initial_peers,
        ..dht::Config::default()
    };
    let dht = Dht::spawn(p2p.clone(), config, tasks);
    Router::new(p2p.clone()).serve(dht.handlers()).spawn(tasks);
    dht.bootstrap().await.unwrap();
    (p2p, dht)
}

/// Peer `i` of the vectors: the identity hash 0x12, 32 bytes, all of them `i`.
pub(crate) fn peer(i: u64) -> PeerId {
    let mut bytes = vec![0x12, 0x20];
    bytes.extend([u8::try_from(i).unwrap(); 32]);
    PeerId::from_bytes(&bytes).unwrap()
}

/// A server with nothing but a state and a span.
pub(crate) fn server(state: ServerState, blocks: Range<u32>) -> ServerInfo {
    ServerInfo {
        start_block: Some(blocks.start),
        end_block: Some(blocks.end),
        ..ServerInfo::new(state, 10.0)
    }
}

/// One file of vectors recorded from Petals.
pub(crate) fn vectors(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/petals");
    serde_json::from_str(&fs::read_to_string(format!("{folder}/{name}")).unwrap()).unwrap()
}

/// The records of a case's swarm, block by block; `n_blocks` is the key of its number of blocks.
pub(crate) fn records(case: &Value, n_blocks: &str) -> Vec<BlockRecords> {
    let n_blocks = usize::try_from(case[n_blocks].as_u64().unwrap()).unwrap();
    let mut blocks = vec![BlockRecords::new(); n_blocks];
    for entry in case["servers"].as_array().unwrap() {
        for block in entry["declared"].as_array().unwrap() {
            let block = usize::try_from(block.as_u64().unwrap()).unwrap();
            blocks[block].insert(peer(entry["id"].as_u64().unwrap()), info(entry));
        }
    }
    blocks
}

fn info(entry: &Value) -> ServerInfo {
    let block = |key: &str| entry[key].as_u64().map(|block| u32::try_from(block).unwrap());
    let state = match entry["state"].as_u64().unwrap() {
        0 => ServerState::Offline,
        1 => ServerState::Joining,
        _ => ServerState::Online,
    };
    ServerInfo {
        throughput: entry["throughput"].as_f64().unwrap(),
        start_block: block("start_block"),
        end_block: block("end_block"),
        inference_rps: entry["inference_rps"].as_f64(),
        cache_tokens_left: entry["cache_tokens_left"].as_u64(),
        next_pings: entry["next_pings"].as_object().map(|pings| {
            pings
                .iter()
                .map(|(peer, rtt)| (peer.clone(), rtt.as_f64().unwrap()))
                .collect()
        }),
        ..server(state, 0..0)
    }
}

/// What a health monitor says that cannot reach the node.
pub(crate) const MONITOR_SAYS_NO: &str =
    r#"{"success": false, "message": "Failed to\nconnect\u001b[31m", "your_ip": "192.0.2.7"}"#;

/// A web server on loopback that gives these answers, one per question, and tells what it was asked.
pub(crate) fn monitor(answers: Vec<(u16, &'static str)>) -> (Monitor, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (asked, questions) = mpsc::channel();
    std::thread::spawn(move || {
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            asked.send(lines.next().unwrap().unwrap()).unwrap();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    let monitor = Monitor {
        retry: Duration::from_millis(10),
        patience: Duration::from_millis(25),
        ..Monitor::new(&url)
    };
    (monitor, questions)
}
