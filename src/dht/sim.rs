//! A thousand nodes in one thread and in virtual time, made of the same pure parts as real ones. No sockets, no clock.
//!
//! Nodes join, announce keys as Petals servers do (every minute, for two minutes), vanish without a word, and look keys up
//! all the while. Calls take 20 to 200 ms, calls of vanished nodes 3 s. Everything follows from one seed.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sepal_protocol::dht_id::DhtId;

use super::{
    record::Record,
    replicas::{Holder, Replicas},
    routing::Contact,
    state::{Met, Offer, Shape, State},
    testing::{contact, id},
    traverse::{Answer, Call, Search, Shape as SearchShape},
};
use crate::p2p::PeerId;

const N_NODES: usize = 1000;
const N_KEYS: u64 = 150;
const SHAPE: Shape = Shape {
    bucket_size: 20,
    depth_modulo: 5,
    replicas: 5,
};
const ANNOUNCE_PERIOD_MS: u64 = 60_000;
const LIFETIME_MS: u64 = 2 * ANNOUNCE_PERIOD_MS;
const TIMEOUT_MS: u64 = 3000;

struct Node {
    contact: Contact,
    state: State,
}

/// What a search cost and brought.
#[derive(Default)]
struct Trip {
    found: Option<Record>,
    /// Length of the chain of answers that led to the node that had the record, or to the nearest node.
    hops: usize,
    messages: usize,
    /// Virtual duration.
    took_ms: u64,
    nearest: Vec<Contact>,
}

struct World {
    now_ms: u64,
    rng: StdRng,
    nodes: HashMap<PeerId, Node>,
    /// The same nodes in the order in which they joined, so that choices do not depend on a hash.
    alive: Vec<PeerId>,
    n_joined: u64,
    messages: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now_ms: 1_000_000,
            rng: StdRng::seed_from_u64(seed),
            nodes: HashMap::new(),
            alive: Vec::new(),
            n_joined: 0,
            messages: 0,
        }
    }

    fn now(&self) -> f64 {
        self.now_ms as f64 / 1000.0
    }

    fn any_node(&mut self) -> PeerId {
        *self.alive.choose(&mut self.rng).unwrap()
    }

    /// A node joins through one that is there.
    fn join(&mut self) {
        let contact = contact(self.n_joined);
        self.n_joined += 1;
        let initial = self.alive.choose(&mut self.rng).copied();
        let state = State::new(contact.id, SHAPE);
        self.nodes.insert(contact.peer, Node { contact, state });
        self.alive.push(contact.peer);
        if let Some(initial) = initial {
            self.acquaint(contact.peer, initial);
            self.search(contact.peer, contact.id, |_| false);
        }
    }

    /// A node is gone without a word.
    fn vanish(&mut self) {
        let at = self.rng.random_range(0..self.alive.len());
        let peer = self.alive.swap_remove(at);
        self.nodes.remove(&peer);
    }

    /// One node called another one and got an answer: both know each other now, with all that follows.
    fn acquaint(&mut self, caller: PeerId, callee: PeerId) {
        let mut news = VecDeque::from([(caller, callee), (callee, caller)]);
        while let Some((hearer, heard)) = news.pop_front() {
            let now = self.now();
            let Some(contact) = self.nodes.get(&heard).map(|node| node.contact) else {
                continue;
            };
            let Some(node) = self.nodes.get_mut(&hearer) else {
                continue;
            };
            let Met { hand_over, ping } = node.state.met(contact, now);
            for (key, record) in hand_over {
                self.messages += 1;
                let newcomer = self.nodes.get_mut(&heard).unwrap();
                newcomer.state.store(key, Offer::from(record), false, now);
            }
            let Some(old) = ping else { continue };
            self.messages += 1;
            if self.nodes.contains_key(&old.peer) {
                news.extend([(hearer, old.peer), (old.peer, hearer)]);
            } else {
                self.nodes.get_mut(&hearer).unwrap().state.table.remove(&old.id);
            }
        }
    }

    /// What `callee` answers to `caller` about a key; `None` if it is gone.
    fn find(&mut self, caller: PeerId, callee: Contact, key: &DhtId) -> Option<(Option<Record>, Vec<Contact>)> {
        self.messages += 1;
        let now = self.now();
        let asker = self.nodes[&caller].contact.id;
        let Some(node) = self.nodes.get_mut(&callee.peer) else {
            self.nodes.get_mut(&caller).unwrap().state.table.remove(&callee.id);
            return None;
        };
        let answer = (node.state.record(key, now), node.state.neighbors(key, Some(&asker)));
        self.acquaint(caller, callee.peer);
        Some(answer)
    }

    /// Searches for a key from a node, until `enough` says so or the nearest nodes are known.
    fn search(&mut self, from: PeerId, key: DhtId, enough: impl Fn(&Record) -> bool) -> Trip {
        let shape = SearchShape {
            beam: SHAPE.bucket_size,
            workers: 4,
            queries_per_call: 1,
        };
        let node = &self.nodes[&from];
        let initial = node.state.neighbors(&key, None);
        let ids: Vec<DhtId> = initial.iter().map(|contact| contact.id).collect();
        let mut search = Search::new(shape, node.contact.id, &[key], &ids);
        let mut known: HashMap<DhtId, (Contact, usize)> =
            initial.into_iter().map(|contact| (contact.id, (contact, 1))).collect();
        let (started_ms, messages_before) = (self.now_ms, self.messages);
        let mut trip = Trip::default();
        // Questions under way, by when their answers are due.
        let mut due: BinaryHeap<Reverse<(u64, DhtId)>> = BinaryHeap::new();
        let mut clock_ms = started_ms;
        loop {
            while let Some(call) = search.next_call() {
                let is_there = self.nodes.contains_key(&known[&call.node].0.peer);
                let delay = if is_there {
                    self.rng.random_range(20..200)
                } else {
                    TIMEOUT_MS
                };
                due.push(Reverse((clock_ms + delay, call.node)));
            }
            if let Some(end) = search.take_finished().pop() {
                trip.nearest = end.nearest.iter().map(|id| known[id].0).collect();
                break;
            }
            let Some(Reverse((at, asked))) = due.pop() else { break };
            clock_ms = at;
            let (callee, hops) = known[&asked];
            let call = Call {
                node: asked,
                queries: vec![key],
            };
            let Some((record, neighbors)) = self.find(from, callee, &key) else {
                search.failed(&call);
                continue;
            };
            trip.hops = trip.hops.max(hops);
            for neighbor in &neighbors {
                known.entry(neighbor.id).or_insert((*neighbor, hops + 1));
            }
            let enough = record.as_ref().is_some_and(&enough);
            if enough {
                (trip.found, trip.hops) = (record, hops);
            }
            let neighbors = neighbors.iter().map(|neighbor| neighbor.id).collect();
            search.answered(&call, &[Answer { neighbors, enough }]);
        }
        trip.messages = self.messages - messages_before;
        trip.took_ms = clock_ms - started_ms;
        trip
    }

    /// Stores a key for two minutes, as its owner does every minute.
    fn announce(&mut self, from: PeerId, key: DhtId) {
        let expiration = (self.now_ms + LIFETIME_MS) as f64 / 1000.0;
        let now = self.now();
        let offer = Offer::Regular {
            value: key.as_bytes().to_vec().into(),
            expiration,
        };
        let nearest = self.search(from, key, |_| false).nearest;
        let mut replicas = Replicas::new(SHAPE.replicas, &key, nearest, None);
        while let Some(Holder::There(holder)) = replicas.next() {
            self.messages += 1;
            match self.nodes.get_mut(&holder.peer) {
                Some(node) => {
                    node.state.store(key, offer.clone(), false, now);
                    replicas.answered();
                }
                None => replicas.failed(),
            }
        }
    }

    /// Reads a key from any node.
    fn look_up(&mut self, key: DhtId) -> Trip {
        let from = self.any_node();
        let now = self.now();
        if let Some(own) = self.nodes.get_mut(&from).unwrap().state.record(&key, now) {
            return Trip {
                found: Some(own),
                ..Trip::default()
            };
        }
        self.search(from, key, |_| true)
    }
}

fn mean(trips: &[Trip], what: impl Fn(&Trip) -> usize) -> f64 {
    trips.iter().map(what).sum::<usize>() as f64 / trips.len() as f64
}

#[test]
fn every_stored_key_is_found_in_a_thousand_nodes_that_come_and_go() {
    let mut world = World::new(42);
    while world.alive.len() < N_NODES {
        world.join();
        world.now_ms += 20;
    }
    let join_messages = world.messages as f64 / N_NODES as f64;
    let keys: Vec<DhtId> = (0..N_KEYS).map(|number| id(1_000_000 + number)).collect();
    let mut trips = Vec::new();
    // Four minutes in steps of ten seconds. In each, one node in a hundred is replaced by a new one.
    for step in 0..24 {
        for (at, key) in keys.iter().enumerate() {
            let first_round = step == 0;
            if first_round || (at % 6 == step % 6 && step >= 6) {
                let owner = world.any_node();
                world.announce(owner, *key);
            }
        }
        for _ in 0..N_NODES / 100 {
            world.vanish();
            world.join();
        }
        world.now_ms += 10_000;
        for _ in 0..15 {
            let key = *keys.choose(&mut world.rng).unwrap();
            trips.push(world.look_up(key));
        }
    }
    for key in &keys {
        trips.push(world.look_up(*key));
    }
    let lost = trips.iter().filter(|trip| trip.found.is_none()).count();
    let slowest = trips.iter().map(|trip| trip.took_ms).max().unwrap();
    let (hops, messages) = (mean(&trips, |trip| trip.hops), mean(&trips, |trip| trip.messages));
    println!(
        "{} nodes ({} more came, as many went), {} lookups of {N_KEYS} keys, {lost} in vain: \
         mean hops {hops:.2}, mean messages {messages:.1}, slowest {slowest} ms; {join_messages:.0} messages per join",
        world.alive.len(),
        world.n_joined - N_NODES as u64,
        trips.len(),
    );
    assert_eq!(lost, 0);
    for (key, trip) in keys.iter().zip(&trips[trips.len() - keys.len()..]) {
        let Some(Record::Regular { value, .. }) = &trip.found else {
            panic!("{key} is not a value");
        };
        assert_eq!(&value[..], key.as_bytes());
    }
    assert!(
        hops < 4.0 && messages < 20.0,
        "log2(1000/20) is 5.6: searches should not take longer"
    );
    assert!(trips.iter().all(|trip| trip.hops <= 8));
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let run = |seed| {
        let mut world = World::new(seed);
        for _ in 0..60 {
            world.join();
        }
        let node = world.any_node();
        world.announce(node, id(1_000_000));
        world.vanish();
        (world.look_up(id(1_000_000)).messages, world.messages)
    };
    assert_eq!(run(1), run(1));
}
