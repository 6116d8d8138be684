//! Whether others get to this node, by what evidence, and through which relay if they cannot dial it.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Report, finding::Finding};
use crate::{
    cli::node::Node,
    p2p::{self, Evidence, Mapper, Mapping, Multiaddr, PortMap, Source, Verdict},
    swarm::standing::{Access, Keeper},
};

/// How long the verdict may take: two rounds of questions and the pause between them.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a node that cannot be dialed may take to find a relay that has a place for it.
const RELAY_TIMEOUT: Duration = Duration::from_secs(45);

/// Watches a node that has joined find out how others get to it.
pub(super) async fn examine(node: &Node, keeper: Keeper, report: &mut Report) {
    let mut access = keeper.access();
    keeper.spawn(&node.tasks);
    let known = timeout(VERDICT_TIMEOUT, access.wait_for(|access| *access != Access::Unknown)).await;
    if known.is_ok_and(|known| known.is_ok_and(|access| *access == Access::Unreachable)) {
        // Too late is as good as never, and is said below.
        drop(timeout(RELAY_TIMEOUT, access.wait_for(|access| *access != Access::Unreachable)).await);
    }
    let access = access.borrow().clone();
    let evidence = node.p2p.reachability().borrow().evidence.clone();
    let addrs = node.p2p.addrs();
    report.add(&verdict(&access, &addrs));
    report.add(&tried(&evidence, Instant::now()));
    report.add(&router(&node.p2p.port_map().borrow()));
    report.add(&relay(&access));
}

fn verdict(access: &Access, addrs: &[Multiaddr]) -> Finding {
    let told: Vec<String> = addrs
        .iter()
        .filter(|addr| !p2p::is_relayed(addr))
        .map(|addr| p2p::without_peer(addr).to_string())
        .collect();
    match access {
        Access::Direct => Finding::fine("reachable", format!("others can dial {}", told.join(" "))),
        Access::Relayed(_) => Finding::note(
            "reachable",
            "others cannot dial this node, only call it through a relay, at a fifth of the speed; forward a port of the \
             router to this machine and give --port and --public-ip to be faster",
        ),
        Access::Unreachable => Finding::problem(
            "reachable",
            format!(
                "others cannot dial {}, and no relay has a place for this node",
                told.join(" ")
            ),
            "allow inbound TCP and UDP on --port in the firewall, forward it in the router and give --public-ip, or join \
             through a node that can be dialed",
        ),
        Access::Unknown => Finding::problem(
            "reachable",
            "nobody said whether this node can be dialed",
            "try again in a minute, or name more --initial-peers",
        ),
    }
}

/// What the verdict rests on.
fn tried(evidence: &[Evidence], now: Instant) -> Finding {
    if evidence.is_empty() {
        return Finding::note("tried", "no peer could be asked to dial this node");
    }
    let said: Vec<String> = evidence.iter().map(|evidence| sentence(evidence, now)).collect();
    Finding::note("tried", said.join("; "))
}

fn sentence(evidence: &Evidence, now: Instant) -> String {
    let how = match evidence.source {
        Source::Check => "peers asked to dial back (rpc_check)",
        Source::AutoNat1 => "dialed back (AutoNAT v1)",
        Source::AutoNat2 => "dialed back (AutoNAT v2)",
        Source::PortMapping => "port mapping of the router",
        Source::Inbound => "a stranger's connection",
    };
    let outcome = match evidence.verdict {
        Verdict::Dialable => "yes",
        Verdict::NotDialable => "no",
    };
    let addr = evidence
        .addr
        .as_ref()
        .map(|addr| format!(" {}", p2p::without_peer(addr)))
        .unwrap_or_default();
    let peer = evidence
        .peer
        .map(|peer| format!(" by {}", p2p::short_id(&peer)))
        .unwrap_or_default();
    let age = now.saturating_duration_since(evidence.at).as_secs();
    format!("{how}{addr}{peer}: {outcome}, {age} s ago")
}

/// What the router said to the wish for ports.
fn router(asked: &PortMap) -> Finding {
    if asked.is_empty() {
        return Finding::note("router", "not asked for ports: none is needed, or none answered yet");
    }
    let said: Vec<String> = asked
        .iter()
        .map(|(mapper, mapping)| {
            let name = match mapper {
                Mapper::Upnp => "UPnP",
                Mapper::NatPmp => "NAT-PMP",
            };
            let said = match mapping {
                Mapping::Mapped(addrs) => addrs
                    .iter()
                    .map(|addr| p2p::without_peer(addr).to_string())
                    .collect::<Vec<_>>()
                    .join(" "),
                Mapping::NoGateway => "no router answers".to_owned(),
                Mapping::NotPublic => "the router has no public address itself".to_owned(),
                Mapping::Refused { reason } => format!("refused: {reason}"),
            };
            format!("{name}: {said}")
        })
        .collect();
    Finding::note("router", said.join("; "))
}

fn relay(access: &Access) -> Finding {
    match access {
        Access::Relayed(relays) => {
            let names: Vec<String> = relays.iter().map(p2p::short_id).collect();
            Finding::fine("relay", format!("has a place at {}", names.join(" ")))
        }
        Access::Unreachable => Finding::problem(
            "relay",
            "no node that this one met offers a place",
            "name one that does with --trusted-relays, such as a bootstrap node of your own with a public address",
        ),
        Access::Direct | Access::Unknown => Finding::note("relay", "not needed"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Outcome, *};

    #[test]
    fn only_a_node_that_nobody_gets_to_is_a_problem() {
        let addrs: Vec<Multiaddr> = vec!["/ip4/198.51.100.1/tcp/5".parse().unwrap()];
        let relay_peer = "12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d".parse().unwrap();
        for (access, outcome) in [
            (Access::Direct, Outcome::Fine),
            (Access::Relayed(vec![relay_peer]), Outcome::Note),
            (Access::Unreachable, Outcome::Problem),
            (Access::Unknown, Outcome::Problem),
        ] {
            let finding = verdict(&access, &addrs);
            assert_eq!(finding.outcome, outcome, "{finding}");
            assert_eq!(finding.remedy.is_some(), outcome == Outcome::Problem);
        }
        assert!(
            relay(&Access::Relayed(vec![relay_peer]))
                .to_string()
                .contains("…hJfz6d")
        );
    }
}
