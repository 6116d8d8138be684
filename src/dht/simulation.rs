//! Swarms of thousands of nodes in one thread and in virtual time, to see what the DHT does at scale. Not for running a
//! node: it exists for `examples/dht_simulation.rs` and for the tests, and is part of the library so that both use it.
//!
//! The nodes are made of the parts that real ones are made of: `State`, searches, replicas, bans,
//! reads, and the judgement of initial peers. What is put in the place of the network and the clock is here:
//!
//! ```text
//! world.rs     virtual time and what happens when
//! nodes.rs     the nodes, who comes and goes
//! calls.rs     requests and answers on their way, lost ones, time-outs; what a node does with them
//! errands.rs   joining, announcing, reading, heartbeats: searches and what they are for
//! sizes.rs     how many bytes a message has
//! tally.rs     what was counted: the report
//! growth.rs    several reports: a table, a fit, a plot
//! ```
//!
//! Everything follows from the seed. Not modelled: bandwidth, queues at busy nodes, connections and their handshakes,
//! addresses of peers, clients (they call and are not called), nodes that lie.

use std::time::Duration;

mod calls;
mod errands;
mod growth;
mod nodes;
mod plot;
mod sizes;
mod tally;
#[cfg(test)]
mod tests;
mod world;

pub use growth::{Fit, Growth};
pub use tally::{Report, Spread};

use super::{Freshness, node::PING_PERIOD_S};
use world::World;

/// What nodes do beyond answering.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// How much a read may miss.
    pub reads: Freshness,
    /// Whether all nodes search for random ids, or bootstrap nodes only.
    pub all_nodes_heartbeat: bool,
    /// Shortest time between two pings of members of full buckets, in seconds.
    pub ping_period_s: f64,
}

impl Rules {
    /// What Hivemind's nodes do: a read ends at the first live value, only bootstrap nodes keep their tables fresh, and
    /// every message of a node without a place in its bucket causes a ping.
    /// The parts that nodes are made of are ours all the same: where they differ from Hivemind's, they say so.
    pub const HIVEMIND: Self = Self {
        reads: Freshness::Any,
        all_nodes_heartbeat: false,
        ping_period_s: 0.0,
    };
    /// What `sepal serve` does.
    pub const SEPAL: Self = Self {
        reads: Freshness::Latest,
        all_nodes_heartbeat: true,
        ping_period_s: PING_PERIOD_S,
    };
}

/// A swarm to simulate. The defaults are those of a Petals swarm in rough weather.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything random follows from this.
    pub seed: u64,
    /// Nodes that are alive at a time.
    pub nodes: usize,
    /// Whether nodes know each other from the start, instead of joining one after another: quicker to simulate.
    pub acquainted: bool,
    /// Virtual time that is measured, after the swarm was built.
    pub measured: Duration,
    /// What nodes do.
    pub rules: Rules,
    /// Share of the nodes that vanish without a word in an hour; as many others join.
    pub churn_per_hour: f64,
    /// Share of all nodes known at the start of the measurement that have just vanished.
    pub dead_at_start: f64,
    /// Share of messages that get lost, requests and answers alike. The caller notices after its time-out.
    pub loss: f64,
    /// Largest error of a clock that is still let in, in seconds. A third of the nodes have errors up to this.
    pub clock_error_s: f64,
    /// Share of the nodes that announce themselves.
    pub servers: f64,
    /// Keys that each of them announces itself under, as a server of so many blocks does.
    pub blocks_per_node: usize,
    /// Nodes that announce themselves under the same key.
    pub nodes_per_block: usize,
    /// How often a node announces; its records live twice as long, as in Petals.
    pub announce_period: Duration,
    /// How often a node reads a key that somebody announced.
    pub read_period: Duration,
    /// How often a node, or a bootstrap node, searches for a random id.
    pub heartbeat_period: Duration,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 42,
            nodes: 1000,
            acquainted: false,
            measured: Duration::from_secs(600),
            rules: Rules::SEPAL,
            churn_per_hour: 0.5,
            dead_at_start: 0.2,
            loss: 0.01,
            clock_error_s: 2.9,
            servers: 1.0,
            blocks_per_node: 4,
            nodes_per_block: 4,
            announce_period: Duration::from_secs(120),
            read_period: Duration::from_secs(60),
            heartbeat_period: Duration::from_secs(30),
        }
    }
}

impl Scenario {
    /// Simulates the swarm and reports what was measured. Takes some seconds for each thousand nodes and ten minutes.
    pub fn run(&self) -> Report {
        World::new(self.clone()).run()
    }
}
