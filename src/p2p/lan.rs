//! Nodes of the same swarm on the local network: whom to visit among those that mDNS names, and who belongs. Pure rules;
//! the actor dials and asks (`actor/neighbours.rs`).
//!
//! mDNS only says that some libp2p peer is there, and an office may hold many of them. Nodes of the swarm NAME serve the
//! protocol `/sepal/lan/NAME`, which identify shows. Each peer is visited once; one that does not serve the name is left
//! alone for a while, one that does is treated like a configured peer as long as mDNS names it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, mdns};

use super::addr::{self, Reach};

/// How long a peer of other business, or none that answers, is left alone.
const LEAVE_OTHERS: Duration = Duration::from_secs(10 * 60);
const LEAVE_SILENT: Duration = Duration::from_secs(60);

/// Limit for one visit: a dial and identify.
const VISIT: Duration = Duration::from_secs(30);

/// Visits at the same time, peers remembered and addresses of each. A local network with more peers has other means.
const MAX_VISITS: usize = 16;
const MAX_NEIGHBOURS: usize = 512;
const MAX_ADDRS: usize = 16;

/// Longest name of a swarm, bytes: multistream lines are short.
const MAX_NAME: usize = 64;

/// How often mDNS asks again who is there. Whoever starts asks at once, and again after 0.5, 1, 2 … seconds.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The protocol that nodes of this swarm serve, or `None` if the name will not do: 1 to 64 letters, digits, `.`, `_`, `-`.
pub(crate) fn protocol(name: &str) -> Option<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (!name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fine)).then(|| format!("/sepal/lan/{name}"))
}

/// How this node asks and answers.
pub(crate) fn mdns_config() -> mdns::Config {
    mdns::Config {
        query_interval: ASK_AGAIN,
        ..mdns::Config::default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// To be visited, not before then.
    Due(Instant),
    Visited(Instant),
    Member,
}

#[derive(Debug)]
struct Neighbour {
    addrs: BTreeSet<Multiaddr>,
    standing: Standing,
}

/// Everyone mDNS names.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    named: HashMap<PeerId, Neighbour>,
    /// Connected peers that serve the name of the swarm, named by mDNS or not yet.
    serving: HashSet<PeerId>,
}

/// What identify said about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It belongs to the swarm.
    Admitted,
    /// We visited it, and it does not: it is to be left alone.
    Refused,
    /// Nothing follows: it is none that we visited.
    None,
}

impl Neighbours {
    /// mDNS names a peer. Returns whether it is a member now because it said so before.
    pub(crate) fn named(&mut self, peer: PeerId, addr: &Multiaddr, now: Instant) -> bool {
        let near = matches!(addr::reach(addr), Some(Reach::Private | Reach::Public));
        let Some(addr) = addr::with_peer(addr, peer).filter(|_| near) else {
            return false;
        };
        if self.named.len() >= MAX_NEIGHBOURS && !self.named.contains_key(&peer) {
            return false;
        }
        let neighbour = self.named.entry(peer).or_insert_with(|| Neighbour {
            addrs: BTreeSet::new(),
            standing: Standing::Due(now),
        });
        if neighbour.addrs.len() < MAX_ADDRS {
            neighbour.addrs.insert(addr);
        }
        let admitted = neighbour.standing != Standing::Member && self.serving.contains(&peer);
        if admitted {
            neighbour.standing = Standing::Member;
        }
        admitted
    }

    /// mDNS has not heard of an address for some time. Returns whether a member is gone with it.
    pub(crate) fn expired(&mut self, peer: PeerId, addr: &Multiaddr) -> bool {
        let Some(neighbour) = self.named.get_mut(&peer) else {
            return false;
        };
        if let Some(addr) = addr::with_peer(addr, peer) {
            neighbour.addrs.remove(&addr);
        }
        if !neighbour.addrs.is_empty() {
            return false;
        }
        let was = neighbour.standing;
        self.named.remove(&peer);
        was == Standing::Member
    }

    /// Whom to visit now, and where. `met` tells who is connected anyway: what they serve is known.
    pub(crate) fn visits(&mut self, now: Instant, met: impl Fn(&PeerId) -> bool) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut under_way = 0;
        for neighbour in self.named.values_mut() {
            if let Standing::Visited(since) = neighbour.standing {
                if now.duration_since(since) < VISIT {
                    under_way += 1;
                } else {
                    neighbour.standing = Standing::Due(now + LEAVE_SILENT);
                }
            }
        }
        let mut visits = Vec::new();
        for (peer, neighbour) in &mut self.named {
            let due = matches!(neighbour.standing, Standing::Due(at) if at <= now);
            if !due || under_way + visits.len() >= MAX_VISITS {
                continue;
            }
            if met(peer) {
                neighbour.standing = Standing::Due(now + LEAVE_SILENT);
            } else {
                neighbour.standing = Standing::Visited(now);
                visits.push((*peer, neighbour.addrs.iter().cloned().collect()));
            }
        }
        visits
    }

    /// A visit found nobody.
    pub(crate) fn silent(&mut self, peer: &PeerId, now: Instant) {
        if let Some(neighbour) = self.named.get_mut(peer)
            && matches!(neighbour.standing, Standing::Visited(_))
        {
            neighbour.standing = Standing::Due(now + LEAVE_SILENT);
        }
    }

    /// Identify told whether a connected peer serves the name.
    pub(crate) fn identified(&mut self, peer: PeerId, serves: bool, now: Instant) -> Admission {
        if serves && (self.serving.len() < MAX_NEIGHBOURS || self.named.contains_key(&peer)) {
            self.serving.insert(peer);
        }
        let Some(neighbour) = self.named.get_mut(&peer) else {
            return Admission::None;
        };
        match (neighbour.standing, serves) {
            (_, true) => {
                neighbour.standing = Standing::Member;
                Admission::Admitted
            }
            (Standing::Visited(_), false) => {
                neighbour.standing = Standing::Due(now + LEAVE_OTHERS);
                Admission::Refused
            }
            // Names are told one after another while a node starts.
            (Standing::Due(_) | Standing::Member, false) => Admission::None,
        }
    }

    /// A peer has no connection any more.
    pub(crate) fn disconnected(&mut self, peer: &PeerId) {
        self.serving.remove(peer);
    }

    /// Where a member is.
    pub(crate) fn addrs_of(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.named.get(peer).into_iter().flat_map(|neighbour| &neighbour.addrs)
    }

    /// Where the members are, each address ending in `/p2p/PEER-ID`.
    pub(crate) fn members(&self) -> BTreeSet<Multiaddr> {
        let members = self.named.values().filter(|one| one.standing == Standing::Member);
        members.flat_map(|one| one.addrs.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near() -> Multiaddr {
        "/ip4/192.168.1.7/tcp/4000".parse().unwrap()
    }

    /// One peer that mDNS names, and the first visit to it.
    fn visited(now: Instant) -> (Neighbours, PeerId) {
        let (mut neighbours, peer) = (Neighbours::default(), PeerId::random());
        assert!(!neighbours.named(peer, &near(), now));
        let expected = vec![(peer, vec![near().with_p2p(peer).unwrap()])];
        assert_eq!(neighbours.visits(now, |_| false), expected);
        assert!(neighbours.visits(now, |_| false).is_empty(), "one visit at a time");
        (neighbours, peer)
    }

    #[test]
    fn a_peer_that_serves_the_name_is_a_member_until_mdns_forgets_it() {
        let now = Instant::now();
        let (mut neighbours, peer) = visited(now);
        assert_eq!(neighbours.identified(peer, true, now), Admission::Admitted);
        assert_eq!(neighbours.members(), [near().with_p2p(peer).unwrap()].into());
        neighbours.disconnected(&peer);
        assert_eq!(neighbours.members().len(), 1, "it may come back");
        assert!(neighbours.visits(now + 10 * LEAVE_OTHERS, |_| false).is_empty());
        assert!(neighbours.expired(peer, &near()));
        assert!(neighbours.members().is_empty());
    }

    #[test]
    fn a_peer_of_other_business_is_left_alone_for_a_while() {
        let now = Instant::now();
        let (mut neighbours, peer) = visited(now);
        assert_eq!(neighbours.identified(peer, false, now), Admission::Refused);
        neighbours.named(peer, &near(), now);
        assert!(neighbours.visits(now + LEAVE_OTHERS - VISIT, |_| false).is_empty());
        assert_eq!(neighbours.visits(now + LEAVE_OTHERS, |_| false).len(), 1);
        assert!(neighbours.members().is_empty());
    }

    #[test]
    fn a_peer_that_does_not_answer_is_visited_again_sooner() {
        let now = Instant::now();
        let (mut neighbours, peer) = visited(now);
        neighbours.silent(&peer, now);
        assert!(neighbours.visits(now, |_| false).is_empty());
        assert_eq!(neighbours.visits(now + LEAVE_SILENT, |_| false).len(), 1);
        // Nobody said how that visit ended.
        let later = now + LEAVE_SILENT + VISIT;
        assert!(neighbours.visits(later, |_| false).is_empty());
        assert_eq!(neighbours.visits(later + LEAVE_SILENT, |_| false).len(), 1);
    }

    #[test]
    fn a_peer_that_came_to_us_first_is_a_member_as_soon_as_mdns_names_it() {
        let (mut neighbours, peer, now) = (Neighbours::default(), PeerId::random(), Instant::now());
        assert_eq!(neighbours.identified(peer, true, now), Admission::None);
        assert!(neighbours.members().is_empty(), "anyone can claim a name from afar");
        assert!(neighbours.named(peer, &near(), now));
        assert_eq!(neighbours.members().len(), 1);
    }

    #[test]
    fn a_peer_that_is_connected_for_other_reasons_is_not_dialed_and_not_sent_away() {
        let (mut neighbours, peer, now) = (Neighbours::default(), PeerId::random(), Instant::now());
        neighbours.named(peer, &near(), now);
        assert!(neighbours.visits(now, |_| true).is_empty());
        assert_eq!(neighbours.identified(peer, false, now), Admission::None);
    }

    #[test]
    fn addresses_of_this_machine_alone_are_not_visited_and_the_table_is_bounded() {
        let (mut neighbours, now) = (Neighbours::default(), Instant::now());
        for useless in ["/ip4/127.0.0.1/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/10.0.0.1/udp/1"] {
            neighbours.named(PeerId::random(), &useless.parse().unwrap(), now);
        }
        assert!(neighbours.visits(now, |_| false).is_empty());
        for port in 1..=2 * MAX_NEIGHBOURS {
            let addr = format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap();
            neighbours.named(PeerId::random(), &addr, now);
        }
        assert_eq!(neighbours.named.len(), MAX_NEIGHBOURS);
        assert_eq!(neighbours.visits(now, |_| false).len(), MAX_VISITS);
    }

    #[test]
    fn names_of_swarms_are_plain() {
        assert_eq!(protocol("my-lab.2").as_deref(), Some("/sepal/lan/my-lab.2"));
        for wrong in ["", "a/b", "a b", "ä", &"a".repeat(MAX_NAME + 1)] {
            assert_eq!(protocol(wrong), None, "{wrong}");
        }
    }
}
