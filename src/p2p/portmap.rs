//! Ports of the router that lead here: asked for over PCP or NAT-PMP, kept, and given back. UPnP, the third way, is
//! libp2p's own; what came of each is told together, for `sepal doctor`.
//!
//! The port is asked for under its own number, for two hours, as RFC 6886 recommends, and asked for again after half of
//! what was granted. Nothing is asked by nodes that were told what to announce, or whose swarm is on
//! this machine or the local network.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    num::NonZeroU16,
    time::Duration,
};

use crab_nat::{
    GatewayAddress, InternetProtocol, MappingFailure, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig,
    natpmp,
};
use futures::future::join_all;
use libp2p::Multiaddr;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Config,
    actor::Command,
    addr::{self, Carrier, Reach},
};

/// Where Linux shows its routes. Elsewhere the router is not looked for this way.
const ROUTES: &str = "/proc/net/route";

/// How soon a router that refused, or did not answer, is asked again; the pause doubles. Most never will.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Limit for giving a port back: the program is ending.
const FAREWELL: Duration = Duration::from_secs(2);

/// A router of the same network answers within milliseconds, if at all: 0.25 + 0.5 + 1 + 2 s.
const PATIENCE: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 3,
    max_retry_timeout: Some(Duration::from_secs(2)),
};

/// A way to ask a router for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapper {
    /// UPnP's internet gateway device.
    Upnp,
    /// PCP, or its predecessor NAT-PMP.
    NatPmp,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// These addresses lead here.
    Mapped(Vec<Multiaddr>),
    /// There is no router, or it does not speak this protocol.
    NoGateway,
    /// The router gave a port under an address that is not public: there is another router behind it.
    NotPublic,
    /// The router did not give a port.
    Refused {
        /// In its own words.
        reason: String,
    },
}

/// What came of asking in each way. A way that was not tried, or has not answered yet, is missing.
pub type PortMap = BTreeMap<Mapper, Mapping>;

/// What one of the ways has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// This address leads here.
    Mapped(Multiaddr),
    /// It no longer does.
    Lost(Multiaddr),
    Failed(Mapping),
}

/// Whether a node with this configuration is to ask for ports: it wants to, would not announce something else anyway, and
/// its swarm reaches farther than this machine or the local network.
pub(crate) fn wanted(config: &Config) -> bool {
    let inside = |addr: &Multiaddr| addr::socket(addr).is_some_and(|(_, ip, _)| !ip.is_loopback());
    let far = match config.known_peers.as_slice() {
        [] => config.lan.is_none(),
        known => known.iter().any(|addr| addr::reach(addr) != Some(Reach::Loopback)),
    };
    config.map_ports && config.announce.is_empty() && config.listen.iter().any(inside) && far
}

/// The ports that are listened on in the local network, each once.
pub(crate) fn ports(listened: &[Multiaddr]) -> Vec<(Carrier, NonZeroU16)> {
    let mut ports: Vec<_> = listened
        .iter()
        .filter(|addr| addr::reach(addr) == Some(Reach::Private))
        .filter_map(addr::socket)
        .filter(|(_, ip, _)| ip.is_ipv4())
        .filter_map(|(carrier, _, port)| Some((carrier, NonZeroU16::new(port)?)))
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

/// The router that leads out of the local network.
fn gateway() -> Option<IpAddr> {
    fs::read_to_string(ROUTES).ok().and_then(|table| default_route(&table))
}

/// Reads a table of routes as Linux prints it: numbers in hexadecimal, addresses with their first byte last.
fn default_route(table: &str) -> Option<IpAddr> {
    const UP_AND_GATEWAY: u32 = 3;
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let mut number = || u32::from_str_radix(columns.next()?, 16).ok();
        let (destination, gateway, flags) = (number()?, number()?, number()?);
        (destination == 0 && flags & UP_AND_GATEWAY == UP_AND_GATEWAY)
            .then(|| Ipv4Addr::from(gateway.to_le_bytes()).into())
    })
}

/// Asks the router of this machine for the ports, and keeps them until `stop`.
pub(crate) async fn keep_at_gateway(
    ports: Vec<(Carrier, NonZeroU16)>,
    reports: mpsc::Sender<Command>,
    stop: CancellationToken,
) {
    match gateway() {
        Some(gateway) => keep(gateway, ports, reports, stop).await,
        None => {
            let nobody = Report::Failed(Mapping::NoGateway);
            // Without the actor there is nobody to tell.
            let _ = reports.send(Command::Mapping(Mapper::NatPmp, nobody)).await;
        }
    }
}

/// Asks `gateway` for the ports, and keeps them until `stop`. Returns when they are given back.
async fn keep(
    gateway: IpAddr,
    ports: Vec<(Carrier, NonZeroU16)>,
    reports: mpsc::Sender<Command>,
    stop: CancellationToken,
) {
    let keep_one = |(carrier, port)| keep_one(Wish { gateway, carrier, port }, &reports, &stop);
    join_all(ports.into_iter().map(keep_one)).await;
}

/// One port of one router.
#[derive(Clone, Copy, Debug)]
struct Wish {
    gateway: IpAddr,
    carrier: Carrier,
    port: NonZeroU16,
}

async fn keep_one(wish: Wish, reports: &mpsc::Sender<Command>, stop: &CancellationToken) {
    let tell = |report| async move {
        // Without the actor there is nobody to tell.
        let _ = reports.send(Command::Mapping(Mapper::NatPmp, report)).await;
    };
    let mut pause = FIRST_PAUSE;
    loop {
        match stop.run_until_cancelled(wish.ask()).await {
            None => return,
            Some(Ok(lease)) => {
                pause = FIRST_PAUSE;
                match wish.external(&lease).await {
                    Ok(addr) if addr::reach(&addr) == Some(Reach::Public) => {
                        tell(Report::Mapped(addr.clone())).await;
                        hold(lease, stop).await;
                        tell(Report::Lost(addr)).await;
                    }
                    Ok(_) => {
                        give_back(lease).await;
                        tell(Report::Failed(Mapping::NotPublic)).await;
                    }
                    Err(reason) => {
                        give_back(lease).await;
                        tell(Report::Failed(Mapping::Refused { reason })).await;
                    }
                }
            }
            Some(Err(failure)) => tell(Report::Failed(outcome(&failure))).await,
        }
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

impl Wish {
    async fn ask(self) -> Result<PortMapping, MappingFailure> {
        let own = own_address(self.gateway).map_err(natpmp::Failure::Socket)?;
        let protocol = match self.carrier {
            Carrier::Tcp => InternetProtocol::Tcp,
            Carrier::Quic => InternetProtocol::Udp,
        };
        let options = PortMappingOptions {
            external_port: Some(self.port),
            lifetime_seconds: None,
            timeout_config: Some(PATIENCE),
        };
        PortMapping::new(GatewayAddress::from(self.gateway), own, protocol, self.port, options).await
    }

    /// The address at the other side of the router. PCP tells it along with the port, NAT-PMP when asked.
    async fn external(self, lease: &PortMapping) -> Result<Multiaddr, String> {
        let ip = match lease.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => external_ip,
            PortMappingType::NatPmp => natpmp::external_address(lease.gateway(), Some(PATIENCE))
                .await
                .map_err(|failure| failure.to_string())?
                .into(),
        };
        Ok(addr::of_socket(self.carrier, ip, lease.external_port().get()))
    }
}

/// Renews the lease until that fails, or gives the port back at the end.
async fn hold(mut lease: PortMapping, stop: &CancellationToken) {
    let external = lease.external_port();
    loop {
        let half = Duration::from_secs(u64::from(lease.lifetime().max(2)) / 2);
        if stop.run_until_cancelled(sleep(half)).await.is_none() {
            give_back(lease).await;
            return;
        }
        match stop.run_until_cancelled(lease.renew()).await {
            Some(Ok(())) if lease.external_port() == external => {}
            Some(_) => return,
            None => {
                give_back(lease).await;
                return;
            }
        }
    }
}

async fn give_back(lease: PortMapping) {
    // A router that does not take it back forgets it when its time is over.
    let _ = timeout(FAREWELL, lease.try_drop()).await;
}

/// The address of this machine in the network of `gateway`. Nothing is sent.
fn own_address(gateway: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match gateway {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((gateway, crab_nat::GATEWAY_PORT))?;
    Ok(socket.local_addr()?.ip())
}

/// No answer, or nobody at that port, means that the router does not speak the protocol.
fn outcome(failure: &MappingFailure) -> Mapping {
    use crab_nat::pcp;
    match failure {
        MappingFailure::NatPmp(natpmp::Failure::Timeout | natpmp::Failure::Socket(_))
        | MappingFailure::Pcp(pcp::Failure::Timeout | pcp::Failure::Socket(_)) => Mapping::NoGateway,
        failure => Mapping::Refused {
            reason: failure.to_string(),
        },
    }
}

#[cfg(test)]
mod tests;
