//! A client and a server, each at home behind a router of its own: they meet at a relay, and then directly if they can.

use interop_tests::{
    ANSWER, STARTUP, WORK,
    hub::{HIDDEN, Hub},
    network::{Nat, Network},
    node::{self, Node},
};

const PROMPT: [u32; 5] = [12, 250, 3, 77, 140];
const N_TOKENS: usize = 300;

/// What one text needs at least between client and server, in bytes: the activations of its tokens, one way.
const ACTIVATIONS: u64 = (N_TOKENS * HIDDEN * 4) as u64;

/// What became of one text between two such homes.
struct Outcome {
    /// Whether the client had a connection to the router of the server's home.
    met: bool,
    /// Bytes that went straight from home to home, and those between the client's home and the relay.
    direct: u64,
    relayed: u64,
    log: String,
}

fn between_homes(nat: Nat) -> Outcome {
    let hub = Hub::new().unwrap();
    let mut network = Network::new().unwrap();
    let relay = Node::bootstrap(&hub.at(&network.host("relay").unwrap()), &[]).unwrap();
    let mut homes = ["server", "client"].map(|name| network.home(name, nat).unwrap());
    let machine = hub.at(&homes[0].machine("serving").unwrap());
    let mut server = Node::serve(&machine, "0:4", &[&relay.addr], &[]).unwrap();
    server.process.wait_line("reachable: through relay", STARTUP).unwrap();
    server.online("0:4").unwrap();
    let client = hub.at(&homes[1].machine("asking").unwrap());
    let count = || ["server", "relay"].map(|other| network.bytes_between("client", other).unwrap());

    let before = count();
    let mut process = node::start_generate(&client, &relay.addr, &PROMPT, N_TOKENS, true).unwrap();
    let answer = process.answer(WORK).unwrap();
    assert!(process.wait_exit(ANSWER).unwrap().success());
    let after = count();
    assert_eq!(node::ids(&answer["token_ids"]).unwrap().len(), N_TOKENS);
    let log = process.said().err;
    let at_the_router = format!("remote=/ip4/{}/", homes[0].public_ip());
    Outcome {
        met: log
            .lines()
            .any(|line| line.contains(" connected ") && line.contains(&at_the_router)),
        direct: after[0] - before[0],
        relayed: after[1] - before[1],
        log,
    }
}

/// A session that began before the hole was there stays with the relay, so where the text went is not the question.
#[test]
fn a_client_at_home_punches_a_hole_to_a_server_at_home() {
    let outcome = between_homes(Nat::Easy);
    assert!(outcome.met, "{}", outcome.log);
    assert!(
        outcome.direct.max(outcome.relayed) > ACTIVATIONS,
        "{} bytes directly, {} through the relay",
        outcome.direct,
        outcome.relayed
    );
}

#[test]
fn a_client_behind_a_symmetric_router_generates_through_the_relay() {
    let outcome = between_homes(Nat::Symmetric);
    assert!(!outcome.met, "{}", outcome.log);
    assert!(
        outcome.direct < ACTIVATIONS && outcome.relayed > ACTIVATIONS,
        "{} bytes directly, {} through the relay",
        outcome.direct,
        outcome.relayed
    );
}
