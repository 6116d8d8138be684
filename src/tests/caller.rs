//! A hand-made client: says exactly what a test wants it to say, and hands out exactly what comes back.

use bytes::Bytes;
use sepal_protocol::{
    Message,
    compress::Compression,
    metadata::{StepMetadata, args_structure},
    msgpack::Value,
    names, proto,
    record::BlockUid,
    tensor::{DType, WireTensor},
};

use super::setup::{N_BLOCKS, Node, PREFIX, soon};
use crate::{
    model::Hidden,
    p2p::{CallError, PeerId, StreamError, StreamReceiver, StreamSender},
};

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Everything a step consists of. The default is what most tests need.
#[derive(Clone)]
pub(super) struct Step {
    pub(super) uid: String,
    pub(super) x: WireTensor,
    pub(super) prompts: WireTensor,
    pub(super) rows: WireTensor,
    pub(super) metadata: StepMetadata,
}

impl Step {
    /// The first step of a session over all blocks.
    pub(super) fn first(x: &Hidden, max_length: usize) -> Self {
        let mut step = Self::next(x);
        step.metadata.max_length = Some(Value::from(max_length));
        step
    }

    pub(super) fn next(x: &Hidden) -> Self {
        let metadata = StepMetadata {
            args_structure: Some(args_structure(3)),
            ..StepMetadata::default()
        };
        Self {
            uid: BlockUid::format_chain(PREFIX, 0..N_BLOCKS),
            x: x.to_wire(DType::F32).unwrap(),
            prompts: empty(DType::F32),
            rows: empty(DType::I64),
            metadata,
        }
    }

    pub(super) fn session(mut self, id: &str) -> Self {
        self.metadata.session_id = Some(id.to_owned());
        self
    }

    pub(super) fn id(mut self, id: &str) -> Self {
        self.metadata.step_id = Some(id.to_owned());
        self
    }

    pub(super) fn from(mut self, position: i64) -> Self {
        self.metadata.start_from_position = Some(position);
        self
    }

    pub(super) fn rows(mut self, rows: &[i64]) -> Self {
        self.rows = WireTensor::from_i64(rows, [rows.len()]).unwrap();
        self
    }

    pub(super) fn request(&self) -> proto::ExpertRequest {
        let tensors = [&self.x, &self.prompts, &self.rows];
        proto::ExpertRequest {
            uid: self.uid.clone(),
            tensors: tensors.map(|tensor| tensor.encode(Compression::None).unwrap()).to_vec(),
            metadata: self.metadata.encode(),
        }
    }
}

pub(super) fn empty(dtype: DType) -> WireTensor {
    WireTensor::new(dtype, [0], Bytes::new()).unwrap()
}

/// A forward pass of `x` through the blocks of `uid`.
pub(super) fn forward(uid: &str, x: &Hidden) -> Vec<u8> {
    let tensors = [x.to_wire(DType::F32).unwrap(), empty(DType::F32)];
    let tensors = tensors.map(|tensor| tensor.encode(Compression::None).unwrap()).to_vec();
    let metadata = StepMetadata::default().encode();
    proto::ExpertRequest {
        uid: uid.to_owned(),
        tensors,
        metadata,
    }
    .encode_to_vec()
}

/// What a server says to a step.
#[derive(Debug)]
pub(super) enum Answer {
    Output(WireTensor),
    Error(String),
    End,
}

impl Answer {
    #[track_caller]
    pub(super) fn output(self) -> WireTensor {
        match self {
            Self::Output(tensor) => tensor,
            other => panic!("an output was expected, not {other:?}"),
        }
    }

    #[track_caller]
    pub(super) fn error(self) -> String {
        match self {
            Self::Error(text) => text,
            other => panic!("an error was expected, not {other:?}"),
        }
    }
}

/// One open `rpc_inference` stream.
pub(super) struct Session {
    sender: StreamSender,
    receiver: StreamReceiver,
}

impl Session {
    pub(super) async fn open(node: &Node, server: PeerId) -> Self {
        Self::open_named(node, server, names::INFERENCE).await
    }

    pub(super) async fn open_named(node: &Node, server: PeerId, name: &str) -> Self {
        let (sender, receiver) = node.p2p.open_stream(server, name, TIMEOUT).await.unwrap();
        Self { sender, receiver }
    }

    /// Sends bytes; a server that has already closed is no error.
    pub(super) async fn send_bytes(&mut self, bytes: Vec<u8>) {
        drop(soon("sending", self.sender.send(bytes.into())).await);
    }

    pub(super) async fn send(&mut self, step: &Step) {
        self.send_bytes(step.request().encode_to_vec()).await;
    }

    pub(super) async fn finish(&mut self) {
        drop(self.sender.finish().await);
    }

    /// The next message as it came.
    pub(super) async fn receive(&mut self) -> Result<Option<Bytes>, StreamError> {
        soon("an answer", self.receiver.recv()).await
    }

    pub(super) async fn answer(&mut self) -> Answer {
        match self.receive().await {
            Ok(Some(bytes)) => {
                let answer = proto::ExpertResponse::decode(bytes).unwrap();
                Answer::Output(WireTensor::decode(&answer.tensors[0]).unwrap())
            }
            Ok(None) => Answer::End,
            Err(StreamError::Remote { text }) => Answer::Error(text),
            Err(error) => panic!("the stream broke: {error:?}"),
        }
    }

    pub(super) async fn step(&mut self, step: &Step) -> Answer {
        self.send(step).await;
        self.answer().await
    }
}

/// A unary call; the error is the text that the server sent.
pub(super) async fn call(node: &Node, server: PeerId, name: &str, request: Vec<u8>) -> Result<Bytes, String> {
    match node.p2p.call_unary(server, name, request.into(), TIMEOUT).await {
        Ok(answer) => Ok(answer),
        Err(CallError::Remote { text }) => Err(text),
        Err(error) => panic!("{name} failed: {error:?}"),
    }
}
