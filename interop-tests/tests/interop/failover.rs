//! A server is killed in the middle of a generation, another one serves the same blocks: the text stays the same.

use interop_tests::{
    STARTUP, WORK,
    hub::Hub,
    node::{self, Node, Swarm},
    python,
};

const PROMPT: [u32; 5] = [12, 250, 3, 77, 140];
const N_TOKENS: usize = 300;

/// What a server logs when a client opens a session with it. Which of two equal servers is used is the client's choice.
const IN_USE: &str = "session opens";

/// What the client logs when it has brought another server to where the lost one was.
const REPLAYED: &str = "history replayed";

/// Generates through two servers per half, kills the used one of the half `victims` once `tokens` tokens are out, and
/// compares the whole text with plain transformers.
fn survives_the_loss_of(victims: [usize; 2], tokens: usize) {
    let hub = Hub::new().unwrap();
    let want = python::reference(&hub, &[PROMPT.to_vec()], N_TOKENS).unwrap().remove(0);
    let mut swarm = Swarm::start(&hub, &["0:2", "0:2", "2:4", "2:4"], &[]).unwrap();
    let mut client = node::start_generate(&hub, &swarm.bootstrap.addr, &PROMPT, N_TOKENS, false).unwrap();
    client
        .wait_for("tokens", STARTUP, |said| {
            (said.out.split_whitespace().count() >= tokens).then_some(())
        })
        .unwrap();
    let used = |server: &Node| server.process.said().err.contains(IN_USE);
    let victim = victims.into_iter().find(|index| used(&swarm.servers[*index])).unwrap();
    swarm.servers[victim].process.kill();
    let at_the_kill = client.said().out.split_whitespace().count();
    assert!(at_the_kill < N_TOKENS, "the kill came after the end: nothing was shown");

    let status = client.wait_exit(WORK).unwrap();
    let said = client.said();
    assert!(status.success(), "{}", said.err);
    assert!(said.err.contains(REPLAYED), "the loss was not noticed\n{}", said.err);
    let got: Vec<u32> = said.out.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(got, want, "killed after {at_the_kill} tokens\n{}", said.err);
}

#[test]
fn the_text_survives_the_loss_of_the_first_server_at_the_first_token() {
    survives_the_loss_of([0, 1], 1);
}

#[test]
fn the_text_survives_the_loss_of_the_last_server_after_twenty_tokens() {
    survives_the_loss_of([2, 3], 20);
}

#[test]
fn the_text_survives_the_loss_of_the_first_server_after_a_hundred_tokens() {
    survives_the_loss_of([0, 1], 100);
}

#[test]
fn the_loss_of_the_only_server_of_a_block_ends_in_an_error_that_names_the_blocks() {
    let hub = Hub::new().unwrap();
    let mut swarm = Swarm::start(&hub, &["0:2", "2:4"], &[]).unwrap();
    let mut client = node::start_generate(&hub, &swarm.bootstrap.addr, &PROMPT, N_TOKENS, false).unwrap();
    client
        .wait_for("tokens", STARTUP, |said| {
            (said.out.split_whitespace().count() >= 5).then_some(())
        })
        .unwrap();
    swarm.servers[1].process.kill();
    let status = client.wait_exit(WORK).unwrap();
    assert!(!status.success());
    let complaint = client.said().err;
    assert!(complaint.contains("blocks 2:4 of tiny-llama-hf"), "{complaint}");
}
