//! `rpc_forward`, `rpc_backward` and their stream variants: whole sequences through a chain of blocks, there or back,
//! without a cache. Each waits for the memory that it will take, decodes its request, asks the compute thread, encodes the
//! reply. How a streamed request comes in is said in `gathering.rs`.
//!
//! Names, checks and their order are those of Petals (`server/handler.py`, `server/block_functions.py`).

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use sepal_protocol::{
    Message,
    compress::Compression,
    message::decode,
    metadata::{StepMetadata, tensor_order},
    names, proto,
    tensor::{DEFAULT_PART_BYTES, WireTensor, split},
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    backward::{Backward, PassOutput},
    convert::convert,
    current::Current,
    error::RequestError,
    gathering::{Gathered, gather},
    guests::{Guests, Origin},
    memory::Lease,
    pass_memory::{PassPlan, PassSize},
    request::{self, Prompts, check_points, find_adapter, ordered},
    serving::Serving,
    worker::Work,
};
use crate::{
    model::{AdapterId, Hidden},
    p2p::{PeerId, StreamReceiver, StreamSender},
};

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
    let asked = Asked::new(current, (direction, peer), &request)?;
    let answer = asked.answer(Gathered::whole(request.tensors)).await?;
    let response = proto::ExpertResponse {
        tensors: answer.tensors,
        metadata: Vec::new(),
    };
    Ok(response.encode_to_vec().into())
}

/// A pass over large tensors: each arrives and leaves in parts.
pub(crate) async fn rpc_stream(
    current: &Current,
    (direction, peer): (Direction, PeerId),
    mut requests: StreamReceiver,
    replies: StreamSender,
) -> Result<(), RequestError> {
    // Which model it is for is known with the first message only.
    let limit = current.limits()?.request_timeout;
    let work = async {
        // Who leaves without one is not answered.
        let Ok(Some(first)) = requests.recv().await else {
            return Ok(());
        };
        let n_bytes = first.len();
        let first: proto::ExpertRequest = decode("ExpertRequest", first)?;
        let asked = Asked::new(current, (direction, peer), &first)?;
        // It may take its time with the rest, and keeps no blocks meanwhile that are to go.
        let stopped = asked.serving.tasks.token();
        let answered = stopped.run_until_cancelled(asked.answer_stream((first, n_bytes), requests, replies));
        answered.await.unwrap_or(Err(RequestError::NotServing))
    };
    timeout(limit, work).await.unwrap_or(Err(RequestError::RequestTimeout {
        seconds: limit.as_secs_f64(),
    }))
}

/// The tensors of a request, decoded.
struct Inputs {
    x: Hidden,
    /// By the chain's output; there for [`Direction::Backward`].
    gradient: Option<Hidden>,
    prompts: Option<Prompts>,
}

/// What a request says before its tensors: all of it is known with its first message.
struct Asked {
    serving: Arc<Serving>,
    chain: Arc<[u32]>,
    origin: Origin,
    guests: Arc<Guests>,
    direction: Direction,
    metadata: StepMetadata,
    adapter: Option<AdapterId>,
}

/// What a pass is computed with.
struct Granted {
    /// Of [`Direction::Backward`].
    turn: Option<OwnedSemaphorePermit>,
    lease: Arc<Lease>,
}

/// What is sent back, and what pays for its memory until that is done.
struct Answer {
    tensors: Vec<proto::Tensor>,
    _lease: Arc<Lease>,
}

/// What a request says of its size, of which nothing is decoded yet. Where its bytes do not bear that out, it will be
/// refused.
fn size(tensors: &[&proto::Tensor], direction: Direction, n_blocks: usize, width: usize) -> PassSize {
    // However it is compressed, no number takes less than a byte.
    let numbers = |tensor: &proto::Tensor| {
        let dims = tensor.size.iter().map(|dim| *dim as usize);
        dims.fold(1, usize::saturating_mul).min(tensor.buffer.len())
    };
    let (x, prompts) = (tensors[0], tensors[direction.n_tensors() - 1]);
    let [batch, tokens] = match x.size[..] {
        [batch, tokens, _] if numbers(x) == (batch as usize).saturating_mul(tokens as usize).saturating_mul(width) => {
            [batch as usize, tokens as usize]
        }
        _ => [1, numbers(x).div_ceil(width)],
    };
    let prefix = match prompts.size[..] {
        [_, _, prefix, _] => tokens.min(prefix as usize),
        _ => 0,
    };
    PassSize {
        batch,
        tokens,
        n_blocks,
        prompt_numbers: numbers(prompts),
        prefix,
        is_backward: direction == Direction::Backward,
    }
}

impl Asked {
    /// # Errors
    /// When it is refused whatever its tensors are.
    fn new(
        current: &Current,
        (direction, peer): (Direction, PeerId),
        request: &proto::ExpertRequest,
    ) -> Result<Self, RequestError> {
        let (serving, chain) = current.find_for_work(&request.uid)?;
        let origin = current.admit(peer)?;
        let metadata = StepMetadata::decode(&request.metadata)?;
        check_points(&metadata, direction.method())?;
        let adapter = find_adapter(&metadata, &serving.blocks)?;
        Ok(Self {
            serving,
            chain,
            origin,
            guests: current.guests.clone(),
            direction,
            metadata,
            adapter,
        })
    }

    /// Takes in the rest of a streamed request, and answers it.
    async fn answer_stream(
        self,
        first: (proto::ExpertRequest, usize),
        mut requests: StreamReceiver,
        mut replies: StreamSender,
    ) -> Result<(), RequestError> {
        let n_alike = self.n_alike();
        if let Some(x) = first.0.tensors.first().filter(|_| n_alike.is_some()) {
            self.check_activations(x)?;
        }
        let line = (&self.serving.undecoded, self.origin);
        let Some(request) = gather(line, first, n_alike, &mut requests).await? else {
            return Ok(());
        };
        let Answer { tensors, _lease } = self.answer(request).await?;
        for part in tensors.into_iter().flat_map(|output| split(output, DEFAULT_PART_BYTES)) {
            let message = proto::ExpertResponse {
                tensors: vec![part],
                metadata: Vec::new(),
            };
            if replies.send(message.encode_to_vec().into()).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// How many tensors are as large as the first: the activations and what else is of their shape. `None` if the metadata
    /// puts others there.
    fn n_alike(&self) -> Option<usize> {
        let order = tensor_order(self.metadata.args_structure.as_ref(), self.direction.n_tensors());
        let alike = self.direction.n_tensors() - 1;
        order.is_ok_and(|order| order.first() == Some(&0)).then_some(alike)
    }

    /// Refuses at once what is too large by the size that is told of its activations.
    fn check_activations(&self, x: &proto::Tensor) -> Result<(), RequestError> {
        let width = self.serving.blocks.config().hidden_size;
        let [batch, tokens, last] = x.size[..] else {
            return Ok(());
        };
        if last as usize != width {
            return Ok(());
        }
        let size = PassSize {
            batch: batch as usize,
            tokens: tokens as usize,
            n_blocks: self.chain.len(),
            is_backward: self.direction == Direction::Backward,
            ..PassSize::default()
        };
        self.plan(&size).map(drop)
    }

    /// How a pass of that size is computed.
    fn plan(&self, size: &PassSize) -> Result<PassPlan, RequestError> {
        self.serving.check_tokens(size.batch, size.tokens)?;
        self.serving.passes.plan(size)
    }

    /// The pass itself: waits, decodes, computes, encodes.
    async fn answer(&self, request: Gathered) -> Result<Answer, RequestError> {
        let (direction, structure) = (self.direction, self.metadata.args_structure.as_ref());
        let tensors = ordered(&request.tensors, structure, direction.n_tensors())?;
        let width = self.serving.blocks.config().hidden_size;
        let plan = self.plan(&size(&tensors, direction, self.chain.len(), width))?;
        let limit = self.serving.limits.request_timeout;
        let (outputs, compressions, lease) =
            timeout(limit, self.run(request, plan))
                .await
                .unwrap_or(Err(RequestError::RequestTimeout {
                    seconds: limit.as_secs_f64(),
                }))?;
        let (n_bytes, serving) = (size_of_val(&*outputs.x.data), self.serving.clone());
        convert(n_bytes, move || {
            let tensors = encode(&serving, &outputs, &compressions)?;
            drop(outputs);
            // However long the caller takes to read it, only the answer is there now.
            lease.keep(tensors.iter().map(|tensor| tensor.buffer.len() as u64).sum::<u64>());
            Ok(Answer { tensors, _lease: lease })
        })
        .await
    }

    /// The outputs, how they are to be encoded, and what pays for their memory.
    async fn run(
        &self,
        request: Gathered,
        plan: PassPlan,
    ) -> Result<(PassOutput, Vec<Compression>, Arc<Lease>), RequestError> {
        let granted = self.wait(plan).await?;
        let lease = granted.lease.clone();
        let inputs = self.decode(request, lease.clone()).await?;
        self.serving.check_size(&inputs.x)?;
        let tokens = inputs.x.batch * inputs.x.tokens;
        self.guests.spend(self.origin, tokens, Instant::now())?;
        let n_outputs = match self.direction {
            Direction::Backward if inputs.prompts.is_some() => 2,
            _ => 1,
        };
        let wish = self.metadata.output_compression.as_deref();
        let compressions = output_compressions(&self.serving, self.direction, wish, n_outputs)?;
        let outputs = self.compute(inputs, granted, plan).await?;
        Ok((outputs, compressions, lease))
    }

    /// Waits for its turn first: who waits for that keeps no memory from others.
    async fn wait(&self, plan: PassPlan) -> Result<Granted, RequestError> {
        let (serving, own) = (&self.serving, self.origin.own);
        let turn = match self.direction {
            Direction::Forward => None,
            Direction::Backward => {
                let turn = serving.backward_turns.take(own).await;
                Some(turn.map_err(|_| RequestError::NotServing)?)
            }
        };
        let lease = Arc::new(serving.passes.lease(plan, own).await?);
        Ok(Granted { turn, lease })
    }

    async fn decode(&self, request: Gathered, lease: Arc<Lease>) -> Result<Inputs, RequestError> {
        let (direction, n_blocks) = (self.direction, self.chain.len());
        let width = self.serving.blocks.config().hidden_size;
        let structure = self.metadata.args_structure.clone();
        let n_bytes = request.tensors.iter().map(|tensor| tensor.buffer.len()).sum();
        convert(n_bytes, move || {
            // All of it: what pays for the tensors as well.
            let (request, _lease) = (request, lease);
            let tensors = ordered(&request.tensors, structure.as_ref(), direction.n_tensors())?;
            inputs(&tensors, direction, n_blocks, width)
        })
        .await
    }

    async fn compute(&self, inputs: Inputs, granted: Granted, plan: PassPlan) -> Result<PassOutput, RequestError> {
        let Inputs { x, gradient, prompts } = inputs;
        let work = |x, prompts| Work {
            chain: self.chain.clone(),
            x,
            prompts,
            origin: self.origin,
            _lease: Some(granted.lease.clone()),
        };
        let worker = &self.serving.worker;
        let (Some(gradient), Some(turn)) = (gradient, granted.turn) else {
            let x = worker.forward(work(x, prompts), self.adapter).await?;
            return Ok(PassOutput { x, prompts: None });
        };
        let work = work(gradient, prompts);
        let pass = Backward::new(x, work, self.adapter, plan.stretch, turn);
        worker.backward(pass).await
    }
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
