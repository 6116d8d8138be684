//! `sepal doctor`: what it says of a machine and a swarm that are well, and of each thing that is not.

use std::fs;

use interop_tests::{
    STARTUP,
    hub::{Hub, MODEL},
    node::{Node, sepal},
    process::Process,
    python::DhtPeer,
};

const NOBODY: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d";
const ANY_PORT: &str = "--listen /ip4/127.0.0.1/tcp/0";

/// Exit code and findings.
fn doctor(hub: &Hub, arguments: &str) -> (i32, String) {
    let arguments: Vec<&str> = ["doctor"].into_iter().chain(arguments.split_whitespace()).collect();
    let mut process = Process::start("doctor", &mut sepal(hub, &arguments).unwrap()).unwrap();
    let status = process.wait_exit(STARTUP).unwrap();
    (status.code().unwrap_or(-1), process.said().out)
}

/// The finding about `topic`.
fn finding<'a>(said: &'a str, topic: &str) -> &'a str {
    let mut lines = said.lines().filter(|line| line[5..].starts_with(topic));
    lines.next().unwrap_or_else(|| panic!("nothing about {topic}: {said}"))
}

#[test]
fn a_node_that_would_be_healthy_is_told_so_by_our_swarm_and_by_python() {
    let hub = Hub::new().unwrap();
    let ours = Node::bootstrap(&hub, &[]).unwrap();
    let python = DhtPeer::start(&hub, &[]).unwrap();
    for addr in [&ours.addr, python.addr.as_ref().unwrap()] {
        let (code, said) = doctor(&hub, &format!("{MODEL} {ANY_PORT} --initial-peers {addr}"));
        assert_eq!(code, 0, "{said}");
        for topic in ["model", "ports", "peers", "clock", "dht", "records", "reachable"] {
            assert!(finding(&said, topic).starts_with("ok "), "{said}");
        }
        assert!(said.lines().last().unwrap().starts_with("healthy: "), "{said}");
    }
}

#[test]
fn whatever_is_wrong_fails_with_its_remedy() {
    let hub = Hub::new().unwrap();
    let ours = Node::bootstrap(&hub, &[]).unwrap();
    let taken = ours.addr.split("/p2p/").next().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let snapshots = hub.path().join("models--sepal--tiny-llama/snapshots");
    let snapshot = fs::read_dir(snapshots).unwrap().next().unwrap().unwrap().path();
    fs::copy(snapshot.join("config.json"), empty.path().join("config.json")).unwrap();
    let folder = empty.path().display();
    for (arguments, topic, said) in [
        (format!("--listen {taken} --new-swarm"), "ports", taken),
        (format!("{ANY_PORT} --initial-peers {NOBODY}"), "peers", NOBODY),
        (format!("{folder} {ANY_PORT} --new-swarm"), "model", "model.safetensors"),
        (format!("org/unknown {ANY_PORT} --new-swarm"), "model", "org/unknown"),
        (
            format!("{ANY_PORT} --new-swarm --identity {folder}/config.json"),
            "identity",
            "config.json",
        ),
    ] {
        let (code, findings) = doctor(&hub, &arguments);
        assert_eq!(code, 1, "{arguments}: {findings}");
        let finding = finding(&findings, topic);
        assert!(finding.starts_with("FAIL "), "{arguments}: {finding}");
        assert!(
            finding.contains(said) && finding.contains("; remedy: "),
            "{arguments}: {finding}"
        );
    }
}
