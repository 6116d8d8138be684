//! Who a node is: its key file outlives it, and nobody else may use it meanwhile.

use std::fs;

use interop_tests::{
    ANSWER, STARTUP,
    hub::{self, Hub},
    node::{Node, Swarm, sepal},
    process::Process,
    python::DhtPeer,
};
use serde_json::{Value, json};

#[test]
fn a_restarted_server_is_the_same_peer_and_python_sees_it_go_and_come() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let file = hub.path().join("server.key");
    let identity = ["--identity", file.to_str().unwrap()];
    let mut reader = DhtPeer::start(&hub, &[&bootstrap.addr]).unwrap();
    // ServerInfo is (state, throughput, the rest); state 2 is ONLINE, 0 is OFFLINE.
    let mut state_of = |peer_id: &str| -> Value {
        let key = format!("{}.0", hub::PREFIX);
        let found = reader.ask(&json!({"op": "get", "key": key, "latest": true})).unwrap();
        let entries = found["entries"].as_array().cloned().unwrap_or_default();
        let entry = entries.iter().find(|entry| entry[0] == peer_id);
        entry.map(|entry| entry[1][0].clone()).unwrap_or_default()
    };

    let mut first = Node::serve(&hub, "0:4", &[&bootstrap.addr], &identity).unwrap();
    first.online("0:4").unwrap();
    let peer_id = first.peer_id.clone();
    assert_eq!(state_of(&peer_id), 2);

    first.process.interrupt();
    assert!(first.process.wait_exit(ANSWER).unwrap().success());
    assert_eq!(state_of(&peer_id), 0);

    let mut second = Node::serve(&hub, "0:4", &[&bootstrap.addr], &identity).unwrap();
    second.online("0:4").unwrap();
    assert_eq!(second.peer_id, peer_id);
    assert_eq!(state_of(&peer_id), 2);
}

#[test]
fn a_second_server_with_the_identity_of_a_running_one_is_refused() {
    let hub = Hub::new().unwrap();
    let file = hub.path().join("server.key");
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let mut first = Node::serve(&hub, "0:4", &[&bootstrap.addr], &["--identity", file.to_str().unwrap()]).unwrap();
    first.online("0:4").unwrap();
    // A copy, as on another machine: a lock on the file would not show it.
    let copy = hub.path().join("copy.key");
    fs::copy(&file, &copy).unwrap();
    for key in [file, copy] {
        let identity = ["--identity", key.to_str().unwrap()];
        let mut second = Node::start_server(&hub, "0:4", &[&bootstrap.addr], &identity).unwrap();
        let status = second.wait_exit(STARTUP).unwrap();
        let complaint = second.said().err;
        assert!(!status.success(), "{complaint}");
        assert!(
            complaint.contains("identity") && complaint.contains(&first.peer_id),
            "{complaint}"
        );
    }
}

#[test]
fn a_damaged_identity_file_is_named_and_left_alone() {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &[], &[]).unwrap();
    let file = hub.path().join("damaged.key");
    fs::write(&file, b"not a key").unwrap();
    let arguments = [
        "bootstrap",
        "--initial-peers",
        &swarm.bootstrap.addr,
        "--identity",
        file.to_str().unwrap(),
    ];
    let mut node = Process::start("damaged", &mut sepal(&hub, &arguments).unwrap()).unwrap();
    let status = node.wait_exit(STARTUP).unwrap();
    let complaint = node.said().err;
    assert!(!status.success());
    assert!(complaint.contains("damaged.key"), "{complaint}");
    assert_eq!(fs::read(&file).unwrap(), b"not a key");
}
