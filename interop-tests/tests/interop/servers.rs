//! Our client generates through real Petals servers, alone and mixed with ours, and gets what plain transformers computes.

use interop_tests::{
    hub::{Hub, N_BLOCKS},
    node::{self, Node},
    python::{self, PetalsNode},
};

const PROMPT: [u32; 9] = [1, 17, 42, 99, 200, 5, 250, 128, 33];
const N_TOKENS: usize = 24;

/// Generates through the swarm behind `initial` and compares; then checks that the route was these peers.
fn generate_and_compare(hub: &Hub, initial: &str, route: &[(&str, &str)]) {
    generate_with_and_compare(hub, initial, &[], route);
}

/// The same with more flags.
fn generate_with_and_compare(hub: &Hub, initial: &str, more: &[&str], route: &[(&str, &str)]) {
    let want = python::reference(hub, &[PROMPT.to_vec()], N_TOKENS).unwrap().remove(0);
    let place = (hub.model().name, initial);
    let answer = node::generate_with(hub, place, (&PROMPT[..], N_TOKENS), more).unwrap();
    assert_eq!(node::ids(&answer["token_ids"]).unwrap(), want, "{answer}");
    assert_eq!(answer["prompt_tokens"], PROMPT.len(), "{answer}");
    assert_eq!(node::route(&answer).unwrap(), route, "{answer}");
}

#[test]
fn our_client_generates_through_petals_servers_alone() {
    let hub = Hub::new().unwrap();
    let bootstrap = PetalsNode::bootstrap(&hub, &[]).unwrap();
    let mut first = PetalsNode::serve(&hub, "0:2", &[&bootstrap.addr]).unwrap();
    let mut second = PetalsNode::serve(&hub, "2:4", &[&bootstrap.addr]).unwrap();
    first.online().unwrap();
    second.online().unwrap();
    let (first, second) = (first.peer_id.as_str(), second.peer_id.as_str());
    generate_and_compare(&hub, &bootstrap.addr, &[(first, "0:2"), (second, "2:4")]);
    // The same text if we hold the first and the last block ourselves.
    let ends = ["--private-ends", "1"];
    let route = [("here", "0:1"), (first, "1:2"), (second, "2:3"), ("here", "3:4")];
    generate_with_and_compare(&hub, &bootstrap.addr, &ends, &route);
}

#[test]
fn our_client_generates_through_a_chain_of_petals_ours_and_petals() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let mut first = PetalsNode::serve(&hub, "0:1", &[&bootstrap.addr]).unwrap();
    let mut last = PetalsNode::serve(&hub, &format!("3:{N_BLOCKS}"), &[&bootstrap.addr]).unwrap();
    let mut middle = Node::serve(&hub, "1:3", &[&bootstrap.addr], &[]).unwrap();
    first.online().unwrap();
    middle.online("1:3").unwrap();
    last.online().unwrap();
    let route = [
        (first.peer_id.as_str(), "0:1"),
        (middle.peer_id.as_str(), "1:3"),
        (last.peer_id.as_str(), "3:4"),
    ];
    generate_and_compare(&hub, &bootstrap.addr, &route);
}
