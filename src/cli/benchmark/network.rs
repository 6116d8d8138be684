//! The line to others: round trips to nodes of the swarm, and what the line carries, as servers measure it before they
//! announce anything (`swarm/speed.rs`).

use serde::Serialize;

use crate::{
    cli::{eligible::Candidate, node, swarm::SwarmArgs},
    swarm::{
        directory::Directory,
        ping::{self, CLIENT_TIMEOUT},
        speed::{self, Line},
    },
};

/// What was seen of the network.
#[derive(Debug, Serialize)]
pub(super) struct Network {
    /// Peers and the seconds of a round trip to them, the nearest first; nothing where there was no answer.
    pub(super) peers: Vec<(String, Option<f64>)>,
    /// What an echo carried; nothing without a Sepal node that others can dial.
    pub(super) bits_per_second: Option<f64>,
    #[serde(skip)]
    pub(super) line: Option<Line>,
}

/// # Errors
/// When the swarm cannot be joined.
pub(super) async fn measure(swarm: &SwarmArgs, candidate: &Candidate) -> anyhow::Result<Network> {
    let node = node::client(&swarm.joined()?).await?;
    let seen = look(&node, candidate).await;
    node.tasks.shutdown().await;
    seen
}

async fn look(node: &node::Node, candidate: &Candidate) -> anyhow::Result<Network> {
    node.join().await?;
    let directory = Directory::new(node.dht.clone(), candidate.prefix.clone(), candidate.config.n_blocks);
    let snapshot = directory.refresh().await;
    let connected = node.p2p.connected_peers();
    let candidates = speed::candidates(&snapshot, &connected, node.p2p.peer_id(), &mut rand::rng());
    let mut round_trips = ping::measure(&node.dht, candidates.iter().copied(), CLIENT_TIMEOUT).await;
    round_trips.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let line = speed::measure(&node.p2p, &candidates).await;
    Ok(Network {
        peers: round_trips
            .into_iter()
            .map(|(peer, rtt)| (peer.to_string(), rtt.is_finite().then_some(rtt)))
            .collect(),
        bits_per_second: line.map(|line| line.bits_per_second),
        line,
    })
}
