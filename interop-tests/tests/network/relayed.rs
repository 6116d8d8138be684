//! Servers at home, behind routers: reached through relays, through holes in both routers, or through a forwarded port.

use std::{any::Any, time::Instant};

use interop_tests::{
    STARTUP, WORK,
    hub::{self, HIDDEN, Hub},
    network::{Home, Nat, Network},
    node::{self, Node},
    python::{self, PetalsNode},
};
use serde_json::json;

const PROMPT: [u32; 5] = [12, 250, 3, 77, 140];
const N_TOKENS: usize = 100;

/// Public bootstrap nodes, which are relays too. Go's search for relays starts at once when it has four to choose from,
/// else after three minutes (`go-libp2p/p2p/host/autorelay/options.go`, `minCandidates` and `bootDelay`).
const RELAYS: usize = 4;

/// An internet with relays, and what the tests put at its edge.
struct World {
    initial_peers: Vec<String>,
    /// They run as long as this.
    _relays: Vec<Box<dyn Any>>,
    hub: Hub,
    network: Network,
}

impl World {
    /// With relays of ours.
    fn new() -> Self {
        Self::with_relays(|hub, join| {
            let relay = Node::bootstrap(hub, join).unwrap();
            (relay.addr.clone(), Box::new(relay))
        })
    }

    /// With relays of Petals.
    fn of_petals() -> Self {
        Self::with_relays(|hub, join| {
            let relay = PetalsNode::bootstrap(hub, join).unwrap();
            (relay.addr.clone(), Box::new(relay))
        })
    }

    fn with_relays(start: impl Fn(&Hub, &[&str]) -> (String, Box<dyn Any>)) -> Self {
        let hub = Hub::new().unwrap();
        let mut network = Network::new().unwrap();
        let (mut initial_peers, mut relays) = (Vec::<String>::new(), Vec::new());
        for line in relay_lines() {
            let place = network.host(&line).unwrap();
            let join: Vec<&str> = initial_peers.iter().map(String::as_str).collect();
            let (addr, relay) = start(&hub.at(&place), &join);
            initial_peers.push(addr);
            relays.push(relay);
        }
        Self {
            initial_peers,
            _relays: relays,
            hub,
            network,
        }
    }

    fn initial_peers(&self) -> Vec<&str> {
        self.initial_peers.iter().map(String::as_str).collect()
    }

    /// A home with one machine in it.
    fn home(&mut self, name: &str, nat: Nat) -> (Home, Hub) {
        let mut home = self.network.home(name, nat).unwrap();
        let machine = home.machine(&format!("{name}-server")).unwrap();
        (home, self.hub.at(&machine))
    }

    fn serve(&self, machine: &Hub, blocks: &str) -> Node {
        Node::serve(machine, blocks, &self.initial_peers(), &[]).unwrap()
    }

    /// What a client gets, again and again until it works.
    fn generate_at_last(&self, client: &Hub) -> Vec<u32> {
        let deadline = Instant::now() + WORK;
        loop {
            match node::generate(client, &self.initial_peers[0], &PROMPT, N_TOKENS) {
                Ok(answer) => return node::ids(&answer["token_ids"]).unwrap(),
                Err(error) => assert!(Instant::now() < deadline, "{error:#}"),
            }
        }
    }

    /// Bytes between a line and all relays so far.
    fn bytes_through_relays(&self, line: &str) -> u64 {
        let bytes = |relay: String| self.network.bytes_between(line, &relay).unwrap();
        relay_lines().map(bytes).sum()
    }
}

fn relay_lines() -> impl Iterator<Item = String> {
    (0..RELAYS).map(|number| format!("relay{number}"))
}

/// Waits until a server says how others get to it.
fn await_access(server: &mut Node, access: &str) {
    server
        .process
        .wait_for(access, STARTUP, |said| said.out.contains(access).then_some(()))
        .unwrap();
}

/// What transformers computes.
fn reference(hub: &Hub) -> Vec<u32> {
    python::reference(hub, &[PROMPT.to_vec()], N_TOKENS).unwrap().remove(0)
}

/// What one text needs at least between two servers, in bytes: the activations of its tokens.
const ACTIVATIONS: u64 = (N_TOKENS * HIDDEN * 4) as u64;

/// A server in each of two homes, the first of which sends its activations straight to the second, and a client elsewhere.
struct TwoHomes {
    world: World,
    _servers: [Node; 2],
    client: Hub,
    text: Vec<u32>,
}

impl TwoHomes {
    fn new(nat: Nat) -> Self {
        let mut world = World::new();
        let machines = ["first", "second"].map(|name| world.home(name, nat).1);
        let mut servers = [(0, "0:2"), (1, "2:4")].map(|(home, blocks)| world.serve(&machines[home], blocks));
        for (server, blocks) in servers.iter_mut().zip(["0:2", "2:4"]) {
            await_access(server, "reachable: through relay");
            server.online(blocks).unwrap();
        }
        let client = world.hub.at(&world.network.host("client").unwrap());
        let text = reference(&world.hub);
        Self {
            world,
            _servers: servers,
            client,
            text,
        }
    }

    /// Generates; the bytes that went from home to home meanwhile, and those between the first home and the relays.
    fn generate(&self) -> (u64, u64) {
        let world = &self.world;
        let count = || {
            let direct = world.network.bytes_between("first", "second").unwrap();
            (direct, world.bytes_through_relays("first"))
        };
        let before = count();
        assert_eq!(world.generate_at_last(&self.client), self.text);
        let after = count();
        (after.0 - before.0, after.1 - before.1)
    }
}

#[test]
fn servers_behind_two_easy_routers_meet_at_a_relay_and_then_punch_a_hole() {
    let homes = TwoHomes::new(Nat::Easy);
    let deadline = Instant::now() + WORK;
    loop {
        let (direct, relayed) = homes.generate();
        if direct > ACTIVATIONS {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{direct} bytes directly, {relayed} through relays"
        );
    }
}

#[test]
fn servers_behind_two_symmetric_routers_go_on_through_a_relay() {
    let homes = TwoHomes::new(Nat::Symmetric);
    homes.generate();
    let (direct, relayed) = homes.generate();
    assert!(
        direct < ACTIVATIONS && relayed > ACTIVATIONS,
        "{direct} directly, {relayed} through relays"
    );
}

#[test]
fn a_relayed_server_is_reached_again_after_its_router_got_another_address() {
    let mut world = World::new();
    let (mut home, machine) = world.home("home", Nat::Symmetric);
    let mut server = world.serve(&machine, "0:4");
    await_access(&mut server, "reachable: through relay");
    server.online("0:4").unwrap();
    let client = world.hub.at(&world.network.host("client").unwrap());
    let want = world.generate_at_last(&client);
    home.change_address().unwrap();
    assert_eq!(world.generate_at_last(&client), want);
}

#[test]
fn a_petals_client_generates_through_a_server_behind_a_router() {
    let mut world = World::new();
    let (_home, machine) = world.home("home", Nat::Symmetric);
    let mut server = world.serve(&machine, "0:4");
    await_access(&mut server, "reachable: through relay");
    server.online("0:4").unwrap();
    let client = world.hub.at(&world.network.host("client").unwrap());
    let order = json!({
        "model": hub::MODEL,
        "initial_peers": world.initial_peers(),
        "prompts": [PROMPT],
        "max_new_tokens": 12,
        "scenarios": ["greedy"],
    });
    let results = python::run(&client, "petals_client.py", &order).unwrap();
    assert!(results["greedy"]["got"].is_array(), "{results}");
    assert_eq!(results["greedy"]["got"], results["greedy"]["want"], "{results}");
    assert_eq!(
        world.network.bytes_between("client", "home").unwrap(),
        0,
        "not through a relay"
    );
}

/// Our client through a Petals server at home, which finds its relays by itself.
fn petals_server_at_home(mut world: World) {
    let (_home, machine) = world.home("home", Nat::Symmetric);
    let mut server = PetalsNode::serve(&machine, "0:4", &world.initial_peers()).unwrap();
    server
        .process
        .wait_for("a verdict", STARTUP, |said| {
            said.err.contains("accessible via relays").then_some(())
        })
        .unwrap();
    server.online().unwrap();
    let client = world.hub.at(&world.network.host("client").unwrap());
    // go-libp2p takes some time until it believes that it cannot be dialed, and only then asks a relay.
    assert_eq!(world.generate_at_last(&client), reference(&world.hub));
    assert_eq!(
        world.network.bytes_between("client", "home").unwrap(),
        0,
        "not through a relay"
    );
}

#[test]
fn our_client_generates_through_a_petals_server_behind_a_router_and_a_relay_of_petals() {
    petals_server_at_home(World::of_petals());
}

#[test]
fn our_client_generates_through_a_petals_server_behind_a_router_and_a_relay_of_ours() {
    petals_server_at_home(World::new());
}
