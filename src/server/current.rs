//! What this node serves right now, model by model. Handlers look here at every request: the uid of its first block says
//! which model, and its blocks say which span of that. Nothing is loaded or announced here.
//!
//! A model that moves has two spans for a while: the one that is announced, and the one before it, which clients that
//! have not heard of the move still ask for and on which sessions are still open.

#[cfg(test)]
use std::{collections::BTreeSet, sync::OnceLock};
use std::{
    ops::{Add, Range},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use sepal_protocol::record::{BlockUid, ServerInfo, ServerState};
use tokio::sync::{Mutex, MutexGuard, watch};
use tracing::debug;

use super::{
    capacity,
    error::RequestError,
    guests::{Guests, Origin},
    holding::room,
    ledger::Ledger,
    membership::Membership,
    pauses::{Pause, Pauses},
    request::parse_chain,
    serving::{Limits, Serving},
    stats::Counters,
    waiting::Waits,
};
use crate::{
    model::{CacheCounts, Machine},
    p2p::PeerId,
};

/// All models of this node, for those who ask from one of its swarms. What is said here of the models holds in all of them.
#[derive(Debug)]
pub(crate) struct Current {
    /// Shown in `rpc_info`.
    pub(super) version: String,
    /// Where the requests come from.
    pub(super) membership: Arc<Membership>,
    models: Arc<RwLock<Vec<Arc<Hosted>>>>,
    /// Whether nothing new is begun.
    paused: Arc<AtomicBool>,
    pauses: Arc<std::sync::Mutex<Pauses>>,
    pub(super) guests: Arc<Guests>,
    pub(super) counters: Arc<Counters>,
    /// Had by the model that looks what memory is free and takes of it.
    turn: Arc<Mutex<()>>,
    /// How many blocks of all models there is memory for, and bytes beside them and their passes.
    #[cfg(test)]
    budget: Arc<OnceLock<(usize, u64)>>,
}

/// One model: its spans, and what is said of it.
#[derive(Debug)]
pub(crate) struct Hosted {
    prefix: String,
    /// Most bytes of one request, all its tensors together.
    max_request_bytes: usize,
    spans: RwLock<Spans>,
    record: RwLock<Record>,
    /// What the swarms are to be told.
    said: watch::Sender<Option<Said>>,
    pub(super) ledger: Arc<Ledger>,
    /// That of the node.
    paused: Arc<AtomicBool>,
    /// Whether it came up, or could not. Until then it is counted on memory that is still free.
    settled: AtomicBool,
}

/// What there is to be said of a model: these blocks, in this state. OFFLINE is nothing to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) blocks: Range<u32>,
    pub(super) state: ServerState,
}

#[derive(Debug, Default)]
struct Spans {
    /// The span that is announced.
    now: Option<Arc<Serving>>,
    /// The ones before it that still take new requests.
    lingering: Vec<Arc<Serving>>,
    /// The ones before those, which are there as long as a session holds them.
    finishing: Vec<Weak<Serving>>,
}

/// What a server says about itself, without what changes from one moment to the next.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) info: ServerInfo,
    /// What `info` says when others dial us is less when everything comes through a relay. Tokens per second.
    pub(super) relayed_throughput: f64,
}

impl Current {
    pub(super) fn new(version: String, membership: Arc<Membership>, guests: Guests) -> Self {
        Self {
            version,
            membership,
            models: Arc::default(),
            paused: Arc::default(),
            pauses: Arc::default(),
            guests: Arc::new(guests),
            counters: Arc::default(),
            turn: Arc::default(),
            #[cfg(test)]
            budget: Arc::default(),
        }
    }

    /// The same models for those who ask from another swarm.
    pub(super) fn seen_from(&self, membership: Arc<Membership>) -> Self {
        Self {
            version: self.version.clone(),
            membership,
            models: self.models.clone(),
            paused: self.paused.clone(),
            pauses: self.pauses.clone(),
            guests: self.guests.clone(),
            counters: self.counters.clone(),
            turn: self.turn.clone(),
            #[cfg(test)]
            budget: self.budget.clone(),
        }
    }

    /// One more model, which serves nothing yet.
    pub(super) fn add(&self, prefix: String, max_request_bytes: usize) -> Arc<Hosted> {
        let record = Record {
            info: ServerInfo::new(ServerState::Offline, 0.0),
            relayed_throughput: 0.0,
        };
        let hosted = Arc::new(Hosted {
            prefix,
            max_request_bytes,
            spans: RwLock::default(),
            record: RwLock::new(record),
            said: watch::Sender::new(None),
            ledger: Arc::new(Ledger::new()),
            paused: self.paused.clone(),
            settled: AtomicBool::default(),
        });
        write(&self.models).push(hosted.clone());
        hosted
    }

    /// How many models share this node.
    pub(super) fn n_models(&self) -> usize {
        read(&self.models).len()
    }

    /// Bytes that may be planned with now, in each place that blocks can be in.
    pub(super) fn free(&self, machine: &Machine) -> Vec<u64> {
        let room = self.room(machine);
        if machine.has_cards() {
            // Passes have their memory on the host.
            return room;
        }
        // Of models that are not up yet, blocks and passes are planned together, and nothing moves before they are up.
        let models = read(&self.models);
        let spans: Vec<_> = models.iter().filter_map(|model| model.now()).collect();
        let untaken = || spans.iter().map(|serving| serving.promised());
        room.into_iter()
            .map(|bytes| capacity::beside_passes(bytes, untaken()))
            .collect()
    }

    /// What the system says is free, or the cards.
    #[cfg(not(test))]
    fn room(&self, machine: &Machine) -> Vec<u64> {
        room(machine)
    }

    /// The same, or what is left of the budget.
    #[cfg(test)]
    fn room(&self, machine: &Machine) -> Vec<u64> {
        let Some((budget, rest)) = self.budget.get() else {
            return room(machine);
        };
        let models = read(&self.models);
        let spans: Vec<_> = models.iter().map(|model| model.all()).collect();
        let blocks_of = |spans: &Vec<Arc<Serving>>| -> BTreeSet<u32> {
            spans.iter().flat_map(|serving| serving.span.clone()).collect()
        };
        let taken: usize = spans.iter().map(|spans| blocks_of(spans).len()).sum();
        let bytes_of_each = spans.iter().flatten().map(|serving| serving.blocks.block_bytes());
        let bytes = bytes_of_each.max().unwrap_or(0) * budget.saturating_sub(taken) as u64;
        let now = models.iter().filter_map(|model| model.now());
        let of_passes: u64 = now.map(|serving| serving.promised()).sum();
        vec![bytes + of_passes + rest]
    }

    #[cfg(test)]
    pub(super) fn set_budget(&self, n_blocks: usize, rest: u64) {
        self.budget.set((n_blocks, rest)).unwrap();
    }

    /// Waits until no other model of the node looks what memory is free, or takes of it, and keeps them from it as long as what
    /// this returns is held.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Whether every model of the node came up, or could not.
    pub(super) fn is_settled(&self) -> bool {
        read(&self.models)
            .iter()
            .all(|model| model.settled.load(Ordering::SeqCst))
    }

    /// Most bytes of one request to any of the models.
    pub(super) fn max_request_bytes(&self) -> usize {
        let models = read(&self.models);
        models.iter().map(|model| model.max_request_bytes).max().unwrap_or(0)
    }

    /// Whether others cannot dial us: our DHT serves nobody then.
    pub(super) fn using_relay(&self) -> bool {
        self.membership.using_relay()
    }

    /// The span that runs the chain `uid`, such as `P.3 P.4`, and the numbers of its blocks.
    ///
    /// # Errors
    /// While nothing is loaded, and for blocks that are not served.
    pub(super) fn find(&self, uid: &str) -> Result<(Arc<Serving>, Arc<[u32]>), RequestError> {
        let spans = self.model_of(uid)?.taking_requests();
        find_in(&spans, uid)
    }

    /// The same for a request that begins something new.
    ///
    /// # Errors
    /// As [`Current::find`], and while the node is paused or leaves the swarm that the request comes from.
    pub(super) fn find_for_work(&self, uid: &str) -> Result<(Arc<Serving>, Arc<[u32]>), RequestError> {
        let found = self.find(uid)?;
        match self.is_paused() || self.membership.is_left() {
            true => Err(RequestError::Paused),
            false => Ok(found),
        }
    }

    /// Whether nothing new is begun; sessions that are open go on.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Notes what a person said or what hours it is. Returns whether that changes whether anything new is begun.
    pub(super) fn pause(&self, change: impl FnOnce(&mut Pauses)) -> bool {
        let changed = {
            let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut pauses);
            let paused = pauses.is_paused();
            self.paused.swap(paused, Ordering::SeqCst) != paused
        };
        read(&self.models).iter().for_each(|model| model.tell());
        changed
    }

    /// Why nothing new is begun, while that is so.
    pub(super) fn why_paused(&self) -> Option<Pause> {
        let pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.why()
    }

    /// Whoever asks from this swarm, if anything is computed for them.
    ///
    /// # Errors
    /// When the person who runs the node does not want that.
    pub(super) fn admit(&self, peer: PeerId) -> Result<Origin, RequestError> {
        self.guests.admit(peer, &self.membership.p2p().origins(&peer))
    }

    /// Whether steps that a peer of this swarm passes on for others are taken.
    ///
    /// # Errors
    /// When the person who runs the node does not want anything of it.
    pub(super) fn hear(&self, peer: PeerId) -> Result<(), RequestError> {
        self.guests.hear(&peer, &self.membership.p2p().origins(&peer))
    }

    /// The same for the open sessions of a chain: those of a span that takes no new ones count as well.
    ///
    /// # Errors
    /// As [`Current::find`].
    pub(super) fn find_open(&self, uid: &str) -> Result<Arc<Serving>, RequestError> {
        let spans = self.model_of(uid)?.all();
        find_in(&spans, uid).map(|(serving, _)| serving)
    }

    /// The announced spans of all models.
    ///
    /// # Errors
    /// While nothing is loaded.
    pub(super) fn announced(&self) -> Result<Vec<Arc<Serving>>, RequestError> {
        let models = read(&self.models);
        let announced: Vec<_> = models.iter().filter_map(|model| model.now()).collect();
        if announced.is_empty() {
            return Err(RequestError::NotServing);
        }
        Ok(announced)
    }

    /// Steps and requests that wait or are computed, on all spans.
    pub(super) fn waits(&self) -> Waits {
        let models = read(&self.models);
        let waits = models.iter().map(|model| model.waits());
        waits.fold(Waits::default(), Waits::add)
    }

    /// How the memory of all caches is used, on every span that is still there. The spans of a move share theirs, which
    /// counts once.
    pub(super) fn cache_counts(&self) -> CacheCounts {
        let models = read(&self.models);
        let mut spans: Vec<Arc<Serving>> = Vec::new();
        for serving in models.iter().flat_map(|model| model.all()) {
            if !spans.iter().any(|other| other.blocks.has_cache_of(&serving.blocks)) {
                spans.push(serving);
            }
        }
        spans.iter().map(|serving| serving.blocks.cache_counts()).sum()
    }

    /// Limits for requests of which it is not known yet what they are for: those of the first model. The flags that set
    /// them are the same for all.
    ///
    /// # Errors
    /// While nothing is loaded.
    pub(super) fn limits(&self) -> Result<Limits, RequestError> {
        let announced = self.announced()?;
        announced
            .first()
            .map(|serving| serving.limits.clone())
            .ok_or(RequestError::NotServing)
    }

    /// The model that the first block of `uid` belongs to. If it belongs to none, the first one: it has the words for
    /// refusing it.
    pub(super) fn model_of(&self, uid: &str) -> Result<Arc<Hosted>, RequestError> {
        let models = read(&self.models);
        let first: Option<BlockUid> = uid.split(' ').next().and_then(|uid| uid.parse().ok());
        let named = first.and_then(|uid| models.iter().find(|model| model.prefix == uid.prefix()));
        named.or(models.first()).cloned().ok_or(RequestError::NotServing)
    }

    /// Notes a request that ends with an error, on its way to the client.
    pub(super) fn rejected(&self, error: RequestError) -> RequestError {
        self.counters.rejected.add();
        self.counters.refusals.note(&error);
        debug!(error = &error as &dyn std::error::Error, "rejected");
        error
    }
}

fn find_in(spans: &[Arc<Serving>], uid: &str) -> Result<(Arc<Serving>, Arc<[u32]>), RequestError> {
    let mut refusal = None;
    for serving in spans {
        match parse_chain(uid, &serving.prefix, &serving.span) {
            Ok(chain) => return Ok((serving.clone(), chain)),
            Err(error) => drop(refusal.get_or_insert(error)),
        }
    }
    Err(refusal.unwrap_or(RequestError::NotServing))
}

impl Hosted {
    /// The announced span.
    pub(super) fn now(&self) -> Option<Arc<Serving>> {
        read(&self.spans).now.clone()
    }

    /// The announced span first, then those that clients may not have forgotten yet.
    fn taking_requests(&self) -> Vec<Arc<Serving>> {
        let spans = read(&self.spans);
        spans.now.iter().chain(&spans.lingering).cloned().collect()
    }

    /// Every span that is still in memory.
    pub(super) fn all(&self) -> Vec<Arc<Serving>> {
        let spans = read(&self.spans);
        let finishing = spans.finishing.iter().filter_map(Weak::upgrade);
        spans
            .now
            .iter()
            .chain(&spans.lingering)
            .cloned()
            .chain(finishing)
            .collect()
    }

    /// Notes that it came up, or could not.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::SeqCst);
    }

    /// Steps and requests that wait or are computed, on all spans.
    pub(super) fn waits(&self) -> Waits {
        let all = self.all();
        let waits = all.iter().map(|serving| serving.worker.waits());
        waits.fold(Waits::default(), Waits::add)
    }

    /// Serves `next` from now on; the span before goes on taking requests until [`Hosted::retire`].
    pub(super) fn switch(&self, next: Arc<Serving>) {
        let mut spans = write(&self.spans);
        let before = spans.now.replace(next);
        spans.lingering.extend(before);
        drop(spans);
        self.tell();
    }

    /// Has the swarms told that `blocks` will be there soon.
    pub(super) fn tell_joining(&self, blocks: Range<u32>) {
        let state = ServerState::Joining;
        self.said.send_replace(Some(Said { blocks, state }));
    }

    /// Has the swarms told what is served, if anything is.
    fn tell(&self) {
        self.said.send_if_modified(|said| {
            let next = self.now().map(|serving| Said {
                blocks: serving.span.clone(),
                state: self.state(),
            });
            let changed = next.is_some() && *said != next;
            if changed {
                *said = next;
            }
            changed
        });
    }

    /// What the swarms are to be told, whenever that changes.
    pub(super) fn said(&self) -> watch::Receiver<Option<Said>> {
        self.said.subscribe()
    }

    /// Of blocks that are there.
    fn state(&self) -> ServerState {
        match self.paused.load(Ordering::SeqCst) {
            true => ServerState::Joining,
            false => ServerState::Online,
        }
    }

    /// Takes no new requests any more for `old`; it is gone when the last session on it ends.
    pub(super) fn retire(&self, old: &Weak<Serving>) {
        let mut spans = write(&self.spans);
        spans.finishing.retain(|serving| serving.strong_count() > 0);
        spans
            .lingering
            .retain(|serving| !std::ptr::eq(Arc::as_ptr(serving), old.as_ptr()));
        spans.finishing.push(old.clone());
    }

    /// Serves nothing any more; returns every span there was.
    pub(super) fn clear(&self) -> Vec<Arc<Serving>> {
        let all = self.all();
        *write(&self.spans) = Spans::default();
        self.said.send_replace(None);
        all
    }

    /// What we say about ourselves at this moment in one swarm.
    pub(super) fn describe(&self, there: &Membership) -> ServerInfo {
        let using_relay = there.using_relay();
        let mut info = {
            let record = read(&self.record);
            let mut info = record.info.clone();
            if using_relay {
                info.throughput = record.relayed_throughput;
            }
            info
        };
        info.using_relay = Some(using_relay);
        if let Some(serving) = self.now() {
            info.state = self.state();
            (info.start_block, info.end_block) = (Some(serving.span.start), Some(serving.span.end));
            info.cache_tokens_left = Some(serving.cache_tokens_left());
        }
        info
    }

    pub(super) fn set_record(&self, record: Record) {
        *write(&self.record) = record;
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
