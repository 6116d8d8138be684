//! The health of a swarm as one node sees it: which models there are, who serves what and answers, where blocks are
//! missing and what would help.
//!
//! ```text
//!   the DHT ── registry, records ─▶ read.rs ─┐
//!   servers ── rpc_info, pings ──▶ probe.rs ─┼─▶ model.rs, holes.rs ─▶ HealthState ─▶ watch channel: the page, the
//!   initial peers ── pings ──────────────────┘        (pure)                          terminal, metrics
//!   dial.rs: can a stranger dial this peer? (asked by servers that start)
//! ```
//!
//! [`Health::collect`] looks once, [`Health::keep_looking`] every period. It serves nothing and draws nothing. The rules
//! are those of health.petals.dev where it has one; each place says where it goes further.
//!
//! A look costs a bounded amount, whatever the swarm claims: so many models, blocks, pings and questions, each with a
//! limit in time. What does not fit into one look is done in the next ones.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use sepal_protocol::record::ServerState;
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

use self::{
    dial::Dialer,
    model::{Findings, ModelFacts},
    probe::{PROBE_TIMEOUT, Probes},
};
pub use self::{
    dial::{Busy, Dialable},
    state::{
        BestRoute, Bootstrap, Candidate, Condition, Contributor, HealthState, Hole, ModelCondition, ModelState,
        RouteHop, ServerView, SignatureView, Totals,
    },
    text::named,
};
use crate::{
    dht::{self, Dht},
    p2p::{self, Multiaddr, P2p, PeerId},
    swarm::{
        ping::{self, RttMap, Rtts},
        spans,
    },
    task::Tasks,
};

mod dial;
mod holes;
mod model;
mod probe;
mod read;
mod state;
#[cfg(test)]
mod tests;
mod text;

/// Questions and pings under way at the same time.
const MAX_CONCURRENT: usize = 32;

/// Servers that are pinged, and servers that are asked, in one look; the others have their turn in the next ones.
const MAX_PINGS: usize = 256;
const MAX_QUESTIONS: usize = 256;

/// Pause between the first looks while no server is online, and how many these are: this node may not have joined yet, or
/// not have loaded its own blocks.
const IMPATIENCE: Duration = Duration::from_secs(2);
const IMPATIENT_LOOKS: usize = 30;

/// Initial peers that are looked after.
const MAX_BOOTSTRAPS: usize = 16;

/// What a map is about.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pause between two looks.
    pub period: Duration,
    /// Models to show besides those of the registry.
    pub models: Vec<NamedModel>,
    /// Models that are called otherwise than their repository.
    pub aliases: Vec<Alias>,
    /// The nodes that this one joined through.
    pub initial_peers: Vec<Multiaddr>,
    /// What a command that joins this swarm needs besides an address; starts with a space, if anything.
    pub join_flags: String,
}

impl Default for Config {
    /// What the registry knows, every 20 seconds; nobody joined.
    fn default() -> Self {
        Self {
            period: Duration::from_secs(20),
            models: Vec::new(),
            aliases: Vec::new(),
            initial_peers: Vec::new(),
            join_flags: String::new(),
        }
    }
}

/// A model to show although it may not be in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedModel {
    /// Its name in the DHT.
    pub prefix: String,
    /// Number of its blocks.
    pub n_blocks: u32,
    /// What `sepal serve` is to be given, if that is known.
    pub name: Option<String>,
}

/// A model that `sepal serve` finds under another name than that of its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The repository that the registry names, `OWNER/NAME`.
    pub repository: String,
    /// What to type.
    pub name: String,
}

/// What this node itself knows and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Peers there is a connection to.
    pub connected: usize,
    /// Its part of the DHT.
    pub dht: dht::Status,
}

/// Looks at a swarm. Clones share what was seen.
#[derive(Clone, Debug)]
pub struct Health {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    p2p: P2p,
    dht: Dht,
    config: Config,
    dialer: Dialer,
    /// Held while a look is under way.
    looking: Mutex<Memory>,
    state: watch::Sender<Arc<HealthState>>,
    refreshed: StdMutex<Option<Instant>>,
}

/// What is kept from look to look.
#[derive(Debug, Default)]
struct Memory {
    probes: Probes,
    rtts: Rtts,
    /// Who was pinged last, for swarms that are too large to ping everyone in one look.
    last_pinged: Option<PeerId>,
}

impl Health {
    /// A map of the swarm that `dht` is in, empty until the first look.
    pub fn new(p2p: P2p, dht: Dht, config: Config, tasks: &Tasks) -> Self {
        let dialer = Dialer::new(p2p.clone(), config.initial_peers.clone(), tasks.clone());
        let empty = HealthState {
            version: env!("CARGO_PKG_VERSION").to_string(),
            peer_id: p2p.peer_id().to_string(),
            refresh_seconds: config.period.as_secs_f64(),
            ..HealthState::default()
        };
        let shared = Shared {
            p2p,
            dht,
            config,
            dialer,
            looking: Mutex::default(),
            state: watch::Sender::new(Arc::new(empty)),
            refreshed: StdMutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Looks once every period until `tasks` are stopped.
    pub fn keep_looking(&self, tasks: &Tasks) {
        let health = self.clone();
        tasks.spawn_until_stopped("health", async move {
            let mut impatient_looks = IMPATIENT_LOOKS;
            loop {
                let started = Instant::now();
                let state = health.collect().await;
                let period = health.shared.config.period;
                let impatient = state.totals.online == 0 && impatient_looks > 0;
                impatient_looks = impatient_looks.saturating_sub(1);
                let pause = if impatient { period.min(IMPATIENCE) } else { period };
                tokio::time::sleep_until(started + pause).await;
            }
        });
    }

    /// The last picture, and word of every new one.
    pub fn watch(&self) -> watch::Receiver<Arc<HealthState>> {
        self.shared.state.subscribe()
    }

    /// How old the last picture is; none before the first look ended.
    pub fn age(&self) -> Option<Duration> {
        let refreshed = self.shared.refreshed.lock().unwrap_or_else(PoisonError::into_inner);
        refreshed.map(|at| at.elapsed())
    }

    /// What this node itself knows and holds.
    pub fn node(&self) -> NodeStatus {
        NodeStatus {
            connected: self.shared.p2p.connected_peers().len(),
            dht: self.shared.dht.status(),
        }
    }

    /// Whether a stranger can dial `peer`, directly or through a relay. Few questions are worked on at a time, and an
    /// answer is good for some seconds, so that nobody can make this node dial around.
    ///
    /// # Errors
    /// [`Busy`] if too many ask.
    pub async fn is_reachable(&self, peer: PeerId) -> Result<Dialable, Busy> {
        self.shared.dialer.dialable(peer).await
    }

    /// Looks at everything and returns the new picture.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the last picture as it was.
    pub async fn collect(&self) -> Arc<HealthState> {
        let shared = &*self.shared;
        let mut memory = shared.looking.lock().await;
        let started = Instant::now();
        let facts = read::models(&shared.dht, &shared.config).await;
        let bootstraps = shared.bootstraps().await;
        let online = online(&facts);
        shared.ping(&mut memory, &online).await;
        shared.probe(&mut memory, &online).await;
        let mut state = shared.assemble(&memory, &facts, bootstraps);
        state.took_seconds = started.elapsed().as_secs_f64();
        let state = Arc::new(state);
        *shared.refreshed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        shared.state.send_replace(state.clone());
        state
    }
}

/// Who says of itself that it serves.
fn online(facts: &[ModelFacts]) -> BTreeSet<PeerId> {
    let spans = facts
        .iter()
        .flat_map(|model| spans::compute(&model.records.blocks, ServerState::Online));
    spans.map(|span| span.peer).collect()
}

impl Shared {
    async fn ping(&self, memory: &mut Memory, online: &BTreeSet<PeerId>) {
        let me = self.p2p.peer_id();
        // From the one after the last who had a turn, around to it.
        let later = online.iter().filter(|peer| Some(**peer) > memory.last_pinged);
        let earlier = online.iter().filter(|peer| Some(**peer) <= memory.last_pinged);
        let turn: Vec<PeerId> = later
            .chain(earlier)
            .copied()
            .filter(|peer| *peer != me)
            .take(MAX_PINGS)
            .collect();
        memory.last_pinged = turn.last().copied();
        let pings = stream::iter(turn).map(|peer| ping::measure(&self.dht, [peer], PROBE_TIMEOUT));
        let measured: Vec<_> = pings.buffer_unordered(MAX_CONCURRENT).collect().await;
        let now = self.dht.now();
        for (peer, rtt) in measured.into_iter().flatten() {
            memory.rtts.record(peer, rtt, now);
        }
    }

    async fn probe(&self, memory: &mut Memory, online: &BTreeSet<PeerId>) {
        let (me, now) = (self.p2p.peer_id(), self.dht.now());
        let others = online.iter().copied().filter(|peer| *peer != me);
        let due = memory.probes.due(others, &memory.rtts.at(now), now);
        let questions = stream::iter(due.into_iter().take(MAX_QUESTIONS))
            .map(|peer| async move { (peer, probe::ask(&self.p2p, peer, self.dht.now()).await) });
        let answers: Vec<_> = questions.buffer_unordered(MAX_CONCURRENT).collect().await;
        memory.probes.extend(answers);
    }

    /// The initial peers, each once, and whether they answer.
    async fn bootstraps(&self) -> Vec<Bootstrap> {
        let mut peers: Vec<(PeerId, Vec<Multiaddr>)> = Vec::new();
        for addr in &self.config.initial_peers {
            let Some(peer) = p2p::peer_id_of(addr) else { continue };
            match peers.iter_mut().find(|(other, _)| *other == peer) {
                Some((_, addrs)) => addrs.push(addr.clone()),
                None => peers.push((peer, vec![addr.clone()])),
            }
        }
        let looks = stream::iter(peers.into_iter().take(MAX_BOOTSTRAPS))
            .map(|(peer, addrs)| async move { self.bootstrap(peer, addrs).await });
        looks.buffered(MAX_BOOTSTRAPS).collect().await
    }

    async fn bootstrap(&self, peer: PeerId, addrs: Vec<Multiaddr>) -> Bootstrap {
        let first = addrs.first().map(ToString::to_string).unwrap_or_default();
        let outcome = match self.reach(addrs).await {
            Ok(()) => match ping::measure(&self.dht, [peer], PROBE_TIMEOUT).await.first() {
                Some((_, rtt)) if rtt.is_finite() => Ok(*rtt),
                _ => Err(format!(
                    "connected, but no answer to a ping within {} s",
                    PROBE_TIMEOUT.as_secs()
                )),
            },
            Err(error) => Err(error),
        };
        Bootstrap {
            addr: text::long(&first),
            peer_id: peer.to_string(),
            ok: outcome.is_ok(),
            rtt: outcome.as_ref().ok().copied(),
            error: outcome.err(),
        }
    }

    /// Connects through the first address that works.
    async fn reach(&self, addrs: Vec<Multiaddr>) -> Result<(), String> {
        let mut last = "no address".to_string();
        for addr in addrs {
            match tokio::time::timeout(PROBE_TIMEOUT, self.p2p.connect(addr)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => last = probe::describe(&error),
                Err(_) => last = format!("no connection within {} s", PROBE_TIMEOUT.as_secs()),
            }
        }
        Err(last)
    }

    /// Where others join: here, if this node can be dialed, else where this node did.
    fn join(&self) -> Vec<String> {
        let own = self.p2p.addrs();
        let addrs = if own.is_empty() {
            &self.config.initial_peers
        } else {
            &own
        };
        addrs.iter().take(MAX_BOOTSTRAPS).map(ToString::to_string).collect()
    }

    fn assemble(&self, memory: &Memory, facts: &[ModelFacts], bootstraps: Vec<Bootstrap>) -> HealthState {
        let (me, now, join) = (self.p2p.peer_id(), self.dht.now(), self.join());
        let mut rtts: RttMap = memory.rtts.at(now);
        rtts.insert(me, 0.0);
        let findings = Findings {
            me,
            probes: memory.probes.answers(),
            rtts: &rtts,
            join: join.first().map(String::as_str),
            join_flags: &self.config.join_flags,
        };
        let models: Vec<ModelState> = facts.iter().map(|model| model::model_state(model, findings)).collect();
        HealthState {
            version: env!("CARGO_PKG_VERSION").to_string(),
            peer_id: me.to_string(),
            updated: now,
            refresh_seconds: self.config.period.as_secs_f64(),
            took_seconds: 0.0,
            bootstraps,
            totals: Totals::of(&models),
            contributors: text::contributors(&models),
            models,
            join,
        }
    }
}

impl Totals {
    fn of(models: &[ModelState]) -> Self {
        let servers = || models.iter().flat_map(|model| &model.servers);
        let covered = |model: &ModelState| spans::block_number(model.coverage.iter().filter(|n| **n > 0).count());
        Self {
            models: models.len(),
            servers: servers().count(),
            online: servers().filter(|server| server.state == Condition::Online).count(),
            blocks_covered: models.iter().map(covered).sum(),
            blocks: models.iter().map(|model| model.n_blocks).sum(),
        }
    }
}
