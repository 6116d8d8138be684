//! The person who runs nodes talks to them with the program itself: two of them on one machine, of which one is paused,
//! resumed and drained.

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use interop_tests::{
    ANSWER, STARTUP,
    hub::{Hub, PREFIX},
    node::{Node, generate_with, sepal},
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

/// A server in one swarm, and another swarm with a key.
struct Two {
    hub: Hub,
    first: Node,
    server: Node,
    /// Of the other swarm.
    _bootstrap: Process,
    friends: String,
    key: String,
}

impl Two {
    fn start() -> Self {
        let hub = Hub::new().unwrap();
        let first = Node::bootstrap(&hub, &[]).unwrap();
        let key = hub.path().join("friends.key").display().to_string();
        says(&hub, &format!("swarm-key {key}"));
        let line = format!("bootstrap --listen /ip4/127.0.0.1/tcp/0 --no-control --swarm-key {key}");
        let line: Vec<&str> = line.split_whitespace().collect();
        let mut bootstrap = Process::start("sepal bootstrap", &mut sepal(&hub, &line).unwrap()).unwrap();
        let friends = bootstrap.wait_line("listening ", STARTUP).unwrap();
        let mut server = Node::serve(&hub, "0:4", &[&first.addr], &[]).unwrap();
        server.online("0:4").unwrap();
        Self {
            hub,
            first,
            server,
            _bootstrap: bootstrap,
            friends,
            key,
        }
    }
}

/// Its name on this machine.
fn name(node: &Node) -> &str {
    &node.peer_id[node.peer_id.len() - 8..]
}

#[test]
fn one_server_is_in_two_swarms_until_it_is_told_to_leave_one() {
    let two = Two::start();
    let Two {
        hub,
        first,
        friends,
        key,
        ..
    } = &two;
    let node = name(&two.server);
    let joined = json(
        hub,
        &format!("connect {friends} --name friends --swarm-key {key} --node {node} --json"),
    );
    assert_eq!(joined["state"], "online", "{joined}");
    assert_eq!(joined["blocks"][0], format!("{PREFIX} 0:4"), "{joined}");
    let both = json(hub, &format!("swarms --node {node} --json"));
    assert_eq!(both["swarms"].as_array().unwrap().len(), 2, "{both}");
    let status = says(hub, &format!("status --node {node}"));
    assert!(status.contains("swarm-1 online, friends online"), "{status}");

    let prompt: [u32; 3] = [12, 250, 3];
    let model = hub.model().name;
    let here = generate_with(hub, (model, &first.addr), (&prompt, 4), &[]).unwrap();
    let there = generate_with(hub, (model, friends), (&prompt, 4), &["--swarm-key", key]).unwrap();
    assert_eq!(here["token_ids"], there["token_ids"], "{here} {there}");
    assert_eq!(here["token_ids"].as_array().unwrap().len(), 4, "{here}");

    let with_key = format!("{friends} --swarm-key {key}");
    wait_until_seen(hub, &with_key, "online");
    assert_eq!(
        says(hub, &format!("disconnect friends --node {node}")),
        "left friends\n"
    );
    assert!(["offline", ""].contains(&&*seen(hub, &with_key)));
    assert_eq!(seen(hub, &first.addr), "online");
    let left = says(hub, &format!("swarms --node {node}"));
    assert!(
        left.contains("1   swarm-1          online") && !left.contains("friends"),
        "{left}"
    );
}

#[test]
fn swarms_that_cannot_be_joined_or_left_are_refused_with_the_reason() {
    let two = Two::start();
    let (hub, first, friends) = (&two.hub, &two.first, &two.friends);
    let second = Node::bootstrap(hub, &[&first.addr]).unwrap();
    let node = name(&two.server);
    for (order, problem) in [
        (
            format!("connect {} --node {node}", first.addr),
            "already: swarm 1, swarm-1",
        ),
        (
            format!("connect {} --node {node}", second.addr),
            "this node is in that swarm already, or another one with its identity is",
        ),
        (
            format!("connect {friends} --name 2 --node {node}"),
            "\"2\" is no name for a swarm: 1 to 32",
        ),
        // Who has not the key is hung up on.
        (format!("connect {friends} --node {node}"), "check the addresses"),
        (
            format!("connect {friends} --node {}", name(first)),
            "bootstrap is in one swarm: only sepal serve can be in several",
        ),
        (
            format!("disconnect 1 --node {node}"),
            "swarm-1 is the only swarm that this node is in: sepal stop ends the node",
        ),
        (
            format!("disconnect friends --node {node}"),
            "this node is in no swarm called friends: sepal swarms lists",
        ),
    ] {
        let (ok, _, err) = run(hub, &order);
        assert!(!ok && err.contains(problem), "{order}: {err}");
    }
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

#[test]
fn who_runs_a_worker_is_told_of_its_jobs() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let line = format!(
        "serve demo --jobs --initial-peers {} --listen /ip4/127.0.0.1/tcp/0 --throughput 100",
        bootstrap.addr
    );
    let line: Vec<&str> = line.split_whitespace().collect();
    let mut worker = Process::start("sepal serve", &mut sepal(&hub, &line).unwrap()).unwrap();
    let address = worker.wait_line("listening ", STARTUP).unwrap();
    worker.wait_line("online demo-hf 0:8", STARTUP).unwrap();
    let name = &address[address.len() - 8..];
    let told = |expected: &str| {
        let deadline = Instant::now() + ANSWER;
        loop {
            let lines = says(&hub, &format!("status --node {name}"));
            if lines.contains(&format!("jobs       demo-hf: {expected}")) {
                break;
            }
            assert!(Instant::now() < deadline, "{lines}");
        }
    };
    told("0 wait or run; 0 done, 0 failed, 0 refused, 0 stopped");
    let submit = format!(
        "job submit --model demo --prompt 2+2? --max-new-tokens 4 --initial-peers {}",
        bootstrap.addr
    );
    says(&hub, &submit);
    told("0 wait or run; 1 done, 0 failed, 0 refused, 0 stopped");
    let status = json(&hub, &format!("status --node {name} --json"));
    assert_eq!(status["jobs"][0]["done"], 1, "{status}");
}
