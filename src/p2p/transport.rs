//! How bytes travel: TCP (IPv4, IPv6, names) or a relay's circuit, then noise, then yamux with our name rewriter.

use std::{
    io,
    net::{IpAddr, TcpListener},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{multiaddr::Protocol, muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    dns,
    identity::Keypair,
    noise, relay, tcp, yamux,
};

use super::{Limits, error::BindError, muxer::BareNames};

/// Limit for one connection from the first packet to the multiplexer; Hivemind's daemon gives up after the same time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Whether the port of a listen address is free. libp2p listens with `SO_REUSEPORT`, so that two nodes of one machine could
/// share a port without knowing, each getting half of the connections; this finds the other one before.
///
/// # Errors
///
/// What the system says about binding to that address and port.
pub(crate) fn probe_port(addr: &Multiaddr) -> io::Result<()> {
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    match (parts.next(), parts.next()) {
        (Some(Protocol::Tcp(port)), None) if port != 0 => TcpListener::bind((ip, port)).map(drop),
        // Any port, or a reservation at a relay.
        _ => Ok(()),
    }
}

/// Builds the transport, and the behaviour through which it reaches peers behind relays.
///
/// # Errors
///
/// If the key cannot be used for the handshake.
pub(crate) fn build(
    keypair: &Keypair,
    limits: &Limits,
) -> Result<(Boxed<(PeerId, StreamMuxerBox)>, relay::client::Behaviour), BindError> {
    let security = noise::Config::new(keypair).map_err(|source| BindError::Setup { source: source.into() })?;
    let mut multiplexer = yamux::Config::default();
    multiplexer.set_max_num_streams(limits.streams_per_connection);
    let tcp = || tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    // A machine without a resolver configuration (a container, say) can still dial numbers.
    let direct = dns::tokio::Transport::system(tcp()).unwrap_or_else(|_| {
        let no_servers = dns::ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        dns::tokio::Transport::custom(tcp(), no_servers, dns::ResolverOpts::default())
    });
    let (circuits, relay) = relay::client::new(keypair.public().to_peer_id());
    let transport = circuits
        .or_transport(direct)
        .upgrade(Version::V1Lazy)
        .authenticate(security)
        .multiplex(BareNames(multiplexer))
        .timeout(CONNECT_TIMEOUT)
        .boxed();
    Ok((transport, relay))
}
