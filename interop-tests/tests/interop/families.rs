//! The other families that Petals itself serves: its clients and servers with ours, equal to plain transformers. Mixtral is
//! missing, which this version of Petals does not have.

use interop_tests::{
    hub::{BLOOM, FALCON, Hub, Model},
    node::{self, Node},
    python::{self, PetalsNode},
};
use serde_json::json;

/// As in `clients.rs`.
const TOLERANCE: f64 = 1e-3;

/// A Petals client and ours go through a block of ours and one of Petals', in this order; then through ours alone.
fn everybody_gets_what_transformers_computes(model: &'static Model) {
    let hub = Hub::of(model).unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let last = format!("1:{}", model.n_blocks);
    let mut theirs = PetalsNode::serve(&hub, &last, &[&bootstrap.addr]).unwrap();
    let mut ours = Node::serve(&hub, "0:1", &[&bootstrap.addr], &[]).unwrap();
    ours.online("0:1").unwrap();
    theirs.online().unwrap();
    clients(
        &hub,
        &bootstrap.addr,
        &[(&ours.peer_id, "0:1"), (&theirs.peer_id, &last)],
        &ours,
    );
    drop(theirs);

    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let all = format!("0:{}", model.n_blocks);
    let mut ours = Node::serve(&hub, &all, &[&bootstrap.addr], &[]).unwrap();
    ours.online(&all).unwrap();
    clients(&hub, &bootstrap.addr, &[(&ours.peer_id, &all)], &ours);
}

fn clients(hub: &Hub, initial: &str, route: &[(&str, &str)], ours: &Node) {
    let prompts = json!([[1, 17, 42, 90, 20, 5, 25], [3, 4, 5, 6, 7, 8]]);
    let order = json!({
        "model": hub.model().name,
        "initial_peers": [initial],
        "prompts": prompts,
        "max_new_tokens": 8,
        "scenarios": ["greedy", "batch", "forward"],
    });
    let results = python::run(hub, "petals_client.py", &order).unwrap();
    for scenario in ["greedy", "batch"] {
        let result = &results[scenario];
        assert!(result["got"].is_array(), "{scenario}: {result}");
        assert_eq!(result["got"], result["want"], "{scenario} through {route:?}");
    }
    let unclosed = results["unclosed"].as_array().unwrap();
    assert!(
        unclosed.iter().all(|session| session["peer_id"] != *ours.peer_id),
        "{unclosed:?}"
    );
    let difference = results["forward"]["difference"].as_f64().unwrap();
    assert!(difference < TOLERANCE, "{difference} through {route:?}");

    let answer = node::generate(hub, initial, &node::ids(&prompts[0]).unwrap(), 8).unwrap();
    assert_eq!(answer["token_ids"], results["greedy"]["want"][0], "{answer}");
    assert_eq!(node::route(&answer).unwrap(), route, "{answer}");
}

#[test]
fn bloom_is_served_by_ours_and_by_petals_servers_to_both_clients() {
    everybody_gets_what_transformers_computes(&BLOOM);
}

#[test]
fn falcon_is_served_by_ours_and_by_petals_servers_to_both_clients() {
    everybody_gets_what_transformers_computes(&FALCON);
}
