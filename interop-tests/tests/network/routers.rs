//! Nodes and clients at home, behind routers that translate addresses.

use interop_tests::{
    STARTUP, WORK,
    hub::Hub,
    network::{Nat, Network},
    node::{self, Node},
};

const PROMPT: [u32; 5] = [12, 250, 3, 77, 140];
const N_TOKENS: usize = 300;

#[test]
fn a_client_finishes_its_text_though_its_router_gets_another_address() {
    let hub = Hub::new().unwrap();
    let mut network = Network::new().unwrap();
    let public = hub.at(&network.host("public").unwrap());
    let mut server = Node::serve(&public, "0:4", &[], &[]).unwrap();
    server.online("0:4").unwrap();
    let mut home = network.home("home", Nat::Symmetric).unwrap();
    let client = hub.at(&home.machine("client").unwrap());
    let want = node::generate(&client, &server.addr, &PROMPT, N_TOKENS).unwrap();

    let mut process = node::start_generate(&client, &server.addr, &PROMPT, N_TOKENS, false).unwrap();
    process
        .wait_for("tokens", STARTUP, |said| {
            (said.out.split_whitespace().count() >= 20).then_some(())
        })
        .unwrap();
    home.change_address().unwrap();
    let status = process.wait_exit(WORK).unwrap();
    let said = process.said();
    assert!(status.success(), "{}", said.err);
    assert!(said.err.contains("history replayed"), "nothing was lost\n{}", said.err);
    let got: Vec<u32> = said.out.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(got, node::ids(&want["token_ids"]).unwrap());
}
