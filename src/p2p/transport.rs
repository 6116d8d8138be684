//! How bytes travel: TCP (IPv4, IPv6, names) or a relay's circuit, then noise, then yamux with our name rewriter.

use std::time::Duration;

use libp2p::{
    PeerId, Transport,
    core::{muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    dns,
    identity::Keypair,
    noise, relay, tcp, yamux,
};

use super::{Limits, error::BindError, muxer::BareNames};

/// Limit for one connection from the first packet to the multiplexer; Hivemind's daemon gives up after the same time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

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
