//! The health map says of a swarm of our and Python servers what Petals' own functions find out about it, and answers
//! Petals servers in the words that they understand.

use std::{collections::BTreeMap, time::Instant};

use interop_tests::{
    STARTUP,
    hub::{Hub, N_BLOCKS, PREFIX},
    node::{Node, sepal},
    process::Process,
    python::{self, PetalsNode},
};
use serde_json::{Value, json};

/// Nobody's.
const NOBODY: &str = "12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d";

/// What a record says. What changes with every announcement is left out.
const FACTS: [&str; 11] = [
    "state",
    "throughput",
    "start_block",
    "end_block",
    "public_name",
    "version",
    "network_rps",
    "inference_rps",
    "torch_dtype",
    "quant_type",
    "using_relay",
];

fn map(hub: &Hub, initial: &str) -> (Process, String) {
    let arguments = ["health", "--initial-peers", initial, "--http", "127.0.0.1:0"];
    let mut process = Process::start("sepal health", &mut sepal(hub, &arguments).unwrap()).unwrap();
    let url = process.wait_line("health map ", STARTUP).unwrap();
    (process, url.trim_end_matches('/').to_owned())
}

/// Looks at the swarm until a server is found to be online.
fn wait_until_seen(hub: &Hub, initial: &str, peer_id: &str) {
    let deadline = Instant::now() + STARTUP;
    loop {
        let look = sepal(hub, &["health", "--initial-peers", initial, "--json"])
            .unwrap()
            .output()
            .unwrap();
        let state: Value = serde_json::from_slice(&look.stdout).unwrap();
        let servers = state["models"][0]["servers"].as_array().unwrap();
        if servers
            .iter()
            .any(|server| server["peer_id"] == peer_id && server["state"] == "online")
        {
            return;
        }
        assert!(Instant::now() < deadline, "{peer_id} never came online: {state}");
    }
}

/// The servers of the only model, by peer id.
fn rows(state: &Value) -> BTreeMap<&str, &Value> {
    let model = &state["model_reports"][0];
    assert_eq!(model["dht_prefix"], PREFIX, "{state}");
    assert_eq!(model["num_blocks"], N_BLOCKS);
    let rows = model["server_rows"].as_array().unwrap();
    rows.iter().map(|row| (row["peer_id"].as_str().unwrap(), row)).collect()
}

#[test]
fn the_map_agrees_with_what_petals_finds_out_about_the_same_swarm() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let named = ["--public-name", "<b>ann</b>"];
    let mut ours = Node::serve(&hub, "0:2", &[&bootstrap.addr], &named).unwrap();
    let mut theirs = PetalsNode::serve(&hub, "1:4", &[&bootstrap.addr]).unwrap();
    let long = ["--expiration", "600"];
    let mut killed = Node::serve(&hub, "3:4", &[&bootstrap.addr], &long).unwrap();
    ours.online("0:2").unwrap();
    theirs.online().unwrap();
    killed.online("3:4").unwrap();
    // It says that it started before its last record is stored.
    wait_until_seen(&hub, &bootstrap.addr, &theirs.peer_id);
    killed.process.kill();
    let (_map, url) = map(&hub, &bootstrap.addr);
    let found = python::run(
        &hub,
        "swarm_facts.py",
        &json!({
            "initial_peers": [bootstrap.addr],
            "prefix": PREFIX,
            "n_blocks": N_BLOCKS,
            "map": url,
            "ask": [ours.peer_id, theirs.peer_id, NOBODY],
        }),
    )
    .unwrap();

    let (spans, rows) = (found["spans"].as_object().unwrap(), rows(&found["state"]));
    assert_eq!(spans.len(), 3, "{found}");
    assert_eq!(rows.len(), 3, "{found}");
    for (peer, span) in spans {
        let row = rows[peer.as_str()];
        for end in ["start", "end"] {
            assert_eq!(row["span"][end], span[end], "{peer}: {found}");
        }
        for fact in FACTS {
            let (map, petals) = (&row["span"]["server_info"][fact], &span["server_info"][fact]);
            assert_eq!(map, petals, "{fact} of {peer}");
        }
        let answers = found["answers"][peer] == true;
        assert_eq!(
            row["state"],
            if answers { "online" } else { "unreachable" },
            "{peer}: {found}"
        );
        assert_eq!(answers, *peer != killed.peer_id, "{found}");
    }
    assert_eq!(found["state"]["model_reports"][0]["state"], "healthy");
    assert_eq!(found["state"]["bootstrap_states"], json!(["online"]));
    let issues = found["state"]["reachability_issues"].as_array().unwrap();
    assert_eq!(issues.len(), 1, "{issues:?}");
    assert_eq!(issues[0]["peer_id"], killed.peer_id);

    assert_eq!(found["reachable"][&ours.peer_id], true, "{found}");
    assert_eq!(found["reachable"][&theirs.peer_id], true, "{found}");
    let refused = found["reachable"][NOBODY].as_str().unwrap();
    assert!(
        refused.contains("not become reachable") && refused.contains("a firewall or router"),
        "{refused}"
    );
    assert!(refused.contains("--public_ip 127.0.0.1"), "{refused}");
}

#[test]
fn a_map_whose_port_is_taken_says_so_at_once() {
    let hub = Hub::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let nobody = format!("/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}");
    let arguments = ["health", "--initial-peers", &nobody, "--http", &addr];
    let mut process = Process::start("sepal health", &mut sepal(&hub, &arguments).unwrap()).unwrap();
    assert_eq!(process.wait_exit(STARTUP).unwrap().code(), Some(1));
    let said = process.said().err;
    assert!(said.contains(&format!("cannot listen on --http {addr}")), "{said}");
}
