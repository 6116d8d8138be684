//! Bad lines between public hosts: slow ones that lose packets, and ones that are cut and mended.

use interop_tests::{
    hub::Hub,
    network::{Network, Slow},
    node::{self, Node},
};

const PROMPT: [u32; 5] = [12, 250, 3, 77, 140];
const N_TOKENS: usize = 40;

/// Two of these make a round trip of 150 ms.
const FAR: Slow = Slow { delay: 75, loss: 0.02 };

#[test]
fn a_far_client_over_a_lossy_line_gets_the_text_that_a_near_one_gets() {
    let hub = Hub::new().unwrap();
    let mut network = Network::new().unwrap();
    let places = [
        network.host("bootstrap").unwrap(),
        network.host("first").unwrap(),
        network.host("second").unwrap(),
    ];
    let bootstrap = Node::bootstrap(&hub.at(&places[0]), &[]).unwrap();
    let mut first = Node::serve(&hub.at(&places[1]), "0:2", &[&bootstrap.addr], &[]).unwrap();
    let mut second = Node::serve(&hub.at(&places[2]), "2:4", &[&bootstrap.addr], &[]).unwrap();
    first.online("0:2").unwrap();
    second.online("2:4").unwrap();
    let near = network.host("near").unwrap();
    let want = node::generate(&hub.at(&near), &bootstrap.addr, &PROMPT, N_TOKENS).unwrap();
    let far = network.slow_host("far", FAR).unwrap();
    let got = node::generate(&hub.at(&far), &bootstrap.addr, &PROMPT, N_TOKENS).unwrap();
    assert_eq!(node::ids(&got["token_ids"]).unwrap().len(), N_TOKENS);
    assert_eq!(got["token_ids"], want["token_ids"], "{got}");
    assert!(network.bytes_between("far", "first").unwrap() > 0);
}
