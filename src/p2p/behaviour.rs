//! What the host consists of: the libp2p protocols beside ours, put together once.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use libp2p::{
    StreamProtocol, Swarm, allow_block_list, autonat,
    connection_limits::{self, ConnectionLimits},
    core::upgrade::Version,
    dcutr, identify, kad, mdns, ping, relay,
    swarm::{self, NetworkBehaviour, behaviour::toggle::Toggle},
    upnp,
};

use super::{
    Config, RelayLimits, error::BindError, gossip, kad_server, lan, portmap, router::Registry, rpc, transport,
};

/// What we call ourselves in identify. Other nodes of ours recognise it, see [`is_swarm_member`].
const AGENT: &str = concat!("sepal/", env!("CARGO_PKG_VERSION"));

/// Connections stay up while nothing is said on them: our addresses are only sure to be known to peers we are connected
/// to. Hivemind's daemons do the same.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(12 * 60 * 60);

/// Largest kad answer that is read, bytes: 20 peers with all their addresses. libp2p's default of 16 KiB is too small for
/// what Go nodes send.
const MAX_KAD_PACKET: usize = 1024 * 1024;

/// Kad requests in flight per query, and how often the table is refreshed: those of go-libp2p-kad-dht.
const KAD_PARALLELISM: NonZeroUsize = NonZeroUsize::new(10).unwrap();
const KAD_REFRESH: Duration = Duration::from_secs(10 * 60);
/// Limit of one query; whoever waits for it gives up after 3 to 5 s mostly.
const KAD_QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection whose other end is silent for interval + timeout is closed.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The protocols of the host.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub(crate) struct Behaviour {
    pub(crate) limits: connection_limits::Behaviour,
    /// Who is kept out at the moment, see `guard.rs`.
    pub(crate) barred: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub(crate) rpc: rpc::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
    pub(crate) kad: kad::Behaviour<kad::store::MemoryStore>,
    /// Being reached through relays, and reaching others so.
    pub(crate) relay: Toggle<relay::client::Behaviour>,
    /// Making direct connections out of relayed ones.
    pub(crate) dcutr: Toggle<dcutr::Behaviour>,
    /// Being a relay.
    pub(crate) hop: Toggle<relay::Behaviour>,
    pub(crate) autonat1: Toggle<autonat::v1::Behaviour>,
    pub(crate) autonat2: Toggle<autonat::v2::client::Behaviour>,
    pub(crate) autonat2_server: Toggle<autonat::v2::server::Behaviour>,
    /// Who else is on the local network, see `lan.rs`.
    pub(crate) mdns: Toggle<mdns::tokio::Behaviour>,
    /// Messages to everyone on a topic, see `gossip.rs`.
    pub(crate) gossip: Toggle<gossip::Behaviour>,
    /// Ports of the router, see `portmap.rs`.
    pub(crate) upnp: Toggle<upnp::tokio::Behaviour>,
}

/// Builds the swarm. It does not listen yet.
///
/// # Errors
///
/// If the key cannot be used for the handshake, or the local network cannot be listened to.
pub(crate) fn swarm(config: &Config, registry: Arc<Registry>) -> Result<Swarm<Behaviour>, BindError> {
    let (transport, relay) = transport::build(config, registry.origins())?;
    let settings = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE_CONNECTION_TIMEOUT)
        // Saves one round trip per call: the request travels with the proposed name.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_max_negotiating_inbound_streams(config.limits.streams_per_connection);
    let mut behaviour = behaviour(config, relay, rpc::Behaviour::new(registry));
    if portmap::wanted(config) {
        behaviour.upnp = Some(upnp::tokio::Behaviour::default()).into();
    }
    if let Some(gossiping) = &config.gossip {
        behaviour.gossip = Some(gossip::behaviour(gossiping)?).into();
    }
    if config.lan.is_some() {
        let mdns = mdns::tokio::Behaviour::new(lan::mdns_config(), config.identity.peer_id());
        behaviour.mdns = Some(mdns.map_err(|source| BindError::Mdns { source })?).into();
    }
    Ok(Swarm::new(transport, behaviour, config.identity.peer_id(), settings))
}

fn behaviour(config: &Config, relay: Option<relay::client::Behaviour>, rpc: rpc::Behaviour) -> Behaviour {
    let (keypair, limits) = (config.identity.keypair(), &config.limits);
    let peer = keypair.public().to_peer_id();
    let mut kad = kad::Config::new(StreamProtocol::new(kad_server::NAME));
    kad.set_max_packet_size(MAX_KAD_PACKET)
        .set_parallelism(KAD_PARALLELISM)
        .set_query_timeout(KAD_QUERY_TIMEOUT)
        .set_periodic_bootstrap_interval(Some(KAD_REFRESH))
        // Anyone may speak this name, the whole public IPFS network does: only the actor decides who gets in.
        .set_kbucket_inserts(kad::BucketInserts::Manual);
    let mut kad = kad::Behaviour::with_config(peer, kad::store::MemoryStore::new(peer), kad);
    // Inbound requests are answered by `kad_server.rs`.
    kad.set_mode(Some(kad::Mode::Client));
    Behaviour {
        limits: connection_limits::Behaviour::new(
            ConnectionLimits::default()
                .with_max_pending_incoming(Some(limits.pending_incoming))
                .with_max_pending_outgoing(Some(limits.pending_outgoing))
                .with_max_established(Some(limits.connections))
                .with_max_established_per_peer(Some(limits.connections_per_peer)),
        ),
        barred: allow_block_list::Behaviour::default(),
        rpc,
        // Without a signed record: Go nodes check it under another domain, and log an error for each of ours.
        identify: identify::Behaviour::new(
            identify::Config::new(String::new(), keypair.public())
                .with_agent_version(AGENT.to_owned())
                .with_push_listen_addr_updates(true)
                // What is announced is decided by `addr.rs`, and set as external addresses.
                .with_hide_listen_addrs(true),
        ),
        ping: ping::Behaviour::new(
            ping::Config::new()
                .with_interval(PING_INTERVAL)
                .with_timeout(PING_TIMEOUT),
        ),
        kad,
        mdns: None.into(),
        upnp: None.into(),
        gossip: None.into(),
        dcutr: relay.is_some().then(|| dcutr::Behaviour::new(peer)).into(),
        relay: relay.into(),
        hop: config
            .relay
            .serve
            .then(|| relay::Behaviour::new(peer, relay_config(config.relay.limits)))
            .into(),
        autonat1: config
            .autonat
            .then(|| autonat::v1::Behaviour::new(peer, autonat1_settings()))
            .into(),
        autonat2: config.autonat.then(autonat::v2::client::Behaviour::default).into(),
        autonat2_server: config.autonat.then(autonat::v2::server::Behaviour::default).into(),
    }
}

/// What is no part of `limits` is as in Hivemind's daemon (`p2pd/main.go`); bounds per IP address are libp2p's own.
fn relay_config(limits: RelayLimits) -> relay::Config {
    relay::Config {
        max_reservations: limits.reservations,
        reservation_duration: Duration::from_secs(60 * 60),
        // Go counts circuits per peer, and has no bound for all of them; this is that of as many peers as may reserve.
        max_circuits: limits.reservations.saturating_mul(limits.circuits_per_peer),
        // libp2p refuses the circuit that finds more than this open, so it lets one more be.
        max_circuits_per_peer: limits.circuits_per_peer.saturating_sub(1),
        max_circuit_duration: Duration::from_secs(30 * 60),
        max_circuit_bytes: 4 << 30,
        ..relay::Config::default()
    }
}

fn autonat1_settings() -> autonat::v1::Config {
    autonat::v1::Config {
        // Two answers decide (`reachability.rs`), so a node knows in less than a minute.
        boot_delay: Duration::from_secs(5),
        retry_interval: Duration::from_secs(30),
        throttle_server_period: Duration::from_secs(25),
        refresh_interval: Duration::from_secs(10 * 60),
        // A private network needs verdicts, too. Whose verdict counts is decided by `actor/reaching.rs`.
        only_global_ips: false,
        ..autonat::v1::Config::default()
    }
}

/// Whether a peer belongs to a Hivemind swarm, judged by what it says of itself: Hivemind's daemon, a node of ours, or
/// anyone who serves Hivemind's calls. (libp2p drops names without a slash from what it shows us of identify.)
pub(crate) fn is_swarm_member(info: &identify::Info) -> bool {
    info.agent_version.starts_with("p2pd/")
        || info.agent_version.starts_with("sepal/")
        || info.protocols.iter().any(|name| name.as_ref().contains("DHTProtocol."))
}
