//! Serves a span of blocks to the swarm: chooses it, loads it, answers requests for it, announces it, may move.
//!
//! ```text
//! remote client ── rpc_inference ──▶ handler ─▶ session ─▶ queue ─▶ worker thread ─▶ blocks
//!                                       ▲          │  ▲                  │
//!                     memory (lease) ───┘          │  └── output ◀───────┘
//!                                                  └─────▶ push to the next server
//! ```
//!
//! Everything but the worker is asynchronous and cheap; the worker is the only thing that computes. Not here: which
//! blocks are worth serving (`swarm::placement`), what a block is (`model`), how a name finds its handler (`p2p`).

mod announcing;
mod backward;
mod capacity;
mod checkpoints;
mod convert;
mod current;
mod duty;
mod error;
mod fair;
mod forward;
mod gathering;
mod guests;
mod handler;
mod holding;
mod ledger;
mod lifecycle;
mod loading;
mod membership;
mod memory;
mod meter;
mod moving;
mod overview;
mod pass;
mod pass_memory;
mod pauses;
mod piece;
mod politeness;
mod push;
mod queue;
mod receipts;
mod request;
mod riding;
mod schedule;
mod serving;
mod session;
mod sessions;
mod stats;
mod staying;
mod throughput;
mod traced;
mod training;
mod voice;
mod waiting;
mod worker;

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use sepal_protocol::compress::Compression;
use tokio::sync::{Mutex, mpsc, watch};

pub use self::{
    capacity::{DoesNotFit, weight_bytes},
    error::RequestError,
    holding::{Fit, fit, room},
    ledger::SessionView,
    lifecycle::StartError,
    membership::{HOME, Membership},
    meter::Rate,
    overview::{CacheUse, Overview, Phase},
    pauses::{Hold, Pause},
    politeness::{Network, Politeness, Quotas, Who},
    serving::Limits,
    stats::{Quantiles, Refusals, Stats},
    staying::stay,
    throughput::{ComputeRates, Load, Rates, Throughput, combine, explain, measure},
    voice::{Announced, Voice},
    waiting::Waits,
};
use self::{current::Current, guests::Guests, lifecycle::Lifecycle};
#[cfg(test)]
use crate::swarm::placement::Habit;
use crate::{
    dht::Dht,
    model::{Adapter, DEFAULT_MAX_CHUNK_BYTES, KvDType, Machine, ModelSource, Precision, WeightDType, WeightFormat},
    p2p::{Handler, P2p, Router},
    swarm::{Node, monitor::Monitor, standing::Access},
    task::Tasks,
};

/// Mean wait before blocks are chosen, so that servers started together see each other (Petals `server/server.py`,
/// mean_block_selection_delay).
const CHOOSE_AFTER: Duration = Duration::from_secs(5);

/// Default of [`Config::relay_wait`]. A relay of ours gives a place within a second or two, but it has to be met first;
/// through the address book that takes a few lookups.
const RELAY_WAIT: Duration = Duration::from_secs(60);

/// What a server is told by the person who runs it.
#[derive(Clone, Debug)]
pub struct Config {
    /// DHT prefix of the model.
    pub prefix: String,
    /// Which blocks to serve.
    pub blocks: BlockChoice,
    /// LoRA adapters that requests may ask for.
    pub adapters: Vec<Adapter>,
    /// Precision of weights, cache and replies; `None` takes the checkpoint's, bfloat16 for float32 ones.
    pub dtype: Option<WeightDType>,
    /// Format of the weight matrices; `None` keeps those in blocks that the checkpoint has so, and the others in `dtype`.
    pub quant: Option<WeightFormat>,
    /// What blocks are computed with.
    pub machine: Machine,
    /// Announced speed.
    pub throughput: Throughput,
    /// File that remembers measured speeds; `None` measures at every start.
    pub throughput_cache: Option<PathBuf>,
    /// Compression of replies.
    pub compression: Compression,
    /// How others get to this server. It announces nothing before that is known, and says so whenever it changes.
    pub access: watch::Receiver<Access>,
    /// How long a server that cannot be dialed waits for a relay before it says that it serves.
    pub relay_wait: Duration,
    /// Who has to reach this server before it says that it serves; nobody in swarms of one's own.
    pub monitor: Option<Monitor>,
    /// Name for health monitors.
    pub public_name: Option<String>,
    /// How much to take on.
    pub limits: LimitChoice,
    /// What all models of the node keep to together; that of the first one holds.
    pub politeness: Politeness,
    /// Time between two announcements.
    pub update_period: Duration,
    /// How long an announcement is valid; `None` for twice the period, at least 3 s.
    pub expiration: Option<Duration>,
    /// Move when the swarm's slowest block would gain this much; 0 never, more than 1 always.
    pub balance_quality: f64,
    /// Mean time between two looks at whether to move.
    pub mean_balance_check_period: Duration,
    /// Mean wait before choosing blocks, for others that start at the same time; not used when they are fixed.
    pub choose_after: Duration,
    /// How long after a move new sessions may still be opened at the blocks that were left.
    pub linger: Duration,
}

impl Config {
    /// How weights and cache of the model are kept.
    pub fn formats(&self, source: &ModelSource) -> (Precision, KvDType) {
        let dtype = self.dtype.unwrap_or_else(|| source.config().auto_dtype());
        let own = || source.own_format().unwrap_or(dtype.into());
        let weights = self.quant.unwrap_or_else(own);
        let kv_dtype = self.limits.kv_dtype.unwrap_or(dtype.into());
        (Precision { weights, dtype }, kv_dtype)
    }
}

/// Which blocks a server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockChoice {
    /// These, for as long as it runs.
    Fixed(Range<u32>),
    /// So many, where the swarm needs them most.
    Count(u32),
    /// As many as fit into free memory, where the swarm needs them most.
    AsManyAsFit,
}

/// Limits as given; what is `None` depends on the model.
#[derive(Clone, Debug)]
pub struct LimitChoice {
    /// Attention cache per block, in tokens.
    pub attn_cache_tokens: Option<usize>,
    /// How keys and values are kept; as the weights if `None`.
    pub kv_dtype: Option<KvDType>,
    /// Whether a session takes over what another computed from the same inputs.
    pub share_prefixes: bool,
    /// Longest session, in tokens.
    pub inference_max_length: Option<usize>,
    /// Most tokens in one request.
    pub max_batch_size: Option<usize>,
    /// Most bytes of activations that a long step computes on at a time.
    pub max_chunk_size_bytes: usize,
    /// Steps and requests that may wait.
    pub max_queue: usize,
    /// Longest wait for cache memory.
    pub max_alloc_timeout: Duration,
    /// Longest single request.
    pub request_timeout: Duration,
    /// Longest session.
    pub session_timeout: Duration,
    /// Longest silence within a session.
    pub step_timeout: Duration,
}

impl Default for LimitChoice {
    /// Petals' defaults (`cli/run_server.py`).
    fn default() -> Self {
        Self {
            attn_cache_tokens: None,
            kv_dtype: None,
            share_prefixes: true,
            inference_max_length: None,
            max_batch_size: None,
            max_chunk_size_bytes: DEFAULT_MAX_CHUNK_BYTES,
            max_queue: 1024,
            max_alloc_timeout: Duration::from_secs(600),
            request_timeout: Duration::from_secs(180),
            session_timeout: Duration::from_secs(1800),
            step_timeout: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// The defaults for a choice of blocks.
    pub fn new(prefix: String, blocks: BlockChoice, limits: LimitChoice, machine: impl Into<Machine>) -> Self {
        Self {
            prefix,
            blocks,
            adapters: Vec::new(),
            dtype: None,
            quant: None,
            machine: machine.into(),
            throughput: Throughput::Auto,
            throughput_cache: None,
            compression: Compression::None,
            access: Access::assumed_direct(),
            relay_wait: RELAY_WAIT,
            monitor: None,
            public_name: None,
            limits,
            politeness: Politeness::default(),
            update_period: Duration::from_secs(120),
            expiration: None,
            balance_quality: 0.75,
            mean_balance_check_period: Duration::from_secs(60),
            choose_after: CHOOSE_AFTER,
            linger: moving::LINGER,
        }
    }
}

/// A server of one model. It answers as soon as its handlers are registered, with "not serving" until it has loaded.
/// Several on one node ([`Server::beside`]) have their handlers and their counts in common.
#[derive(Debug)]
pub struct Server {
    lifecycle: Arc<Lifecycle>,
    moves: Mutex<mpsc::Receiver<Result<Range<u32>, StartError>>>,
    /// The tasks of the node.
    tasks: Tasks,
}

/// Plans how many blocks each of `servers`, all of one node, will hold, and on which cards, in the memory that is free now.
///
/// # Errors
/// When one does not fit beside those before it; says what would.
pub fn plan(servers: &[Arc<Server>]) -> Result<(), DoesNotFit> {
    let wants: Vec<_> = servers.iter().map(|server| server.lifecycle.want()).collect();
    // All are on one machine.
    let free = servers
        .first()
        .map(|server| server.lifecycle.free())
        .unwrap_or_default();
    for (server, shares) in servers.iter().zip(capacity::plan(&free, &wants)?) {
        server.lifecycle.keep_plan(shares);
    }
    Ok(())
}

impl Server {
    /// A server that does nothing yet; see [`Server::bring_up`].
    pub fn new(config: Config, source: ModelSource, network: (P2p, Dht), tasks: &Tasks) -> Self {
        let home = Membership::new(HOME, network.clone(), config.access.clone());
        let guests = Guests::new(config.politeness.clone());
        let current = Arc::new(Current::new(lifecycle::version(), Arc::new(home), guests));
        Self::on(current, config, source, network, tasks)
    }

    /// A server of one model on a node that has joined its swarm: answers requests, and is [up](Self::bring_up) when this
    /// returns.
    ///
    /// # Errors
    /// As [`Server::bring_up`].
    pub async fn start(config: Config, source: ModelSource, node: &Node) -> Result<Self, StartError> {
        let server = Self::new(config, source, node.network(), &node.tasks);
        Router::new(node.p2p.clone())
            .serve(server.handlers())
            .spawn(&node.tasks);
        server.bring_up().await?;
        Ok(server)
    }

    /// A server of another model on the same node. Its prefix is another one, or requests could not be told apart.
    #[must_use]
    pub fn beside(&self, config: Config, source: ModelSource) -> Self {
        let Lifecycle { p2p, dht, .. } = &*self.lifecycle;
        let current = self.lifecycle.current().clone();
        Self::on(current, config, source, (p2p.clone(), dht.clone()), &self.tasks)
    }

    fn on(current: Arc<Current>, config: Config, source: ModelSource, network: (P2p, Dht), tasks: &Tasks) -> Self {
        let (report, moves) = mpsc::channel(1);
        Self {
            lifecycle: Arc::new(Lifecycle::new(config, source, current, network, (tasks, report))),
            moves: Mutex::new(moves),
            tasks: tasks.clone(),
        }
    }

    /// The RPCs, to be registered before [`Server::bring_up`] announces them: those of all models of the node, once all
    /// of these are there.
    pub fn handlers(&self) -> Vec<Handler> {
        handler::handlers(self.lifecycle.current())
    }

    /// The same for the host of another swarm that the node is in.
    pub fn handlers_in(&self, membership: &Arc<Membership>) -> Vec<Handler> {
        let current = self.lifecycle.current().seen_from(membership.clone());
        handler::handlers(&Arc::new(current))
    }

    /// Tells another swarm, too, what is served, from now on. `tasks` are those of the host there.
    pub fn speak_in(&self, membership: &Arc<Membership>, tasks: &Tasks) -> Voice {
        Voice::raise(self.lifecycle.clone(), membership, tasks)
    }

    /// What the home swarm was told.
    pub fn announced(&self) -> Option<Announced> {
        self.lifecycle.announced()
    }

    /// Measures what this server could do, without serving or announcing anything.
    ///
    /// # Errors
    /// When a block cannot be loaded or fails.
    pub async fn measure(&self) -> Result<Rates, StartError> {
        self.lifecycle.measure().await
    }

    /// Chooses blocks, announces JOINING, loads, announces ONLINE; returns the span once those records are stored. From
    /// then on the server moves by itself if its choice of blocks allows it.
    ///
    /// # Errors
    /// When the blocks cannot be loaded or announced, or the monitor cannot reach us; OFFLINE is announced before this
    /// returns.
    pub async fn bring_up(&self) -> Result<Range<u32>, StartError> {
        self.lifecycle.watch_access();
        let span = self.lifecycle.bring_up().await?;
        self.lifecycle.watch_balance();
        Ok(span)
    }

    /// Waits for the next move and returns the new span once it is online. A server whose moves nobody waits for
    /// stays where it is after the second one.
    ///
    /// # Errors
    /// When a move failed in a way that left no way back: the server serves nothing any more.
    pub async fn moved(&self) -> Result<Range<u32>, StartError> {
        match self.moves.lock().await.recv().await {
            Some(outcome) => outcome,
            // Nobody will report a move any more: the server is shutting down.
            None => std::future::pending().await,
        }
    }

    /// Whether nothing is reserved, waits or runs.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let serving = self.lifecycle.hosted().now();
        serving.is_some_and(|serving| {
            serving.memory.is_free()
                && serving.passes.is_free()
                && serving.undecoded.is_free()
                && serving.worker.waits().total() == 0
        })
    }

    /// All that is kept for passes, until what is returned is dropped.
    #[cfg(test)]
    pub(crate) async fn take_pass_memory(&self) -> impl Sized + use<> {
        let serving = self.lifecycle.hosted().now().expect("a span is served");
        serving.passes.take_all().await
    }

    /// Bytes that passes have reserved.
    #[cfg(test)]
    pub(crate) fn reserved_for_passes(&self) -> u64 {
        let serving = self.lifecycle.hosted().now();
        serving.map_or(0, |serving| serving.passes.reserved())
    }

    /// Passes that wait for memory.
    #[cfg(test)]
    pub(crate) fn n_waiting_passes(&self) -> usize {
        let serving = self.lifecycle.hosted().now();
        serving.map_or(0, |serving| serving.passes.n_waiting())
    }

    /// All that is kept for streamed requests to come in, until what is returned is dropped.
    #[cfg(test)]
    pub(crate) async fn take_undecoded(&self) -> impl Sized + use<> {
        let serving = self.lifecycle.hosted().now().expect("a span is served");
        serving.undecoded.take_all().await
    }

    /// Whether nothing of streamed requests is there that is not decoded.
    #[cfg(test)]
    pub(crate) fn has_no_streams(&self) -> bool {
        let serving = self.lifecycle.hosted().now();
        serving.is_some_and(|serving| serving.undecoded.is_free())
    }

    /// Streamed requests that wait before they come in.
    #[cfg(test)]
    pub(crate) fn n_waiting_streams(&self) -> usize {
        let serving = self.lifecycle.hosted().now();
        serving.map_or(0, |serving| serving.undecoded.n_waiting())
    }

    /// Goes to these blocks as if the swarm needed them most. Returns what it keeps in mind of that at 0, if it looks once a
    /// minute.
    #[cfg(test)]
    pub(crate) async fn try_move(&self, to: Range<u32>) -> Result<Habit, StartError> {
        self.lifecycle.try_move(to).await
    }

    /// From now on there is memory for so many blocks of all models of the node together, for their passes, and for the
    /// activations of one compute thread more.
    #[cfg(test)]
    pub(crate) fn set_budget(&self, n_blocks: usize) {
        let scratch = self.lifecycle.holding().scratch();
        self.lifecycle.current().set_budget(n_blocks, scratch);
    }

    /// Spans that are in memory.
    #[cfg(test)]
    pub(crate) fn n_spans(&self) -> usize {
        self.lifecycle.hosted().all().len()
    }

    /// What the node did so far, for all its models.
    pub fn stats(&self) -> Stats {
        let current = self.lifecycle.current();
        current.counters.read(current.waits(), current.cache_counts())
    }

    /// The model by its name in the DHT.
    pub(crate) fn prefix(&self) -> &str {
        &self.lifecycle.config.prefix
    }

    /// Announces OFFLINE, waits until that is stored, then ends all sessions and the compute thread. Nothing is served
    /// or announced afterwards.
    pub async fn shutdown(&self) {
        self.lifecycle.shut_down().await;
    }
}
