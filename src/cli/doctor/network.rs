//! What the network lets a node do: listen, reach the initial peers, agree on the time, keep records, be reached.

use std::time::Duration;

use futures::future::join_all;
use sepal_protocol::{dht_id::DhtId, msgpack, value::Subkey};

use super::{
    Report,
    finding::{Finding, causes},
    reach,
};
use crate::{
    cli::{
        node::{self, ListenArgs, Node},
        swarm::Swarm,
    },
    dht::{Found, Freshness, MAX_CLOCK_SKEW_S, StoreItem},
    p2p::{self, Multiaddr, PeerId},
    swarm::standing::{Keeper, Timing},
};

/// Limit for one question to a peer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// From this on a clock difference is worth a word, in seconds; much less is how long a question takes.
const NOTABLE_SKEW_S: f64 = 1.0;

/// Initial peers whose failure is told in full; a line shall stay a line.
const SHOWN_FAILURES: usize = 2;

/// How long the record lives that is stored to see whether others keep it, in seconds.
const RECORD_LIFETIME_S: f64 = 60.0;

/// Starts a node as the flags say and tries everything with it.
pub(super) async fn examine(listen: &ListenArgs, swarm: &Swarm, report: &mut Report) {
    let node = match node::listen_as_stranger(listen, swarm).await {
        Ok(node) => node,
        Err(error) => {
            let remedy = "choose another --port or --listen address, or end the program that uses it (a running node of \
                          yours is checked best while it is stopped)";
            report.add(&Finding::problem("ports", causes(&error), remedy));
            return;
        }
    };
    node.router().spawn(&node.tasks);
    // As a server does: a client until it is known that others can dial this node.
    let keeper = Keeper::new(node.p2p.clone(), node.dht.clone(), Timing::default());
    report.add(&ports(&node));
    let peers = match (&swarm.lan, swarm.initial_peers.is_empty()) {
        (_, false) => peers(&node, &swarm.initial_peers, report).await,
        (Some(name), true) => neighbours(&node, name, report).await,
        (None, true) => {
            let seen = "none to ask: this would be the first node of a new swarm";
            report.add(&Finding::note("peers", seen));
            None
        }
    };
    if let Some(peers) = peers {
        report.add(&clock(&node, &peers).await);
        if joined(&node, report).await {
            report.add(&records(&node, swarm).await);
            reach::examine(&node, keeper, report).await;
        }
    }
    node.tasks.shutdown().await;
}

fn ports(node: &Node) -> Finding {
    let addrs: Vec<String> = node
        .p2p
        .addrs()
        .iter()
        .map(|addr| p2p::without_peer(addr).to_string())
        .collect();
    Finding::fine("ports", format!("can listen; others would be told {}", addrs.join(" ")))
}

/// Dials the initial peers. Returns those that answer, or `None` if nobody does.
async fn peers(node: &Node, initial_peers: &[Multiaddr], report: &mut Report) -> Option<Vec<PeerId>> {
    let dials = initial_peers.iter().map(|addr| async move {
        let dialed = tokio::time::timeout(ASK_TIMEOUT, node.p2p.connect(addr.clone())).await;
        dialed
            .map_err(|_| anyhow::anyhow!("no answer within {} s", ASK_TIMEOUT.as_secs()))?
            .map_err(anyhow::Error::new)
    });
    let (mut reached, mut failures) = (Vec::new(), Vec::new());
    for (addr, dialed) in std::iter::zip(initial_peers, join_all(dials).await) {
        match dialed {
            Ok(peer) => reached.push(peer),
            Err(error) => failures.push(format!("{addr}: {}", causes(&error))),
        }
    }
    let seen = format!(
        "{} of {} initial peers can be reached",
        reached.len(),
        initial_peers.len()
    );
    let more = failures.len().saturating_sub(SHOWN_FAILURES);
    failures.truncate(SHOWN_FAILURES);
    if more > 0 {
        failures.push(format!("and {more} more"));
    }
    if reached.is_empty() {
        let remedy = "check the addresses in --initial-peers and that this machine may make outbound connections, or start \
                      a swarm of your own with --new-swarm";
        report.add(&Finding::problem(
            "peers",
            format!("{seen}: {}", failures.join(", ")),
            remedy,
        ));
        return None;
    }
    if failures.is_empty() {
        report.add(&Finding::fine("peers", seen));
    } else {
        report.add(&Finding::note("peers", format!("{seen}; not {}", failures.join(", "))));
    }
    Some(reached)
}

/// Looks for nodes of the swarm `name` on the local network. Returns those there are, or `None` if there is nobody.
async fn neighbours(node: &Node, name: &str, report: &mut Report) -> Option<Vec<PeerId>> {
    // With nobody there a server would be the first of its swarm, so that is no failure.
    drop(node.join().await);
    let peers = node.dht.peers();
    let found = !peers.is_empty();
    report.add(&if found {
        Finding::fine(
            "peers",
            format!("{} of the swarm {name:?} on the local network", peers.len()),
        )
    } else {
        Finding::note(
            "peers",
            format!("nobody of the swarm {name:?} on the local network: this would be the first node of it"),
        )
    });
    found.then_some(peers)
}

async fn clock(node: &Node, peers: &[PeerId]) -> Finding {
    let answers = join_all(peers.iter().map(|peer| node.dht.clock_offset(*peer, ASK_TIMEOUT))).await;
    let mut offsets: Vec<f64> = answers.into_iter().filter_map(|answer| answer.ok().flatten()).collect();
    offsets.sort_by(f64::total_cmp);
    match offsets.get(offsets.len() / 2) {
        Some(offset) => judge_clock(*offset, offsets.len()),
        None => Finding::problem(
            "clock",
            "no initial peer answers as a DHT node",
            "name nodes of a Petals or Sepal swarm in --initial-peers",
        ),
    }
}

/// Judges by the median of the peers: one wrong clock among them says nothing about ours.
fn judge_clock(offset_s: f64, n_peers: usize) -> Finding {
    let direction = if offset_s > 0.0 { "behind" } else { "ahead of" };
    let seen = format!(
        "{:.2} s {direction} {n_peers} peers, {MAX_CLOCK_SKEW_S} s are allowed",
        offset_s.abs()
    );
    if offset_s.abs() > MAX_CLOCK_SKEW_S {
        Finding::problem(
            "clock",
            seen,
            "set the clock of this machine, best with a time service (NTP)",
        )
    } else if offset_s.abs() > NOTABLE_SKEW_S {
        Finding::note("clock", seen)
    } else {
        Finding::fine("clock", seen)
    }
}

async fn joined(node: &Node, report: &mut Report) -> bool {
    match node.join().await {
        Ok(()) => {
            let nodes = node.dht.status().nodes;
            report.add(&Finding::fine("dht", format!("joined, {nodes} nodes known")));
            true
        }
        Err(error) => {
            report.add(&Finding::problem(
                "dht",
                causes(&error),
                "see what each initial peer did",
            ));
            false
        }
    }
}

/// Stores a record and reads it back as a stranger would: through another node, which has nothing from here.
async fn records(node: &Node, swarm: &Swarm) -> Finding {
    let key = DhtId::from_bytes(rand::random());
    let value = msgpack::encode(&msgpack::Value::from("sepal doctor"));
    let item = StoreItem {
        key,
        subkey: Subkey::None,
        value: value.clone(),
        expiration: node.dht.now() + RECORD_LIFETIME_S,
    };
    if !node.dht.store(item).await {
        return Finding::problem(
            "records",
            "no node of the swarm took a record",
            "try again in a minute; if it stays so, name other --initial-peers",
        );
    }
    let reader = match node::client(swarm).await {
        Ok(reader) => reader,
        Err(error) => return Finding::problem("records", causes(&error), "see above"),
    };
    let read = match reader.join().await {
        Ok(()) => reader.dht.get(key, Freshness::Latest).await,
        Err(_) => None,
    };
    reader.tasks.shutdown().await;
    match read {
        Some(Found::Regular { value: read, .. }) if read == value => {
            Finding::fine("records", "a record was stored, and read back by another node")
        }
        _ => Finding::problem(
            "records",
            "a record was stored, but another node cannot read it",
            "the swarm may be split: name more --initial-peers",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Outcome, *};

    #[test]
    fn a_clock_is_judged_by_the_limit_that_nodes_keep() {
        assert_eq!(judge_clock(0.2, 3).outcome, Outcome::Fine);
        assert_eq!(judge_clock(-2.0, 3).outcome, Outcome::Note);
        let behind = judge_clock(3.5, 3);
        assert_eq!(behind.outcome, Outcome::Problem);
        assert!(behind.seen.starts_with("3.50 s behind 3 peers"), "{behind}");
        assert!(judge_clock(-4.0, 1).seen.contains("ahead of"));
    }
}
