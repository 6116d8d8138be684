//! How bytes travel: TCP or a relay's circuit, then noise, then yamux; or QUIC, which is all of that in one. IPv4, IPv6,
//! and names. Our name rewriter is around every multiplexer.

use std::{
    io,
    net::{IpAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId, Transport,
    core::{ConnectedPoint, muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    dns,
    identity::Keypair,
    noise, quic, relay, tcp, yamux,
};

use super::{
    Bandwidth, Config, Limits, SwarmKey,
    addr::Carrier,
    error::BindError,
    muxer::{BareNames, Muxer},
    opening,
    origins::Origins,
    paced::{Paced, PacedMuxer},
};

/// Limit for one connection from the first packet to the multiplexer; Hivemind's daemon gives up after the same time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Whether `port` is free. libp2p listens on TCP with `SO_REUSEPORT`, so that two nodes of one machine could share a port
/// without knowing, each getting half of the connections; this finds the other one before.
///
/// # Errors
///
/// What the system says about binding to that address and port.
pub(crate) fn probe_port(carrier: Carrier, ip: IpAddr, port: u16) -> io::Result<()> {
    match carrier {
        Carrier::Tcp => TcpListener::bind((ip, port)).map(drop),
        Carrier::Quic => UdpSocket::bind((ip, port)).map(drop),
    }
}

/// A transport, and what comes with it for circuits.
pub(crate) type Built = (Boxed<(PeerId, StreamMuxerBox)>, Option<relay::client::Behaviour>);

/// Builds the transport and, unless the host is to do without relays, the behaviour through which it reaches peers behind
/// relays. Without, the address of a circuit is one that cannot be dialed, and does not keep others from being tried. Where
/// dials lead is told to `origins`.
///
/// # Errors
///
/// If the key cannot be used for the handshake.
pub(crate) fn build(config: &Config, origins: &Arc<Origins>) -> Result<Built, BindError> {
    let (keypair, limits) = (config.identity.keypair(), &config.limits);
    let secure = Secure::new(config)?;
    let direct = || {
        let (tcp, line) = (tcp::Config::default().nodelay(true), config.bandwidth.clone());
        // Circuits go over these connections and are paced with them.
        let tcp = tcp::tokio::Transport::new(tcp).map(move |socket, _| Paced::new(socket, &line));
        let tcp = secure.over(tcp);
        // A swarm key encrypts a stream of bytes, so there is none for QUIC.
        let carriers = match config.swarm_key {
            Some(_) => tcp,
            None => tcp
                .or_transport(quic(keypair, limits, &config.bandwidth))
                .map(|either, _| either.into_inner())
                .boxed(),
        };
        let origins = origins.clone();
        // Here names are addresses already; the swarm never learns which.
        carriers
            .map(move |(peer, muxer), endpoint| {
                if let ConnectedPoint::Dialer { address, .. } = endpoint {
                    origins.dialed(peer, &address);
                }
                (peer, muxer)
            })
            .boxed()
    };
    // A machine without a resolver configuration (a container, say) can still dial numbers.
    let named = dns::tokio::Transport::system(direct()).unwrap_or_else(|_| {
        let no_servers = dns::ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        dns::tokio::Transport::custom(direct(), no_servers, dns::ResolverOpts::default())
    });
    if !config.relay.dial {
        return Ok((named.boxed(), None));
    }
    let (circuits, relay) = relay::client::new(keypair.public().to_peer_id());
    let transport = secure
        .over(circuits)
        .or_transport(named)
        .map(|either, _| either.into_inner())
        .boxed();
    Ok((transport, Some(relay)))
}

/// QUIC brings its own encryption and streams.
fn quic(keypair: &Keypair, limits: &Limits, line: &Bandwidth) -> Boxed<(PeerId, StreamMuxerBox)> {
    let mut config = quic::Config::new(keypair);
    config.max_concurrent_stream_limit = u32::try_from(limits.streams_per_connection).unwrap_or(u32::MAX);
    if let Some(window) = line.window() {
        // What was received and is not read yet has been on the line all the same.
        config.max_connection_data = config.max_connection_data.min(window);
        // One stream that nobody reads leaves half of it to the others.
        config.max_stream_data = config.max_stream_data.min(window / 2);
    }
    let line = line.clone();
    quic::tokio::Transport::new(config)
        .map(move |(peer, connection), _| {
            let paced = PacedMuxer::new(connection, line.clone());
            (peer, StreamMuxerBox::new(Muxer(paced)))
        })
        .boxed()
}

/// What turns a stream of bytes into a multiplexed connection with a known peer.
struct Secure {
    swarm_key: Option<SwarmKey>,
    noise: noise::Config,
    yamux: yamux::Config,
}

impl Secure {
    fn new(config: &Config) -> Result<Self, BindError> {
        let noise = noise::Config::new(config.identity.keypair());
        let mut yamux = yamux::Config::default();
        yamux.set_max_num_streams(config.limits.streams_per_connection);
        Ok(Self {
            swarm_key: config.swarm_key.clone(),
            noise: noise.map_err(|source| BindError::Setup { source: source.into() })?,
            yamux,
        })
    }

    fn over<T>(&self, transport: T) -> Boxed<(PeerId, StreamMuxerBox)>
    where
        T: Transport + Send + Unpin + 'static,
        T::Output: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T::Error: Send + Sync + 'static,
        T::ListenerUpgrade: Send,
        T::Dial: Send,
    {
        let swarm_key = self.swarm_key.clone();
        transport
            .and_then(move |socket, _| Box::pin(opening::begin(socket, swarm_key)))
            .upgrade(Version::V1Lazy)
            .authenticate(self.noise.clone())
            .multiplex(BareNames(self.yamux.clone()))
            .timeout(CONNECT_TIMEOUT)
            .boxed()
    }
}
