//! One inference stream to one server: sends steps, reads answers. It knows no route and keeps no history.
//!
//! A session may be opened ahead of its first tokens by a step of none, which every Petals server answers with none: then
//! the first output of the server before it can be pushed to it as well.
//!
//! What goes into a message is what every Petals version understands: `start_from_position` for 2.3 servers and
//! `next_servers` for pushes, both always sent when they apply (Petals clients send one or the other).

use std::{ops::Range, sync::Arc, time::Duration};

use sepal_protocol::{
    Message, WireError,
    compress::Compression,
    message::decode,
    metadata::{NextServer, ReplyMetadata, StepMetadata, args_structure},
    msgpack::Value,
    names, proto,
    record::BlockUid,
    tensor::{DType, WireTensor},
};
use tokio::time::timeout;
use tracing::{trace, warn};

use super::{
    activations::{Encoding, Outgoing, Passing},
    error::RemoteError,
};
use crate::{
    model::Hidden,
    p2p::{P2p, PeerId, StreamError, StreamReceiver, StreamSender, Transfer},
    receipt::{Asked, Expectation, FalseReceipt, Keeper, TensorDigest},
};

/// Seconds a server may let us wait for cache memory before it refuses.
pub(super) const ALLOC_TIMEOUT: f64 = 10.0;
/// The same where memory can be freed on our side: long enough for a session that is just being closed.
pub(super) const HASTY_ALLOC_TIMEOUT: f64 = 1.0;
/// Longest wait for the answer to a goodbye. A server that is frozen gives none, and whoever wants to end is not kept: the
/// end of the stream frees what the session holds as well.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Tensors in a step: activations, deep prompts, beam indices.
const N_TENSORS: usize = 3;

/// An open session on one server.
#[derive(Debug)]
pub(crate) struct Remote {
    peer: PeerId,
    blocks: Range<u32>,
    session_id: String,
    uid: String,
    max_length: usize,
    alloc_timeout: f64,
    dtype: DType,
    adapter: Option<Arc<str>>,
    timeout: Duration,
    /// Tokens the server has in its cache for us.
    position: usize,
    /// The shape of a step of no tokens that was sent and whose answer has not been read.
    ahead: Option<[usize; 3]>,
    /// Whether another server was told of this session, and may push to it.
    is_pushed_to: bool,
    /// What receipts have to say, and where they go; `None` if none are wanted.
    receipts: Option<(Expectation, Keeper)>,
    sender: StreamSender,
    receiver: StreamReceiver,
}

/// Which server to open a session on, and for what.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) peer: PeerId,
    pub(crate) blocks: Range<u32>,
    pub(crate) prefix: Arc<str>,
    /// Tokens to reserve.
    pub(crate) max_length: usize,
    /// Seconds the server may let us wait for memory.
    pub(crate) alloc_timeout: f64,
    /// Longest wait for a stream.
    pub(crate) connect_timeout: Duration,
    /// Longest wait for one step.
    pub(crate) timeout: Duration,
    /// Dtype in which the server computes: what we send in another one it would only convert.
    pub(crate) dtype: DType,
    /// LoRA adapter to go through.
    pub(crate) adapter: Option<Arc<str>>,
    /// Where receipts are kept, if they are wanted.
    pub(crate) receipts: Option<Keeper>,
}

impl Remote {
    /// Opens a stream; the server reserves memory when the first step arrives.
    ///
    /// # Errors
    /// When the server cannot be reached or does not speak the RPC.
    pub(crate) async fn open(p2p: &P2p, target: Target) -> Result<Self, RemoteError> {
        let (sender, receiver) = p2p
            .open_stream(target.peer, names::INFERENCE, target.connect_timeout)
            .await
            .map_err(RemoteError::Open)?;
        let session_id = uuid::Uuid::new_v4().to_string();
        let receipts = target.receipts.map(|keeper| {
            let expected = Expectation::new(target.peer, &target.prefix, &session_id, &target.blocks);
            (expected, keeper)
        });
        Ok(Self {
            peer: target.peer,
            session_id,
            receipts,
            uid: BlockUid::format_chain(&target.prefix, target.blocks.clone()),
            blocks: target.blocks,
            max_length: target.max_length,
            alloc_timeout: target.alloc_timeout,
            dtype: target.dtype,
            adapter: target.adapter,
            timeout: target.timeout,
            position: 0,
            ahead: None,
            is_pushed_to: false,
            sender,
            receiver,
        })
    }

    /// What this server is sent.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Tokens in the server's cache.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Whether the server has heard of this session, so that others can push to it.
    pub(crate) fn is_known(&self) -> bool {
        self.position > 0 || self.ahead.is_some()
    }

    /// The next step starts at `position`, which the server has in its cache.
    pub(crate) fn rewind(&mut self, position: usize) {
        self.position = position;
    }

    /// This session as an entry of `next_servers`, so that the server before it can push to it.
    pub(crate) fn as_next_server(&mut self) -> NextServer {
        self.is_pushed_to = true;
        NextServer {
            peer_id: self.peer.to_string(),
            session_id: self.session_id.clone(),
            start: self.blocks.start,
            end: self.blocks.end,
        }
    }

    /// The activations as this server is sent them.
    ///
    /// # Errors
    /// When their shape is not one.
    pub(crate) fn outgoing(&self, passing: &Passing, encoding: Encoding) -> Result<Outgoing, RemoteError> {
        Ok(encoding.outgoing(passing, self.dtype)?)
    }

    /// How long the last messages there and back took on the line.
    pub(crate) fn transfers(&self) -> (Option<Transfer>, Option<Transfer>) {
        (self.sender.last_transfer(), self.receiver.last_transfer())
    }

    /// Sends a step of no tokens of `batch` sequences: the server reserves memory at once, and knows the session when the
    /// server before it pushes its first output. The answer is read by the first step; if this fails, so does that.
    pub(crate) async fn open_ahead(&mut self, batch: usize, width: usize) {
        let shape = [batch, 0, width];
        let step_id = uuid::Uuid::new_v4().to_string();
        let nothing = WireTensor::new(self.dtype, shape, bytes::Bytes::new());
        let message = nothing
            .and_then(|nothing| nothing.encode(Compression::None))
            .and_then(|nothing| self.message(nothing, self.metadata(&step_id, Vec::new(), Encoding::Exact)));
        let Ok(message) = message else { return };
        let sent = timeout(self.timeout, self.sender.send(message.encode_to_vec().into())).await;
        if matches!(sent, Ok(Ok(()))) {
            self.ahead = Some(shape);
        }
    }

    /// Runs one step over activations `[batch, tokens, hidden]`, and waits for its answer, of the same shape.
    ///
    /// # Errors
    /// After any error the session is of no more use.
    pub(crate) async fn step(
        &mut self,
        outgoing: &Outgoing,
        step_id: &str,
        next_servers: Vec<NextServer>,
    ) -> Result<Passing, RemoteError> {
        let metadata = self.metadata(step_id, next_servers, outgoing.encoding);
        let message = self.message(outgoing.message.clone(), metadata)?;
        let limit = self.timeout;
        let answer = timeout(limit, self.exchange(message.encode_to_vec().into()))
            .await
            .map_err(|_| RemoteError::Timeout(limit))??;
        let Answer { x, message, metadata } = decode_answer(answer, &outgoing.seen.shape)?;
        let digest = self.receipts.is_some().then(|| TensorDigest::of(&message));
        if let Some(output) = &digest {
            self.take_receipt(step_id, outgoing, (&x, output), &metadata).await?;
        }
        self.position += x.tokens;
        trace!(peer = %self.peer, position = self.position, "step answered");
        let message = (outgoing.encoding != Encoding::Exact).then_some(message);
        Ok(Passing { x, message, digest })
    }

    /// Checks the receipt of a step and has it kept. A server that has never given one knows nothing of receipts.
    async fn take_receipt(
        &mut self,
        step_id: &str,
        outgoing: &Outgoing,
        (x, output): (&Hidden, &TensorDigest),
        metadata: &[u8],
    ) -> Result<(), RemoteError> {
        let Some((expected, keeper)) = &mut self.receipts else {
            return Ok(());
        };
        let blame = |why: FalseReceipt| match self.is_pushed_to && why.may_come_of_another_step() {
            true => RemoteError::OtherStep(Box::new(why)),
            false => RemoteError::FalseReceipt(Box::new(why)),
        };
        let Some(text) = ReplyMetadata::decode(metadata)?.receipt else {
            if !expected.is_first() {
                return Err(blame(FalseReceipt::Missing));
            }
            if self.position == 0 {
                warn!(peer = %self.peer, blocks = ?self.blocks, "this server gives no receipts");
            }
            return Ok(());
        };
        let asked = Asked {
            position: self.position,
            size: (x.batch, x.tokens),
            input: TensorDigest::of(&outgoing.message),
            pushed: outgoing.pushed.as_ref(),
            output,
        };
        let receipt = expected.check(&text, &asked).map_err(blame)?;
        keeper.keep(step_id, &receipt).await;
        Ok(())
    }

    /// Sends a message and waits for its answer. What was pushed may be answered before the copy from here is through a
    /// slow line: then the rest of it goes out with the next message, and the server drops it.
    async fn exchange(&mut self, message: bytes::Bytes) -> Result<bytes::Bytes, RemoteError> {
        let (receiver, ahead) = (&mut self.receiver, &mut self.ahead);
        let answer = async {
            if let Some(shape) = ahead.take() {
                decode_answer(receive(receiver).await?, &shape)?;
            }
            receive(receiver).await
        };
        let send = self.sender.send(message);
        tokio::pin!(answer, send);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            sent = &mut send => {
                sent.map_err(RemoteError::Stream)?;
                answer.await
            }
        }
    }

    fn metadata(&self, step_id: &str, next_servers: Vec<NextServer>, encoding: Encoding) -> StepMetadata {
        let first = self.position == 0;
        StepMetadata {
            session_id: Some(self.session_id.clone()),
            step_id: Some(step_id.to_string()),
            alloc_timeout: first.then_some(self.alloc_timeout),
            args_structure: Some(args_structure(N_TENSORS)),
            start_from_position: Some(self.position as i64),
            next_servers,
            max_length: first.then(|| Value::from(self.max_length)),
            points: first.then(|| Value::from(0.0)),
            active_adapter: self.adapter.as_deref().map(str::to_owned),
            activations: encoding.wish().map(str::to_owned),
            receipt: self.receipts.is_some(),
            ..StepMetadata::default()
        }
    }

    fn message(&self, x: proto::Tensor, metadata: StepMetadata) -> Result<proto::ExpertRequest, WireError> {
        Ok(proto::ExpertRequest {
            uid: self.uid.clone(),
            tensors: vec![x, empty(DType::F32)?, empty(DType::I64)?],
            metadata: metadata.encode(),
        })
    }

    /// Says goodbye the way Petals' client does: an empty message, then the end of the stream.
    pub(crate) async fn close(mut self) {
        let goodbye = async {
            self.sender.send(bytes::Bytes::new()).await?;
            self.sender.finish().await?;
            // The end comes behind the answers that nobody has read; what the session held is free by then.
            while self.receiver.recv().await?.is_some() {}
            Ok::<(), StreamError>(())
        };
        // A server that is gone needs no goodbye.
        drop(timeout(GOODBYE_TIMEOUT, goodbye).await);
    }
}

async fn receive(receiver: &mut StreamReceiver) -> Result<bytes::Bytes, RemoteError> {
    let answer = receiver.recv().await.map_err(RemoteError::Stream)?;
    answer.ok_or(RemoteError::Closed)
}

/// Petals' stand-in for "no such tensor".
fn empty(dtype: DType) -> Result<proto::Tensor, WireError> {
    WireTensor::new(dtype, [0], bytes::Bytes::new())?.encode(Compression::None)
}

/// An answer that has the right form.
struct Answer {
    x: Hidden,
    /// As it came.
    message: proto::Tensor,
    metadata: Vec<u8>,
}

/// The one tensor of an answer, checked against the shape of the step it answers.
fn decode_answer(answer: bytes::Bytes, expected: &[usize]) -> Result<Answer, RemoteError> {
    let mut answer: proto::ExpertResponse = decode("ExpertResponse", answer)?;
    let wrong = |got| RemoteError::WrongShape {
        expected: expected.to_vec(),
        got,
    };
    let n_tensors = answer.tensors.len();
    let (Some(message), 1) = (answer.tensors.pop(), n_tensors) else {
        return Err(RemoteError::TensorCount(n_tensors));
    };
    let tensor = WireTensor::decode(&message)?;
    if tensor.shape != expected {
        return Err(wrong(tensor.shape));
    }
    let output = Hidden::from_wire(&tensor).map_err(RemoteError::NotActivations)?;
    if !output.data.iter().all(|value| value.is_finite()) {
        return Err(RemoteError::NotFinite);
    }
    Ok(Answer {
        x: output,
        message,
        metadata: answer.metadata,
    })
}
