//! The RPCs of a server, and those that compute nothing: facts and pushes. Sessions, and passes over whole sequences,
//! have files of their own.
//!
//! Names and message types are those of Petals' `TransformerConnectionHandler` (`server/handler.py`).

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use sepal_protocol::{
    Message,
    message::decode,
    metadata::StepMetadata,
    names, proto,
    record::{BlockSchema, RpcInfo},
};
use tokio::time::timeout;

use super::{
    current::Current,
    error::RequestError,
    pass::{self, Direction},
    session::{self, Opening},
};
use crate::p2p::{Handler, HandlerLimits, PeerId, StreamReceiver, StreamSender};

/// Concurrent inference sessions on one server. Each is bounded by the cache budget as well; this bounds the streams.
const MAX_SESSIONS: usize = 4096;
/// Concurrent requests of each other kind.
const MAX_REQUESTS: usize = 256;
/// One part of a streamed tensor is 4 MiB by convention; the rest is headers. Each of those that wait before their tensors
/// are read holds one such message, and one more that is read ahead.
const MAX_PART_MESSAGE_BYTES: usize = 5 << 20;

/// Everything a server answers, for the router.
pub(crate) fn handlers(current: &Arc<Current>) -> Vec<Handler> {
    let unary = HandlerLimits {
        max_calls: MAX_REQUESTS,
        max_message: sepal_protocol::unary::MAX_UNARY_BODY,
    };
    let parts = HandlerLimits {
        max_calls: MAX_REQUESTS,
        max_message: MAX_PART_MESSAGE_BYTES,
    };
    let steps = HandlerLimits {
        max_calls: MAX_SESSIONS,
        max_message: current.max_request_bytes(),
    };
    let [info, push, inference, legacy] = std::array::from_fn(|_| current.clone());
    let mut handlers = vec![
        Handler::unary(names::INFO, unary, move |_, request| {
            let current = info.clone();
            async move { rpc_info(&current, &request).map_err(|error| current.rejected(error).into_unary()) }
        }),
        Handler::unary(names::PUSH, unary, move |peer, request| {
            let current = push.clone();
            async move { rpc_push(&current, peer, request).map_err(|error| current.rejected(error).into_unary()) }
        }),
        Handler::stream(names::INFERENCE, steps, move |peer, requests, replies| {
            let current = inference.clone();
            async move {
                let outcome = rpc_inference(&current, peer, requests, replies).await;
                outcome.map_err(|error| current.rejected(error).into_stream())
            }
        }),
        Handler::legacy(names::LEGACY_RPC, unary, move |_, request| {
            let current = legacy.clone();
            async move { legacy_info(&current, &request).map_err(|error| current.rejected(error).into_unary()) }
        }),
    ];
    for direction in [Direction::Forward, Direction::Backward] {
        let [whole, stream] = std::array::from_fn(|_| current.clone());
        handlers.push(Handler::unary(direction.unary_name(), unary, move |peer, request| {
            let current = whole.clone();
            async move {
                let answer = pass::rpc_unary(&current, (direction, peer), request).await;
                answer.map_err(|error| current.rejected(error).into_unary())
            }
        }));
        let name = direction.stream_name();
        handlers.push(Handler::stream(name, parts, move |peer, requests, replies| {
            let current = stream.clone();
            async move {
                let outcome = pass::rpc_stream(&current, (direction, peer), requests, replies).await;
                outcome.map_err(|error| current.rejected(error).into_stream())
            }
        }));
    }
    handlers
}

/// The server's facts; with a uid, also the schema of its requests, which Python clients read the compression from.
///
/// Without one, as monitors ask, the answer is about the node: the free tokens of all its models together. They are the
/// only number in it, and whoever looks at a node wants to know how much of it is free, not of which model came first.
fn rpc_info(current: &Current, request: &Bytes) -> Result<Bytes, RequestError> {
    let proto::ExpertUid { uid } = decode("ExpertUID", request.clone())?;
    let (cache_tokens_available, schema) = if uid.is_empty() {
        let free = current
            .announced()?
            .into_iter()
            .map(|serving| serving.cache_tokens_available());
        (free.sum(), None)
    } else {
        let serving = match current.find(&uid) {
            Ok((serving, chain)) if chain.len() == 1 => serving,
            Err(RequestError::NotServing) => return Err(RequestError::NotServing),
            _ => return Err(RequestError::UnknownUid { uid }),
        };
        let schema = BlockSchema::of_block(
            serving.blocks.config().hidden_size as u64,
            serving.blocks.dtype().as_torch_str(),
            serving.compression,
        );
        (serving.cache_tokens_available(), Some(schema))
    };
    let info = RpcInfo {
        version: current.version.clone(),
        dht_client_mode: current.using_relay(),
        cache_tokens_available,
        schema,
    };
    Ok(proto::ExpertInfo {
        serialized_info: info.encode(),
    }
    .encode_to_vec()
    .into())
}

/// What the map monitors of other Rust nodes ask for: our announced record, under an older name.
fn legacy_info(current: &Current, request: &Bytes) -> Result<Bytes, RequestError> {
    let proto::ExpertUid { uid } = decode("ExpertUID", request.clone())?;
    let record = current.model_of(&uid)?.describe(&current.membership);
    Ok(proto::ExpertInfo {
        serialized_info: record.encode_for_map_monitor()?,
    }
    .encode_to_vec()
    .into())
}

async fn rpc_inference(
    current: &Current,
    peer: PeerId,
    mut requests: StreamReceiver,
    replies: StreamSender,
) -> Result<(), RequestError> {
    let silence = current.limits()?.step_timeout;
    // Before anything is read: who may not have a session holds no stream open.
    let origin = current.admit(peer)?;
    let stay = current.guests.enter(origin, Instant::now())?;
    let Ok(Ok(Some(first))) = timeout(silence, requests.recv()).await else {
        return Ok(());
    };
    let first: proto::ExpertRequest = decode("ExpertRequest", first)?;
    let (serving, chain) = current.find_for_work(&first.uid)?;
    let stopped = serving.tasks.token();
    let opening = Opening {
        serving,
        chain,
        membership: current.membership.clone(),
        origin,
        guests: current.guests.clone(),
        stay,
        first,
    };
    let session = stopped
        .run_until_cancelled(session::run(opening, requests, replies))
        .await;
    session.unwrap_or(Err(RequestError::NotServing))
}

/// A step that the server before us computed; it goes to the session it is for.
///
/// Whoever may open sessions decides through which servers they go, so a list of those that are allowed says nothing of
/// these; those that are denied are not listened to either.
fn rpc_push(current: &Current, peer: PeerId, request: Bytes) -> Result<Bytes, RequestError> {
    let request: proto::ExpertRequest = decode("ExpertRequest", request)?;
    let serving = current.find_open(&request.uid)?;
    current.hear(peer)?;
    let id = StepMetadata::decode(&request.metadata)?
        .session_id
        .ok_or(RequestError::NoSessionId)?;
    current.counters.pushes_received.add();
    serving.sessions.deliver(&id, request);
    Ok(Bytes::new())
}
