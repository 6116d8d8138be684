//! Virtual time and what happens when.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    Scenario,
    calls::Exchange,
    errands::Errand,
    nodes::{Node, Peer},
    tally::{Report, Tally},
};
use crate::dht::Config;

/// Virtual time at the start, milliseconds: a time in the middle of nowhere.
pub(super) const START_MS: u64 = 1_000_000_000;

/// Time in which the nodes of the swarm join one after another, milliseconds.
const BUILD_MS: u64 = 120_000;

/// Announcement periods for the built swarm to settle in: every node has announced itself then.
const SETTLE_PERIODS: u32 = 1;

/// How often cached records are looked through for those to fetch again, and how often a node without neighbors joins again,
/// milliseconds; as in `bootstrap.rs`.
const TICK_MS: u64 = 1000;

/// What happens at a point of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A request reaches its callee.
    Arrive(u64),
    /// An answer reaches its caller.
    Answer(u64),
    /// A caller has waited long enough.
    TimeOut(u64),
    /// A new node starts.
    Come,
    /// Some node is gone.
    Vanish,
    /// A node tries to join.
    Join(Peer),
    Announce(Peer),
    Heartbeat(Peer),
    /// Somebody reads something.
    Read,
    Tick,
}

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) config: Config,
    pub(super) now_ms: u64,
    pub(super) rng: StdRng,
    /// By peer. `None`: gone, or never let in.
    pub(super) nodes: Vec<Option<Box<Node>>>,
    /// The peers that are there, bootstrap nodes first.
    pub(super) alive: Vec<Peer>,
    pub(super) n_bootstraps: usize,
    agenda: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next_number: u64,
    pub(super) exchanges: HashMap<u64, Exchange>,
    pub(super) errands: HashMap<u64, Errand>,
    pub(super) tally: Tally,
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        Self {
            config: Config::default(),
            now_ms: START_MS,
            rng: StdRng::seed_from_u64(scenario.seed),
            nodes: Vec::new(),
            alive: Vec::new(),
            n_bootstraps: (scenario.nodes / 500).clamp(3, scenario.nodes.max(3)),
            agenda: BinaryHeap::new(),
            next_number: 0,
            exchanges: HashMap::new(),
            errands: HashMap::new(),
            tally: Tally::default(),
            scenario,
        }
    }

    /// Builds the swarm, lets some of it vanish, measures the rest.
    pub(super) fn run(mut self) -> Report {
        let n_built = (self.scenario.nodes as f64 / (1.0 - self.scenario.dead_at_start)) as u64;
        for _ in 0..self.n_bootstraps {
            self.come();
        }
        let n_joining = n_built.saturating_sub(self.n_bootstraps as u64);
        if self.scenario.acquainted {
            (0..n_joining).for_each(|_| self.come());
            self.acquaint_all();
        } else {
            for number in 0..n_joining {
                self.at(self.now_ms + 1000 + number * BUILD_MS / n_joining, Event::Come);
            }
        }
        self.at(self.now_ms + TICK_MS, Event::Tick);
        let built_ms = if self.scenario.acquainted { 0 } else { BUILD_MS };
        self.until(START_MS + built_ms + millis(self.scenario.announce_period * SETTLE_PERIODS));
        while self.alive.len() > self.scenario.nodes {
            self.vanish();
        }
        self.tally = Tally::default();
        self.schedule_churn();
        self.at(self.now_ms, Event::Read);
        self.until(self.now_ms + millis(self.scenario.measured));
        self.tally.report(&self.scenario, self.alive.len(), self.mean_table())
    }

    fn schedule_churn(&mut self) {
        let hours = self.scenario.measured.as_secs_f64() / 3600.0;
        let n_gone = (self.scenario.nodes as f64 * self.scenario.churn_per_hour * hours).round() as usize;
        for _ in 0..n_gone {
            for event in [Event::Vanish, Event::Come] {
                let at = self.rng.random_range(0..millis(self.scenario.measured));
                self.at(self.now_ms + at, event);
            }
        }
    }

    fn until(&mut self, end_ms: u64) {
        while let Some(Reverse((at, _, event))) = self.agenda.peek().copied() {
            if at >= end_ms {
                break;
            }
            self.agenda.pop();
            self.now_ms = at;
            self.happen(event);
        }
        self.now_ms = end_ms;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(call) => self.arrive(call),
            Event::Answer(call) => self.answer_arrives(call),
            Event::TimeOut(call) => self.time_out(call),
            Event::Come => self.come(),
            Event::Vanish => self.vanish(),
            Event::Join(peer) => self.join(peer),
            Event::Announce(peer) => self.announce(peer),
            Event::Heartbeat(peer) => self.heartbeat(peer),
            Event::Read => {
                self.read();
                let pause = self.scenario.read_period / self.alive.len().max(1) as u32;
                let pause_ms = about(pause, &mut self.rng);
                self.at(self.now_ms + pause_ms, Event::Read);
            }
            Event::Tick => self.tick(),
        }
    }

    pub(super) fn at(&mut self, at_ms: u64, event: Event) {
        let number = self.number();
        self.agenda.push(Reverse((at_ms, number, event)));
    }

    /// A number that was not used before.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn node(&mut self, peer: Peer) -> Option<&mut Node> {
        self.nodes[peer as usize].as_deref_mut()
    }

    /// The time that a node's clock shows.
    pub(super) fn clock(&self, node: &Node) -> f64 {
        self.now_ms as f64 / 1000.0 + node.clock_s
    }

    /// A node that is there.
    pub(super) fn any_node(&mut self) -> Peer {
        self.alive.choose(&mut self.rng).copied().unwrap_or_default()
    }

    /// A node to join through.
    pub(super) fn any_bootstrap(&mut self) -> Peer {
        self.rng.random_range(0..self.n_bootstraps) as Peer
    }

    fn tick(&mut self) {
        for at in 0..self.alive.len() {
            self.refresh_cached(self.alive[at]);
        }
        self.at(self.now_ms + TICK_MS, Event::Tick);
    }

    /// Mean number of nodes in a table.
    fn mean_table(&self) -> f64 {
        let nodes = self.nodes.iter().flatten();
        nodes.map(|node| node.state.table.len()).sum::<usize>() as f64 / self.alive.len().max(1) as f64
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// A pause in milliseconds, on average the given one, which may be shorter than that.
fn about(pause: Duration, rng: &mut StdRng) -> u64 {
    let micros = rng.random_range(0..=2 * pause.as_micros() as u64);
    micros / 1000 + u64::from(rng.random_range(0..1000) < micros % 1000)
}
