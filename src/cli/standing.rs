//! Whether it is checked that others can dial this node, and the lines that say what came of it.

use clap::Args as ClapArgs;
use tokio::sync::watch;

use super::{node::Node, output};
use crate::{
    p2p::{self, Multiaddr},
    swarm::{
        models::PUBLIC_INITIAL_PEERS,
        monitor::{Monitor, PUBLIC_MONITOR},
        standing::{Access, Keeper, Timing},
    },
    task::Tasks,
};

/// What a person can do about a node that nobody gets to.
const REMEDY: &str = "peers cannot dial this node, and no relay has a place for it; forward a port of the router to this \
                      machine and give --port and --public-ip, or join through a node that can be dialed";

/// Flags of nodes that others should be able to dial.
#[derive(Clone, Debug, ClapArgs)]
pub(super) struct StandingArgs {
    /// Take for granted that others can dial this node, and ask nobody whether they can.
    #[arg(long, alias = "skip_reachability_check")]
    skip_reachability_check: bool,
}

/// Flags of servers.
#[derive(Debug, ClapArgs)]
pub(super) struct MonitorArgs {
    /// Health monitor that has to reach this server before it goes online [default: https://health.petals.dev in the
    /// public swarm, none elsewhere].
    #[arg(long, value_name = "URL", value_parser = parse_url, alias = "health_url", conflicts_with = "skip_reachability_check")]
    health_url: Option<String>,
}

/// How others get to a node of the command line.
#[derive(Debug)]
pub(super) struct Standing {
    keeper: Option<Keeper>,
    access: watch::Receiver<Access>,
}

impl Standing {
    /// Nothing is asked yet; but unless the check is skipped, the node is a client until an answer is there.
    pub(super) fn of(node: &Node, args: &StandingArgs) -> Self {
        if args.skip_reachability_check {
            return Self {
                keeper: None,
                access: Access::assumed_direct(),
            };
        }
        let keeper = Keeper::new(node.p2p.clone(), node.dht.clone(), Timing::default());
        Self {
            access: keeper.access(),
            keeper: Some(keeper),
        }
    }

    pub(super) fn access(&self) -> watch::Receiver<Access> {
        self.access.clone()
    }

    /// Starts to ask, and to say what comes of it. The node has joined its swarm, or is the first one of it.
    pub(super) fn begin(&mut self, tasks: &Tasks) {
        if !self.begin_quietly(tasks) {
            return;
        }
        let mut access = self.access();
        tasks.spawn_until_stopped("reachable", async move {
            let mut said = None;
            while let Ok(known) = access.wait_for(|access| Some(access) != said.as_ref()).await {
                let known = known.clone();
                line(&known).into_iter().for_each(output::line);
                said = Some(known);
            }
        });
    }

    /// Starts to ask. Returns whether there is anything to ask that was not begun before.
    pub(super) fn begin_quietly(&mut self, tasks: &Tasks) -> bool {
        let keeper = self.keeper.take();
        keeper.map(|keeper| keeper.spawn(tasks)).is_some()
    }

    /// Waits until it is known how others get to the node.
    pub(super) async fn known(&self) {
        // Without a keeper there is nothing to wait for.
        let _ = self.access().wait_for(|access| *access != Access::Unknown).await;
    }
}

fn line(access: &Access) -> Option<String> {
    match access {
        Access::Unknown => None,
        Access::Direct => Some("reachable: direct".to_owned()),
        Access::Relayed(relays) => {
            let names: Vec<String> = relays.iter().map(p2p::short_id).collect();
            Some(format!("reachable: through relay {}", names.join(" ")))
        }
        Access::Unreachable => Some(format!("not reachable: {REMEDY}")),
    }
}

/// The monitor that has to reach a server of the swarm of `initial_peers`. Petals asks one in the public swarm only.
pub(super) fn monitor(args: &MonitorArgs, standing: &StandingArgs, initial_peers: &[Multiaddr]) -> Option<Monitor> {
    let public = initial_peers.iter().map(Multiaddr::to_string).eq(PUBLIC_INITIAL_PEERS);
    match &args.health_url {
        _ if standing.skip_reachability_check => None,
        Some(url) => Some(Monitor::new(url)),
        None => public.then(|| Monitor::new(PUBLIC_MONITOR)),
    }
}

fn parse_url(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.to_owned())
    } else {
        Err(format!("expected http://… or https://…, got {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p2p::PeerId;

    fn asked(url: Option<&str>, skip: bool, peers: &[&str]) -> Option<String> {
        let args = MonitorArgs {
            health_url: url.map(str::to_owned),
        };
        let standing = StandingArgs {
            skip_reachability_check: skip,
        };
        let peers: Vec<Multiaddr> = peers.iter().map(|addr| addr.parse().unwrap()).collect();
        monitor(&args, &standing, &peers).map(|monitor| monitor.url)
    }

    #[test]
    fn a_monitor_is_asked_in_the_public_swarm_and_where_one_is_named() {
        let own = ["/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d"];
        assert_eq!(
            asked(None, false, &PUBLIC_INITIAL_PEERS).as_deref(),
            Some("https://health.petals.dev")
        );
        assert_eq!(asked(None, true, &PUBLIC_INITIAL_PEERS), None);
        assert_eq!(asked(None, false, &own), None);
        assert_eq!(asked(None, false, &[]), None);
        assert_eq!(
            asked(Some("http://[::1]:80/"), false, &own).as_deref(),
            Some("http://[::1]:80")
        );
        assert!(parse_url("health.petals.dev").is_err());
    }

    #[test]
    fn every_way_to_be_reached_has_a_line_of_its_own() {
        let relay: PeerId = "12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d".parse().unwrap();
        assert_eq!(line(&Access::Unknown), None);
        assert_eq!(line(&Access::Direct).as_deref(), Some("reachable: direct"));
        assert_eq!(
            line(&Access::Relayed(vec![relay])).as_deref(),
            Some("reachable: through relay …hJfz6d")
        );
        let closed = line(&Access::Unreachable).unwrap();
        assert!(closed.starts_with("not reachable: ") && closed.contains("--public-ip"));
    }
}
