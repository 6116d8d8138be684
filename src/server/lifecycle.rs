//! From nothing to ONLINE, from one span to another, and back to OFFLINE. It answers no requests.
//!
//! The order is Petals' (`server/server.py`): find out how others get to us, choose blocks, announce JOINING, load, be
//! reached by the monitor of the public swarm, be ready to answer, announce ONLINE;
//! to move or to stop, announce OFFLINE and wait until that is stored, then stop answering. Petals announces ONLINE a
//! moment before its handlers exist; here they are registered first.

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use rand::Rng;
use sepal_protocol::record::ServerState;
use thiserror::Error;
use tokio::{sync::mpsc, time::timeout};
use tracing::{info, warn};

use super::{
    BlockChoice, Config,
    announcing::Announcers,
    capacity,
    capacity::{DoesNotFit, Want},
    current::{Current, Hosted},
    duty::Duty,
    gathering::Undecoded,
    holding::Holding,
    memory::{Amount, Memory},
    pass_memory::{Costs, PassMemory},
    push::Pushes,
    serving::{Limits, Serving},
    throughput::Rates,
    worker::{Lost, Worker},
};
use crate::{
    dht::Dht,
    model::{
        Adapter, AdapterError, Blocks, CacheOptions, ComputeError, CudaError, KvDType, LoadError, ModelSource,
        Precision, ResolveError, WeightDType, WeightFormat, free_memory, in_whole_pages,
    },
    p2p::P2p,
    swarm::{
        announce::AnnounceError,
        directory::Directory,
        monitor::{NotReachable, confirm},
        placement,
        standing::Access,
    },
    task::Tasks,
};

/// Pushes in flight at once.
const MAX_PUSHES: usize = 256;

/// Why a server does not come up.
#[derive(Debug, Error)]
pub enum StartError {
    /// Weights could not be found or fetched.
    #[error("cannot get the weights of blocks {start}:{end}")]
    Fetch {
        /// First block.
        start: u32,
        /// One past the last.
        end: u32,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// Weights could not be loaded.
    #[error("cannot load blocks {start}:{end}")]
    Load {
        /// First block.
        start: u32,
        /// One past the last.
        end: u32,
        /// Why.
        #[source]
        source: LoadError,
    },
    /// An adapter does not fit the model.
    #[error("cannot use an adapter")]
    Adapter(#[source] AdapterError),
    /// The throughput could not be measured because a block failed.
    #[error("the first block fails when it is run; give --throughput N to serve without measuring")]
    Measure(#[source] ComputeError),
    /// The system gave no thread to compute on.
    #[error("cannot start the compute thread")]
    Thread(#[source] io::Error),
    /// The swarm does not learn about us.
    #[error("cannot announce the blocks")]
    Announce(#[source] AnnounceError),
    /// The health monitor cannot reach us.
    #[error("others cannot reach this server")]
    NotReachable(#[source] NotReachable),
    /// There is not enough memory.
    #[error("the blocks do not fit into memory")]
    DoesNotFit(#[source] DoesNotFit),
    /// A card does not compute any more.
    #[error("a card is lost; start the server again, and look into the system's log if that happens often")]
    CardLost(#[source] CudaError),
    /// The compute thread is gone.
    #[error("the compute thread ended by a defect of this server, see its log; start the server again")]
    ThreadLost,
    /// The process is shutting down.
    #[error("interrupted while loading")]
    Interrupted,
}

/// Everything that outlives one span.
#[derive(Debug)]
pub(super) struct Lifecycle {
    pub(super) config: Config,
    pub(super) source: ModelSource,
    pub(super) p2p: P2p,
    pub(super) dht: Dht,
    pub(super) tasks: Tasks,
    /// The watch over the balance, which has to end before OFFLINE is announced: it would announce ONLINE again.
    pub(super) moving: Tasks,
    pub(super) directory: Directory,
    current: Arc<Current>,
    pub(super) hosted: Arc<Hosted>,
    pub(super) announcers: Mutex<Announcers>,
    pub(super) report: mpsc::Sender<Result<Range<u32>, StartError>>,
    /// How many blocks to hold in each place that they can be in, once that is planned.
    pub(super) planned: OnceLock<Vec<usize>>,
    /// Bytes for passes over whole sequences, once that is decided.
    pass_bytes: OnceLock<u64>,
    /// What was measured at the start. It holds wherever the blocks are: all spans are of as many.
    pub(super) rates: OnceLock<Rates>,
}

impl Lifecycle {
    pub(super) fn new(
        config: Config,
        source: ModelSource,
        current: Arc<Current>,
        (p2p, dht): (P2p, Dht),
        (tasks, report): (&Tasks, mpsc::Sender<Result<Range<u32>, StartError>>),
    ) -> Self {
        let n_blocks = source.config().n_blocks;
        let directory = Directory::new(dht.clone(), config.prefix.clone(), n_blocks);
        let hosted = current.add(config.prefix.clone(), holding(&config, &source).request_bytes());
        let tasks = tasks.child();
        let moving = tasks.child();
        Self {
            config,
            source,
            p2p,
            dht,
            tasks,
            moving,
            directory,
            current,
            hosted,
            announcers: Mutex::default(),
            report,
            planned: OnceLock::new(),
            pass_bytes: OnceLock::new(),
            rates: OnceLock::new(),
        }
    }

    /// What the memory is planned with.
    pub(super) fn want(&self) -> Want {
        let wanted = match &self.config.blocks {
            BlockChoice::Fixed(span) => u32::try_from(span.len()).ok(),
            BlockChoice::Count(count) => Some(*count),
            BlockChoice::AsManyAsFit => None,
        };
        let holding = self.holding();
        let want = holding.want(self.source.name());
        let config = self.source.config();
        let weights = WeightFormat::ALL.map(|format| match format == want.format {
            true => (format, self.block_bytes()),
            false => (format, config.block_bytes(self.kept(format)) + self.adapter_bytes()),
        });
        let adapters = self.config.adapters.iter().map(Adapter::file_bytes);
        Want {
            wanted,
            weights: weights.to_vec(),
            scratch: want.scratch + adapters.sum::<u64>(),
            // Beside cards they are in the host's memory, where nothing else is planned.
            passes: if self.config.machine.has_cards() {
                0
            } else {
                want.passes
            },
            ..want
        }
    }

    pub(super) fn holding(&self) -> Holding<'_> {
        holding(&self.config, &self.source)
    }

    /// Bytes for passes over whole sequences, as planned: decided before there are any blocks.
    pub(super) fn pass_bytes(&self) -> u64 {
        *self.pass_bytes.get_or_init(|| {
            let free = free_memory().unwrap_or(u64::MAX);
            let wish = self.holding().pass_wish(&self.pass_costs());
            match self.config.machine.has_cards() {
                true => capacity::pass_bytes_beside_cards(wish, free, self.current.n_models()),
                false => capacity::pass_bytes(wish, free, self.current.n_models()),
            }
        })
    }

    /// Memory for passes, and for streamed requests for them that are not decoded yet.
    fn pass_memory(&self) -> (PassMemory, Undecoded) {
        let (bytes, request) = (self.pass_bytes(), self.holding().request_bytes());
        let undecoded = capacity::undecoded_bytes(bytes, request as u64);
        let passes = PassMemory::new(self.pass_costs(), bytes - undecoded);
        (passes, Undecoded::new(undecoded, request))
    }

    /// What a pass costs here.
    fn pass_costs(&self) -> Costs {
        let costs = self.holding().pass_costs();
        match self.config.machine.has_cards() {
            true => costs.with_blocks_on_cards(self.source.config()),
            false => costs,
        }
    }

    /// Notes how many blocks were found to fit, and where.
    pub(super) fn keep_plan(&self, shares: Vec<usize>) {
        // Whoever planned first knew of all the models.
        let _ = self.planned.set(shares);
    }

    pub(super) fn current(&self) -> &Arc<Current> {
        &self.current
    }

    #[cfg(test)]
    pub(super) fn hosted(&self) -> &Hosted {
        &self.hosted
    }

    pub(super) fn kv_dtype(&self) -> KvDType {
        self.config.formats(&self.source).1
    }

    /// Memory for as many tokens as sessions can reserve.
    pub(super) fn cache_options(&self, n_blocks: usize) -> CacheOptions {
        let token = self.source.config().cache_bytes_per_token(self.dtype().into()).max(1) as u64;
        CacheOptions {
            dtype: Some(self.kv_dtype()),
            block_tokens: self.cache_amount(n_blocks).taken / token,
            share_prefixes: self.config.limits.share_prefixes,
        }
    }

    /// What sessions can reserve, as [`Serving::session_amount`] counts. In every block there is a page more than the tokens
    /// need: any one sequence that Petals would take fits, whatever is left over of its last pages.
    fn cache_amount(&self, n_blocks: usize) -> Amount {
        let (config, dtype, tokens) = (self.source.config(), self.dtype(), self.holding().cache_tokens());
        let token = config.cache_bytes_per_token(dtype.into()).max(1) as u64;
        let in_block = capacity::cache_bytes(config, dtype, tokens, 1) / token;
        Amount {
            counted: capacity::cache_bytes(config, dtype, tokens, n_blocks),
            taken: in_whole_pages(in_whole_pages(in_block) + 1) * token * n_blocks as u64,
        }
    }

    pub(super) fn dtype(&self) -> WeightDType {
        self.precision().dtype
    }

    pub(super) fn precision(&self) -> Precision {
        self.config.formats(&self.source).0
    }

    /// Whether matrices that the checkpoint has in blocks stay so.
    pub(super) fn keeps_own_formats(&self) -> bool {
        self.config.quant.is_none() && self.source.own_format().is_some()
    }

    /// Bytes of the weights of a block with its adapters; of the largest where they differ.
    pub(super) fn block_bytes(&self) -> u64 {
        let weights = if self.keeps_own_formats() {
            self.source.own_block_bytes(self.kept(self.dtype().into()))
        } else {
            self.source.config().block_bytes(self.kept(self.precision().weights))
        };
        weights + self.adapter_bytes()
    }

    /// What matrices are kept in that are to be multiplied as `format`.
    fn kept(&self, format: WeightFormat) -> WeightFormat {
        match self.config.machine.has_cards() {
            true => format,
            false => self.source.config().kept_on_host(format),
        }
    }

    /// Bytes of all adapters' updates of a block.
    pub(super) fn adapter_bytes(&self) -> u64 {
        let adapters = self.config.adapters.iter();
        adapters.map(|adapter| adapter.block_bytes(self.source.config())).sum()
    }

    /// Chooses, announces, loads, announces. If that fails, OFFLINE is announced and nothing is served.
    pub(super) async fn bring_up(&self) -> Result<Range<u32>, StartError> {
        let _turn = self.current.turn().await;
        let outcome = match self.choose().await {
            Ok(span) => {
                let (outcome, ()) = tokio::join!(self.bring_up_at(span.clone()), self.take_back_last_run(&span));
                outcome
            }
            Err(error) => Err(error),
        };
        self.hosted.settle();
        outcome
    }

    /// The same without a choice.
    pub(super) async fn bring_up_at(&self, span: Range<u32>) -> Result<Range<u32>, StartError> {
        let outcome = self.serve(span).await;
        if outcome.is_err() {
            self.take_down().await;
        }
        outcome
    }

    async fn serve(&self, span: Range<u32>) -> Result<Range<u32>, StartError> {
        info!(
            ?span,
            prefix = self.config.prefix,
            dtype = self.dtype().as_torch_str(),
            weights = self.precision().weights.as_str(),
            kernels = self.config.machine.kernels(),
            quant_kernels = self.config.machine.quant_kernels(),
            "loading these blocks"
        );
        self.hosted.set_record(self.record(self.rates.get().copied()));
        self.hosted.tell_joining(span.clone());
        let announcer = self.spawn_announcer(&span);
        let join = async {
            // A record that says "dial me" must not be read by anyone while we do not know whether that is true.
            self.wait_for_access(|access| *access != Access::Unknown).await;
            announcer
                .set_state(ServerState::Joining)
                .await
                .map_err(StartError::Announce)
        };
        // Loading need not wait until everybody knows that we load.
        let ((), (serving, rates)) = tokio::try_join!(join, self.load(&span))?;
        info!(
            ?span,
            weights = serving.blocks.weights_in_words(),
            block_bytes = serving.blocks.block_bytes(),
            "blocks are loaded"
        );
        self.wait_until_reachable().await?;
        self.hosted.set_record(self.record(Some(rates)));
        self.hosted.switch(Arc::new(serving));
        self.say_serving(&announcer).await?;
        Ok(span)
    }

    async fn wait_for_access(&self, wanted: impl FnMut(&Access) -> bool) {
        // It fails when nobody looks after the access any more: then it stays as it is.
        let _ = self.config.access.clone().wait_for(wanted).await;
    }

    /// Gives relays, and the monitor if there is one, time to reach us. A server without a relay serves all the same, as
    /// Petals' does: those that it is connected to reach it, and the verdict of the peers may be wrong.
    async fn wait_until_reachable(&self) -> Result<(), StartError> {
        let wait = self.config.relay_wait;
        if timeout(wait, self.wait_for_access(Access::is_open)).await.is_err() {
            warn!(
                waited_s = wait.as_secs(),
                "this server cannot be dialed, and no relay has a place for it: most clients will not reach it. Forward \
                 a port of the router to this machine and give --port and --public-ip, or join through a node that can \
                 be dialed and is a relay. The search for one goes on"
            );
        }
        match &self.config.monitor {
            Some(monitor) => confirm(monitor, self.p2p.peer_id())
                .await
                .map_err(StartError::NotReachable),
            None => Ok(()),
        }
    }

    async fn choose(&self) -> Result<Range<u32>, StartError> {
        let count = match &self.config.blocks {
            BlockChoice::Fixed(span) => return Ok(span.clone()),
            BlockChoice::Count(count) => *count,
            BlockChoice::AsManyAsFit => self.fitting()?,
        };
        if !self.config.choose_after.is_zero() {
            // They would all see the same gap; a random wait lets the later ones see the earlier.
            let wait = rand::rng().random_range(0.0..=2.0) * self.config.choose_after.as_secs_f64();
            info!("waiting {wait:.1} s so that servers that start together see each other");
            tokio::time::sleep(Duration::from_secs_f64(wait)).await;
        }
        let snapshot = self.directory.refresh().await;
        Ok(placement::choose(&snapshot, Some(self.p2p.peer_id()), count))
    }

    /// How many blocks to hold: as planned together with the other models of the node, else what fits now.
    pub(super) fn fitting(&self) -> Result<u32, StartError> {
        if self.planned.get().is_none() {
            let plan = capacity::plan(&self.free(), &[self.want()]).map_err(StartError::DoesNotFit)?;
            plan.into_iter().for_each(|shares| self.keep_plan(shares));
        }
        let count: usize = self.planned.get().into_iter().flatten().sum();
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Bytes that may be planned with, in each place that blocks can be in.
    pub(super) fn free(&self) -> Vec<u64> {
        self.current.free(&self.config.machine)
    }

    /// What answers requests for `blocks`. Beside `old`, a span of as many blocks, it shares its budget, its sessions and
    /// its end.
    pub(super) fn serving(&self, blocks: Arc<Blocks>, old: Option<&Serving>) -> Result<Serving, StartError> {
        let config = blocks.config();
        let choice = &self.config.limits;
        let default_tokens = capacity::default_max_tokens(config);
        let limits = Limits {
            inference_max_length: choice.inference_max_length.unwrap_or(default_tokens),
            max_batch_size: choice.max_batch_size.unwrap_or(default_tokens),
            max_alloc_timeout: choice.max_alloc_timeout,
            request_timeout: choice.request_timeout,
            session_timeout: choice.session_timeout,
            step_timeout: choice.step_timeout,
        };
        let cache = self.cache_amount(blocks.span().len());
        let (counters, duty) = (self.current.counters.clone(), self.duty());
        let worker = Worker::start(blocks.clone(), choice.max_queue, counters, duty).map_err(StartError::Thread)?;
        self.watch_worker(worker.clone());
        let (passes, undecoded) = match old {
            None => self.pass_memory(),
            Some(old) => (old.passes.clone(), old.undecoded.clone()),
        };
        Ok(Serving {
            prefix: self.config.prefix.clone(),
            span: blocks.span(),
            worker,
            memory: old.map_or_else(|| Memory::new(cache), |old| old.memory.clone()),
            passes,
            undecoded,
            sessions: old.map(|old| old.sessions.clone()).unwrap_or_default(),
            limits,
            compression: self.config.compression,
            identity: self.p2p.identity().clone(),
            tasks: old.map_or_else(|| self.tasks.child(), |old| old.tasks.clone()),
            pushes: old.map_or_else(|| Arc::new(Pushes::new(MAX_PUSHES)), |old| old.pushes.clone()),
            weights: self.precision().weights.as_str(),
            backward_turns: old.map(|old| old.backward_turns.clone()).unwrap_or_default(),
            counters: self.current.counters.clone(),
            ledger: self.hosted.ledger.clone(),
            blocks,
        })
    }

    /// How much of the time is computed in. While cards compute, one core per worker waits for them, which the driver lets
    /// spin (`CU_CTX_SCHED_AUTO`); all others are free, so cards are not slowed down.
    pub(super) fn duty(&self) -> Duty {
        match self.config.machine.has_cards() {
            true => Duty::unlimited(),
            false => self.current.guests.duty().clone(),
        }
    }

    /// Reports that nothing can be computed any more: whoever waits for moves then stops the server.
    fn watch_worker(&self, worker: Worker) {
        let report = self.report.clone();
        self.tasks.spawn_until_stopped("worker", async move {
            let error = match worker.lost().await {
                None => return,
                Some(Lost::Card(cause)) => StartError::CardLost(cause),
                Some(Lost::Thread) => StartError::ThreadLost,
            };
            // It fails when nobody waits for moves any more.
            drop(report.send(Err(error)).await);
        });
    }

    /// Ends everything, in this order: moving, announcing, answering, computing.
    pub(super) async fn shut_down(&self) {
        self.moving.shutdown().await;
        self.take_down().await;
        self.tasks.shutdown().await;
    }

    /// OFFLINE, then no more answers, then no more computing. Returns what was served, which others may hold for a moment.
    pub(super) async fn take_down(&self) -> Vec<Arc<Serving>> {
        self.go_offline().await;
        let spans = self.hosted.clear();
        for serving in &spans {
            serving.tasks.shutdown().await;
            serving.worker.stop();
        }
        spans
    }
}

/// The model with the flags of this server.
fn holding<'a>(config: &'a Config, source: &'a ModelSource) -> Holding<'a> {
    let (precision, kv_dtype) = config.formats(source);
    Holding {
        config: source.config(),
        precision,
        kv_dtype,
        limits: &config.limits,
    }
}

/// What monitors show; they cut it to ten characters.
pub(super) fn version() -> String {
    format!(
        "sepal {}.{}",
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR")
    )
}
