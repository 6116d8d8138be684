//! Which addresses are worth announcing, dialing and telling others: pure rules over multiaddresses.

use std::net::IpAddr;

use libp2p::{Multiaddr, PeerId, core::multiaddr::Protocol};

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Anyone can dial it: a public IP address or a name.
    Public,
    /// Only machines of one local network can.
    Private,
    /// Through a relay, which costs a hop and has quotas.
    Relayed,
    /// Only this machine can.
    Loopback,
}

/// Whether the address leads through a relay.
pub fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether the address is a name, of the peer itself and not of a relay.
pub(crate) fn is_named(addr: &Multiaddr) -> bool {
    let is_name = matches!(
        addr.iter().next(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_))
    );
    is_name && !is_relayed(addr)
}

/// The address with another port.
pub fn on_port(addr: &Multiaddr, port: u16) -> Multiaddr {
    let parts = addr.iter().map(|part| match part {
        Protocol::Tcp(_) => Protocol::Tcp(port),
        Protocol::Udp(_) => Protocol::Udp(port),
        other => other,
    });
    parts.collect()
}

/// Whether what is listened on there is QUIC.
pub fn is_quic(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::QuicV1)
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Carrier {
    /// `/tcp/PORT`
    Tcp,
    /// `/udp/PORT/quic-v1`
    Quic,
}

/// How far `addr` reaches, or `None` for an address that this node cannot dial: other transports, wildcards, link-local
/// IPv6, port 0.
pub(crate) fn reach(addr: &Multiaddr) -> Option<Reach> {
    let mut parts = addr.iter();
    let direct = match parts.next()? {
        Protocol::Ip4(ip) => reach_of_ip(ip.into())?,
        Protocol::Ip6(ip) => reach_of_ip(ip.into())?,
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) => Reach::Public,
        Protocol::Dnsaddr(_) => return Some(Reach::Public),
        _ => return None,
    };
    carrier(&mut parts).filter(|(_, port)| *port != 0)?;
    let rest: Vec<_> = parts.collect();
    match rest.as_slice() {
        [] | [Protocol::P2p(_)] => Some(direct),
        [Protocol::P2p(_), Protocol::P2pCircuit] | [Protocol::P2p(_), Protocol::P2pCircuit, Protocol::P2p(_)] => {
            Some(Reach::Relayed)
        }
        _ => None,
    }
}

/// Takes the carrier and its port from the front of `parts`.
fn carrier<'a>(parts: &mut impl Iterator<Item = Protocol<'a>>) -> Option<(Carrier, u16)> {
    match parts.next()? {
        Protocol::Tcp(port) => Some((Carrier::Tcp, port)),
        Protocol::Udp(port) => (parts.next()? == Protocol::QuicV1).then_some((Carrier::Quic, port)),
        _ => None,
    }
}

/// The parts of an address of a network interface; `None` for names, circuits and transports that this node has not.
pub(crate) fn socket(addr: &Multiaddr) -> Option<(Carrier, IpAddr, u16)> {
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let (carrier, port) = carrier(&mut parts)?;
    match parts.next() {
        None | Some(Protocol::P2p(_)) => parts.next().is_none().then_some((carrier, ip, port)),
        Some(_) => None,
    }
}

/// The address at which `carrier` is listened on or dialed.
pub(crate) fn of_socket(carrier: Carrier, ip: IpAddr, port: u16) -> Multiaddr {
    let addr = Multiaddr::from(ip);
    match carrier {
        Carrier::Tcp => addr.with(Protocol::Tcp(port)),
        Carrier::Quic => addr.with(Protocol::Udp(port)).with(Protocol::QuicV1),
    }
}

fn reach_of_ip(ip: IpAddr) -> Option<Reach> {
    // A link-local IPv6 address only means something together with an interface, which a multiaddress does not name.
    let needs_zone = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if ip.is_unspecified() || ip.is_multicast() || needs_zone {
        None
    } else if ip.is_loopback() {
        Some(Reach::Loopback)
    } else {
        let private = match ip {
            IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unique_local(),
        };
        Some(if private { Reach::Private } else { Reach::Public })
    }
}

/// Whether `addr` means the machine of whoever reads it.
pub fn is_loopback(addr: &Multiaddr) -> bool {
    reach(addr) == Some(Reach::Loopback)
}

/// The peer that `addr` leads to: its last part.
pub fn peer_of(addr: &Multiaddr) -> Option<PeerId> {
    match addr.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

/// `addr` ending in `/p2p/PEER`, or `None` when it leads to another peer.
pub(crate) fn with_peer(addr: &Multiaddr, peer: PeerId) -> Option<Multiaddr> {
    addr.clone().with_p2p(peer).ok()
}

/// `addr` without the `/p2p/PEER` at its end: the form in which peers tell each other addresses.
pub fn without_peer(addr: &Multiaddr) -> Multiaddr {
    let mut bare = addr.clone();
    if peer_of(addr).is_some() {
        bare.pop();
    }
    bare
}

/// What to tell others about ourselves: the configured addresses, which replace everything, or else what is listened on.
/// Loopback addresses are told only when there is nothing else: to a peer elsewhere they name its own machine. Private
/// ones are told unless the same kind of IP has a public one on this very machine, which neighbours reach as well: most
/// often they are those of bridges and containers. One that only a router has (`confirmed`) is no reason to hide them,
/// since many routers do not let their own network in through it.
pub(crate) fn announced(configured: &[Multiaddr], listened: &[Multiaddr], confirmed: &[Multiaddr]) -> Vec<Multiaddr> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let family = |addr: &Multiaddr| socket(addr).map(|(_, ip, _)| ip.is_ipv4());
    let is_public = |addr: &&Multiaddr| reach(addr) == Some(Reach::Public);
    let public: Vec<Option<bool>> = listened.iter().filter(is_public).map(family).collect();
    let all = || {
        listened
            .iter()
            .chain(confirmed)
            .filter_map(|addr| Some((reach(addr)?, addr)))
    };
    let only_loopback = all().all(|(reach, _)| reach == Reach::Loopback);
    let mut out: Vec<Multiaddr> = Vec::new();
    for (reach, addr) in all() {
        let worth_it = match reach {
            Reach::Loopback => only_loopback,
            Reach::Private => !public.contains(&family(addr)),
            Reach::Public | Reach::Relayed => true,
        };
        if worth_it && !out.contains(addr) {
            out.push(addr.clone());
        }
    }
    out
}

/// The addresses of `peer` worth keeping out of what somebody claims, given where the claim comes from: an address of
/// this machine or this network is believed only to a peer that is itself that near.
pub(crate) fn believable(claimed: &[Multiaddr], peer: PeerId, source: Reach) -> Vec<Multiaddr> {
    let mut out = Vec::new();
    for addr in claimed {
        let near_enough = reach(addr).is_some_and(|reach| is_near_enough(reach, source));
        if let Some(addr) = with_peer(addr, peer)
            && near_enough
            && !out.contains(&addr)
        {
            out.push(addr);
        }
    }
    out
}

/// Whether an address may be told to somebody who is connected over `to`: one of this machine or this network only to a
/// peer that is itself that near.
pub(crate) fn tellable(addr: &Multiaddr, to: Reach) -> bool {
    reach(addr).is_some_and(|reach| is_near_enough(reach, to))
}

/// Whether an address that reaches so far means the same to a peer that is connected over `peer`.
fn is_near_enough(reach: Reach, peer: Reach) -> bool {
    match reach {
        Reach::Loopback => peer == Reach::Loopback,
        Reach::Private => matches!(peer, Reach::Loopback | Reach::Private),
        Reach::Public | Reach::Relayed => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB";
    const RELAY: &str = "QmNr2wo2JBakQyE4kMDVvr1rg598rWVAWgRYMXoxCvN22r";

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn addrs(texts: &[&str]) -> Vec<Multiaddr> {
        texts.iter().map(|text| addr(text)).collect()
    }

    #[test]
    fn reach_is_told_from_the_address_and_other_transports_have_none() {
        for (text, expected) in [
            ("/ip4/127.0.0.1/tcp/4000", Some(Reach::Loopback)),
            ("/ip6/::1/tcp/4000", Some(Reach::Loopback)),
            ("/ip4/192.168.1.2/tcp/4000", Some(Reach::Private)),
            ("/ip4/10.0.0.2/tcp/4000", Some(Reach::Private)),
            ("/ip6/fe80::1/tcp/4000", None),
            ("/ip4/8.8.8.8/tcp/4000", Some(Reach::Public)),
            ("/dns/bootstrap1.petals.dev/tcp/31337", Some(Reach::Public)),
            ("/ip4/0.0.0.0/tcp/4000", None),
            ("/ip4/8.8.8.8/tcp/0", None),
            ("/ip4/8.8.8.8/udp/4000/quic-v1", Some(Reach::Public)),
            ("/ip6/::1/udp/4000/quic-v1", Some(Reach::Loopback)),
            ("/dns4/bootstrap1.petals.dev/udp/31337/quic-v1", Some(Reach::Public)),
            ("/ip4/8.8.8.8/udp/0/quic-v1", None),
            ("/ip4/8.8.8.8/udp/4000", None),
            ("/ip4/8.8.8.8/udp/4000/quic", None),
            ("/ip4/8.8.8.8/udp/4000/quic-v1/webtransport", None),
            ("/ip4/8.8.8.8/tcp/4000/ws", None),
        ] {
            assert_eq!(reach(&addr(text)), expected, "{text}");
        }
        for carrier in ["tcp/1", "udp/1/quic-v1"] {
            let relayed = addr(&format!("/ip4/127.0.0.1/{carrier}/p2p/{RELAY}/p2p-circuit/p2p/{PEER}"));
            assert_eq!(reach(&relayed), Some(Reach::Relayed));
        }
    }

    #[test]
    fn an_address_of_an_interface_is_taken_apart_and_put_together() {
        for text in ["/ip4/10.0.0.1/tcp/4000", "/ip6/::/udp/0/quic-v1"] {
            let (carrier, ip, port) = socket(&addr(text)).unwrap();
            assert_eq!(of_socket(carrier, ip, port), addr(text));
        }
        let with_peer = addr(&format!("/ip4/10.0.0.1/tcp/4000/p2p/{PEER}"));
        assert_eq!(socket(&with_peer), socket(&addr("/ip4/10.0.0.1/tcp/4000")));
        for other in [
            "/dns4/example.org/tcp/1",
            "/ip4/10.0.0.1/tcp/1/ws",
            &format!("/ip4/10.0.0.1/tcp/1/p2p/{RELAY}/p2p-circuit"),
        ] {
            assert_eq!(socket(&addr(other)), None, "{other}");
        }
    }

    #[test]
    fn configured_addresses_replace_what_is_listened_on() {
        let configured = addrs(&["/ip4/8.8.8.8/tcp/1"]);
        assert_eq!(
            announced(&configured, &addrs(&["/ip4/10.0.0.1/tcp/2"]), &[]),
            configured
        );
    }

    #[test]
    fn loopback_is_announced_only_when_there_is_nothing_else() {
        let both = addrs(&["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"]);
        assert_eq!(announced(&[], &both, &[]), addrs(&["/ip4/10.0.0.1/tcp/1"]));
        let loopback = addrs(&["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"]);
        assert_eq!(announced(&[], &loopback, &[]), loopback);
    }

    #[test]
    fn private_addresses_are_not_announced_beside_a_public_one_of_this_machine() {
        let bridge = addrs(&[
            "/ip4/172.17.0.1/tcp/1",
            "/ip4/8.8.8.8/tcp/1",
            "/ip4/8.8.8.8/udp/1/quic-v1",
        ]);
        assert_eq!(announced(&[], &bridge, &[]), bridge[1..]);
        // Firewalls of homes often let nothing in over IPv6, and neighbours meet over IPv4.
        let home = addrs(&["/ip4/192.168.1.2/tcp/1", "/ip6/2001:4860::1/tcp/1"]);
        assert_eq!(announced(&[], &home, &[]), home);
        let mapped = addrs(&["/ip4/8.8.4.4/tcp/7"]);
        assert_eq!(announced(&[], &home, &mapped), [home, mapped].concat());
    }

    #[test]
    fn near_addresses_are_told_to_near_peers_only() {
        for (text, told) in [
            ("/ip4/127.0.0.1/tcp/1", [true, false, false, false]),
            ("/ip4/10.0.0.1/tcp/1", [true, true, false, false]),
            ("/ip4/8.8.8.8/tcp/1", [true; 4]),
        ] {
            let to = [Reach::Loopback, Reach::Private, Reach::Public, Reach::Relayed];
            assert_eq!(to.map(|to| tellable(&addr(text), to)), told, "{text}");
        }
    }

    #[test]
    fn near_addresses_are_believed_to_near_peers_only() {
        let peer: PeerId = PEER.parse().unwrap();
        let claimed = addrs(&["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1"]);
        let texts = |source| -> Vec<String> {
            believable(&claimed, peer, source)
                .iter()
                .map(|addr| addr.to_string().replace(&format!("/p2p/{PEER}"), ""))
                .collect()
        };
        assert_eq!(texts(Reach::Public), ["/ip4/8.8.8.8/tcp/1"]);
        assert_eq!(texts(Reach::Private), ["/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1"]);
        assert_eq!(texts(Reach::Loopback).len(), 3);
    }

    #[test]
    fn an_address_of_another_peer_is_not_believed() {
        let peer: PeerId = PEER.parse().unwrap();
        let claimed = addrs(&[&format!("/ip4/8.8.8.8/tcp/1/p2p/{RELAY}")]);
        assert!(believable(&claimed, peer, Reach::Public).is_empty());
    }
}
