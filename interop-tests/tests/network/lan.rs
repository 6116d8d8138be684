//! A local network whose machines find each other by the name of their swarm, without any address given.

use std::time::Duration;

use interop_tests::{
    ANSWER, WORK,
    hub::{self, Hub},
    network::{Nat, Network},
    node::{self, Node},
    process::Process,
};

/// What is promised: nodes that run know each other within this time.
const FOUND: Duration = Duration::from_secs(5);

/// What a client of the swarm `name` prints, and whether it succeeds.
fn generate(hub: &Hub, name: &str) -> anyhow::Result<(Process, bool)> {
    let prompt = ["generate", hub::MODEL, "--prompt", "12 250 3", "--max-new-tokens", "8"];
    let rest = ["--temperature", "0", "--json", "--lan", name];
    let mut command = node::sepal(hub, &[&prompt[..], &rest].concat())?;
    let mut client = Process::start("sepal generate", &mut command)?;
    let success = client.wait_exit(WORK)?.success();
    Ok((client, success))
}

#[test]
fn nodes_of_one_name_find_each_other_without_any_address_and_others_are_left_alone() {
    let hub = Hub::new().unwrap();
    let mut network = Network::new().unwrap();
    let mut home = network.home("home", Nat::Easy).unwrap();
    let places = ["first", "second", "third", "fourth"].map(|name| home.machine(name).unwrap());
    let [first, second, third, fourth] = places.each_ref().map(|place| hub.at(place));
    let lan = ["--lan", "home"];
    let mut first = Node::serve(&first, "0:2", &[], &lan).unwrap();
    let mut second = Node::serve(&second, "2:4", &[], &lan).unwrap();
    let mut stranger = Node::serve(&third, "0:4", &[], &["--lan", "other"]).unwrap();
    let ids = [first.peer_id.clone(), second.peer_id.clone()];
    for (node, other) in [(&mut first, &ids[1]), (&mut second, &ids[0])] {
        let found = |said: &str| {
            said.lines()
                .any(|line| line.contains("found on the local network") && line.contains(other))
        };
        node.process
            .wait_for("neighbour", FOUND, |said| found(&said.err).then_some(()))
            .unwrap();
    }
    first.online("0:2").unwrap();
    second.online("2:4").unwrap();
    stranger.online("0:4").unwrap();

    let (mut client, success) = generate(&fourth, "home").unwrap();
    assert!(success, "{}", client.said().err);
    let answer = client.answer(ANSWER).unwrap();
    assert_eq!(node::ids(&answer["token_ids"]).unwrap().len(), 8);
    let peers: Vec<&str> = answer["route"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|hop| hop["peer"].as_str())
        .collect();
    assert_eq!(peers, [first.peer_id.as_str(), second.peer_id.as_str()]);
    assert!(
        !first
            .process
            .said()
            .err
            .contains(&format!("network peer={}", stranger.peer_id))
    );

    let (client, success) = generate(&fourth, "nobody").unwrap();
    let complaint = client.said().err;
    assert!(
        !success && complaint.contains("no node of the swarm \"nobody\" was found on the local network"),
        "{complaint}"
    );
}
