//! Whether strangers can dial this node: evidence goes in, a standing comes out. Pure: no sockets, and `now` is an argument.
//!
//! No single witness is believed at once, because every one of them errs at times: a server asked to dial back may have no
//! route itself, a router may lose its mapping for a minute, and a neighbour of the same network reaches what nobody else
//! does (the actor leaves out such neighbours). So evidence is weighed, the newest of it only, and a standing is left only
//! for its opposite: nothing is decided from silence. A verdict of Petals' `rpc_check` weighs most, since several peers
//! tried the very thing that matters, and what was said before it to the contrary is dropped.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

use super::addr;

/// Can strangers dial this node?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Too little is known.
    #[default]
    Unknown,
    /// Yes.
    Public,
    /// No: it is reached through relays only.
    Private,
}

/// What one attempt to dial this node showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Somebody got through.
    Dialable,
    /// Somebody tried and did not get through.
    NotDialable,
}

/// How a piece of evidence was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Source {
    /// Petals' `rpc_check`, asked of several peers; reported with `P2p::judge`.
    Check,
    /// A peer asked over AutoNAT v1 to dial back (Hivemind's daemons answer that).
    AutoNat1,
    /// A peer asked over AutoNAT v2 to dial one address (nodes of ours answer that).
    AutoNat2,
    /// The router gave this node a port under a public address.
    PortMapping,
    /// Somebody this node never dialed has connected to it.
    Inbound,
}

impl Source {
    /// How long it counts. AutoNAT asks again every quarter of an hour when it is sure of its answer; a stranger who came
    /// in shows only that a mapping of the router was open at that time.
    fn ttl(self) -> Duration {
        Duration::from_secs(match self {
            Self::Check => 60 * 60,
            Self::AutoNat1 | Self::AutoNat2 | Self::PortMapping => 45 * 60,
            Self::Inbound => 10 * 60,
        })
    }

    fn weight(self) -> i32 {
        match self {
            Self::Check => ENOUGH,
            _ => 1,
        }
    }
}

/// One thing that was tried, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// How it was tried.
    pub source: Source,
    /// What came of it.
    pub verdict: Verdict,
    /// Who tried, if it was a single peer.
    pub peer: Option<PeerId>,
    /// The address that was tried, if one is known.
    pub addr: Option<Multiaddr>,
    /// When it was last said.
    pub at: Instant,
    /// How often it was said in a row.
    pub times: u32,
}

impl Evidence {
    pub(crate) fn new(source: Source, verdict: Verdict, now: Instant) -> Self {
        Self {
            source,
            verdict,
            peer: None,
            addr: None,
            at: now,
            times: 1,
        }
    }

    pub(crate) fn by(mut self, peer: PeerId) -> Self {
        self.peer = Some(peer);
        self
    }

    pub(crate) fn about(mut self, addr: Multiaddr) -> Self {
        self.addr = Some(addr);
        self
    }

    /// Whether it shows that a door is open of which nobody is told: where a person names the addresses that others are
    /// told (`told`, empty if none were named), only those matter.
    pub(crate) fn is_beside(&self, told: &[Multiaddr]) -> bool {
        let elsewhere = self
            .addr
            .as_ref()
            .is_some_and(|addr| !told.contains(&addr::without_peer(addr)));
        !told.is_empty() && self.verdict == Verdict::Dialable && elsewhere
    }

    /// The same witness, about the same thing.
    fn same_subject(&self, other: &Self) -> bool {
        // What one peer says by one protocol is one voice, except that AutoNAT v2 is about one address at a time.
        let by_address = matches!(self.source, Source::AutoNat2 | Source::PortMapping);
        self.source == other.source && self.peer == other.peer && (!by_address || self.addr == other.addr)
    }

    fn voice(&self) -> i32 {
        let weight = (self.source.weight() * i32::try_from(self.times).unwrap_or(ENOUGH)).min(ENOUGH);
        match self.verdict {
            Verdict::Dialable => weight,
            Verdict::NotDialable => -weight,
        }
    }
}

/// What is known of how this node is reached, for decisions, logs and `sepal doctor`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    /// The verdict.
    pub standing: Standing,
    /// Relays at which this node holds a reservation now.
    pub relays: Vec<PeerId>,
    /// What the verdict rests on, oldest first.
    pub evidence: Vec<Evidence>,
}

/// The weight that decides: one verdict of `rpc_check`, two witnesses, or one that said the same twice.
const ENOUGH: i32 = 2;

/// Pieces of evidence that are weighed, newest first. Few, so that a change shows as soon as that many agree on it.
const JURY: usize = 4;

/// Pieces of evidence kept.
const MAX_EVIDENCE: usize = 32;

/// Addresses found by evidence; a host behind one router has one per transport and address family.
const MAX_CONFIRMED: usize = 8;

/// What follows from a piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The standing is another one: take or release relays, offer to be one or not.
    Moved(Standing),
    /// An address leads here.
    Announce(Multiaddr),
    /// It no longer does.
    Withdraw(Multiaddr),
}

/// The machine.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    standing: Standing,
    /// Oldest first; one piece per witness and subject.
    evidence: Vec<Evidence>,
    confirmed: Vec<Multiaddr>,
}

impl Judge {
    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    pub(crate) fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// Addresses of which others found that they lead here, listened on or not.
    pub(crate) fn confirmed(&self) -> &[Multiaddr] {
        &self.confirmed
    }

    /// Takes a piece of evidence.
    pub(crate) fn hear(&mut self, mut heard: Evidence, now: Instant) -> Vec<Effect> {
        self.expire(now);
        if heard.source == Source::Check {
            self.evidence.retain(|old| old.verdict == heard.verdict);
        }
        if let Some(at) = self.evidence.iter().position(|old| old.same_subject(&heard)) {
            let old = self.evidence.remove(at);
            if old.verdict == heard.verdict {
                heard.times = old.times.saturating_add(1);
            }
        }
        self.evidence.push(heard);
        if self.evidence.len() > MAX_EVIDENCE {
            self.evidence.remove(0);
        }
        self.decide()
    }

    /// An address that evidence speaks for leads here: often the other side of a router. A private node announces it, too:
    /// without, nobody who is asked whether it can be dialed would find that out.
    pub(crate) fn confirm(&mut self, addr: Multiaddr) -> Vec<Effect> {
        if self.confirmed.contains(&addr) || self.confirmed.len() >= MAX_CONFIRMED {
            return Vec::new();
        }
        self.confirmed.push(addr.clone());
        vec![Effect::Announce(addr)]
    }

    /// An address does not lead here any more.
    pub(crate) fn withdraw(&mut self, addr: &Multiaddr) -> Vec<Effect> {
        self.evidence
            .retain(|old| old.addr.as_ref() != Some(addr) || old.verdict == Verdict::NotDialable);
        match self.confirmed.iter().position(|have| have == addr) {
            Some(at) => vec![Effect::Withdraw(self.confirmed.remove(at))],
            None => Vec::new(),
        }
    }

    /// Drops what is too old to count. The standing stays: that nobody speaks is no reason to change it.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.evidence
            .retain(|old| now.saturating_duration_since(old.at) < old.source.ttl());
    }

    /// The node is in another network now: what was said of the old one does not count.
    pub(crate) fn network_changed(&mut self) {
        self.evidence.clear();
    }

    fn decide(&mut self) -> Vec<Effect> {
        let score: i32 = self.jury().map(Evidence::voice).sum();
        let standing = match score {
            ENOUGH.. => Standing::Public,
            ..=-2 => Standing::Private,
            _ => self.standing,
        };
        if standing == self.standing {
            return Vec::new();
        }
        self.standing = standing;
        let mut effects = vec![Effect::Moved(standing)];
        if standing == Standing::Private {
            effects.extend(self.confirmed.drain(..).map(Effect::Withdraw));
        }
        effects
    }

    /// The newest evidence that counts. One address that can be dialed outweighs others that cannot: a node with a firewall
    /// on IPv6 only is dialed over IPv4.
    fn jury(&self) -> impl Iterator<Item = &Evidence> {
        let reached = |by: Source| {
            let mut all = self.evidence.iter();
            all.any(move |old| old.source == by && old.verdict == Verdict::Dialable)
        };
        let some_address = reached(Source::AutoNat2);
        let counts = move |old: &&Evidence| {
            !(some_address && old.source == Source::AutoNat2 && old.verdict == Verdict::NotDialable)
        };
        self.evidence.iter().rev().filter(counts).take(JURY)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Source::{AutoNat1, AutoNat2, Check, Inbound, PortMapping},
        Verdict::{Dialable, NotDialable},
        *,
    };

    struct Bench {
        judge: Judge,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                judge: Judge::default(),
                now: Instant::now(),
            }
        }

        fn wait(&mut self, minutes: u64) {
            self.now += Duration::from_secs(60 * minutes);
        }

        fn hear(&mut self, source: Source, verdict: Verdict, peer: PeerId) -> Vec<Effect> {
            self.now += Duration::from_secs(1);
            self.judge
                .hear(Evidence::new(source, verdict, self.now).by(peer), self.now)
        }

        /// What some peer that was not heard before says.
        fn someone(&mut self, source: Source, verdict: Verdict) -> Vec<Effect> {
            self.hear(source, verdict, PeerId::random())
        }

        fn check(&mut self, verdict: Verdict) -> Vec<Effect> {
            self.now += Duration::from_secs(1);
            self.judge.hear(Evidence::new(Check, verdict, self.now), self.now)
        }
    }

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn where_the_addresses_are_named_an_open_door_elsewhere_does_not_count() {
        let told = [addr("/ip4/25.1.2.3/tcp/9")];
        let said = |verdict, at: &str| Evidence::new(AutoNat2, verdict, Instant::now()).about(addr(at));
        assert!(said(Dialable, "/ip4/25.1.2.3/tcp/4000").is_beside(&told));
        assert!(!said(Dialable, "/ip4/25.1.2.3/tcp/9").is_beside(&told));
        assert!(!said(Dialable, "/ip4/25.1.2.3/tcp/4000").is_beside(&[]));
        assert!(!said(NotDialable, "/ip4/25.1.2.3/tcp/4000").is_beside(&told));
        assert!(!Evidence::new(Check, Dialable, Instant::now()).is_beside(&told));
    }

    #[test]
    fn one_witness_is_not_enough_and_two_are() {
        for (verdict, standing) in [(Dialable, Standing::Public), (NotDialable, Standing::Private)] {
            let mut bench = Bench::new();
            assert_eq!(bench.someone(AutoNat1, verdict), []);
            assert_eq!(bench.judge.standing(), Standing::Unknown);
            assert_eq!(bench.someone(AutoNat1, verdict), [Effect::Moved(standing)]);
        }
    }

    #[test]
    fn one_witness_that_says_the_same_twice_is_enough() {
        let (mut bench, peer) = (Bench::new(), PeerId::random());
        assert_eq!(bench.hear(AutoNat1, NotDialable, peer), []);
        assert_eq!(
            bench.hear(AutoNat1, NotDialable, peer),
            [Effect::Moved(Standing::Private)]
        );
    }

    #[test]
    fn a_check_decides_alone_and_silences_what_was_said_before() {
        let mut bench = Bench::new();
        for _ in 0..10 {
            bench.someone(AutoNat1, Dialable);
        }
        assert_eq!(bench.check(NotDialable), [Effect::Moved(Standing::Private)]);
        assert_eq!(bench.judge.evidence().len(), 1);
        assert_eq!(bench.check(Dialable), [Effect::Moved(Standing::Public)]);
        assert_eq!(bench.check(Dialable), []);
    }

    #[test]
    fn one_that_errs_does_not_move_a_node_that_others_reach() {
        let mut bench = Bench::new();
        let (one, two) = (PeerId::random(), PeerId::random());
        bench.hear(AutoNat1, Dialable, one);
        bench.hear(AutoNat1, Dialable, two);
        assert_eq!(bench.judge.standing(), Standing::Public);
        for _ in 0..20 {
            assert_eq!(bench.someone(AutoNat1, NotDialable), []);
            assert_eq!(bench.hear(AutoNat1, Dialable, one), []);
            assert_eq!(bench.hear(AutoNat1, Dialable, two), []);
        }
    }

    #[test]
    fn a_node_whose_router_changed_is_found_out_by_as_many_as_are_weighed() {
        let mut bench = Bench::new();
        for _ in 0..30 {
            bench.someone(AutoNat1, Dialable);
        }
        let mut needed = 0;
        while bench.judge.standing() == Standing::Public {
            bench.someone(AutoNat1, NotDialable);
            needed += 1;
        }
        assert!(needed <= JURY, "{needed}");
        assert_eq!(bench.judge.standing(), Standing::Private);
    }

    #[test]
    fn silence_changes_nothing() {
        let mut bench = Bench::new();
        bench.check(NotDialable);
        bench.wait(600);
        bench.judge.expire(bench.now);
        assert_eq!(bench.judge.evidence(), []);
        assert_eq!(bench.judge.standing(), Standing::Private);
        // And after the silence two new witnesses are enough.
        bench.someone(Inbound, Dialable);
        assert_eq!(bench.someone(Inbound, Dialable), [Effect::Moved(Standing::Public)]);
    }

    #[test]
    fn evidence_of_strangers_coming_in_expires_before_the_rest() {
        let mut bench = Bench::new();
        bench.someone(Inbound, Dialable);
        bench.someone(AutoNat1, Dialable);
        bench.wait(20);
        bench.judge.expire(bench.now);
        assert_eq!(bench.judge.evidence().len(), 1);
        bench.wait(30);
        bench.judge.expire(bench.now);
        assert_eq!(bench.judge.evidence().len(), 0);
    }

    #[test]
    fn one_address_that_can_be_dialed_outweighs_others_that_cannot() {
        let (mut bench, peer) = (Bench::new(), PeerId::random());
        let v4 = addr("/ip4/8.8.8.8/tcp/1");
        let mut about = |verdict, addr: &Multiaddr| {
            bench.now += Duration::from_secs(1);
            let evidence = Evidence::new(AutoNat2, verdict, bench.now).by(peer).about(addr.clone());
            bench.judge.hear(evidence, bench.now)
        };
        about(Dialable, &v4);
        for port in 1..4 {
            assert_eq!(about(NotDialable, &addr(&format!("/ip6/2a00::1/tcp/{port}"))), []);
        }
        assert_eq!(about(Dialable, &v4), [Effect::Moved(Standing::Public)]);
        assert_eq!(
            about(NotDialable, &v4),
            [Effect::Moved(Standing::Private)],
            "now none can"
        );
    }

    #[test]
    fn confirmed_addresses_are_announced_once_and_withdrawn_when_the_node_becomes_private() {
        let mut bench = Bench::new();
        let outside = addr("/ip4/8.8.8.8/tcp/1");
        assert_eq!(
            bench.judge.confirm(outside.clone()),
            [Effect::Announce(outside.clone())]
        );
        assert_eq!(bench.judge.confirm(outside.clone()), []);
        assert_eq!(
            bench.check(NotDialable),
            [Effect::Moved(Standing::Private), Effect::Withdraw(outside.clone())]
        );
        assert!(bench.judge.confirmed().is_empty());
        assert_eq!(bench.judge.confirm(outside.clone()), [Effect::Announce(outside)]);
    }

    #[test]
    fn a_mapping_that_is_lost_takes_its_evidence_with_it() {
        let mut bench = Bench::new();
        let outside = addr("/ip4/8.8.8.8/tcp/1");
        let mapped = Evidence::new(PortMapping, Dialable, bench.now).about(outside.clone());
        bench.judge.hear(mapped, bench.now);
        bench.judge.confirm(outside.clone());
        assert_eq!(bench.judge.withdraw(&outside), [Effect::Withdraw(outside.clone())]);
        assert_eq!(bench.judge.withdraw(&outside), []);
        assert!(bench.judge.evidence().is_empty());
    }

    #[test]
    fn in_another_network_the_standing_waits_for_new_evidence() {
        let mut bench = Bench::new();
        bench.check(Dialable);
        bench.judge.network_changed();
        assert_eq!(bench.judge.standing(), Standing::Public);
        bench.someone(AutoNat1, NotDialable);
        assert_eq!(bench.someone(AutoNat1, NotDialable), [Effect::Moved(Standing::Private)]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut bench = Bench::new();
        for port in 0..100 {
            bench.someone(AutoNat1, Dialable);
            bench.judge.confirm(addr(&format!("/ip4/8.8.8.8/tcp/{port}")));
        }
        assert_eq!(bench.judge.evidence().len(), MAX_EVIDENCE);
        assert_eq!(bench.judge.confirmed().len(), MAX_CONFIRMED);
    }
}
