//! A server is killed, frozen or slowed down in the middle of a generation, another one serves the same blocks: the text
//! stays the same.

use std::{
    thread,
    time::{Duration, Instant},
};

use interop_tests::{
    STARTUP, WORK,
    hub::Hub,
    node::{self, Node, Swarm},
    process::Process,
    python,
};

const PROMPT: [u32; 5] = [12, 250, 3, 77, 140];
const N_TOKENS: usize = 300;

/// What a server logs when a client opens a session with it. Which of two equal servers is used is the client's choice.
const IN_USE: &str = "session opens";

/// What the client logs when it has brought another server to where the lost one was.
const REPLAYED: &str = "history replayed";

/// Servers of two halves, a client in the middle of a generation, and what it should say in the end.
struct Scene {
    _hub: Hub,
    swarm: Swarm,
    client: Process,
    want: Vec<u32>,
}

impl Scene {
    /// Starts it all and waits for `tokens` tokens.
    fn start(spans: &[&str], tokens: usize) -> Self {
        let hub = Hub::new().unwrap();
        let want = python::reference(&hub, &[PROMPT.to_vec()], N_TOKENS).unwrap().remove(0);
        let swarm = Swarm::start(&hub, spans, &[]).unwrap();
        let client = node::start_generate(&hub, &swarm.bootstrap.addr, &PROMPT, N_TOKENS, false).unwrap();
        let mut scene = Self {
            _hub: hub,
            swarm,
            client,
            want,
        };
        let enough = |n_tokens: usize| (n_tokens >= tokens).then_some(());
        scene
            .client
            .wait_for("tokens", STARTUP, |said| enough(said.out.split_whitespace().count()))
            .unwrap();
        scene
    }

    /// Which of these servers the client uses.
    fn used(&self, candidates: [usize; 2]) -> usize {
        let used = |server: &Node| server.process.said().err.contains(IN_USE);
        let mut candidates = candidates.into_iter();
        candidates.find(|index| used(&self.swarm.servers[*index])).unwrap()
    }

    fn assert_not_over(&self) {
        let n_tokens = self.client.said().out.split_whitespace().count();
        assert!(n_tokens < N_TOKENS, "the generation was over before: nothing was shown");
    }

    /// Waits for the end of the text, which is right; returns what the client logged.
    fn text_is_right(&mut self) -> String {
        let status = self.client.wait_exit(WORK).unwrap();
        let said = self.client.said();
        assert!(status.success(), "{}", said.err);
        assert!(said.err.contains(REPLAYED), "the loss was not noticed\n{}", said.err);
        let got: Vec<u32> = said.out.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(got, self.want, "{}", said.err);
        said.err
    }
}

/// Generates through two servers per half, kills the used one of the half `victims` once `tokens` tokens are out, and
/// compares the whole text with plain transformers.
fn survives_the_loss_of(victims: [usize; 2], tokens: usize) {
    let mut scene = Scene::start(&["0:2", "0:2", "2:4", "2:4"], tokens);
    let victim = scene.used(victims);
    scene.swarm.servers[victim].process.kill();
    scene.assert_not_over();
    scene.text_is_right();
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
fn the_text_goes_on_without_a_server_that_is_frozen() {
    let mut scene = Scene::start(&["0:2", "2:4", "2:4"], 10);
    let victim = scene.used([1, 2]);
    scene.swarm.servers[victim].process.freeze();
    scene.assert_not_over();
    let log = scene.text_is_right();
    scene.swarm.servers[victim].process.thaw();
    assert!(log.contains("silent for"), "{log}");
}

/// A server that is let run for an instant twice a second.
#[test]
fn a_server_that_became_slow_is_left() {
    let mut scene = Scene::start(&["0:2", "2:4", "2:4"], 10);
    let victim = scene.used([1, 2]);
    scene.assert_not_over();
    let deadline = Instant::now() + WORK;
    while !scene.client.said().err.contains("slow: steps take") {
        let process = &scene.swarm.servers[victim].process;
        process.freeze();
        thread::sleep(Duration::from_millis(500));
        process.thaw();
        thread::sleep(Duration::from_millis(20));
        assert!(Instant::now() < deadline, "it is not left\n{}", scene.client.said().err);
        scene.assert_not_over();
    }
    scene.text_is_right();
}

#[test]
fn a_server_that_comes_back_with_the_same_identity_is_waited_for() {
    let hub = Hub::new().unwrap();
    let want = python::reference(&hub, &[PROMPT.to_vec()], N_TOKENS).unwrap().remove(0);
    let file = hub.path().join("server.key");
    let identity = ["--identity", file.to_str().unwrap()];
    let swarm = Swarm::start(&hub, &["0:2"], &[]).unwrap();
    let entry = swarm.bootstrap.addr.clone();
    let second = || {
        let mut server = Node::serve(&hub, "2:4", &[&entry], &identity).unwrap();
        server.online("2:4").unwrap();
        server
    };
    let mut server = second();
    let mut client = node::start_generate(&hub, &entry, &PROMPT, N_TOKENS, false).unwrap();
    client
        .wait_for("tokens", STARTUP, |said| {
            (said.out.split_whitespace().count() >= 10).then_some(())
        })
        .unwrap();
    server.process.kill();
    let _server = second();
    let status = client.wait_exit(WORK).unwrap();
    let said = client.said();
    assert!(status.success(), "{}", said.err);
    let got: Vec<u32> = said.out.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(got, want, "{}", said.err);
    assert!(said.err.contains(REPLAYED), "{}", said.err);
}

#[test]
fn the_loss_of_the_only_server_of_a_block_ends_in_an_error_that_names_the_blocks() {
    let mut scene = Scene::start(&["0:2", "2:4"], 5);
    scene.swarm.servers[1].process.kill();
    let status = scene.client.wait_exit(WORK).unwrap();
    assert!(!status.success());
    let complaint = scene.client.said().err;
    assert!(complaint.contains("blocks 2:4 of tiny-llama-hf"), "{complaint}");
}
