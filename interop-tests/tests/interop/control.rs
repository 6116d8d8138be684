//! The person who runs nodes talks to them with the program itself: two of them on one machine, of which one is paused,
//! resumed and drained.

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use interop_tests::{
    ANSWER, STARTUP,
    hub::{Hub, PREFIX},
    node::{Node, sepal},
    process::Process,
};
use serde_json::Value;

/// Runs a command to its end: whether it succeeded, stdout, stderr.
fn run(hub: &Hub, line: &str) -> (bool, String, String) {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let mut process = Process::start("sepal", &mut sepal(hub, &arguments).unwrap()).unwrap();
    let status = process.wait_exit(ANSWER).unwrap();
    let said = process.said();
    (status.success(), said.out, said.err)
}

fn says(hub: &Hub, line: &str) -> String {
    let (ok, out, err) = run(hub, line);
    assert!(ok, "{line}: {err}");
    out
}

fn json(hub: &Hub, line: &str) -> Value {
    let out = says(hub, line);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {error} in {out}"))
}

/// The state of the only server, as everybody sees it.
fn seen(hub: &Hub, initial: &str) -> String {
    let map = json(hub, &format!("health --initial-peers {initial} --json"));
    let server = &map["models"][0]["servers"][0];
    server["state"].as_str().unwrap_or_default().to_owned()
}

fn wait_until_seen(hub: &Hub, initial: &str, state: &str) {
    let deadline = Instant::now() + STARTUP;
    while seen(hub, initial) != state {
        assert!(Instant::now() < deadline, "it was never seen as {state}");
    }
}

#[test]
fn nodes_are_asked_paused_resumed_and_drained_by_the_program_itself() {
    let hub = Hub::new().unwrap();
    let (ok, _, err) = run(&hub, "status");
    assert!(!ok && err.contains("no node of yours runs on this machine"), "{err}");

    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let mut server = Node::serve(&hub, "0:4", &[&bootstrap.addr], &[]).unwrap();
    server.online("0:4").unwrap();
    let [first, name] = [&bootstrap, &server].map(|node| node.peer_id[node.peer_id.len() - 8..].to_owned());
    let socket = hub.path().join(format!("sepal/run/{name}.sock"));
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    let (ok, _, err) = run(&hub, "status");
    assert!(
        !ok && err.contains("--node NAME") && err.contains(&first) && err.contains(&name),
        "{err}"
    );
    let status = json(&hub, &format!("status --node {name} --json"));
    assert_eq!(status["state"], "online", "{status}");
    assert_eq!(status["models"][0]["blocks"], "0:4", "{status}");
    assert_eq!(json(&hub, &format!("status --node {first} --json"))["state"], "running");
    let peers = json(&hub, &format!("peers --node {name} --json"));
    assert!(peers.to_string().contains(&bootstrap.peer_id), "{peers}");
    assert_eq!(says(&hub, &format!("sessions --node {name}")), "no session is open\n");
    assert!(says(&hub, &format!("status --node {name}")).contains(&format!("({PREFIX}), online: blocks 0:4 of")));
    let (ok, _, err) = run(&hub, &format!("top --node {name}"));
    assert!(!ok && err.contains("sepal top needs a terminal"), "{err}");

    assert_eq!(says(&hub, &format!("pause --node {name}")), "paused, was online\n");
    wait_until_seen(&hub, &bootstrap.addr, "joining");
    assert_eq!(says(&hub, &format!("resume --node {name}")), "online, was paused\n");
    wait_until_seen(&hub, &bootstrap.addr, "online");
    let (ok, _, err) = run(&hub, &format!("log loud --node {name}"));
    assert!(!ok && err.contains("error, warn, info"), "{err}");
    let logged = says(&hub, &format!("log error --node {name}"));
    assert_eq!(logged, "logging error, was sepal=debug,warn\n");

    let drained = says(&hub, &format!("drain --node {name}"));
    assert!(
        drained.starts_with("draining, was online\n") && drained.ends_with("stopped\n"),
        "{drained}"
    );
    assert!(server.process.wait_exit(ANSWER).unwrap().success());
    assert!(!socket.exists());
    // Of one node it is clear which is meant.
    let mut bootstrap = bootstrap;
    assert!(says(&hub, "stop").ends_with("stopped\n"));
    assert!(bootstrap.process.wait_exit(ANSWER).unwrap().success());
}
