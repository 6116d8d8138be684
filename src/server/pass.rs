//! `rpc_forward`, `rpc_backward` and their stream variants: whole sequences through a chain of blocks, there or back,
//! without a cache. Each decodes its request, asks the compute thread, encodes the reply.
//!
//! Names, checks and their order are those of Petals (`server/handler.py`, `server/block_functions.py`).

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use sepal_protocol::{
    Message,
    compress::Compression,
    message::decode,
    metadata::StepMetadata,
    names, proto,
    tensor::{DEFAULT_PART_BYTES, Joiner, WireTensor, split},
};
use tokio::time::timeout;

use super::{
    backward::{Backward, PassOutput},
    convert::convert,
    current::Current,
    error::RequestError,
    guests::Origin,
    request::{self, Prompts, check_points, find_adapter, ordered},
    serving::Serving,
    worker::Work,
};
use crate::{
    model::{AdapterId, Hidden},
    p2p::{PeerId, StreamReceiver, StreamSender},
};

/// Tensors of a request that are kept; more are refused.
const MAX_TENSORS: usize = 16;

/// Which way a pass goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Tensors: activations, deep prompts. One output.
    Forward,
    /// Tensors: activations, gradient by the chain's output, deep prompts. The gradient by the input, and that by the
    /// prompts if there are any.
    Backward,
}

impl Direction {
    pub(crate) fn unary_name(self) -> &'static str {
        match self {
            Self::Forward => names::FORWARD,
            Self::Backward => names::BACKWARD,
        }
    }

    pub(crate) fn stream_name(self) -> &'static str {
        match self {
            Self::Forward => names::FORWARD_STREAM,
            Self::Backward => names::BACKWARD_STREAM,
        }
    }

    /// What error texts call it.
    fn method(self) -> &'static str {
        match self {
            Self::Forward => "rpc_forward",
            Self::Backward => "rpc_backward",
        }
    }

    fn n_tensors(self) -> usize {
        match self {
            Self::Forward => 2,
            Self::Backward => 3,
        }
    }
}

/// A pass in one message each way.
pub(crate) async fn rpc_unary(
    current: &Current,
    (direction, peer): (Direction, PeerId),
    request: Bytes,
) -> Result<Bytes, RequestError> {
    let request: proto::ExpertRequest = decode("ExpertRequest", request)?;
    let tensors = run(current, (direction, peer), request).await?;
    let metadata = Vec::new();
    Ok(proto::ExpertResponse { tensors, metadata }.encode_to_vec().into())
}

/// A pass over large tensors: each arrives and leaves in parts.
pub(crate) async fn rpc_stream(
    current: &Current,
    (direction, peer): (Direction, PeerId),
    mut requests: StreamReceiver,
    mut replies: StreamSender,
) -> Result<(), RequestError> {
    // Which model it is for is known with the first message only.
    let limit = current.limits()?.request_timeout;
    let work = async {
        let Some(request) = gather(&mut requests, current.max_request_bytes()).await? else {
            return Ok(());
        };
        let outputs = run(current, (direction, peer), request).await?;
        for part in outputs.into_iter().flat_map(|output| split(output, DEFAULT_PART_BYTES)) {
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

/// The tensors of a request, decoded.
struct Inputs {
    x: Hidden,
    /// By the chain's output; there for [`Direction::Backward`].
    gradient: Option<Hidden>,
    prompts: Option<Prompts>,
}

async fn run(
    current: &Current,
    (direction, peer): (Direction, PeerId),
    request: proto::ExpertRequest,
) -> Result<Vec<proto::Tensor>, RequestError> {
    let (serving, chain) = current.find_for_work(&request.uid)?;
    let origin = current.admit(peer)?;
    let metadata = StepMetadata::decode(&request.metadata)?;
    check_points(&metadata, direction.method())?;
    let adapter = find_adapter(&metadata, &serving.blocks)?;
    let wish = metadata.output_compression.clone();
    let (width, n_blocks) = (serving.blocks.config().hidden_size, chain.len());
    let n_bytes = request.tensors.iter().map(|tensor| tensor.buffer.len()).sum();
    let inputs = convert(n_bytes, move || {
        let structure = metadata.args_structure.as_ref();
        let tensors = ordered(&request.tensors, structure, direction.n_tensors())?;
        inputs(&tensors, direction, n_blocks, width)
    })
    .await?;
    serving.check_size(&inputs.x)?;
    let tokens = inputs.x.batch * inputs.x.tokens;
    current.guests.spend(origin, tokens, Instant::now())?;
    let n_outputs = match direction {
        Direction::Backward if inputs.prompts.is_some() => 2,
        _ => 1,
    };
    let compressions = output_compressions(&serving, direction, wish.as_deref(), n_outputs)?;
    let limit = serving.limits.request_timeout;
    let outputs = timeout(limit, compute(&serving, (chain, origin), adapter, inputs))
        .await
        .unwrap_or(Err(RequestError::RequestTimeout {
            seconds: limit.as_secs_f64(),
        }))?;
    let n_bytes = size_of_val(&*outputs.x.data);
    convert(n_bytes, move || encode(&serving, &outputs, &compressions)).await
}

fn inputs(
    tensors: &[&proto::Tensor],
    direction: Direction,
    n_blocks: usize,
    width: usize,
) -> Result<Inputs, RequestError> {
    let x = request::hidden(tensors[0], "hidden_states", width)?;
    let gradient = match direction {
        Direction::Forward => None,
        Direction::Backward => Some(request::gradient(tensors[1], &x)?),
    };
    let prompts = request::prompts(tensors[direction.n_tensors() - 1], n_blocks, &x)?;
    Ok(Inputs { x, gradient, prompts })
}

async fn compute(
    serving: &Serving,
    (chain, origin): (Arc<[u32]>, Origin),
    adapter: Option<AdapterId>,
    inputs: Inputs,
) -> Result<PassOutput, RequestError> {
    let Inputs { x, gradient, prompts } = inputs;
    let Some(gradient) = gradient else {
        let work = Work {
            chain,
            x,
            prompts,
            origin,
        };
        let x = serving.worker.forward(work, adapter).await?;
        return Ok(PassOutput { x, prompts: None });
    };
    let turn = serving.backward_turns.take(origin.own).await;
    let turn = turn.map_err(|_| RequestError::NotServing)?;
    let work = Work {
        chain,
        x: gradient,
        prompts,
        origin,
    };
    serving.worker.backward(Backward::new(x, work, adapter, turn)).await
}

fn encode(
    serving: &Serving,
    outputs: &PassOutput,
    compressions: &[Compression],
) -> Result<Vec<proto::Tensor>, RequestError> {
    let mut tensors = vec![serving.to_wire(&outputs.x, compressions[0])?];
    if let Some(prompts) = &outputs.prompts {
        let tensor = WireTensor::from_f32(&prompts.data, prompts.shape, serving.blocks.dtype().into())?;
        tensors.push(tensor.encode(compressions[1])?);
    }
    Ok(tensors)
}

/// The compression of each output: the client's wish, or ours.
fn output_compressions(
    serving: &Serving,
    direction: Direction,
    wish: Option<&[i64]>,
    n_outputs: usize,
) -> Result<Vec<Compression>, RequestError> {
    let Some(codes) = wish else {
        return Ok(vec![serving.compression; n_outputs]);
    };
    if codes.len() != n_outputs {
        return Err(match direction {
            Direction::Forward => RequestError::BadOutputCompression,
            Direction::Backward => RequestError::BadGradientCompression { expected: n_outputs },
        });
    }
    let known = codes.iter().map(|code| {
        let compression = i32::try_from(*code).ok().and_then(Compression::from_id);
        compression.ok_or(RequestError::UnknownCompression { code: *code })
    });
    known.collect()
}
