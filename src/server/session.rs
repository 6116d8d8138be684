//! One inference session: its cache, its position, and where its steps come from (the client's stream, or a push from
//! the server before us). It computes nothing itself.
//!
//! The rules are those of Petals' `server/handler.py` and `server/backend.py`; where those are known to be wrong (a
//! rollback beyond the cache is accepted, a session id outlives an error, pushed beam indices are stale) ours are right.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sepal_protocol::{
    Message,
    message::decode,
    metadata::{ReplyMetadata, StepMetadata},
    msgpack::{PythonText, Value},
    proto,
};
use tokio::time::timeout;
use tracing::{Instrument, debug, debug_span, trace};

use super::{
    convert::convert,
    error::RequestError,
    guests::{Guests, Origin, Stay},
    ledger::{About, Entry},
    membership::Membership,
    memory::{Claim, Lease},
    push,
    receipts::Receipts,
    request::{self, StepTensors},
    serving::Serving,
    sessions::Registration,
    traced::Traced,
    worker::{SessionCache, Step, Work},
};
use crate::{
    model::Hidden,
    p2p::{StreamReceiver, StreamSender},
    task::TRACE,
};

/// Step ids remembered for de-duplication. A duplicate is at most a few steps late: it is the client's copy of a push.
const REMEMBERED_STEPS: usize = 1024;
/// How long END may come after an empty message. Clients send them together; one that never does costs only a stream.
const END_AFTER_GOODBYE: Duration = Duration::from_secs(5);
/// Tensors of a step: activations, deep prompts, beam indices.
const N_TENSORS: usize = 3;

/// The first message of a session, and where its blocks are.
pub(crate) struct Opening {
    pub(crate) serving: Arc<Serving>,
    pub(crate) chain: Arc<[u32]>,
    /// The swarm that it comes from, where the servers after this one are.
    pub(crate) membership: Arc<Membership>,
    /// Who opens it.
    pub(crate) origin: Origin,
    pub(crate) guests: Arc<Guests>,
    /// Its place among the sessions of the peer.
    pub(crate) stay: Option<Stay>,
    pub(crate) first: proto::ExpertRequest,
}

impl Opening {
    /// Reserves the cache, and takes the place among the sessions of the peer.
    async fn reserve(
        &mut self,
        patience: Duration,
        batch: usize,
        max_length: usize,
    ) -> Result<(Lease, Quota), RequestError> {
        let stay = self.stay.take();
        let (serving, origin) = (&self.serving, self.origin);
        let amount = serving.session_amount(self.chain.len(), batch, max_length);
        let most = self.guests.cache(origin, serving.memory.max());
        let claim = most.map(|most| serving.memory.claim(origin.peer, amount, most));
        let held = (stay, claim.transpose()?);
        let patience = patience.min(serving.limits.max_alloc_timeout);
        Ok((serving.memory.lease(amount, patience).await?, held))
    }

    /// What a person is told of the session.
    fn about(&self, metadata: &StepMetadata, batch: usize, max_length: usize) -> About {
        About {
            id: metadata.session_id.clone(),
            peer: self.origin.peer,
            swarm: self.membership.number(),
            chain: self.chain.clone(),
            batch,
            max_length,
        }
    }
}

/// What a session takes of what its peer may have: a place, and room in the cache.
type Quota = (Option<Stay>, Option<Claim>);

/// Serves one `rpc_inference` stream from its first message to its end.
///
/// # Errors
/// What to tell the client; whatever the end, cache and session id are free again when this returns.
pub(crate) async fn run(
    opening: Opening,
    mut requests: StreamReceiver,
    mut replies: StreamSender,
) -> Result<(), RequestError> {
    let limit = opening.serving.limits.session_timeout;
    timeout(limit, converse(opening, &mut requests, &mut replies))
        .await
        .unwrap_or(Err(RequestError::SessionTimeout))
}

async fn converse(
    mut opening: Opening,
    requests: &mut StreamReceiver,
    replies: &mut StreamSender,
) -> Result<(), RequestError> {
    let mut session = Session::open(&mut opening).await?;
    let mut next = Some(Incoming {
        request: opening.first,
        pushed: false,
    });
    while let Some(incoming) = next {
        // A message without tensors is how Petals' client says goodbye.
        if incoming.request.tensors.is_empty() && !incoming.pushed {
            drop(session); // cache and session id are free at once
            wait_for_end(requests).await;
            return Ok(());
        }
        let span = debug_span!(target: TRACE, parent: None, "step", prefix = session.prefix, pushed = incoming.pushed);
        if let Some(reply) = session.answer(incoming).instrument(span).await?
            && replies.send(reply).await.is_err()
        {
            return Ok(());
        }
        next = session.next(requests).await?;
    }
    Ok(())
}

/// Petals' client says goodbye in two messages, an empty one and END. If we close between them, END meets a closed pipe
/// in the client's daemon, the client raises instead of closing the session, and Python's garbage collector later closes
/// it on the thread that it would have to wait for: the client hangs for ever.
async fn wait_for_end(requests: &mut StreamReceiver) {
    let end = async { while let Ok(Some(_)) = requests.recv().await {} };
    if timeout(END_AFTER_GOODBYE, end).await.is_err() {
        trace!("a client said goodbye and did not end its stream");
    }
}

struct Incoming {
    request: proto::ExpertRequest,
    /// From the server before us rather than from the client.
    pushed: bool,
}

struct Session {
    serving: Arc<Serving>,
    membership: Arc<Membership>,
    chain: Arc<[u32]>,
    batch: usize,
    max_length: usize,
    /// Tokens in the cache that the next step sees.
    prefix: usize,
    /// `None` only while a step runs, or after one failed.
    cache: Option<SessionCache>,
    /// How tensors map to arguments. Petals looks at the first message's only.
    structure: Option<Value>,
    pushes: Option<Registration>,
    /// Answers wait for the push before them: until one of these did not get out.
    pushes_first: bool,
    entry: Entry,
    seen: RecentSteps,
    receipts: Receipts,
    origin: Origin,
    guests: Arc<Guests>,
    /// Held for their `Drop`.
    _held: Quota,
}

impl Session {
    /// Checks the first message in Petals' order, reserves the cache and registers the session's id.
    async fn open(opening: &mut Opening) -> Result<Self, RequestError> {
        let serving = opening.serving.clone();
        let metadata = StepMetadata::decode(&opening.first.metadata)?;
        let asked = metadata.max_length_tokens().ok_or_else(|| RequestError::NoMaxLength {
            got: PythonText(metadata.max_length.as_ref()).to_string(),
        })?;
        request::check_points(&metadata, "rpc_inference")?;
        let max = serving.limits.inference_max_length;
        let max_length = match usize::try_from(asked) {
            Ok(length) if length <= max => length,
            _ => return Err(RequestError::SessionTooLong { asked, max }),
        };
        let batch = n_rows(&opening.first);
        // Nobody waits for memory only to be told that.
        let adapter = request::find_adapter(&metadata, &serving.blocks)?;
        let patience = patience(metadata.alloc_timeout);
        let (lease, held) = opening.reserve(patience, batch, max_length).await?;
        // Such a batch could never send a token, but its rows would take memory.
        if batch > serving.limits.max_batch_size {
            return Err(RequestError::TooManyTokens {
                max: serving.limits.max_batch_size,
            });
        }
        let about = opening.about(&metadata, batch, max_length);
        let pushes = match metadata.session_id.clone() {
            Some(id) => Some(serving.sessions.register(id)?),
            None => None,
        };
        let chain = &opening.chain;
        let mut cache = serving
            .blocks
            .new_cache(chain.len(), batch, max_length)
            .with_adapter(adapter);
        let adapter_name = metadata.active_adapter.as_deref().unwrap_or_default();
        serving.blocks.share_prefixes(&mut cache, chain, adapter_name);
        debug!(?chain, batch, max_length, "session opens");
        Ok(Self {
            chain: chain.clone(),
            batch,
            max_length,
            prefix: 0,
            cache: Some(SessionCache::new(cache, lease)),
            structure: metadata.args_structure,
            pushes,
            pushes_first: true,
            entry: serving.ledger.enter(about),
            seen: RecentSteps::default(),
            receipts: Receipts::new(metadata.session_id.clone(), chain),
            membership: opening.membership.clone(),
            origin: opening.origin,
            guests: opening.guests.clone(),
            _held: held,
            serving,
        })
    }

    /// The next message, from wherever it comes first. `None` ends the session: end of stream, reset, or silence for
    /// longer than the step timeout.
    async fn next(&mut self, requests: &mut StreamReceiver) -> Result<Option<Incoming>, RequestError> {
        let pushes = &mut self.pushes;
        let pushed = async {
            match pushes {
                Some(registration) => registration.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = requests.recv() => match message {
                Ok(Some(bytes)) => {
                    Ok(Some(Incoming { request: decode("ExpertRequest", bytes)?, pushed: false }))
                }
                Ok(None) | Err(_) => Ok(None),
            },
            request = pushed => Ok(request.map(|request| Incoming { request, pushed: true })),
            () = tokio::time::sleep(self.serving.limits.step_timeout) => Ok(None),
        }
    }

    /// Runs one step. `None` when there is nothing to answer: the step was done already, or a push was unusable (the
    /// client's own copy of it follows).
    async fn answer(&mut self, incoming: Incoming) -> Result<Option<Bytes>, RequestError> {
        let Incoming { request, pushed } = incoming;
        let metadata = StepMetadata::decode(&request.metadata)?;
        if metadata.step_id.as_ref().is_some_and(|id| self.seen.contains(id)) {
            trace!(pushed, "step was done already");
            return Ok(None);
        }
        let (tensors, prefix) = match self.plan(&request, &metadata, pushed).await {
            Ok((tensors, _)) if pushed && !self.is_current(&tensors, &metadata) => {
                debug!("a push that may have rows or prompts of an earlier step is left to the client");
                return Ok(None);
            }
            Ok(plan) => plan,
            Err(error) if pushed => {
                debug!(%error, "a push is ignored");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let may_push = tensors.prompts.is_none() && tensors.rows.is_none();
        let tokens = tensors.x.tokens;
        self.guests.spend(self.origin, self.batch * tokens, Instant::now())?;
        let output = self.compute(tensors, prefix).await?;
        self.prefix = prefix + tokens;
        if let Some(id) = &metadata.step_id {
            self.seen.insert(id.clone());
        }
        trace!(pushed, prefix, tokens, "step done");
        // A step of no tokens only opens the session.
        if tokens > 0 {
            self.serving.counters.steps.add();
            self.entry.step(self.prefix, tokens);
        }
        if pushed {
            self.serving.counters.pushes_used.add();
        }
        let (output, reply) = self.pack(output, &request, &metadata, prefix).await?;
        if may_push
            && let Some(push) = push::send((&self.serving, self.membership.p2p()), &request, &metadata, &output)
            && self.pushes_first
        {
            self.pushes_first = push.got_out().await;
        }
        Ok(Some(reply))
    }

    /// The output of a step that began at `position` as it goes out, and the answer with it and, if one is wanted, with its
    /// receipt.
    async fn pack(
        &mut self,
        output: Hidden,
        request: &proto::ExpertRequest,
        metadata: &StepMetadata,
        position: usize,
    ) -> Result<(proto::Tensor, Bytes), RequestError> {
        let (serving, structure) = (&self.serving, self.structure.as_ref());
        let due = match metadata.receipt && output.tokens > 0 {
            true => self.receipts.due(serving, request, structure, position),
            false => None,
        };
        let (serving, wish) = (self.serving.clone(), metadata.activations.clone());
        let (output, reply, receipts) = convert(size_of_val(&*output.data), move || {
            let size = (output.batch, output.tokens);
            let output = serving.to_wire_as(&output, wish.as_deref())?;
            let (receipt, receipts) = due.map(|due| due.sign(&output, size)).unzip();
            let receipt = receipt.flatten();
            if receipt.is_some() {
                serving.counters.receipts.add();
            }
            let metadata = ReplyMetadata { receipt };
            let reply = proto::ExpertResponse {
                tensors: vec![output.clone()],
                metadata: metadata.encode(),
            };
            Ok((output, Bytes::from(reply.encode_to_vec()), receipts))
        })
        .await?;
        if let Some(receipts) = receipts {
            self.receipts.chain = receipts;
        }
        Ok((output, reply))
    }

    /// Checks a step against the session: its tensors and the position it starts from.
    async fn plan(
        &self,
        request: &proto::ExpertRequest,
        metadata: &StepMetadata,
        pushed: bool,
    ) -> Result<(StepTensors, usize), RequestError> {
        let prefix = match metadata.start_from_position {
            None => self.prefix,
            Some(position) => match usize::try_from(position) {
                Ok(wanted) if wanted <= self.prefix => wanted,
                _ => {
                    return Err(RequestError::BadPosition {
                        position,
                        prefix: self.prefix,
                    });
                }
            },
        };
        let width = self.serving.blocks.config().hidden_size;
        let tensors = self.decode(request, width, pushed).await?;
        let x = &tensors.x;
        if x.batch != self.batch {
            let expected = format!("[{}, tokens, {width}]", self.batch);
            let got = vec![x.batch, x.tokens, x.width];
            return Err(RequestError::BadShape {
                name: "hidden_states",
                got,
                expected,
            });
        }
        if prefix + x.tokens > self.max_length {
            return Err(RequestError::StepTooLong {
                prefix,
                current: x.tokens,
                max: self.max_length,
            });
        }
        self.serving.check_size(x)?;
        Ok((tensors, prefix))
    }

    /// Whether nothing of a push is of another step. Petals' servers send the prompts and rows of the session's first step with
    /// every one (`server/handler.py`, `_push_outputs`): none, where later steps of a beam search have some. Nobody who sends
    /// the right ones has any: such steps are not pushed.
    fn is_current(&self, tensors: &StepTensors, metadata: &StepMetadata) -> bool {
        let has_none = tensors.prompts.is_none() && tensors.rows.is_none();
        has_none && (metadata.current || self.batch == 1)
    }

    async fn decode(
        &self,
        request: &proto::ExpertRequest,
        width: usize,
        pushed: bool,
    ) -> Result<StepTensors, RequestError> {
        let n_bytes = request.tensors.iter().map(|tensor| tensor.buffer.len()).sum();
        // The bytes themselves are shared, not copied.
        let (tensors, structure, n_blocks) = (request.tensors.clone(), self.structure.clone(), self.chain.len());
        convert(n_bytes, move || {
            let tensors = request::ordered(&tensors, structure.as_ref(), N_TENSORS)?;
            let tensors = request::step_tensors(&tensors, n_blocks, width)?;
            // What the client sends is its own business. What a server before us got wrong would stay in our cache and
            // make us look like the faulty one.
            if pushed && !tensors.x.data.iter().all(|value| value.is_finite()) {
                return Err(RequestError::NotFinite);
            }
            Ok(tensors)
        })
        .await
    }

    async fn compute(&mut self, tensors: StepTensors, position: usize) -> Result<Hidden, RequestError> {
        let StepTensors { x, prompts, rows } = tensors;
        let cache = self.cache.take().ok_or(RequestError::NotServing)?;
        let work = Work {
            chain: self.chain.clone(),
            x,
            prompts,
            origin: self.origin,
            _lease: None,
        };
        let (output, cache) = self
            .serving
            .worker
            .step(Step {
                work,
                cache,
                position,
                rows,
                traced: Traced::waits(),
            })
            .await?;
        self.cache = Some(cache);
        Ok(output)
    }
}

/// Sequences in parallel.
fn n_rows(first: &proto::ExpertRequest) -> usize {
    let rows = first.tensors.first().and_then(|tensor| tensor.size.first());
    rows.map_or(1, |rows| *rows as usize)
}

/// How long a client wants to wait: not at all unless it says so, and for as long as can be if it says more than that.
fn patience(seconds: Option<f64>) -> Duration {
    match seconds {
        Some(seconds) if seconds > 0.0 => Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
        _ => Duration::ZERO,
    }
}

/// The ids of the last steps, bounded.
#[derive(Debug, Default)]
struct RecentSteps {
    order: VecDeque<String>,
    ids: HashSet<String>,
}

impl RecentSteps {
    fn contains(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    fn insert(&mut self, id: String) {
        if self.order.len() == REMEMBERED_STEPS
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        if self.ids.insert(id.clone()) {
            self.order.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_step_ids_are_remembered() {
        let mut seen = RecentSteps::default();
        for step in 0..=REMEMBERED_STEPS {
            seen.insert(step.to_string());
        }
        assert!(!seen.contains("0"));
        assert!(seen.contains("1"));
        assert!(seen.contains(&REMEMBERED_STEPS.to_string()));
    }
}
