//! Sends a step's output straight to the next server of the chain, so that it need not travel through the client.
//!
//! A push is a shortcut that may fail in silence: the client sends the same step itself, and the receiver drops whichever
//! comes second (by `step_id`). Petals: `server/handler.py`, `_push_outputs`.
//!
//! The next server waits for the push and nobody for the answer to the client, which is the same bytes once more. On a
//! narrow line it makes a difference which of them goes first, so the answer waits until the push is through the line, as
//! far as can be told.

mod ways;

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sepal_protocol::{Message, metadata::StepMetadata, names, proto, record::BlockUid, unary::MAX_UNARY_BODY};
use tokio::sync::{Semaphore, oneshot};
use tracing::{Instrument, debug, debug_span, trace};

use self::ways::Ways;
use super::serving::Serving;
use crate::{
    p2p::{CallError, P2p, PeerId},
    task::TRACE,
};

/// Room that the unary envelope needs beside the request itself (call id, peer id, name), in bytes.
const ENVELOPE_BYTES: usize = 1024;

/// What all pushes of a server have in common.
#[derive(Debug)]
pub(crate) struct Pushes {
    permits: Arc<Semaphore>,
    ways: Mutex<Ways>,
}

impl Pushes {
    /// At most so many at a time.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            ways: Mutex::default(),
        }
    }

    /// Sends one, tells when it is through the line, and waits for the answer to it.
    async fn send(
        &self,
        p2p: &P2p,
        peer: PeerId,
        message: bytes::Bytes,
        out: oneshot::Sender<()>,
    ) -> Result<(), CallError> {
        let (n_bytes, started) = (message.len(), Instant::now());
        let asked = p2p.ask_unary(peer, names::PUSH, message).await?;
        let busy = self.ways().busy(&peer, n_bytes);
        let answer = asked.answer();
        tokio::pin!(answer);
        let early = match busy.is_zero() {
            true => None,
            false => tokio::time::timeout(busy, &mut answer).await.ok(),
        };
        // Whoever wanted to know may have stopped waiting.
        let _ = out.send(());
        match early {
            Some(answer) => answer?,
            None => answer.await?,
        };
        self.ways().took(peer, n_bytes, started.elapsed());
        Ok(())
    }

    fn ways(&self) -> std::sync::MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an answer waits for a push to get out, besides the time of a slow line: a stream is opened, no more.
const OPENING: Duration = Duration::from_millis(50);
/// The slowest line that is waited for, bytes per second: 2 Mbit/s. A client is more patient than that.
const SLOWEST_LINE: f64 = 256.0 * 1024.0;

/// A push on its way.
#[derive(Debug)]
pub(crate) struct Push {
    out: oneshot::Receiver<()>,
    n_bytes: usize,
}

impl Push {
    /// Waits until it is through the line, or has failed. `false` if that takes too long: the next server
    /// cannot be reached from here, or takes nothing.
    pub(crate) async fn got_out(self) -> bool {
        let limit = OPENING + Duration::from_secs_f64(self.n_bytes as f64 / SLOWEST_LINE);
        tokio::time::timeout(limit, self.out).await.is_ok()
    }
}

/// Starts a push in the background if the step's metadata names a next server.
///
/// It goes out over `p2p`, the host in the swarm that the session comes from. `request` is the step as it came in; its
/// prompts and beam indices are empty, or the caller would not push.
pub(crate) fn send(
    (serving, p2p): (&Arc<Serving>, &P2p),
    request: &proto::ExpertRequest,
    metadata: &StepMetadata,
    output: &proto::Tensor,
) -> Option<Push> {
    let (peer, message) = prepare(&serving.prefix, request, metadata, output)?;
    let n_bytes = message.encoded_len();
    if n_bytes + ENVELOPE_BYTES > MAX_UNARY_BODY {
        trace!(n_bytes, "output is too large for a push");
        return None;
    }
    let Ok(permit) = serving.pushes.permits.clone().try_acquire_owned() else {
        debug!("too many pushes in flight, this one is left to the client");
        return None;
    };
    let message = message.encode_to_vec().into();
    let (p2p, pushes, counters) = (p2p.clone(), serving.pushes.clone(), serving.counters.clone());
    let limit = serving.limits.request_timeout;
    let (tell, out) = oneshot::channel();
    let span = debug_span!(target: TRACE, "push", %peer, n_bytes);
    let push = async move {
        let _permit = permit;
        let pushed = tokio::time::timeout(limit, pushes.send(&p2p, peer, message, tell)).await;
        match pushed.unwrap_or(Err(CallError::Timeout { after: limit })) {
            Ok(()) => {
                counters.pushes_sent.add();
                trace!(%peer, "pushed");
            }
            Err(error) => debug!(%peer, %error, "push failed, the client sends the step itself"),
        }
    };
    serving.tasks.spawn_until_stopped("push", push.instrument(span));
    Some(Push { out, n_bytes })
}

/// The receiver and the message; `None` if there is no next server, or no valid one.
fn prepare(
    prefix: &str,
    request: &proto::ExpertRequest,
    metadata: &StepMetadata,
    output: &proto::Tensor,
) -> Option<(PeerId, proto::ExpertRequest)> {
    let (next, forwarded) = metadata.for_push()?;
    let forwarded = StepMetadata {
        current: true,
        ..forwarded
    };
    let peer: PeerId = next.peer_id.parse().ok()?;
    let uid = chain_uid(prefix, next.start..next.end)?;
    let mut tensors = request.tensors.clone();
    *tensors.first_mut()? = output.clone();
    let message = proto::ExpertRequest {
        uid,
        tensors,
        metadata: forwarded.encode(),
    };
    Some((peer, message))
}

fn chain_uid(prefix: &str, blocks: Range<u32>) -> Option<String> {
    /// More blocks than any model has; the range comes from the client.
    const MAX_BLOCKS: u32 = 1024;
    if blocks.is_empty() || blocks.end - blocks.start > MAX_BLOCKS {
        return None;
    }
    Some(BlockUid::format_chain(prefix, blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(n_bytes: usize) -> (oneshot::Sender<()>, Push) {
        let (tell, out) = oneshot::channel();
        (tell, Push { out, n_bytes })
    }

    #[tokio::test]
    async fn an_answer_waits_until_a_push_is_out_or_has_failed_and_not_for_ever() {
        let (tell, waiting) = push(8 << 20);
        tell.send(()).unwrap();
        assert!(waiting.got_out().await);
        let (tell, waiting) = push(8 << 20);
        drop(tell);
        assert!(waiting.got_out().await, "a push that failed is in nobody's way");
        let (_tell, waiting) = push(1);
        assert!(!waiting.got_out().await);
    }
}
