//! Bad lines between public hosts: slow ones that lose packets, and ones that are cut and mended.

use std::time::Instant;

use interop_tests::{
    ANSWER, WORK,
    hub::Hub,
    network::{Network, Slow},
    node::{self, Node},
    process::Process,
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

/// One side of an ocean: a bootstrap node, a server of two of the four blocks, and a client.
struct Half {
    line: [String; 3],
    bootstrap: Node,
    _server: Node,
    client: Hub,
}

impl Half {
    fn start(hub: &Hub, network: &mut Network, (name, blocks): (&str, &str), join: &[&str]) -> Self {
        let line = ["bootstrap", "server", "client"].map(|role| format!("{name}-{role}"));
        let [first, second, third] = line.each_ref().map(|line| hub.at(&network.host(line).unwrap()));
        let bootstrap = Node::bootstrap(&first, join).unwrap();
        let mut server = Node::serve(&second, blocks, &[&bootstrap.addr], &[]).unwrap();
        server.online(blocks).unwrap();
        Self {
            line,
            bootstrap,
            _server: server,
            client: third,
        }
    }

    fn lines(&self) -> [&str; 3] {
        self.line.each_ref().map(String::as_str)
    }

    /// Waits until the bootstrap node has given up its connection to this peer.
    fn await_loss(&mut self, peer_id: &str) {
        let short = &peer_id[peer_id.len() - 6..];
        self.bootstrap
            .process
            .wait_for("loss of a connection", WORK, |said| {
                said.err
                    .lines()
                    .any(|line| line.contains("disconnected") && line.contains(short))
                    .then_some(())
            })
            .unwrap();
    }

    fn start_client(&self) -> Process {
        node::start_generate(&self.client, &self.bootstrap.addr, &PROMPT, N_TOKENS, true).unwrap()
    }

    /// What a client of this half gets, or its complaint.
    fn generate(&self) -> Result<Vec<u32>, String> {
        Self::outcome(self.start_client())
    }

    fn outcome(mut client: Process) -> Result<Vec<u32>, String> {
        let status = client.wait_exit(WORK).unwrap();
        if !status.success() {
            return Err(client.said().err);
        }
        let answer = client.answer(ANSWER).unwrap();
        Ok(node::ids(&answer["token_ids"]).unwrap())
    }

    /// The same, again and again until it works. A client waits for missing blocks by itself, for half a minute.
    fn generate_at_last(&self) -> Vec<u32> {
        let deadline = Instant::now() + WORK;
        loop {
            match self.generate() {
                Ok(text) => return text,
                Err(complaint) => assert!(Instant::now() < deadline, "{complaint}"),
            }
        }
    }
}

#[test]
fn two_halves_of_a_swarm_find_each_other_again_after_a_partition() {
    let hub = Hub::new().unwrap();
    let mut network = Network::new().unwrap();
    let mut west = Half::start(&hub, &mut network, ("west", "0:2"), &[]);
    let mut east = Half::start(&hub, &mut network, ("east", "2:4"), &[&west.bootstrap.addr]);
    let want = west.generate().unwrap();
    assert_eq!(east.generate().unwrap(), want);

    network.cut(&west.lines(), &east.lines()).unwrap();
    west.await_loss(&east.bootstrap.peer_id);
    east.await_loss(&west.bootstrap.peer_id);
    // By now the records of the other half have expired, and new ones do not come.
    let clients = [(west.start_client(), "blocks 2:4"), (east.start_client(), "blocks 0:2")];
    for (client, lost) in clients {
        let complaint = Half::outcome(client).unwrap_err();
        assert!(complaint.contains(lost), "{complaint}");
    }

    network.heal().unwrap();
    assert_eq!(west.generate_at_last(), want);
    assert_eq!(east.generate_at_last(), want);
}
