//! Sends a step's output straight to the next server of the chain, so that it need not travel through the client.
//!
//! A push is a shortcut that may fail in silence: the client sends the same step itself, and the receiver drops whichever
//! comes second (by `step_id`). Petals: `server/handler.py`, `_push_outputs`.

use std::{ops::Range, sync::Arc};

use sepal_protocol::{Message, metadata::StepMetadata, names, proto, record::BlockUid, unary::MAX_UNARY_BODY};
use tracing::{debug, trace};

use super::serving::Serving;
use crate::p2p::PeerId;

/// Room that the unary envelope needs beside the request itself (call id, peer id, name), in bytes.
const ENVELOPE_BYTES: usize = 1024;

/// Starts a push in the background if the step's metadata names a next server.
///
/// `request` is the step as it came in; its prompts and beam indices are empty, or the caller would not push.
pub(crate) fn send(
    serving: &Arc<Serving>,
    request: &proto::ExpertRequest,
    metadata: &StepMetadata,
    output: &proto::Tensor,
) {
    let Some((peer, message)) = prepare(&serving.prefix, request, metadata, output) else {
        return;
    };
    let n_bytes = message.encoded_len();
    if n_bytes + ENVELOPE_BYTES > MAX_UNARY_BODY {
        trace!(n_bytes, "output is too large for a push");
        return;
    }
    let Ok(permit) = serving.push_permits.clone().try_acquire_owned() else {
        debug!("too many pushes in flight, this one is left to the client");
        return;
    };
    let message = message.encode_to_vec().into();
    let (p2p, counters) = (serving.p2p.clone(), serving.counters.clone());
    let limit = serving.limits.request_timeout;
    serving.tasks.spawn_until_stopped("push", async move {
        let _permit = permit;
        match p2p.call_unary(peer, names::PUSH, message, limit).await {
            Ok(_) => {
                counters.pushes_sent.add();
                trace!(%peer, "pushed");
            }
            Err(error) => debug!(%peer, %error, "push failed, the client sends the step itself"),
        }
    });
}

/// The receiver and the message; `None` if there is no next server, or no valid one.
fn prepare(
    prefix: &str,
    request: &proto::ExpertRequest,
    metadata: &StepMetadata,
    output: &proto::Tensor,
) -> Option<(PeerId, proto::ExpertRequest)> {
    let (next, forwarded) = metadata.for_push()?;
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
