//! From the name of an inbound stream to the function that serves it.
//!
//! For every stream a permit is taken first. Over the limit the caller is told so at once; nothing waits silently. Then one
//! task runs the call until it is answered, the caller leaves, or the node stops.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use libp2p::{PeerId, Stream};
use tokio::sync::Semaphore;
use tracing::{Instrument, debug, debug_span, warn};

use super::{
    P2p,
    error::HandlerError,
    origins::Origins,
    rpc::Name,
    short_id,
    stream::{self, StreamReceiver, StreamSender},
    unary,
    usage::{InUse, Usage},
};
use crate::task::Tasks;

/// Calls that are being refused at the same time, per name. Beyond that, streams are reset without a word.
const MAX_REFUSALS: usize = 64;

/// Default bound of calls served at the same time, per name.
const DEFAULT_MAX_CALLS: usize = 1024;

/// Default bound of one message of a stream, bytes. Petals sends tensors in parts of up to 4 MiB and metadata with them;
/// Hivemind itself has no limit.
const DEFAULT_MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// The bounds of one handler.
#[derive(Clone, Copy, Debug)]
pub struct HandlerLimits {
    /// Calls served at the same time; further ones are refused.
    pub max_calls: usize,
    /// Bytes of one message, in either direction. For unary calls the wire's own limit of 4 MiB holds as well.
    pub max_message: usize,
}

impl Default for HandlerLimits {
    fn default() -> Self {
        Self {
            max_calls: DEFAULT_MAX_CALLS,
            max_message: DEFAULT_MAX_MESSAGE,
        }
    }
}

type UnaryFn = dyn Fn(PeerId, Bytes) -> BoxFuture<'static, Result<Bytes, HandlerError>> + Send + Sync;
type StreamFn =
    dyn Fn(PeerId, StreamReceiver, StreamSender) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync;
type RawFn = dyn Fn(PeerId, Stream) -> BoxFuture<'static, ()> + Send + Sync;

/// What is spoken on a stream once its name is agreed on.
#[derive(Clone)]
enum Kind {
    Unary(Arc<UnaryFn>),
    Legacy(Arc<UnaryFn>),
    Stream(Arc<StreamFn>),
    Raw(Arc<RawFn>),
}

/// A name, how it is spoken, its bounds, and the function that serves it.
pub struct Handler {
    name: String,
    limits: HandlerLimits,
    kind: Kind,
}

impl Handler {
    /// One request, one answer. The future is dropped when the caller closes, resets or sends a surplus byte.
    pub fn unary<F, Fut>(name: &str, limits: HandlerLimits, f: F) -> Self
    where
        F: Fn(PeerId, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, HandlerError>> + Send + 'static,
    {
        let f = Arc::new(move |peer, request| f(peer, request).boxed());
        Self::new(name, limits, Kind::Unary(f))
    }

    /// Messages in both directions. The future is dropped when the caller closes or resets. Returning ends the stream.
    pub fn stream<F, Fut>(name: &str, limits: HandlerLimits, f: F) -> Self
    where
        F: Fn(PeerId, StreamReceiver, StreamSender) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let f = Arc::new(move |peer, receiver, sender| f(peer, receiver, sender).boxed());
        Self::new(name, limits, Kind::Stream(f))
    }

    /// One request, one answer in the framing of `/hivemind/0.0.0/rpc`, whose callers close their side after the request.
    pub fn legacy<F, Fut>(name: &str, limits: HandlerLimits, f: F) -> Self
    where
        F: Fn(PeerId, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, HandlerError>> + Send + 'static,
    {
        let f = Arc::new(move |peer, request| f(peer, request).boxed());
        Self::new(name, limits, Kind::Legacy(f))
    }

    /// A libp2p protocol of our own host, not an RPC.
    pub(crate) fn raw<F, Fut>(name: &str, limits: HandlerLimits, f: F) -> Self
    where
        F: Fn(PeerId, Stream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let f = Arc::new(move |peer, stream| f(peer, stream).boxed());
        Self::new(name, limits, Kind::Raw(f))
    }

    /// The name on the wire.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn new(name: &str, limits: HandlerLimits, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            limits,
            kind,
        }
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Collects handlers and then starts to serve them.
#[derive(Debug)]
pub struct Router {
    p2p: P2p,
    handlers: Vec<Handler>,
}

impl Router {
    /// A router of this host that serves nothing yet.
    pub fn new(p2p: P2p) -> Self {
        Self {
            p2p,
            handlers: Vec::new(),
        }
    }

    /// Adds handlers.
    #[must_use]
    pub fn serve(mut self, handlers: Vec<Handler>) -> Self {
        self.handlers.extend(handlers);
        self
    }

    /// Serves from now on, until `tasks` stop. Several routers may serve different names of one host.
    pub fn spawn(self, tasks: &Tasks) {
        self.p2p.registry.add(self.handlers, tasks);
        self.p2p.names_changed();
        let (p2p, stop) = (self.p2p, tasks.token());
        tasks.spawn("router", async move {
            stop.cancelled().await;
            p2p.registry.remove_stopped();
            p2p.names_changed();
        });
    }
}

/// A handler at work.
struct Service {
    name: Name,
    kind: Kind,
    limits: HandlerLimits,
    permits: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    tasks: Tasks,
}

/// What is served now. Shared by the router, which fills it, and the connections, which ask it.
#[derive(Default)]
pub(crate) struct Registry {
    table: RwLock<Table>,
    usage: Arc<Usage>,
    origins: Arc<Origins>,
}

#[derive(Default)]
struct Table {
    services: BTreeMap<Name, Arc<Service>>,
    /// Names that are not accepted for the time being, whether somebody serves them or not.
    withheld: BTreeSet<Name>,
    /// What is served and not withheld, ready to be handed out: connections ask for it at every poll.
    names: Arc<[Name]>,
}

impl Registry {
    pub(crate) fn add(&self, handlers: Vec<Handler>, tasks: &Tasks) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for handler in handlers {
            let name = Name::new(&handler.name);
            let service = Service {
                name: name.clone(),
                kind: handler.kind,
                limits: handler.limits,
                permits: Arc::new(Semaphore::new(handler.limits.max_calls)),
                refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
                tasks: tasks.clone(),
            };
            if table.services.insert(name, Arc::new(service)).is_some() {
                warn!(
                    name = handler.name,
                    "a handler was replaced by another one of the same name"
                );
            }
        }
        table.collect_names();
    }

    /// Takes names back, or offers them again. Calls that run go on; the handlers stay for the time when they are offered
    /// again, or come later.
    pub(crate) fn withhold(&self, names: &[&str], withheld: bool) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            let name = Name::new(name);
            if withheld {
                table.withheld.insert(name);
            } else {
                table.withheld.remove(&name);
            }
        }
        table.collect_names();
    }

    /// Names whose tasks are told to stop are unknown from now on. Calls that run are ended by the tasks themselves.
    fn remove_stopped(&self) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table
            .services
            .retain(|_, service| !service.tasks.token().is_cancelled());
        table.collect_names();
    }

    /// The calls that run.
    pub(crate) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// From where connected peers come.
    pub(crate) fn origins(&self) -> &Arc<Origins> {
        &self.origins
    }

    /// The names that are accepted.
    pub(crate) fn names(&self) -> Arc<[Name]> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).names.clone()
    }

    /// Takes over an inbound stream. Never waits: it is called by the task of a connection.
    pub(crate) fn accept(&self, peer: PeerId, name: &Name, stream: Stream) {
        let service = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            let withheld = table.withheld.contains(name);
            table.services.get(name).filter(|_| !withheld).cloned()
        };
        // A name that was taken back between negotiation and now: dropping the stream resets it.
        let Some(service) = service else { return };
        // libp2p's own protocols are spoken by anyone: only calls make a peer one of ours.
        let in_use = (!matches!(service.kind, Kind::Raw(_))).then(|| self.usage.enter(peer));
        service.accept(peer, stream, in_use);
    }
}

impl Table {
    fn collect_names(&mut self) {
        let offered = self.services.keys().filter(|name| !self.withheld.contains(name));
        self.names = offered.cloned().collect();
    }
}

impl Service {
    fn accept(self: Arc<Self>, peer: PeerId, stream: Stream, in_use: Option<InUse>) {
        let span = debug_span!("call", rpc = self.name.wire(), peer = %short_id(&peer));
        let tasks = self.tasks.clone();
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            let call = async move {
                self.run(peer, stream).await;
                drop((permit, in_use));
            };
            tasks.spawn_until_stopped("call", call.instrument(span));
        } else if let Ok(permit) = self.refusals.clone().try_acquire_owned() {
            let refusal = async move {
                self.refuse(stream).await;
                drop(permit);
            };
            tasks.spawn_until_stopped("refusal", refusal.instrument(span));
        } else {
            let _entered = span.entered();
            debug!("dropped: too many calls are being refused already");
        }
    }

    async fn run(&self, peer: PeerId, stream: Stream) {
        let limit = self.limits.max_message;
        match &self.kind {
            Kind::Unary(f) => {
                let served = unary::serve(stream, self.name.wire(), |request| f(peer, request)).await;
                debug!(?served);
            }
            Kind::Legacy(f) => {
                let served = unary::serve_legacy(stream, limit, |request| f(peer, request)).await;
                debug!(?served);
            }
            Kind::Stream(f) => {
                let served = stream::serve(stream, limit, |receiver, sender| f(peer, receiver, sender)).await;
                debug!(?served);
            }
            Kind::Raw(f) => f(peer, stream).await,
        }
    }

    async fn refuse(&self, stream: Stream) {
        let reason = format!(
            "busy: {} calls of this kind are running, no more are taken",
            self.limits.max_calls
        );
        debug!(reason, "refused");
        match &self.kind {
            Kind::Unary(_) => unary::refuse(stream, self.name.wire(), &reason).await,
            Kind::Stream(_) => stream::refuse(stream, &reason).await,
            // No way to say it: dropping the stream resets it.
            Kind::Legacy(_) | Kind::Raw(_) => {}
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names().iter().map(Name::wire)).finish()
    }
}
