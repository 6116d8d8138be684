//! Who can be dialed: nodes of ours ask Python's whether they can, Petals servers ask ours, and both act on the answer.

use std::{
    thread,
    time::{Duration, Instant},
};

use interop_tests::{
    ANSWER, STARTUP,
    hub::{self, Hub},
    node::{Node, sepal},
    process::Process,
    python::{self, DhtPeer, PetalsNode},
};
use sepal::{
    p2p::{self, P2p},
    task::Tasks,
};
use sepal_protocol::{Message, names, proto};
use serde_json::json;

/// Nobody listens there: what a router would let nobody through to.
const CLOSED: &str = "/ip4/127.0.0.1/tcp/9";

/// Waits for a piece of text in a log.
fn wait_log(process: &mut Process, text: &str) {
    process
        .wait_for(text, STARTUP, |said| said.err.contains(text).then_some(()))
        .unwrap();
}

#[test]
fn a_node_of_ours_that_python_can_dial_is_direct() {
    let hub = Hub::new().unwrap();
    let mut petals = PetalsNode::bootstrap(&hub, &[]).unwrap();
    let mut ours = Node::bootstrap(&hub, &[&petals.addr]).unwrap();
    assert_eq!(ours.process.wait_line("reachable: ", ANSWER).unwrap(), "direct");
    let short = &ours.peer_id[ours.peer_id.len() - 6..];
    wait_log(&mut petals.process, &format!("check_peer=...{short}) -> True"));
}

#[test]
fn a_node_of_ours_that_python_cannot_dial_is_a_client_and_says_what_to_do() {
    let hub = Hub::new().unwrap();
    let mut petals = PetalsNode::bootstrap(&hub, &[]).unwrap();
    let mut neighbor = DhtPeer::start(&hub, &[&petals.addr]).unwrap();
    let neighbor_addr = neighbor.addr.clone().unwrap();
    let arguments = [
        "bootstrap",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--announce-addrs",
        CLOSED,
    ];
    let arguments = [&arguments[..], &["--initial-peers", &petals.addr, &neighbor_addr]].concat();
    let mut ours = Process::start("sepal bootstrap", &mut sepal(&hub, &arguments).unwrap()).unwrap();
    let remedy = ours.wait_line("not reachable: ", STARTUP).unwrap();
    assert!(remedy.contains("--public-ip"), "{remedy}");
    let addr = ours.wait_line("listening ", ANSWER).unwrap();
    let peer_id = addr.rsplit_once("/p2p/").unwrap().1;
    wait_log(
        &mut petals.process,
        &format!("check_peer=...{}) -> False", &peer_id[peer_id.len() - 6..]),
    );
    // Whoever it is connected to gets an answer all the same, without a node id: nobody enters a client in a table.
    let answer = neighbor.ask(&json!({"op": "ping", "peer_id": peer_id})).unwrap();
    assert_eq!(answer["node_id"], "", "{answer}");
}

/// Whether Python's node at `petals` can dial `peer`, asked by somebody else.
async fn can_dial(petals: &str, peer: &str) -> bool {
    let tasks = Tasks::new();
    let asker = P2p::bind(p2p::Config::default(), &tasks).await.unwrap();
    let asked = asker.connect(petals.parse().unwrap()).await.unwrap();
    let peer: p2p::PeerId = peer.parse().unwrap();
    let question = proto::PingRequest {
        peer: Some(proto::NodeInfo {
            node_id: peer.to_bytes(),
        }),
        ..proto::PingRequest::default()
    };
    let question = question.encode_to_vec().into();
    let answer = asker
        .call_unary(asked, names::REACHABILITY_CHECK, question, ANSWER)
        .await;
    tasks.shutdown().await;
    proto::PingResponse::decode(answer.unwrap()).unwrap().available
}

#[tokio::test]
async fn a_node_that_was_dialed_in_vain_while_it_restarted_is_not_taken_for_unreachable() {
    let hub = Hub::new().unwrap();
    let petals = PetalsNode::bootstrap(&hub, &[]).unwrap();
    let key = hub.path().join("node.key");
    let start = |listen: &str| {
        let arguments = ["bootstrap", "--identity", key.to_str().unwrap(), "--listen", listen];
        let arguments = [&arguments[..], &["--initial-peers", &petals.addr]].concat();
        Process::start("sepal bootstrap", &mut sepal(&hub, &arguments).unwrap()).unwrap()
    };
    let mut first = start("/ip4/127.0.0.1/tcp/0");
    assert_eq!(first.wait_line("reachable: ", STARTUP).unwrap(), "direct");
    let addr = first.wait_line("listening ", ANSWER).unwrap();
    let (listen, peer) = addr.rsplit_once("/p2p/").unwrap();
    first.kill();
    // From now on Python's daemon does not dial it again for a while, whatever it is asked.
    assert!(!can_dial(&petals.addr, peer).await);
    let mut second = start(listen);
    assert_eq!(second.wait_line("reachable: ", STARTUP).unwrap(), "direct");
}

#[test]
fn python_reads_that_a_server_of_ours_cannot_be_dialed() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let mut reader = DhtPeer::start(&hub, &[&bootstrap.addr]).unwrap();
    let closed = ["--announce-addrs", CLOSED];
    let mut server = Node::serve(&hub, "0:4", &[&bootstrap.addr], &closed).unwrap();
    server.process.wait_line("not reachable: ", STARTUP).unwrap();
    let key = format!("{}.0", hub::PREFIX);
    let deadline = Instant::now() + ANSWER;
    let entry = loop {
        let found = reader.ask(&json!({"op": "get", "key": key, "latest": true})).unwrap();
        match found["entries"].get(0) {
            Some(entry) => break entry.clone(),
            None => assert!(Instant::now() < deadline, "{found}"),
        }
        thread::sleep(Duration::from_millis(200));
    };
    // ServerInfo is (state, throughput, the rest).
    assert_eq!(entry[0], server.peer_id.as_str());
    assert_eq!(entry[1][2]["using_relay"], true, "{entry}");
}

#[test]
fn a_petals_server_takes_our_word_for_whether_it_can_be_dialed() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    for (announced, verdict) in [(None, "directly"), (Some(CLOSED), "via relays")] {
        let mut arguments = vec![hub::MODEL, "--block_indices", "0:4", "--initial_peers", &bootstrap.addr];
        arguments.extend(["--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--throughput", "100"]);
        arguments.extend(["--device", "cpu", "--num_handlers", "1"]);
        if let Some(addr) = announced {
            arguments.extend(["--announce_maddrs", addr]);
        }
        let mut petals = python::start(&hub, "petals_server.py", &arguments).unwrap();
        wait_log(&mut petals, &format!("This server is accessible {verdict}"));
    }
}
