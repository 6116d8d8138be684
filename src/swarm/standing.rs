//! How others get to this node: finds out, keeps finding out, and switches the node's mode when the answer changes.
//!
//! ```text
//!   peers ── rpc_check ──▶ Rounds ── verdict ──▶ P2p::judge ─┐ weighed with what AutoNAT, the router
//!     ▲ asked again        │ timing, doubt                    │ and strangers at the door say
//!     └────────────────────┘                                  ▼
//!            Access ◀── Public, Private, relays ◀── P2p::reachability
//!              └──▶ DHT and kad become clients or not · the server's records, throughput and readiness
//! ```
//!
//! Petals decides once, before it starts, with a DHT node made for the purpose (`server/server.py`, `check_direct_reachability`).
//! Here one node does both: it is a client until it is known that it can be dialed, so that nobody enters it in a table
//! for nothing, and it goes on asking, because routers are restarted and laptops carried about. It makes no connections and
//! holds no reservations: that is the host's work ([`p2p`]).

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, info};

use super::reachability::ask::{Answers, ask};
use crate::{
    dht::Dht,
    p2p::{self, P2p, PeerId, Reachability, Standing, Verdict},
    task::Tasks,
};

/// How others get to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Not known yet: it announces nothing.
    Unknown,
    /// They dial it.
    Direct,
    /// Through these relays, of which there is at least one.
    Relayed(Vec<PeerId>),
    /// They cannot dial it, and no relay has a place for it.
    Unreachable,
}

impl Access {
    /// What a node has that does not ask: [`Access::Direct`] for ever.
    pub fn assumed_direct() -> watch::Receiver<Self> {
        watch::channel(Self::Direct).1
    }

    /// Whether others cannot dial this node; goes into its records.
    pub fn using_relay(&self) -> bool {
        matches!(self, Self::Relayed(_) | Self::Unreachable)
    }

    /// Whether others get to this node at all.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Direct | Self::Relayed(_))
    }
}

/// When to ask, and how long to wait.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Before a first negative verdict is believed the question is repeated after this pause. Who dialed a node in vain does
    /// not try again at once, and answers "no" without trying: a node that was restarted quickly would be taken for one
    /// that cannot be dialed, as Petals takes it. go-libp2p, which all Python peers dial with, waits 5 s + n² s after the
    /// n-th failure, so 10 s are enough after two.
    pub second_opinion: Duration,
    /// When peers were asked at the start and none answered, they are asked once more after this pause: Petals' nodes serve
    /// `rpc_check` a second or two after they join, and whole swarms are started at once.
    pub second_chance: Duration,
    /// After a positive verdict. What ends it (a router restarted, a firewall) is rare, and mostly shows by other signs.
    /// Each round costs five peers a host of their own for a moment: a thousand servers cause less than six per second.
    pub recheck_dialable: Duration,
    /// After a negative one, because the node serves at a fifth of its speed until it is found to be wrong, and somebody
    /// who has just opened a port is waiting.
    pub recheck_not_dialable: Duration,
    /// When nobody answered: the first nodes of a swarm are alone for a while.
    pub recheck_unanswered: Duration,
    /// After an address of this node came or went. They come in groups.
    pub after_new_addresses: Duration,
    /// When nobody said anything for so long, the node counts as dialable, as in Petals. Two rounds in which peers answer
    /// at once and dial in vain for 5 s each, and the pause between, take 20 s.
    pub first_verdict: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            second_opinion: Duration::from_secs(10),
            second_chance: Duration::from_secs(3),
            recheck_dialable: Duration::from_secs(15 * 60),
            recheck_not_dialable: Duration::from_secs(2 * 60),
            recheck_unanswered: Duration::from_secs(60),
            after_new_addresses: Duration::from_secs(5),
            first_verdict: Duration::from_secs(45),
        }
    }
}

/// Finds out how others get to a node and keeps its mode in accord with that.
#[derive(Debug)]
pub struct Keeper {
    p2p: P2p,
    dht: Dht,
    rounds: Rounds,
    access: watch::Sender<Access>,
}

impl Keeper {
    /// A keeper that does nothing yet. The node is a client from now on, until it is known that it can be dialed.
    pub fn new(p2p: P2p, dht: Dht, timing: Timing) -> Self {
        dht.set_client_mode(true);
        p2p.set_client_mode(true);
        Self {
            p2p,
            dht,
            rounds: Rounds::new(timing, Instant::now()),
            access: watch::Sender::new(Access::Unknown),
        }
    }

    /// How others get to the node, as far as it is known at any time.
    pub fn access(&self) -> watch::Receiver<Access> {
        self.access.subscribe()
    }

    /// Starts to ask the peers in the node's routing table: the node has joined the swarm, or is the first of one, and
    /// serves [`reachability`](super::reachability::handlers). An answer is there within [`Timing::first_verdict`].
    pub fn spawn(self, tasks: &Tasks) {
        tasks.spawn_until_stopped("standing", self.run());
    }

    async fn run(mut self) {
        let (mut known, mut addrs) = (self.p2p.reachability(), self.p2p.watch_addrs());
        let mut direct = direct_addrs(&self.p2p);
        self.rounds.start(Instant::now());
        let mut round = Box::pin(self.next_round());
        loop {
            self.apply(&known.borrow_and_update().clone());
            tokio::select! {
                answers = &mut round => {
                    self.conclude(answers).await;
                    round = Box::pin(self.next_round());
                }
                () = sleep_until(self.rounds.deadline), if !self.rounds.settled => self.rounds.settled = true,
                changed = known.changed() => if changed.is_err() { return },
                changed = addrs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    addrs.mark_unchanged();
                    let now = direct_addrs(&self.p2p);
                    if now != direct {
                        direct = now;
                        self.rounds.moved(Instant::now());
                        round = Box::pin(self.next_round());
                    }
                }
            }
        }
    }

    /// Waits until it is time, and asks.
    fn next_round(&self) -> impl Future<Output = Answers> + Send + use<> {
        let (p2p, dht, due) = (self.p2p.clone(), self.dht.clone(), self.rounds.due);
        async move {
            sleep_until(due).await;
            let mut rng = StdRng::from_os_rng();
            ask(&p2p, dht.peers(), &mut rng).await
        }
    }

    async fn conclude(&mut self, answers: Answers) {
        let verdict = self.rounds.answered(answers, Instant::now());
        debug!(%answers, ?verdict, "asked peers whether they can dial this node");
        if let Some(verdict) = verdict {
            self.p2p.judge(verdict).await;
        }
    }

    /// Switches first and tells afterwards: whoever reads the new records finds them to be true.
    fn apply(&self, known: &Reachability) {
        let access = self.rounds.access(known);
        if *self.access.borrow() == access {
            return;
        }
        let client = access != Access::Direct;
        self.dht.set_client_mode(client);
        self.p2p.set_client_mode(client);
        info!(?access, "how others get to this node");
        self.access.send_replace(access);
    }
}

/// What can be dialed: that a relay gave us a place changes nothing about it.
fn direct_addrs(p2p: &P2p) -> Vec<p2p::Multiaddr> {
    let mut addrs = p2p.addrs();
    addrs.retain(|addr| !p2p::is_relayed(addr));
    addrs.sort();
    addrs
}

/// When to ask next, and what the answers mean. Pure: the time is an argument.
#[derive(Debug)]
struct Rounds {
    timing: Timing,
    /// When to ask next.
    due: Instant,
    /// When to stop waiting for a first verdict.
    deadline: Instant,
    /// Whether the first question is answered, or was long enough without an answer.
    settled: bool,
    /// The last round is repeated before anything is made of it.
    doubted: bool,
    verdict: Option<Verdict>,
}

impl Rounds {
    fn new(timing: Timing, now: Instant) -> Self {
        Self {
            deadline: now + timing.first_verdict,
            timing,
            due: now,
            settled: false,
            doubted: false,
            verdict: None,
        }
    }

    fn start(&mut self, now: Instant) {
        self.due = now;
        self.deadline = now + self.timing.first_verdict;
    }

    /// Takes the result of a round. Returns a verdict that is sure enough to be reported.
    fn answered(&mut self, answers: Answers, now: Instant) -> Option<Verdict> {
        let (dialable, timing) = (answers.dialable(), &self.timing);
        let repeat_after = match dialable {
            _ if self.doubted => None,
            Some(false) if self.verdict != Some(Verdict::NotDialable) => Some(timing.second_opinion),
            None if answers.silent > 0 && !self.settled => Some(timing.second_chance),
            _ => None,
        };
        if let Some(pause) = repeat_after {
            self.doubted = true;
            self.due = now + pause;
            return None;
        }
        let (pause, verdict) = match dialable {
            None => (timing.recheck_unanswered, None),
            Some(true) => (timing.recheck_dialable, Some(Verdict::Dialable)),
            Some(false) => (timing.recheck_not_dialable, Some(Verdict::NotDialable)),
        };
        self.doubted = false;
        self.settled = true;
        self.due = now + pause;
        self.verdict = verdict.or(self.verdict);
        verdict
    }

    /// The node's addresses are others than before.
    fn moved(&mut self, now: Instant) {
        self.doubted = false;
        self.due = now + self.timing.after_new_addresses;
    }

    /// Nothing is said before the first question is answered: a single dial back proves less than several peers that tried.
    /// From then on what the host knows counts; while it knows nothing, our own verdict, and without one the benefit of the doubt
    /// (Petals `server/server.py`).
    fn access(&self, known: &Reachability) -> Access {
        if !self.settled {
            return Access::Unknown;
        }
        let private = match (known.standing, self.verdict) {
            (Standing::Private, _) | (Standing::Unknown, Some(Verdict::NotDialable)) => true,
            (Standing::Public, _) | (Standing::Unknown, Some(Verdict::Dialable) | None) => false,
        };
        match (private, known.relays.is_empty()) {
            (false, _) => Access::Direct,
            (true, true) => Access::Unreachable,
            (true, false) => Access::Relayed(known.relays.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
