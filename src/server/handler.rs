//! The RPCs of a server: each decodes its request, asks the compute thread, encodes the reply. Sessions have a file of
//! their own.
//!
//! Names and message types are those of Petals' `TransformerConnectionHandler` (`server/handler.py`).

use std::sync::Arc;

use bytes::Bytes;
use sepal_protocol::{
    Message,
    compress::Compression,
    message::decode,
    metadata::StepMetadata,
    names, proto,
    record::{BlockSchema, RpcInfo},
    tensor::{DEFAULT_PART_BYTES, Joiner, split},
};
use tokio::time::timeout;

use super::{
    convert::convert,
    current::Current,
    error::RequestError,
    request::{self, check_adapter, check_points, ordered},
    serving::Serving,
    session::{self, Opening},
    worker::Work,
};
use crate::p2p::{Handler, HandlerLimits, StreamReceiver, StreamSender};

/// Concurrent inference sessions on one server. Each is bounded by the cache budget as well; this bounds the streams.
const MAX_SESSIONS: usize = 4096;
/// Concurrent unary requests and forward streams.
const MAX_REQUESTS: usize = 256;
/// One part of a streamed tensor is 4 MiB by convention; the rest is headers.
const MAX_PART_MESSAGE_BYTES: usize = 16 << 20;
/// Tensors of `rpc_forward`: activations, deep prompts. More are ignored, but not without end.
const N_FORWARD_TENSORS: usize = 2;
const MAX_TENSORS: usize = 16;

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
    let [info, forward, push, stream, inference, legacy] = std::array::from_fn(|_| current.clone());
    vec![
        Handler::unary(names::INFO, unary, move |_, request| {
            let current = info.clone();
            async move { rpc_info(&current, &request).map_err(|error| current.rejected(error).into_unary()) }
        }),
        Handler::unary(names::FORWARD, unary, move |_, request| {
            let current = forward.clone();
            async move {
                rpc_forward(&current, request)
                    .await
                    .map_err(|error| current.rejected(error).into_unary())
            }
        }),
        Handler::unary(names::PUSH, unary, move |_, request| {
            let current = push.clone();
            async move { rpc_push(&current, request).map_err(|error| current.rejected(error).into_unary()) }
        }),
        Handler::stream(names::FORWARD_STREAM, parts, move |_, requests, replies| {
            let current = stream.clone();
            async move {
                let outcome = rpc_forward_stream(&current, requests, replies).await;
                outcome.map_err(|error| current.rejected(error).into_stream())
            }
        }),
        Handler::stream(names::INFERENCE, steps, move |_, requests, replies| {
            let current = inference.clone();
            async move {
                let outcome = rpc_inference(&current, requests, replies).await;
                outcome.map_err(|error| current.rejected(error).into_stream())
            }
        }),
        Handler::legacy(names::LEGACY_RPC, unary, move |_, request| {
            let current = legacy.clone();
            async move { legacy_info(&current, &request).map_err(|error| current.rejected(error).into_unary()) }
        }),
    ]
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
    let record = current.model_of(&uid)?.describe();
    Ok(proto::ExpertInfo {
        serialized_info: record.encode_for_map_monitor()?,
    }
    .encode_to_vec()
    .into())
}

async fn rpc_inference(
    current: &Current,
    mut requests: StreamReceiver,
    replies: StreamSender,
) -> Result<(), RequestError> {
    let Ok(Ok(Some(first))) = timeout(current.limits()?.step_timeout, requests.recv()).await else {
        return Ok(());
    };
    let first: proto::ExpertRequest = decode("ExpertRequest", first)?;
    let (serving, chain) = current.find(&first.uid)?;
    let stopped = serving.tasks.token();
    let opening = Opening { serving, chain, first };
    let session = stopped
        .run_until_cancelled(session::run(opening, requests, replies))
        .await;
    session.unwrap_or(Err(RequestError::NotServing))
}

/// A step that the server before us computed; it goes to the session it is for.
fn rpc_push(current: &Current, request: Bytes) -> Result<Bytes, RequestError> {
    let request: proto::ExpertRequest = decode("ExpertRequest", request)?;
    let serving = current.find_open(&request.uid)?;
    let id = StepMetadata::decode(&request.metadata)?
        .session_id
        .ok_or(RequestError::NoSessionId)?;
    current.counters.pushes_received.add();
    serving.sessions.deliver(&id, request);
    Ok(Bytes::new())
}

async fn rpc_forward(current: &Current, request: Bytes) -> Result<Bytes, RequestError> {
    let request: proto::ExpertRequest = decode("ExpertRequest", request)?;
    let output = forward(current, request).await?;
    Ok(proto::ExpertResponse {
        tensors: vec![output],
        metadata: Vec::new(),
    }
    .encode_to_vec()
    .into())
}

/// `rpc_forward` for large tensors: each arrives and leaves in parts.
async fn rpc_forward_stream(
    current: &Current,
    mut requests: StreamReceiver,
    mut replies: StreamSender,
) -> Result<(), RequestError> {
    // Which model it is for is known with the first message only.
    let limit = current.limits()?.request_timeout;
    let work = async {
        let Some(request) = gather(&mut requests, current.max_request_bytes()).await? else {
            return Ok(());
        };
        let output = forward(current, request).await?;
        for part in split(output, DEFAULT_PART_BYTES) {
            let message = proto::ExpertResponse {
                tensors: vec![part],
                metadata: Vec::new(),
            };
            if replies.send(message.encode_to_vec().into()).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    timeout(limit, work).await.unwrap_or(Err(RequestError::RequestTimeout {
        seconds: limit.as_secs_f64(),
    }))
}

/// Puts a streamed request together: uid and metadata of the first message, tensors from all parts.
async fn gather(requests: &mut StreamReceiver, max_bytes: usize) -> Result<Option<proto::ExpertRequest>, RequestError> {
    let mut whole: Option<proto::ExpertRequest> = None;
    let mut joiner = Joiner::new(max_bytes, MAX_TENSORS);
    let mut tensors = Vec::new();
    loop {
        match requests.recv().await {
            Ok(Some(bytes)) => {
                let mut message: proto::ExpertRequest = decode("ExpertRequest", bytes)?;
                for part in message.tensors.drain(..) {
                    tensors.extend(joiner.push(part)?);
                }
                match &whole {
                    Some(first) if first.uid != message.uid => {
                        return Err(RequestError::MixedUids);
                    }
                    Some(_) => {}
                    None => whole = Some(message),
                }
            }
            Ok(None) => break,
            // The caller left; there is nobody to answer.
            Err(_) => return Ok(None),
        }
    }
    let Some(mut request) = whole else { return Ok(None) };
    tensors.extend(joiner.finish()?);
    request.tensors = tensors;
    Ok(Some(request))
}

async fn forward(current: &Current, request: proto::ExpertRequest) -> Result<proto::Tensor, RequestError> {
    let (serving, chain) = current.find(&request.uid)?;
    let metadata = StepMetadata::decode(&request.metadata)?;
    check_points(&metadata, "rpc_forward")?;
    check_adapter(&metadata)?;
    let compression = output_compression(&serving, &metadata)?;
    let (width, n_blocks) = (serving.blocks.config().hidden_size, chain.len());
    let n_bytes = request.tensors.iter().map(|tensor| tensor.buffer.len()).sum();
    let (x, prompts) = convert(n_bytes, move || {
        let tensors = ordered(&request.tensors, metadata.args_structure.as_ref(), N_FORWARD_TENSORS)?;
        let x = request::hidden(tensors[0], "hidden_states", width)?;
        let prompts = request::prompts(tensors[1], n_blocks, &x)?;
        Ok((x, prompts))
    })
    .await?;
    serving.check_size(&x)?;
    let limit = serving.limits.request_timeout;
    let output = timeout(limit, serving.worker.forward(Work { chain, x, prompts }))
        .await
        .unwrap_or(Err(RequestError::RequestTimeout {
            seconds: limit.as_secs_f64(),
        }))?;
    convert(size_of_val(&*output.data), move || {
        serving.to_wire(&output, compression)
    })
    .await
}

/// The reply's compression: the client's wish for its one tensor, or ours.
fn output_compression(serving: &Serving, metadata: &StepMetadata) -> Result<Compression, RequestError> {
    match metadata.output_compression.as_deref() {
        None => Ok(serving.compression),
        Some([code]) => {
            let known = i32::try_from(*code).ok().and_then(Compression::from_id);
            known.ok_or(RequestError::UnknownCompression { code: *code })
        }
        Some(_) => Err(RequestError::BadOutputCompression { expected: 1 }),
    }
}
