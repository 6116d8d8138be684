//! Generates text through a chain of servers: embeddings, final norm, head and sampling are here, all blocks are theirs,
//! but for those at both ends if the client is to hold them itself (`local`).
//!
//! ```text
//! text ─▶ tokens ─▶ embeddings ─▶ Session (hop, hop, …) ─▶ norm, head ─▶ sample ─▶ token ─▶ text
//!                        ▲                                                           │
//!                        └───────────────────────────────────────────────────────────┘
//! ```
//!
//! Not a server and no part of one: a client joins the DHT without serving records to others.

mod activations;
mod attempts;
mod bans;
mod chat;
mod constraint;
mod conversations;
mod error;
mod generate;
mod history;
mod local;
mod pace;
mod remote;
mod run;
mod scout;
mod session;
mod speculate;
mod text;
mod verify;

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

pub use self::{
    activations::Activations,
    bans::Avoided,
    chat::{Chat, ChatError, ChatTemplate, Ending, LocalTime},
    constraint::{Constraint, ConstraintError, Constraints},
    conversations::{Conversations, Limits},
    error::{ClientError, RemoteError},
    generate::{FinishReason, Generation, Params, Token},
    local::{LocalError, LocalGeneration, LocalModel, LocalOptions, LocalSession, PrivateEnds},
    run::Run,
    scout::Scout,
    session::{HopReport, Session, WrongAnswer},
    speculate::{DraftError, DraftModel, Guesses, Speculate},
    text::{TextCodec, TextError},
};
use self::{
    activations::{Encoding, Lines, Stop},
    bans::Bans,
    local::OwnEnds,
    pace::Pace,
    session::Verifier,
    speculate::Drafts,
};
use crate::{
    dht::Dht,
    model::{Adapter, Ends, Engine, LoadError, ModelSource, WeightDType},
    p2p::{P2p, PeerId, Transfer},
    receipt::Keeper,
    swarm::{
        Snapshot,
        directory::{Directory, Filter},
        ping::{self, Rtts},
        route::{self, Hop, Known, Measured, MissingBlocks, Route, Times},
    },
    task::Tasks,
};
use sepal_protocol::tensor::DType;

/// How a client behaves. Defaults are Petals' (`client/config.py`) where it has the setting and where it works.
#[derive(Clone, Debug)]
pub struct Config {
    /// DHT prefix of the model.
    pub prefix: String,
    /// Longest wait for one step of one server.
    pub request_timeout: Duration,
    /// How often the directory is read again in the background.
    pub update_period: Duration,
    /// Longest wait for a stream to a server.
    pub connect_timeout: Duration,
    /// How to wait for blocks that nobody serves.
    pub backoff: Backoff,
    /// Let servers push to each other.
    pub push: bool,
    /// How activations travel.
    pub activations: Activations,
    /// Share of the steps, from 0 to 1, that are computed once more on another server and compared. More than 0 also means
    /// that servers do not push: what one of them hands on is not what the client gets to see.
    pub verify: f64,
    /// Servers that may or may not be used.
    pub filter: Filter,
    /// Whether generations guess tokens ahead.
    pub speculate: Speculate,
    /// A small model that guesses too, if any guesses are made. See [`DraftModel::check`]; tokens that the model does not
    /// have are never guessed.
    pub draft: Option<DraftModel>,
    /// Blocks at both ends that the client holds itself.
    pub private_ends: Option<PrivateEnds>,
    /// Where the receipts of servers are kept, which are only asked for then.
    pub receipts: Option<Keeper>,
}

/// Petals: 180 s for a step, 60 s between two looks at the directory, 5 s to connect.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(180);
const UPDATE_PERIOD: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// When to look again for blocks that nobody serves.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// Looks before a step ends with an error. Petals goes on for ever.
    pub max_retries: usize,
    /// The first pause; each is twice as long as the one before.
    pub min: Duration,
    /// The longest pause.
    pub max: Duration,
}

impl Default for Backoff {
    /// Petals' pauses from 1 s to 60 s. Five of them, 31 s together, outlast a server that restarts.
    fn default() -> Self {
        Self {
            max_retries: 5,
            min: Duration::from_secs(1),
            max: Duration::from_secs(60),
        }
    }
}

impl Config {
    /// The defaults for the model under `prefix`.
    pub fn new(prefix: String) -> Self {
        Self {
            prefix,
            request_timeout: REQUEST_TIMEOUT,
            update_period: UPDATE_PERIOD,
            connect_timeout: CONNECT_TIMEOUT,
            backoff: Backoff::default(),
            push: true,
            activations: Activations::default(),
            verify: 0.0,
            filter: Filter::default(),
            speculate: Speculate::Off,
            draft: None,
            private_ends: None,
            receipts: None,
        }
    }
}

impl Config {
    /// What the client cannot hold is refused before anything is fetched.
    fn check(&self, source: &ModelSource) -> Result<(), LocalError> {
        let Some(wanted) = &self.private_ends else {
            return Ok(());
        };
        wanted.others(source)?;
        let adapter = wanted.adapter.as_ref().map(Adapter::name);
        match &self.filter.adapter {
            Some(name) if adapter != Some(name) => Err(LocalError::NoAdapter { name: name.clone() }),
            _ => wanted.check_room(source),
        }
    }
}

/// A client of one model in one swarm. Clones share everything.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    ends: Arc<Ends>,
    speculate: Speculate,
    drafts: Option<Drafts>,
    own: Option<OwnEnds>,
}

/// What sessions need of their client.
#[derive(Debug)]
struct Shared {
    p2p: P2p,
    dht: Dht,
    directory: Directory,
    rtts: Mutex<Rtts>,
    /// What steps of this client's sessions took.
    times: Mutex<Times>,
    bans: Mutex<Bans>,
    prefix: Arc<str>,
    adapter: Option<Arc<str>>,
    /// Those that servers are asked for.
    blocks: Range<u32>,
    request_timeout: Duration,
    connect_timeout: Duration,
    backoff: Backoff,
    push: bool,
    activations: Activations,
    lines: Mutex<Lines>,
    /// Share of the steps.
    verify: f64,
    receipts: Option<Keeper>,
    /// It was said that some blocks are held by one server only, and so cannot be verified.
    said_alone: AtomicBool,
    started: Instant,
}

impl Client {
    /// Loads the client's part of the model, reads who serves what, and keeps that knowledge fresh in the background.
    ///
    /// # Errors
    /// When embeddings or head cannot be loaded. A swarm without servers is no error yet: they may come.
    pub async fn connect(
        config: Config,
        source: &ModelSource,
        parts: (P2p, Dht),
        tasks: &Tasks,
    ) -> Result<Self, ClientError> {
        let n_blocks = source.config().n_blocks;
        config.check(source)?;
        let speculate = config.speculate;
        let draft = config.draft.clone().filter(|_| speculate != Speculate::Off);
        let (files, private_ends) = (source.clone(), config.private_ends.clone());
        let loading = tokio::task::spawn_blocking(move || load(&files, private_ends.as_ref(), draft.as_ref()));
        let Scout { shared } = Scout::connect(config, n_blocks, parts, tasks).await;
        let Loaded { ends, own, draft } = loading.await.map_err(|_| ClientError::Interrupted)??;
        Ok(Self {
            shared,
            ends,
            own,
            speculate,
            drafts: draft.map(|model| Drafts::new(model, tasks.clone())),
        })
    }

    /// A session that can take `max_length` tokens. Servers reserve memory for all of them at the first step.
    pub fn session(&self, max_length: usize) -> Session {
        let own = self.own.as_ref().map(|own| own.session(max_length));
        let has_experts = self.ends.config().feed_forward.experts.is_some();
        let verifier = Verifier::new(self.shared.verify, has_experts);
        Session::new(self.shared.clone(), own, max_length, verifier)
    }

    /// The client's own part of the model.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Who serves what, as last read.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.directory.snapshot()
    }

    /// Who serves the model, as far as it was looked.
    pub fn directory(&self) -> &Directory {
        &self.shared.directory
    }

    /// Reads the directory now.
    pub async fn refresh(&self) {
        self.shared.refresh().await;
    }

    /// The servers that this client leaves out for a while because of what they did, by the end of that.
    pub fn avoided(&self) -> Vec<Avoided> {
        self.shared.avoided()
    }

    /// The blocks that no server holds which did not fail lately, as last read.
    pub fn missing(&self) -> Vec<Range<u32>> {
        let shared = &self.shared;
        let failed = shared.lock_bans().active(Instant::now());
        let route = route::shortest(&self.snapshot(), shared.blocks.clone(), &shared.known(), None, &failed);
        route.err().map(|missing| missing.missing).unwrap_or_default()
    }

    /// The chain of servers that a new session of `max_length` tokens would take.
    ///
    /// # Errors
    /// Names the blocks that nobody serves.
    pub async fn route(&self, max_length: usize) -> Result<Vec<Hop>, ClientError> {
        let blocks = self.shared.blocks.clone();
        let route = self.shared.route(blocks, max_length, &HashSet::new()).await;
        route.map_err(|missing| ClientError::MissingBlocks { missing, last: None })
    }
}

/// What the client computes itself.
struct Loaded {
    ends: Arc<Ends>,
    own: Option<OwnEnds>,
    draft: Option<LocalModel>,
}

fn load(
    source: &ModelSource,
    private_ends: Option<&PrivateEnds>,
    draft: Option<&DraftModel>,
) -> Result<Loaded, ClientError> {
    // In the checkpoint's own precision: nothing is lost, and the weights stay in the mapped file.
    let dtype = source.config().torch_dtype.unwrap_or(WeightDType::F32);
    let files = source
        .files_for_ends()
        .map_err(|error| ClientError::Fetch(Box::new(error)))?
        .with_own_formats();
    let load_error = |error| ClientError::Load(Box::new(error));
    let engine = Engine::new(None).map_err(LoadError::Threads).map_err(load_error)?;
    let ends = Ends::load(&files, dtype, &engine).map_err(load_error)?;
    let own = private_ends.map(|wanted| OwnEnds::load(source, wanted, &engine));
    let draft = draft.map(|draft| LocalModel::load(&draft.source, &engine, &draft.options));
    Ok(Loaded {
        ends: Arc::new(ends),
        own: own.transpose()?,
        draft: draft.transpose().map_err(|error| ClientError::Draft(Box::new(error)))?,
    })
}

/// How the version that a Sepal server announces begins.
const SEPAL: &str = "sepal";

/// Whether a server goes by the metadata of each step rather than of a session's first one, by the version that it
/// announces: Sepal's says so, Petals' is a number, and does since 2.3.
fn reads_each_step(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let petals = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version.starts_with(SEPAL) || petals >= (2, 3)
}

impl Shared {
    fn new(config: Config, n_blocks: u32, p2p: P2p, dht: Dht) -> Self {
        let adapter = config.filter.adapter.as_deref().map(Arc::from);
        let own = config.private_ends.map_or(0, |ends| ends.blocks);
        Self {
            directory: Directory::filtered(dht.clone(), config.prefix.clone(), n_blocks, config.filter),
            p2p,
            dht,
            rtts: Mutex::default(),
            times: Mutex::default(),
            bans: Mutex::default(),
            prefix: config.prefix.into(),
            adapter,
            blocks: own..n_blocks.saturating_sub(own),
            request_timeout: config.request_timeout,
            connect_timeout: config.connect_timeout,
            backoff: config.backoff,
            // What is verified goes through this client, as exactly as servers compute.
            push: config.push && config.verify <= 0.0,
            activations: match config.verify > 0.0 {
                true => Activations::Exact,
                false => config.activations,
            },
            verify: config.verify,
            receipts: config.receipts,
            said_alone: AtomicBool::new(false),
            lines: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Reads all block records again and pings servers that a route may start or end with, and those in use.
    async fn refresh(&self) {
        let snapshot = self.directory.refresh().await;
        let mut peers = ping::sample_for_client(&snapshot, self.blocks.clone(), &mut rand::rng());
        let used = self.times.lock().unwrap_or_else(PoisonError::into_inner).peers();
        peers.extend(
            snapshot
                .spans
                .iter()
                .map(|span| span.peer)
                .filter(|peer| used.contains(peer)),
        );
        self.ping(peers).await;
    }

    /// Measures round trips. To those who were never asked there may be no connection yet, and making one takes several
    /// round trips: their first answer does not count.
    async fn ping(&self, peers: BTreeSet<PeerId>) {
        let known = self.known().rtts;
        let (mut asked, strangers): (BTreeSet<_>, BTreeSet<_>) = peers
            .into_iter()
            .partition(|peer| known.get(peer).is_some_and(|rtt| rtt.is_finite()));
        let hello = ping::measure(&self.dht, strangers, ping::CLIENT_TIMEOUT).await;
        let (there, silent): (Vec<_>, Vec<_>) = hello.into_iter().partition(|(_, rtt)| rtt.is_finite());
        asked.extend(there.into_iter().map(|(peer, _)| peer));
        let answers = ping::measure(&self.dht, asked, ping::CLIENT_TIMEOUT).await;
        let now = self.seconds();
        let mut rtts = self.rtts.lock().unwrap_or_else(PoisonError::into_inner);
        for (peer, rtt) in answers.into_iter().chain(silent) {
            rtts.record(peer, rtt, now);
        }
    }

    /// All that is known of servers now besides their records.
    fn known(&self) -> Known {
        let now = self.seconds();
        Known {
            rtts: self.rtts.lock().unwrap_or_else(PoisonError::into_inner).at(now),
            times: self.times.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            now,
        }
    }

    /// Takes in what the hops of a step of one token took: later routes go by it.
    fn took(&self, step: &[Measured]) {
        let (snapshot, known) = (self.directory.snapshot(), self.known());
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.record(step, &known.rtts, |from, to| snapshot.rtt_between(from, to), known.now);
    }

    /// The cheapest chain over `blocks` of servers that nothing speaks against, as far as is known now.
    fn alternative(&self, blocks: Range<u32>, max_length: usize, excluded: &HashSet<PeerId>) -> Option<Route> {
        let snapshot = self.directory.snapshot();
        let mut avoided = self.lock_bans().active(Instant::now());
        avoided.extend(excluded);
        route::shortest(&snapshot, blocks, &self.known(), Some(max_length as u64), &avoided).ok()
    }

    /// What steps of a server should take, for blocks that it serves.
    fn pace(&self, hop: &Hop) -> Pace {
        let snapshot = self.directory.snapshot();
        let span = snapshot.spans.iter().find(|span| span.peer == hop.peer);
        let rtts = self.rtts.lock().unwrap_or_else(PoisonError::into_inner);
        let n_blocks = hop.blocks.end - hop.blocks.start;
        let rtt = rtts.get(&hop.peer, self.seconds());
        Pace::new(span.map(|span| &span.info), n_blocks, rtt)
    }

    /// The cheapest chain over `blocks`, without the `excluded` and those who lied, and without the banned if there is one
    /// without them.
    async fn route(
        &self,
        blocks: Range<u32>,
        max_length: usize,
        excluded: &HashSet<PeerId>,
    ) -> Result<Vec<Hop>, MissingBlocks> {
        let snapshot = self.directory.snapshot();
        let now = Instant::now();
        let (mut avoided, mut excluded) = (self.lock_bans().active(now), excluded.clone());
        excluded.extend(self.lock_bans().liars(now));
        avoided.extend(&excluded);
        let known = self.known();
        let length = Some(max_length as u64);
        let preferred = route::shortest(&snapshot, blocks.clone(), &known, length, &avoided);
        let any = || route::shortest(&snapshot, blocks, &known, length, &excluded);
        // The first error names more servers as failed.
        preferred
            .or_else(|missing| any().map_err(|_| missing))
            .map(|route| route.hops)
    }

    /// Seconds since this client began: the clock of the round-trip estimates.
    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Takes in what the line to a server carried.
    fn carried(&self, peer: PeerId, (sent, received): (Option<Transfer>, Option<Transfer>)) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.record(peer, sent, received);
    }

    /// Whether the encoding of so many numbers is to be chosen and nothing is known to choose by.
    fn needs_trial(&self, peers: impl Iterator<Item = PeerId>, numbers: usize) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        self.activations == Activations::Auto && lines.need_trial(peers, numbers)
    }

    /// How a step of so many numbers is to travel through servers that compute in these dtypes.
    fn encoding(&self, numbers: usize, chain: &[(PeerId, DType)]) -> Encoding {
        let known = self.known();
        let stops = chain.iter().map(|(peer, dtype)| Stop {
            peer: *peer,
            dtype: *dtype,
            obliges: self.is_sepal(*peer),
            rtt: known.rtts.get(peer).copied(),
        });
        let stops: Vec<_> = stops.collect();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.choose(self.activations, numbers, &stops)
    }

    /// The dtype to send activations to `peer` in: the one it computes in, because it would convert any other.
    fn wire_dtype(&self, peer: PeerId) -> DType {
        let snapshot = self.directory.snapshot();
        let info = snapshot
            .spans
            .iter()
            .find(|span| span.peer == peer)
            .map(|span| &span.info);
        match info.and_then(|info| info.torch_dtype.as_deref()) {
            Some("bfloat16") => DType::Bf16,
            Some("float16") => DType::F16,
            _ => DType::F32,
        }
    }

    /// Who is left out now, and what for.
    fn avoided(&self) -> Vec<Avoided> {
        let now = Instant::now();
        let reasons = self.lock_bans().reasons(now);
        let avoided = reasons.into_iter().map(|(peer, until, reason)| Avoided {
            peer,
            name: self.public_name(peer),
            left: until.saturating_duration_since(now),
            reason,
        });
        avoided.collect()
    }

    /// Tokens that one more session could reserve on a server, by its record: that counts keys, values and every block.
    fn room_left(&self, peer: PeerId) -> Option<usize> {
        let snapshot = self.directory.snapshot();
        let span = snapshot.spans.iter().find(|span| span.peer == peer)?;
        let left = span.info.cache_tokens_left? / (2 * u64::from(span.n_blocks().max(1)));
        usize::try_from(left).ok()
    }

    /// What a server calls itself.
    fn public_name(&self, peer: PeerId) -> Option<String> {
        let snapshot = self.directory.snapshot();
        let span = snapshot.spans.iter().find(|span| span.peer == peer);
        span.and_then(|span| span.info.public_name.clone())
    }

    /// Whether a server takes back tokens.
    fn can_rewind(&self, peer: PeerId) -> bool {
        self.reads_each_step(peer)
    }

    /// Whether the first step of a session may name the servers to push to. Petals 2.2 would push the outputs of all later
    /// steps under the name of that first one.
    fn pushes_at_once(&self, peer: PeerId) -> bool {
        self.reads_each_step(peer)
    }

    fn reads_each_step(&self, peer: PeerId) -> bool {
        self.version_of(peer).is_some_and(|version| reads_each_step(&version))
    }

    fn is_sepal(&self, peer: PeerId) -> bool {
        self.version_of(peer).is_some_and(|version| version.starts_with(SEPAL))
    }

    fn version_of(&self, peer: PeerId) -> Option<String> {
        let snapshot = self.directory.snapshot();
        let span = snapshot.spans.iter().find(|span| span.peer == peer)?;
        span.info.version.clone()
    }

    /// A server that answered starts afresh, whatever it did before; but not one that lied.
    fn works(&self, peer: PeerId) {
        self.lock_bans().succeeded(&peer);
    }

    fn ban(&self, peer: PeerId, reason: &str) {
        self.lock_bans().failed(peer, reason, Instant::now());
    }

    fn lock_bans(&self) -> MutexGuard<'_, Bans> {
        self.bans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_read_every_step_are_known_by_their_version() {
        for version in ["sepal 0.1", "2.3.0.dev2", "2.10.1", "3.0"] {
            assert!(reads_each_step(version), "{version}");
        }
        for version in ["2.2.0.post1", "1.1.5", "", "unknown"] {
            assert!(!reads_each_step(version), "{version}");
        }
    }
}
