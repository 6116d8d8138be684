//! Opening the listeners, one after another, all on the same port where the configuration leaves the choice.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt};
use libp2p::{Multiaddr, TransportError, swarm::SwarmEvent};

use super::{
    super::{
        addr::{self, Carrier},
        error::BindError,
        transport::probe_port,
    },
    Actor,
};

/// How long a listener may take to report its address.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

impl Actor {
    /// Opens all listeners and waits until their addresses are known.
    pub(crate) async fn listen(&mut self) -> Result<(), BindError> {
        for known in self.config.known_peers.clone() {
            let peer = addr::peer_of(&known).ok_or_else(|| BindError::KnownPeer { addr: known.clone() })?;
            self.book.configure(peer, &known, Instant::now());
        }
        for addr in &self.config.listen {
            if self.config.swarm_key.is_some() && matches!(addr::socket(addr), Some((Carrier::Quic, ..))) {
                return Err(BindError::QuicWithSwarmKey { addr: addr.clone() });
            }
            if let Some((carrier, ip, port)) = addr::socket(addr).filter(|(_, _, port)| *port != 0) {
                probe_port(carrier, ip, port).map_err(|source| BindError::Listen {
                    addr: addr.clone(),
                    source,
                })?;
            }
        }
        let mut port = None;
        for configured in self.config.listen.clone() {
            let addr = on_port(&configured, port);
            let opened = self.listen_on(addr).await?;
            port = port.or(addr::socket(&opened).map(|(_, _, port)| port));
        }
        // A wildcard listener reports one address per interface; those known by now are in the queue.
        while let Some(Some(event)) = self.swarm.next().now_or_never() {
            self.on_event(event);
        }
        Ok(())
    }

    /// What is listened on now.
    pub(crate) fn listened(&self) -> &[Multiaddr] {
        &self.listened
    }

    /// Opens one listener. Returns its first address.
    async fn listen_on(&mut self, addr: Multiaddr) -> Result<Multiaddr, BindError> {
        let failed = |source| BindError::Listen {
            addr: addr.clone(),
            source,
        };
        let id = self.swarm.listen_on(addr.clone()).map_err(|error| {
            failed(match error {
                TransportError::Other(source) => source,
                TransportError::MultiaddrNotSupported(_) => io::ErrorKind::Unsupported.into(),
            })
        })?;
        self.listeners.push(id);
        let deadline = tokio::time::Instant::now() + LISTEN_TIMEOUT;
        loop {
            let Ok(event) = tokio::time::timeout_at(deadline, self.swarm.select_next_some()).await else {
                return Err(BindError::Timeout {
                    addr,
                    waited: LISTEN_TIMEOUT,
                });
            };
            match event {
                SwarmEvent::NewListenAddr {
                    listener_id,
                    ref address,
                } if listener_id == id => {
                    let address = address.clone();
                    self.on_event(event);
                    return Ok(address);
                }
                SwarmEvent::ListenerClosed {
                    listener_id,
                    reason: Err(source),
                    ..
                }
                | SwarmEvent::ListenerError {
                    listener_id,
                    error: source,
                } if listener_id == id => return Err(failed(source)),
                event => self.on_event(event),
            }
        }
    }
}

/// `addr` on the port that another listener of this node has, if any port will do and that one is free: one number is
/// easier to forward at a router, and to tell others.
fn on_port(addr: &Multiaddr, port: Option<u16>) -> Multiaddr {
    let (Some((carrier, ip, 0)), Some(port)) = (addr::socket(addr), port) else {
        return addr.clone();
    };
    // A wildcard for IPv6 excludes IPv4 when libp2p binds it, and includes it when the standard library does: our own
    // IPv4 listener would be taken for somebody else's.
    let probed = match ip {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    if probe_port(carrier, probed, port).is_ok() {
        addr::of_socket(carrier, ip, port)
    } else {
        addr.clone()
    }
}
