//! From nothing to ONLINE, from one span to another, and back to OFFLINE. It answers no requests.
//!
//! The order is Petals' (`server/server.py`): find out how others get to us, choose blocks, announce JOINING, load, be
//! reached by the monitor of the public swarm, be ready to answer, announce ONLINE;
//! to move or to stop, announce OFFLINE and wait until that is stored, then stop answering. Petals announces ONLINE a
//! moment before its handlers exist; here they are registered first.

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::Rng;
use sepal_protocol::record::{ServerInfo, ServerState};
use thiserror::Error;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tracing::{error, info, warn};

use super::{
    BlockChoice, Config, capacity,
    current::{Current, Hosted, Record},
    memory::Memory,
    serving::{Limits, Serving},
    sessions::Sessions,
    throughput::{self, Rates, Throughput},
    worker::Worker,
};
use crate::{
    dht::Dht,
    model::{
        AdapterError, Blocks, CacheOptions, ComputeError, KvDType, LoadError, ModelConfig, ModelSource, Precision,
        ResolveError, WeightDType,
    },
    p2p::P2p,
    swarm::{
        announce::{AnnounceConfig, AnnounceError, Announcer},
        directory::Directory,
        models,
        monitor::{NotReachable, confirm},
        placement,
        standing::Access,
    },
    task::Tasks,
};

/// Pushes in flight at once.
const MAX_PUSHES: usize = 256;

/// Announced while loading, in tokens per second.
const UNMEASURED_THROUGHPUT: f64 = 1.0;

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
    /// The process is shutting down.
    #[error("interrupted while loading")]
    Interrupted,
}

/// Everything that outlives one span.
#[derive(Debug)]
pub(super) struct Lifecycle {
    config: Config,
    source: ModelSource,
    p2p: P2p,
    dht: Dht,
    tasks: Tasks,
    /// The watch over the balance, which has to end before OFFLINE is announced: it would announce ONLINE again.
    moving: Tasks,
    directory: Directory,
    current: Arc<Current>,
    hosted: Arc<Hosted>,
    announcer: Mutex<Option<Arc<Announcer>>>,
    report: mpsc::Sender<Result<Range<u32>, StartError>>,
}

impl Lifecycle {
    pub(super) fn new(
        config: Config,
        source: ModelSource,
        (p2p, dht): (P2p, Dht),
        tasks: &Tasks,
        report: mpsc::Sender<Result<Range<u32>, StartError>>,
    ) -> Self {
        let n_blocks = source.config().n_blocks;
        let directory = Directory::new(dht.clone(), config.prefix.clone(), n_blocks);
        let max_batch_size = config.limits.max_batch_size;
        let max_batch_size = max_batch_size.unwrap_or_else(|| capacity::default_max_tokens(source.config()));
        let max_request_bytes = capacity::request_bytes(source.config(), max_batch_size);
        let current = Arc::new(Current::new(version(), config.access.clone()));
        let hosted = current.add(config.prefix.clone(), max_request_bytes);
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
            announcer: Mutex::default(),
            report,
        }
    }

    pub(super) fn current(&self) -> &Arc<Current> {
        &self.current
    }

    #[cfg(test)]
    pub(super) fn hosted(&self) -> &Hosted {
        &self.hosted
    }

    fn kv_dtype(&self) -> KvDType {
        self.config.limits.kv_dtype.unwrap_or(self.dtype().into())
    }

    /// Memory for as many tokens as sessions can reserve, as [`Serving::session_bytes`] counts them.
    fn cache_options(&self, n_blocks: usize) -> CacheOptions {
        let (config, dtype) = (self.source.config(), self.dtype());
        let bytes = capacity::cache_bytes(config, dtype, self.attn_cache_tokens(config), n_blocks);
        CacheOptions {
            dtype: Some(self.kv_dtype()),
            block_tokens: bytes / config.cache_bytes_per_token(dtype.into()).max(1) as u64,
            share_prefixes: self.config.limits.share_prefixes,
        }
    }

    fn dtype(&self) -> WeightDType {
        self.config.dtype.unwrap_or_else(|| self.source.config().auto_dtype())
    }

    fn precision(&self) -> Precision {
        let dtype = self.dtype();
        Precision {
            weights: self.config.quant.unwrap_or(dtype.into()),
            dtype,
        }
    }

    /// Chooses, announces, loads, announces. If that fails, OFFLINE is announced and nothing is served.
    pub(super) async fn bring_up(&self) -> Result<Range<u32>, StartError> {
        let outcome = self.choose_and_serve().await;
        if outcome.is_err() {
            self.take_down().await;
        }
        outcome
    }

    async fn choose_and_serve(&self) -> Result<Range<u32>, StartError> {
        let span = self.choose().await;
        info!(
            ?span,
            prefix = self.config.prefix,
            dtype = self.dtype().as_torch_str(),
            weights = self.precision().weights.as_str(),
            instructions = self.config.engine.instructions(),
            quant_instructions = self.config.engine.quant_instructions(),
            "serving these blocks"
        );
        self.hosted.set_record(self.record(None));
        let hosted = self.hosted.clone();
        let describe = move || hosted.describe();
        let announcer = Announcer::spawn(self.dht.clone(), self.announce_config(&span), describe, &self.tasks);
        let announcer = Arc::new(announcer);
        *self.announcer.lock().unwrap_or_else(PoisonError::into_inner) = Some(announcer.clone());
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
        self.wait_until_reachable().await?;
        self.hosted.set_record(self.record(Some(rates)));
        self.hosted.switch(Arc::new(serving));
        announcer
            .set_state(ServerState::Online)
            .await
            .map_err(StartError::Announce)?;
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
                "this server cannot be dialed, and no relay has a place for it: most clients will not reach it. Forward                  a port of the router to this machine and give --port and --public-ip, or join through a node that can                  be dialed and is a relay. The search for one goes on"
            );
        }
        match &self.config.monitor {
            Some(monitor) => confirm(monitor, self.p2p.peer_id())
                .await
                .map_err(StartError::NotReachable),
            None => Ok(()),
        }
    }

    /// Tells the swarm at once when others get to us in another way than before.
    pub(super) fn watch_access(self: &Arc<Self>) {
        let this = self.clone();
        self.moving.spawn_until_stopped("access", async move {
            let mut access = this.config.access.clone();
            let mut told = access.borrow_and_update().using_relay();
            while access.changed().await.is_ok() {
                let now = access.borrow_and_update().using_relay();
                if now != std::mem::replace(&mut told, now) {
                    info!(
                        using_relay = now,
                        "announcing that others get to this server in another way"
                    );
                    let announcer = this.announcer.lock().unwrap_or_else(PoisonError::into_inner);
                    announcer.iter().for_each(|announcer| announcer.renew());
                }
            }
        });
    }

    async fn choose(&self) -> Range<u32> {
        let config = self.source.config();
        let count = match &self.config.blocks {
            BlockChoice::Fixed(span) => return span.clone(),
            BlockChoice::Count(count) => *count,
            BlockChoice::AsManyAsFit => {
                let dtypes = (self.precision().weights, self.kv_dtype());
                capacity::blocks_that_fit(config, dtypes, self.attn_cache_tokens(config))
            }
        };
        // Servers that start together would all see the same gap; a random wait lets the later ones see the earlier.
        let wait = rand::rng().random_range(0.0..=2.0) * self.config.choose_after.as_secs_f64();
        tokio::time::sleep(Duration::from_secs_f64(wait)).await;
        let snapshot = self.directory.refresh().await;
        placement::choose(&snapshot, count)
    }

    fn attn_cache_tokens(&self, config: &ModelConfig) -> usize {
        self.config
            .limits
            .attn_cache_tokens
            .unwrap_or_else(|| capacity::default_attn_cache_tokens(config))
    }

    async fn load(&self, span: &Range<u32>) -> Result<(Serving, Rates), StartError> {
        let (source, blocks, precision) = (self.source.clone(), span.clone(), self.precision());
        let choice = self.config.throughput;
        let cache_file = self.config.throughput_cache.clone();
        let key = self.throughput_key(precision);
        let max_chunk_bytes = self.config.limits.max_chunk_size_bytes;
        let adapters = self.config.adapters.clone();
        let cache_options = self.cache_options(span.len());
        let engine = self.config.engine.clone();
        let loading = tokio::task::spawn_blocking(move || {
            let (start, end) = (blocks.start, blocks.end);
            let files = source
                .files_for_span(blocks.clone())
                .map_err(|source| StartError::Fetch { start, end, source })?;
            let loaded = Blocks::load(&files, blocks, precision, &engine)
                .and_then(|blocks| blocks.with_cache(cache_options))
                .map_err(|source| StartError::Load { start, end, source })?
                .with_max_chunk_bytes(max_chunk_bytes)
                .with_adapters(&adapters)
                .map_err(StartError::Adapter)?;
            let cache = cache_file.as_deref().map(|file| (file, key.as_str()));
            let rates = throughput::rates(choice, &loaded, cache).map_err(StartError::Measure)?;
            Ok((Arc::new(loaded), rates))
        });
        let (blocks, rates) = loading.await.map_err(|_| StartError::Interrupted)??;
        Ok((self.serving(blocks)?, rates))
    }

    fn serving(&self, blocks: Arc<Blocks>) -> Result<Serving, StartError> {
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
        let cache_tokens = self.attn_cache_tokens(config);
        Ok(Serving {
            prefix: self.config.prefix.clone(),
            span: blocks.span(),
            worker: Worker::start(blocks.clone(), choice.max_queue, self.current.counters.clone())
                .map_err(StartError::Thread)?,
            memory: Memory::new(capacity::cache_bytes(
                config,
                blocks.dtype(),
                cache_tokens,
                blocks.span().len(),
            )),
            sessions: Sessions::default(),
            limits,
            compression: self.config.compression,
            p2p: self.p2p.clone(),
            tasks: self.tasks.child(),
            push_permits: Arc::new(Semaphore::new(MAX_PUSHES)),
            backward_turn: Arc::new(Semaphore::new(1)),
            counters: self.current.counters.clone(),
            blocks,
        })
    }

    fn announce_config(&self, span: &Range<u32>) -> AnnounceConfig {
        let period = self.config.update_period;
        AnnounceConfig {
            prefix: self.config.prefix.clone(),
            peer: self.p2p.peer_id(),
            blocks: span.clone(),
            n_model_blocks: self.source.config().n_blocks,
            repository: self.source.repo_name().map(models::repository_url),
            period,
            expiration: self
                .config
                .expiration
                .unwrap_or_else(|| AnnounceConfig::default_expiration(period)),
        }
    }

    /// What does not change while a span is served. State, span and pings are the announcer's, and how others get to us
    /// is looked up when it is announced.
    fn record(&self, rates: Option<Rates>) -> Record {
        let throughput = self.throughput(rates);
        let info = ServerInfo {
            public_name: self.config.public_name.clone(),
            version: Some(version()),
            network_rps: rates.and_then(|rates| rates.network_rps),
            forward_rps: rates.and_then(|rates| rates.forward_rps),
            inference_rps: rates.and_then(|rates| rates.inference_rps),
            torch_dtype: Some(self.dtype().as_torch_str().to_string()),
            quant_type: Some(self.precision().weights.quant_type().to_string()),
            adapters: self
                .config
                .adapters
                .iter()
                .map(|adapter| adapter.name().to_owned())
                .collect(),
            ..ServerInfo::new(ServerState::Joining, throughput)
        };
        Record {
            info,
            relayed_throughput: rates.map_or(throughput, |rates| rates.relayed_throughput),
        }
    }

    /// What a measurement depends on: it is taken again when any of this changes.
    fn throughput_key(&self, precision: Precision) -> String {
        let build = if cfg!(debug_assertions) { "debug" } else { "release" };
        let (threads, instructions) = (self.config.engine.threads(), self.config.engine.instructions());
        let (model, dtype) = (self.source.name(), precision.dtype.as_torch_str());
        let weights = precision.weights.as_str();
        format!(
            "{model} {dtype} {weights} {threads} threads {instructions} {} {build}",
            env!("CARGO_PKG_VERSION")
        )
    }

    /// While loading nothing is measured yet, but the span must count for others that choose blocks at the same time: a
    /// zero would make them take the same ones.
    fn throughput(&self, rates: Option<Rates>) -> f64 {
        match (rates, self.config.throughput) {
            (Some(rates), _) => rates.throughput,
            (None, Throughput::Fixed(throughput)) => throughput,
            (None, Throughput::Auto) => UNMEASURED_THROUGHPUT,
        }
    }

    async fn go_offline(&self) {
        let announcer = self.announcer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(announcer) = announcer
            && let Err(error) = announcer.set_state(ServerState::Offline).await
        {
            warn!(%error, "the swarm learns that these blocks are gone only when their records expire");
        }
    }

    /// Ends everything, in this order: moving, announcing, answering, computing.
    pub(super) async fn shut_down(&self) {
        self.moving.shutdown().await;
        self.take_down().await;
        self.tasks.shutdown().await;
    }

    /// OFFLINE, then no more answers, then no more computing.
    async fn take_down(&self) {
        self.go_offline().await;
        for serving in self.hosted.clear() {
            serving.tasks.shutdown().await;
            serving.worker.stop();
        }
    }

    /// Looks from time to time whether the swarm would be better off with us elsewhere, and moves.
    pub(super) fn watch_balance(self: &Arc<Self>) {
        let fixed = matches!(self.config.blocks, BlockChoice::Fixed(_));
        if fixed || self.config.balance_quality <= 0.0 {
            return;
        }
        let this = self.clone();
        self.moving.spawn_until_stopped("balance", async move {
            loop {
                let wait = rand::rng().random_range(0.0..=2.0) * this.config.mean_balance_check_period.as_secs_f64();
                tokio::time::sleep(Duration::from_secs_f64(wait)).await;
                if !this.should_move().await {
                    continue;
                }
                info!("moving to blocks that the swarm needs more");
                this.take_down().await;
                let outcome = this.bring_up().await;
                let failed = outcome.is_err();
                if let Err(error) = &outcome {
                    error!(error = error as &dyn std::error::Error, "the move failed");
                }
                if this.report.send(outcome).await.is_err() || failed {
                    return;
                }
            }
        });
    }

    async fn should_move(&self) -> bool {
        let snapshot = self.directory.refresh().await;
        placement::should_move(
            &snapshot,
            self.p2p.peer_id(),
            self.config.balance_quality,
            &mut rand::rng(),
        )
    }
}

/// What monitors show; they cut it to ten characters.
fn version() -> String {
    format!(
        "sepal {}.{}",
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR")
    )
}
