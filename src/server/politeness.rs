//! What the person who runs a node wants it to keep to: how much of the processors it takes, for whom it computes, who
//! comes first, and how much one peer may have. Rules only; they are applied in `guests.rs` and `worker.rs`.

use std::{collections::HashSet, net::IpAddr, time::Instant};

use super::duty::Duty;
use crate::p2p::PeerId;

/// Bits before an IPv4 address that is written as an IPv6 one (RFC 4291, 2.5.5.2).
const MAPPED: u8 = 96;

/// The rules of a node; its models have them in common. Clones share the account of what was computed.
#[derive(Clone, Debug)]
pub struct Politeness {
    pub(crate) duty: Duty,
    /// Peers that are served before the others, and have no quotas.
    pub own: HashSet<PeerId>,
    /// The only ones that blocks are computed for, besides own peers; if empty, everybody.
    pub allow: Vec<Who>,
    /// Those that none are computed for, whoever else lists them.
    pub deny: Vec<Who>,
    /// What one peer may have.
    pub quotas: Quotas,
}

/// What one peer may have of a node at most; `None` for as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quotas {
    /// Open sessions.
    pub sessions: Option<usize>,
    /// Tokens in a minute.
    pub tokens_per_minute: Option<u32>,
    /// Part of the attention cache of a model, from 0 to 1.
    pub cache: Option<f64>,
}

/// Somebody, or everybody at some addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A peer, wherever it is.
    Peer(PeerId),
    /// Whoever connects from there. Those that come through a relay come from nowhere.
    At(Network),
}

/// Addresses with the same beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    addr: IpAddr,
    /// How many bits they share.
    bits: u8,
}

impl Default for Politeness {
    /// All of the processors, for everybody alike.
    fn default() -> Self {
        Self::new(1.0)
    }
}

impl Politeness {
    /// Computing may take `share` of the time, from 0 (exclusive) to 1; everybody is alike.
    pub fn new(share: f64) -> Self {
        Self {
            duty: Duty::new(share, Instant::now()),
            own: HashSet::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            quotas: Quotas::default(),
        }
    }

    /// Whether blocks are computed for a peer that is connected from these addresses.
    pub(crate) fn admits(&self, peer: &PeerId, addrs: &[IpAddr]) -> bool {
        let is_allowed = || self.allow.iter().any(|who| who.includes(peer, addrs));
        !self.denies(peer, addrs) && (self.allow.is_empty() || self.own.contains(peer) || is_allowed())
    }

    /// Whether nothing is wanted of a peer.
    pub(crate) fn denies(&self, peer: &PeerId, addrs: &[IpAddr]) -> bool {
        self.deny.iter().any(|who| who.includes(peer, addrs))
    }
}

impl Who {
    fn includes(&self, peer: &PeerId, addrs: &[IpAddr]) -> bool {
        match self {
            Self::Peer(named) => named == peer,
            Self::At(network) => addrs.iter().any(|addr| network.contains(*addr)),
        }
    }
}

impl Network {
    /// All addresses whose first `bits` are those of `addr`; `None` if it has not so many, or if `addr` has others set.
    pub fn new(addr: IpAddr, bits: u8) -> Option<Self> {
        let (addr, bits) = match (addr.to_canonical(), bits.checked_sub(MAPPED)) {
            (mapped, Some(bits)) if mapped.is_ipv4() != addr.is_ipv4() => (mapped, bits),
            _ => (addr, bits),
        };
        let network = Self { addr, bits };
        let rest_is_zero = bits <= width(addr) && (number(addr) & !mask(addr, bits)) == 0;
        rest_is_zero.then_some(network)
    }

    /// One address.
    pub fn host(addr: IpAddr) -> Self {
        let addr = addr.to_canonical();
        Self {
            addr,
            bits: width(addr),
        }
    }

    /// Whether an address is one of these.
    pub(crate) fn contains(&self, addr: IpAddr) -> bool {
        // An IPv4 address that came over an IPv6 socket is still one.
        let addr = addr.to_canonical();
        addr.is_ipv4() == self.addr.is_ipv4() && (number(addr) ^ number(self.addr)) & mask(addr, self.bits) == 0
    }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// The first `bits` of an address.
fn mask(addr: IpAddr, bits: u8) -> u128 {
    let width = width(addr);
    let all = u128::MAX >> (128 - u32::from(width));
    let rest = u32::from(width.saturating_sub(bits));
    all & u128::MAX.checked_shl(rest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network(text: &str, bits: u8) -> Network {
        Network::new(ip(text), bits).unwrap()
    }

    #[test]
    fn a_network_contains_the_addresses_that_begin_like_it() {
        for (network, inside, outside) in [
            (network("10.0.0.0", 8), "10.255.0.1", "11.0.0.1"),
            (network("192.168.1.128", 25), "192.168.1.129", "192.168.1.127"),
            (network("192.168.1.7", 32), "192.168.1.7", "192.168.1.6"),
            (network("2001:db8::", 32), "2001:db8:1::5", "2001:db9::"),
            (Network::host(ip("::1")), "::1", "::2"),
        ] {
            assert!(network.contains(ip(inside)), "{network:?}");
            assert!(!network.contains(ip(outside)), "{network:?}");
        }
        assert!(network("0.0.0.0", 0).contains(ip("203.0.113.5")));
        assert!(
            !network("0.0.0.0", 0).contains(ip("::1")),
            "all of IPv4 is none of IPv6"
        );
        assert!(network("10.0.0.0", 8).contains(ip("::ffff:10.1.1.1")));
        assert!(network("::", 0).contains(ip("2001:db8::1")));
        assert_eq!(network("::ffff:10.0.0.0", 104), network("10.0.0.0", 8));
        for (addr, bits) in [
            ("10.0.0.0", 33),
            ("10.0.0.0", 104),
            ("10.0.0.1", 8),
            ("::1", 64),
            ("::", 129),
            ("::ffff:10.0.0.1", 104),
            ("::ffff:10.0.0.0", 129),
            ("::ffff:0.0.0.0", 90),
        ] {
            assert_eq!(Network::new(ip(addr), bits), None, "{addr}/{bits}");
        }
    }

    #[test]
    fn who_is_denied_stays_out_and_with_an_allow_list_everybody_else_does_too() {
        let [friend, own, other] = std::array::from_fn(|_| PeerId::random());
        let (home, away) = ([ip("10.0.0.7")], [ip("203.0.113.5")]);
        let mut rules = Politeness::default();
        assert!(rules.admits(&other, &away) && rules.admits(&other, &[]));
        rules.deny = vec![Who::At(network("203.0.113.0", 24))];
        assert!(!rules.admits(&friend, &away) && rules.admits(&friend, &home));
        rules.allow = vec![Who::Peer(friend), Who::At(network("10.0.0.0", 8))];
        assert!(!rules.admits(&friend, &away), "denying counts more");
        assert!(
            rules.admits(&friend, &[]),
            "a peer is known by its id also behind a relay"
        );
        assert!(rules.admits(&other, &home) && !rules.admits(&other, &[]));
        assert!(!rules.admits(&own, &[]));
        rules.own.insert(own);
        assert!(rules.admits(&own, &[]));
        rules.deny.push(Who::Peer(own));
        assert!(!rules.admits(&own, &[]));
    }
}
