//! A server hands its output straight to the next one: between ours, and between ours and Petals', and no token changes.
//!
//! Petals 2.2.0 reads `next_servers` from a session's first message only, and its own client never puts them there; so the
//! raw client does. What arrives on the second server's stream, although nothing was sent there, has been pushed.

use interop_tests::{
    hub::Hub,
    node::{Node, Swarm},
    python::{self, PetalsNode},
    raw::{self, RawClient},
};
use serde_json::json;

/// Largest difference allowed between the same activations computed by two programs, in float32.
const TOLERANCE: f64 = 1e-3;

/// What both halves of the model make of three tokens and then one, step by step, without a push.
fn undisturbed(client: &mut RawClient, first: &str, second: &str) -> Vec<f64> {
    client.open("plain 0", first).unwrap();
    client.open("plain 1", second).unwrap();
    let mut output = Vec::new();
    for (step, tokens) in [(0, 3), (1, 1), (2, 1)] {
        let fields =
            |session: &str| json!({"session_id": session, "step_id": format!("plain {step}"), "max_length": 8});
        let hidden = raw::random(tokens, step);
        let middle = client
            .step("plain 0", &raw::inference(&raw::chain(0, 2), hidden, fields("plain 0")))
            .unwrap();
        output = client
            .step(
                "plain 1",
                &raw::inference(&raw::chain(2, 4), raw::exact(&middle), fields("plain 1")),
            )
            .unwrap();
    }
    output
}

/// The same with the second step pushed from `first` to `second`, whose copy from the client comes late.
fn pushed(client: &mut RawClient, first: &str, second: &str) -> Vec<f64> {
    client.open("push 0", first).unwrap();
    client.open("push 1", second).unwrap();
    let next = json!([{"tuple": [second, "push 1", 2, 4]}]);
    let fields =
        |session: &str, step: u32| json!({"session_id": session, "step_id": format!("push {step}"), "max_length": 8});

    let middle = client
        .step(
            "push 0",
            &raw::inference(&raw::chain(0, 2), raw::random(3, 0), fields("push 0", 0)),
        )
        .unwrap();
    client
        .step(
            "push 1",
            &raw::inference(&raw::chain(2, 4), raw::exact(&middle), fields("push 1", 0)),
        )
        .unwrap();

    let mut with_next = fields("push 0", 1);
    with_next["next_servers"] = next;
    let middle = client
        .step(
            "push 0",
            &raw::inference(&raw::chain(0, 2), raw::random(1, 1), with_next),
        )
        .unwrap();
    let answer = client.receive("push 1").unwrap();
    raw::values(&answer).unwrap();
    // As a client does that knows nothing of the push: same step, hence no second answer and no second token in the cache.
    client
        .send(
            "push 1",
            &raw::inference(&raw::chain(2, 4), raw::exact(&middle), fields("push 1", 1)),
        )
        .unwrap();

    let middle = client
        .step(
            "push 0",
            &raw::inference(&raw::chain(0, 2), raw::random(1, 2), fields("push 0", 2)),
        )
        .unwrap();
    client
        .step(
            "push 1",
            &raw::inference(&raw::chain(2, 4), raw::exact(&middle), fields("push 1", 2)),
        )
        .unwrap()
}

#[test]
fn a_step_is_pushed_between_two_servers_of_ours() {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:2", "2:4"], &[]).unwrap();
    let (first, second) = (&swarm.servers[0], &swarm.servers[1]);
    let mut client = RawClient::start(&hub, &[&first.addr, &second.addr]).unwrap();
    let want = undisturbed(&mut client, &first.peer_id, &second.peer_id);
    let got = pushed(&mut client, &first.peer_id, &second.peer_id);
    assert!(raw::difference(&got, &want) < TOLERANCE);
}

#[test]
fn a_step_is_pushed_from_our_server_to_one_of_petals() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let mut second = PetalsNode::serve(&hub, "2:4", &[&bootstrap.addr]).unwrap();
    let mut first = Node::serve(&hub, "0:2", &[&bootstrap.addr], &[]).unwrap();
    first.online("0:2").unwrap();
    second.online().unwrap();
    let mut client = RawClient::start(&hub, &[&first.addr, &second.addr]).unwrap();
    let want = undisturbed(&mut client, &first.peer_id, &second.peer_id);
    let got = pushed(&mut client, &first.peer_id, &second.peer_id);
    assert!(raw::difference(&got, &want) < TOLERANCE);
}

#[test]
fn a_step_is_pushed_from_a_petals_server_to_ours() {
    let hub = Hub::new().unwrap();
    let bootstrap = Node::bootstrap(&hub, &[]).unwrap();
    let mut first = PetalsNode::serve(&hub, "0:2", &[&bootstrap.addr]).unwrap();
    let mut second = Node::serve(&hub, "2:4", &[&bootstrap.addr], &[]).unwrap();
    second.online("2:4").unwrap();
    first.online().unwrap();
    let mut client = RawClient::start(&hub, &[&first.addr, &second.addr]).unwrap();
    client.open("plain 0", &first.peer_id).unwrap();
    client.open("plain 1", &second.peer_id).unwrap();
    let fields = |session: &str, step: &str| json!({"session_id": session, "step_id": step, "max_length": 8});
    let middle = client
        .step(
            "plain 0",
            &raw::inference(&raw::chain(0, 2), raw::random(3, 0), fields("plain 0", "a")),
        )
        .unwrap();
    let want = client
        .step(
            "plain 1",
            &raw::inference(&raw::chain(2, 4), raw::exact(&middle), fields("plain 1", "a")),
        )
        .unwrap();

    // The session that is pushed to must exist: a step of no tokens opens it.
    client.open("push 0", &first.peer_id).unwrap();
    client.open("push 1", &second.peer_id).unwrap();
    let opened = client
        .step(
            "push 1",
            &raw::inference(&raw::chain(2, 4), raw::random(0, 0), fields("push 1", "open")),
        )
        .unwrap();
    assert!(opened.is_empty());
    let mut with_next = fields("push 0", "a");
    with_next["next_servers"] = json!([{"tuple": [second.peer_id, "push 1", 2, 4]}]);
    client
        .step(
            "push 0",
            &raw::inference(&raw::chain(0, 2), raw::random(3, 0), with_next),
        )
        .unwrap();
    let got = raw::values(&client.receive("push 1").unwrap()).unwrap();
    assert!(raw::difference(&got, &want) < TOLERANCE);
}

#[test]
fn a_push_without_a_session_id_is_refused_and_one_for_an_unknown_session_is_ignored() {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:4"], &[]).unwrap();
    let server = &swarm.servers[0];
    let mut client = RawClient::start(&hub, &[&server.addr]).unwrap();
    let mut push = |fields| {
        let request = raw::inference(&raw::chain(0, 4), raw::random(1, 0), fields);
        client
            .ask(&json!({"op": "unary", "peer": server.peer_id, "method": "rpc_push", "request": request}))
            .unwrap()
    };
    let refused = push(json!({"step_id": "a"}));
    assert!(refused["error"].as_str().unwrap().contains("session_id"), "{refused}");
    let ignored = push(json!({"session_id": "nobody's", "step_id": "a"}));
    assert_eq!(ignored, json!({"tensors": []}));
}

#[test]
fn transformers_gets_the_same_tokens_from_a_client_whose_servers_push() {
    const PROMPT: [u32; 6] = [9, 8, 7, 6, 5, 4];
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:1", "1:2", "2:3", "3:4"], &[]).unwrap();
    let want = python::reference(&hub, &[PROMPT.to_vec()], 24).unwrap().remove(0);
    let answer = interop_tests::node::generate(&hub, &swarm.bootstrap.addr, &PROMPT, 24).unwrap();
    assert_eq!(interop_tests::node::ids(&answer["token_ids"]).unwrap(), want);
}
