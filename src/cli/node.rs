//! What every node needs before it is a server or a client: a host, a DHT, and the way into a swarm.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use clap::Args as ClapArgs;
use sepal_protocol::{Message, names, proto};
use tracing::info;

use super::{
    model::Model,
    parsers::{ipv4, multiaddr, port},
    polite,
    swarm::Swarm,
};
use crate::{
    dht::Dht,
    p2p::{self, Bandwidth, Identity, Multiaddr, P2p, PeerId, RelayConfig, Router},
    server::{self, Server},
    swarm::{self, lan::Lan},
    task::Tasks,
};

/// How long another node with our identity has to answer before we believe that there is none.
const IDENTITY_CHECK: Duration = Duration::from_secs(3);

/// How long each initial peer that is asked for it has to be connected.
const IDENTITY_DIAL: Duration = Duration::from_secs(10);

/// How long the nodes of the local network are waited for: by a client, which can do nothing without them, and by others,
/// which may be the first. Whoever is there answers within a second or two.
const LAN_WAIT_CLIENT: Duration = Duration::from_secs(15);
const LAN_WAIT: Duration = Duration::from_secs(4);

/// Flags of nodes that others can dial.
#[derive(Clone, Debug, ClapArgs)]
pub(super) struct ListenArgs {
    /// Addresses to listen on [default: TCP and QUIC on PORT, IPv4 and IPv6: /ip4/0.0.0.0/tcp/PORT /ip6/::/tcp/PORT
    /// /ip4/0.0.0.0/udp/PORT/quic-v1 /ip6/::/udp/PORT/quic-v1].
    #[arg(long, value_name = "ADDR", num_args = 1.., value_parser = multiaddr, alias = "host_maddrs", alias = "host-maddrs")]
    listen: Vec<Multiaddr>,
    /// TCP and UDP port to listen on when --listen is not given; 0 takes any free one.
    #[arg(long, default_value_t = 0, value_parser = port, conflicts_with = "listen")]
    port: u16,
    /// Addresses to tell others instead of those we listen on.
    #[arg(long, value_name = "ADDR", num_args = 1.., value_parser = multiaddr, alias = "announce_maddrs", alias = "announce-maddrs")]
    announce_addrs: Vec<Multiaddr>,
    /// IPv4 address under which others reach --port.
    #[arg(
        long,
        value_name = "IP",
        value_parser = ipv4,
        alias = "public_ip",
        requires = "port",
        conflicts_with = "announce_addrs"
    )]
    public_ip: Option<Ipv4Addr>,
    /// Do not ask the router to forward the port (UPnP, PCP, NAT-PMP).
    #[arg(long)]
    no_port_mapping: bool,
    /// File with this node's key; created if it does not exist. Without it the node has a new identity at every start.
    #[arg(long, value_name = "FILE", alias = "identity_path", alias = "identity-path")]
    identity: Option<PathBuf>,
    /// Do not be a relay for nodes that cannot be dialed.
    #[arg(long, alias = "no_relay")]
    no_relay: bool,
    /// Relays to prefer when this node cannot be dialed itself. Each address ends in /p2p/PEER_ID.
    #[arg(long, value_name = "ADDR", num_args = 1.., value_parser = parse_peer_addr, alias = "trusted_relays")]
    trusted_relays: Vec<Multiaddr>,
    /// What all connections to peers together may carry, each way: such as 20mbit or 2MB a second, or up=5mbit,down=50mbit.
    /// More is neither sent, read nor announced. Downloads from the hub and HTTP are not slowed down.
    #[arg(long, value_name = "RATE", value_parser = polite::bandwidth)]
    max_bandwidth: Option<Bandwidth>,
}

impl ListenArgs {
    pub(super) fn identity_file(&self) -> Option<&Path> {
        self.identity.as_deref()
    }

    /// The same for a host in another swarm: on `port`, which is any free one if it is 0, and without what only this one
    /// has, such as relays. QUIC has no swarm keys.
    pub(super) fn elsewhere(&self, port: u16, has_key: bool) -> Self {
        let listen = self.listen.iter().map(|addr| p2p::on_port(addr, port));
        Self {
            listen: listen.filter(|addr| !has_key || !p2p::is_quic(addr)).collect(),
            port,
            announce_addrs: Vec::new(),
            public_ip: self.public_ip.filter(|_| port != 0),
            trusted_relays: Vec::new(),
            ..self.clone()
        }
    }

    /// The same on the line of a host that is there: what both carry is paced and counted together.
    pub(super) fn beside(&self, host: &P2p) -> Self {
        Self {
            max_bandwidth: Some(host.bandwidth().clone()),
            ..self.clone()
        }
    }

    /// What the node does with relays; `auto` is whether it holds reservations when nobody can dial it.
    fn relay(&self, auto: bool) -> RelayConfig {
        RelayConfig {
            serve: !self.no_relay,
            auto,
            trusted: self.trusted_relays.clone(),
            ..RelayConfig::default()
        }
    }

    fn listen(&self, swarm: &Swarm) -> anyhow::Result<Vec<Multiaddr>> {
        if !self.listen.is_empty() {
            return Ok(self.listen.clone());
        }
        let mut ips = vec!["/ip4/0.0.0.0"];
        if has(Ipv6Addr::UNSPECIFIED) {
            ips.push("/ip6/::");
        }
        on_every(&ips, self.port, swarm)
    }

    fn announce(&self, swarm: &Swarm) -> anyhow::Result<Vec<Multiaddr>> {
        match self.public_ip {
            Some(_) if self.port == 0 => bail!("--public-ip needs --port, the port that others reach"),
            Some(ip) => on_every(&[&format!("/ip4/{ip}")], self.port, swarm),
            None => Ok(self.announce_addrs.clone()),
        }
    }
}

/// TCP first: it is what every peer can dial, and the first address is the one in the join line. QUIC has no swarm keys.
fn on_every(ips: &[&str], port: u16, swarm: &Swarm) -> anyhow::Result<Vec<Multiaddr>> {
    let mut carriers = vec![format!("tcp/{port}")];
    if swarm.key.is_none() {
        carriers.push(format!("udp/{port}/quic-v1"));
    }
    let mut addrs = Vec::new();
    for carrier in carriers {
        for ip in ips {
            addrs.push(format!("{ip}/{carrier}").parse()?);
        }
    }
    Ok(addrs)
}

fn parse_peer_addr(text: &str) -> Result<Multiaddr, String> {
    let addr = multiaddr(text)?;
    match p2p::peer_id_of(&addr) {
        Some(_) => Ok(addr),
        None => Err("does not end in /p2p/PEER_ID".to_owned()),
    }
}

/// Whether this machine speaks that version of IP at all; many containers have no IPv6, and cannot listen on it.
fn has(unspecified: impl Into<IpAddr>) -> bool {
    UdpSocket::bind((unspecified.into(), 0)).is_ok()
}

/// Where a client listens, who is there for nobody: without a port of its own it could not meet a server behind a router
/// half-way, and all its sessions would go through a relay. Not on the local network: mDNS would invite the neighbours,
/// who need no invitation.
fn meeting_points(swarm: &Swarm) -> anyhow::Result<Vec<Multiaddr>> {
    let mut ips = Vec::new();
    if swarm.lan.is_none() {
        ips.extend(has(Ipv4Addr::UNSPECIFIED).then_some("/ip4/0.0.0.0"));
        ips.extend(has(Ipv6Addr::UNSPECIFIED).then_some("/ip6/::"));
    }
    on_every(&ips, 0, swarm)
}

/// A host and a DHT that run until `tasks` are shut down.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) p2p: P2p,
    pub(super) dht: Dht,
    pub(super) tasks: Tasks,
    lan: Option<Neighbours>,
}

/// The way into the swarm of the local network.
#[derive(Debug)]
struct Neighbours {
    name: String,
    lan: Lan,
    wait: Duration,
}

/// Starts a node that others can dial, or reach through relays (`auto_relay`). It serves nothing yet and has joined nobody.
///
/// # Errors
/// A bad identity file, an identity in use elsewhere, or an address that cannot be listened on.
pub(super) async fn listen(args: &ListenArgs, swarm: &Swarm, auto_relay: bool) -> anyhow::Result<Node> {
    let existing = args.identity.as_ref().is_some_and(|file| file.exists());
    let identity = match &args.identity {
        Some(file) => Identity::load_or_create(file)?,
        None => Identity::ephemeral(),
    };
    if existing && is_taken(&identity, swarm).await? {
        let own = identity.peer_id();
        bail!("identity {own} is in use by a running node of this swarm: stop it, or give --identity another file");
    }
    listen_as(identity, args, args.relay(auto_relay), swarm).await
}

/// Starts a further host of the node with this identity, in another swarm. It serves nothing yet and has joined nobody.
///
/// # Errors
/// It is in that swarm already, or cannot listen there.
pub(super) async fn listen_elsewhere(
    identity: &Identity,
    args: &ListenArgs,
    swarm: &Swarm,
    auto_relay: bool,
) -> anyhow::Result<Node> {
    if is_taken(identity, swarm).await? {
        bail!("this node is in that swarm already, or another one with its identity is");
    }
    listen_as(identity.clone(), args, args.relay(auto_relay), swarm).await
}

/// Starts a node on the same addresses under an identity of its own, to try what they are worth.
///
/// # Errors
/// An address that cannot be listened on.
pub(super) async fn listen_as_stranger(args: &ListenArgs, swarm: &Swarm) -> anyhow::Result<Node> {
    // It is soon gone: nobody should rely on it.
    let relay = RelayConfig {
        serve: false,
        ..args.relay(true)
    };
    listen_as(Identity::ephemeral(), args, relay, swarm).await
}

async fn listen_as(identity: Identity, args: &ListenArgs, relay: RelayConfig, swarm: &Swarm) -> anyhow::Result<Node> {
    let config = p2p::Config {
        listen: args.listen(swarm)?,
        announce: args.announce(swarm)?,
        identity,
        relay,
        autonat: true,
        map_ports: !args.no_port_mapping,
        bandwidth: args.max_bandwidth.clone().unwrap_or_default(),
        ..host_of(swarm)
    };
    start(config).await
}

/// Starts a node that only asks: it tells nobody where to dial it, and keeps no records for others.
///
/// # Errors
/// When the host cannot start.
pub(super) async fn client(swarm: &Swarm) -> anyhow::Result<Node> {
    let config = p2p::Config {
        listen: meeting_points(swarm)?,
        unlisted: true,
        client_mode: true,
        ..host_of(swarm)
    };
    start(config).await
}

/// What all hosts of a swarm have in common.
fn host_of(swarm: &Swarm) -> p2p::Config {
    p2p::Config {
        swarm_key: swarm.key.clone(),
        lan: swarm.lan.clone(),
        gossip: swarm.gossip.clone(),
        known_peers: swarm.initial_peers.clone(),
        ..p2p::Config::default()
    }
}

/// Starts a node with this host. It serves nothing yet and has joined nobody.
///
/// # Errors
/// When the host cannot start.
pub(super) async fn start(config: p2p::Config) -> anyhow::Result<Node> {
    let (client_mode, name) = (config.client_mode, config.lan.clone());
    let swarm::Node { p2p, dht, tasks } = swarm::Node::start(config).await?;
    let lan = name.map(|name| Neighbours {
        name,
        lan: Lan::spawn(p2p.clone(), dht.clone(), &tasks),
        wait: if client_mode { LAN_WAIT_CLIENT } else { LAN_WAIT },
    });
    Ok(Node { p2p, dht, tasks, lan })
}

impl Node {
    /// What every node that can be dialed answers; a server adds its own.
    pub(super) fn router(&self) -> Router {
        self.as_member().router()
    }

    /// The same node, as the layers below know it.
    fn as_member(&self) -> swarm::Node {
        swarm::Node {
            p2p: self.p2p.clone(),
            dht: self.dht.clone(),
            tasks: self.tasks.clone(),
        }
    }

    /// A server of each model on this node. They answer from now on and hold nothing yet.
    pub(super) fn servers<'a>(
        &self,
        models: impl IntoIterator<Item = (server::Config, &'a Model)>,
    ) -> Vec<Arc<Server>> {
        let mut servers: Vec<Arc<Server>> = Vec::new();
        for (config, model) in models {
            let source = model.source.clone();
            let server = match servers.first() {
                None => Server::new(config, source, (self.p2p.clone(), self.dht.clone()), &self.tasks),
                Some(first) => first.beside(config, source),
            };
            servers.push(Arc::new(server));
        }
        let handlers = servers.first().map(|server| server.handlers()).unwrap_or_default();
        self.router().serve(handlers).spawn(&self.tasks);
        servers
    }

    /// Joins the swarm of the initial peers, or of the local network. Without either, this node is the first one.
    ///
    /// # Errors
    /// When none of the initial peers can be used; says what each did. When a client finds nobody.
    pub(super) async fn join(&self) -> anyhow::Result<()> {
        let joined = self
            .bootstrap("check the addresses in --initial-peers, or start a swarm of your own with sepal serve MODEL --new-swarm")
            .await;
        let Some(neighbours) = &self.lan else {
            return joined.map(drop);
        };
        if joined.as_ref().is_ok_and(|usable| *usable > 0) {
            return Ok(());
        }
        // Without initial peers there is no reason to complain yet.
        neighbours.join(joined.map(drop)).await
    }

    /// Joins through the initial peers, and returns how many of them can be used. `remedy` is for those that cannot.
    ///
    /// # Errors
    /// When there are some and none of them can be used; says what each did, and what to do about it.
    pub(super) async fn bootstrap(&self, remedy: &str) -> anyhow::Result<usize> {
        self.dht.bootstrap().await.map_err(|error| {
            let remedy = match error.is_clock() {
                true => "set the clock of this machine (timedatectl set-ntp true does on most), or that of the peer",
                false => remedy,
            };
            anyhow::Error::new(error).context(format!("cannot join the swarm: {remedy}"))
        })
    }
}

impl Neighbours {
    /// Waits for somebody else on the local network. `otherwise` is what became of the initial peers.
    async fn join(&self, otherwise: anyhow::Result<()>) -> anyhow::Result<()> {
        let Self { name, lan, wait } = self;
        if lan.joined(*wait).await {
            return Ok(());
        }
        otherwise?;
        if *wait == LAN_WAIT_CLIENT {
            bail!(
                "no node of the swarm {name:?} was found on the local network within {} s: check that one runs with --lan \
                 {name}, on the same network, that neither firewall blocks UDP port 5353 (mDNS), and that the network lets \
                 its machines talk to each other (guest networks often do not); or name a node with --initial-peers",
                wait.as_secs()
            );
        }
        info!(name, "nobody else of this swarm on the local network yet");
        Ok(())
    }
}

/// Whether another node of the swarm has this identity. Petals looks, too (`hivemind/p2p/p2p_daemon.py`, is_identity_taken): two nodes under one identity would overwrite
/// each other's records and take each other's calls.
async fn is_taken(identity: &Identity, swarm: &Swarm) -> anyhow::Result<bool> {
    let own: PeerId = identity.peer_id();
    let mut others = swarm.clone();
    others.initial_peers.retain(|addr| p2p::peer_id_of(addr) != Some(own));
    if others.initial_peers.is_empty() {
        return Ok(false);
    }
    let probe = client(&others).await?;
    let _stopped = probe.tasks.token().drop_guard();
    let ping = proto::PingRequest::default().encode_to_vec();
    let mut taken = false;
    let dials = others.initial_peers.into_iter().map(|addr| {
        let dial = probe.p2p.connect(addr);
        async {
            tokio::time::timeout(IDENTITY_DIAL, dial)
                .await
                .is_ok_and(|dialed| dialed.is_ok())
        }
    });
    if futures::future::join_all(dials).await.contains(&true) {
        taken = probe
            .p2p
            .call_unary(own, names::DHT_PING, ping.into(), IDENTITY_CHECK)
            .await
            .is_ok();
    }
    probe.tasks.shutdown().await;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::dht;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        listen: ListenArgs,
    }

    #[tokio::test]
    async fn what_the_host_in_another_swarm_carries_is_counted_with_what_the_first_one_does() {
        let line = ["sepal", "--listen", "/ip4/127.0.0.1/tcp/0", "--no-port-mapping"];
        let (args, swarm) = (Line::try_parse_from(line).unwrap().listen, Swarm::default());
        let (home, other) = tokio::try_join!(listen(&args, &swarm, false), listen(&args, &swarm, false)).unwrap();
        let elsewhere = args.beside(&home.p2p).elsewhere(0, false);
        let identity = home.p2p.identity().clone();
        let guest = listen_elsewhere(&identity, &elsewhere, &swarm, false).await.unwrap();
        guest.p2p.connect(other.p2p.addrs().remove(0)).await.unwrap();
        let moved = home.p2p.bandwidth().moved();
        assert!(moved.iter().all(|bytes| *bytes > 0), "{moved:?}");
        for node in [guest, other, home] {
            node.tasks.shutdown().await;
        }
    }

    #[tokio::test]
    async fn a_wrong_clock_is_told_from_a_wrong_address() {
        let first = swarm::Node::join(p2p::Config::default()).await.unwrap();
        let host = p2p::Config::client(first.p2p.addrs());
        let config = dht::Config {
            client_mode: true,
            initial_peers: host.known_peers.clone(),
            clock: dht::Clock::manual(0.0),
            ..dht::Config::default()
        };
        let tasks = Tasks::new();
        let p2p = P2p::bind(host.clone(), &tasks).await.unwrap();
        let early = Node {
            dht: Dht::spawn(p2p.clone(), config, &tasks),
            p2p,
            tasks,
            lan: None,
        };
        let error = early.bootstrap("check the addresses").await.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot join the swarm: set the clock of this machine"),
            "{error}"
        );
        first.stop().await;
        let alone = start(host).await.unwrap();
        let error = alone.bootstrap("check the addresses").await.unwrap_err().to_string();
        assert_eq!(error, "cannot join the swarm: check the addresses");
        for node in [early, alone] {
            node.tasks.shutdown().await;
        }
    }

    #[test]
    fn tcp_and_quic_share_the_port_and_tcp_comes_first() {
        let addrs: Vec<String> = on_every(&["/ip4/203.0.113.5", "/ip6/::"], 31330, &Swarm::default())
            .unwrap()
            .iter()
            .map(Multiaddr::to_string)
            .collect();
        assert_eq!(
            addrs,
            [
                "/ip4/203.0.113.5/tcp/31330",
                "/ip6/::/tcp/31330",
                "/ip4/203.0.113.5/udp/31330/quic-v1",
                "/ip6/::/udp/31330/quic-v1"
            ]
        );
    }
}
