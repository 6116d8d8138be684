//! What this node serves right now, model by model. Handlers look here at every request: the uid of its first block says
//! which model, and its blocks say which span of that. Nothing is loaded or announced here.
//!
//! A model that moves has two spans for a while: the one that is announced, and the one before it, which clients that
//! have not heard of the move still ask for and on which sessions are still open.

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
    atomic::{AtomicBool, Ordering},
};

use sepal_protocol::record::{BlockUid, ServerInfo, ServerState};
use tokio::sync::watch;
use tracing::debug;

use super::{
    error::RequestError,
    ledger::Ledger,
    request::parse_chain,
    serving::{Limits, Serving},
    stats::Counters,
};
use crate::{model::CacheCounts, swarm::standing::Access};

/// All models of this node.
#[derive(Debug)]
pub(crate) struct Current {
    /// Shown in `rpc_info`.
    pub(super) version: String,
    /// How others get to us.
    access: watch::Receiver<Access>,
    models: RwLock<Vec<Arc<Hosted>>>,
    /// Whether nothing new is begun.
    paused: Arc<AtomicBool>,
    pub(super) counters: Arc<Counters>,
}

/// One model: its spans, and what is said of it.
#[derive(Debug)]
pub(crate) struct Hosted {
    prefix: String,
    /// Most bytes of one request, all its tensors together.
    max_request_bytes: usize,
    access: watch::Receiver<Access>,
    spans: RwLock<Spans>,
    record: RwLock<Record>,
    pub(super) ledger: Arc<Ledger>,
    /// That of the node.
    paused: Arc<AtomicBool>,
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
    pub(super) fn new(version: String, access: watch::Receiver<Access>) -> Self {
        Self {
            version,
            access,
            models: RwLock::default(),
            paused: Arc::default(),
            counters: Arc::default(),
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
            access: self.access.clone(),
            spans: RwLock::default(),
            record: RwLock::new(record),
            ledger: Arc::new(Ledger::new()),
            paused: self.paused.clone(),
        });
        write(&self.models).push(hosted.clone());
        hosted
    }

    /// How many models share this node.
    pub(super) fn n_models(&self) -> usize {
        read(&self.models).len()
    }

    /// Most bytes of one request to any of the models.
    pub(super) fn max_request_bytes(&self) -> usize {
        let models = read(&self.models);
        models.iter().map(|model| model.max_request_bytes).max().unwrap_or(0)
    }

    /// Whether others cannot dial us: our DHT serves nobody then.
    pub(super) fn using_relay(&self) -> bool {
        self.access.borrow().using_relay()
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
    /// As [`Current::find`], and while the node is paused.
    pub(super) fn find_for_work(&self, uid: &str) -> Result<(Arc<Serving>, Arc<[u32]>), RequestError> {
        let found = self.find(uid)?;
        match self.is_paused() {
            true => Err(RequestError::Paused),
            false => Ok(found),
        }
    }

    /// Whether nothing new is begun; sessions that are open go on.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Returns whether it was so before.
    pub(super) fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Ordering::SeqCst)
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
    pub(super) fn queued(&self) -> usize {
        let models = read(&self.models);
        let spans = models.iter().flat_map(|model| model.all());
        spans.map(|serving| serving.worker.queued()).sum()
    }

    /// How the memory of all caches is used, on every span that is still there.
    pub(super) fn cache_counts(&self) -> CacheCounts {
        let models = read(&self.models);
        let spans = models.iter().flat_map(|model| model.all());
        spans.map(|serving| serving.blocks.cache_counts()).sum()
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

    /// Serves `next` from now on; the span before goes on taking requests until [`Hosted::retire`].
    pub(super) fn switch(&self, next: Arc<Serving>) {
        let mut spans = write(&self.spans);
        let before = spans.now.replace(next);
        spans.lingering.extend(before);
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
        all
    }

    /// What we say about ourselves at this moment.
    pub(super) fn describe(&self) -> ServerInfo {
        let using_relay = self.access.borrow().using_relay();
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
            info.state = match self.paused.load(Ordering::SeqCst) {
                true => ServerState::Joining,
                false => ServerState::Online,
            };
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
