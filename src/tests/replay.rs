//! What real Petals clients said to real Petals servers is said to ours, and the answers are compared.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use sepal_protocol::{
    Message, compress::Compression, metadata::StepMetadata, names, proto, record::RpcInfo, tensor::WireTensor,
};
use serde_json::Value;

use super::{
    caller::{Session, call},
    setup::{Node, Swarm, TestServer, assert_close, config, vectors},
};
use crate::{
    model::WeightDType,
    p2p::{PeerId, StreamError},
    server::Config,
};

/// How much computed values may differ. Petals rounds to bfloat16 after every operation, we only round weights, cache and
/// answers; what that makes of answers of magnitude 12 was measured.
const F32: f32 = 1e-4;
const BF16: f32 = 0.1;

/// Up to which size of numbers the tolerance is absolute: that of all activations.
const MAGNITUDE: f32 = 32.0;

/// One recorded file, being said again.
struct Replay<'a> {
    node: &'a Node,
    servers: &'a [TestServer],
    tolerance: f32,
    /// Where our answers differ on purpose: number of the event, and the beginning of our error text instead.
    ours: &'a [(usize, &'a str)],
    sessions: HashMap<String, Session>,
    unary: HashMap<String, VecDeque<Result<Bytes, String>>>,
    answers: usize,
    errors: usize,
}

impl<'a> Replay<'a> {
    fn new(node: &'a Node, servers: &'a [TestServer], tolerance: f32) -> Self {
        Self {
            node,
            servers,
            tolerance,
            ours: &[],
            sessions: HashMap::new(),
            unary: HashMap::new(),
            answers: 0,
            errors: 0,
        }
    }

    /// Goes through the events of `file`, except those of the calls in `skipped`.
    async fn run(&mut self, file: &str, skipped: &[&str]) {
        let file = vectors(file);
        for (number, event) in file["events"].as_array().unwrap().iter().enumerate() {
            let is_callers = event["who"].as_str().is_some_and(|who| who.starts_with("c_"));
            let call = event["call"].as_str().unwrap_or_default();
            let rpc = event["rpc"].as_str().unwrap_or_default();
            if is_callers && !skipped.contains(&call) {
                self.event(number, event, call, rpc).await;
            }
        }
    }

    async fn event(&mut self, number: usize, event: &Value, call: &str, rpc: &str) {
        match event["event"].as_str().unwrap() {
            "caller sends" => self.say(event, call, rpc).await,
            "caller receives" => match self.ours.iter().find(|(ours, _)| *ours == number) {
                Some((_, text)) => self.expect_error(number, call, text).await,
                None => self.expect_answer(number, event, call).await,
            },
            "caller got an error" => {
                let ours = self
                    .ours
                    .iter()
                    .find(|(ours, _)| *ours == number)
                    .map(|(_, text)| *text);
                let recorded = remote_text(event["error"].as_str().unwrap());
                match (ours, recorded) {
                    (Some(text), _) => self.expect_error(number, call, text).await,
                    (None, Some(text)) => self.expect_error(number, call, &text).await,
                    // The recording client went away by itself.
                    (None, None) => drop(self.sessions.remove(call)),
                }
            }
            "caller ended its request stream (END_OF_STREAM follows)" => self.end(call, rpc).await,
            "callee closed the stream normally" => {
                if let Some(mut session) = self.sessions.remove(call) {
                    let end = session.receive().await;
                    assert!(matches!(end, Ok(None)), "event {number}: {end:?}");
                }
            }
            other => panic!("event {number}: {other}"),
        }
    }

    async fn say(&mut self, event: &Value, call_id: &str, rpc: &str) {
        let server = self.server(event);
        let bytes = self.with_our_peers(recorded_bytes(event));
        if [names::INFERENCE, names::FORWARD_STREAM, names::BACKWARD_STREAM].contains(&rpc) {
            if !self.sessions.contains_key(call_id) {
                let session = Session::open_named(self.node, server, rpc).await;
                self.sessions.insert(call_id.to_owned(), session);
            }
            self.sessions.get_mut(call_id).unwrap().send_bytes(bytes).await;
        } else {
            let answer = call(self.node, server, rpc, bytes).await;
            self.unary.entry(call_id.to_owned()).or_default().push_back(answer);
        }
    }

    /// After END an inference session is over; waiting for that makes what follows find the cache free, as it was.
    async fn end(&mut self, call: &str, rpc: &str) {
        let Some(session) = self.sessions.get_mut(call) else {
            return;
        };
        session.finish().await;
        if rpc == names::INFERENCE {
            let end = session.receive().await;
            assert!(matches!(end, Ok(None)), "{end:?}");
        }
    }

    async fn next(&mut self, call: &str) -> Result<Bytes, String> {
        if let Some(answers) = self.unary.get_mut(call) {
            return answers.pop_front().unwrap();
        }
        match self.sessions.get_mut(call).unwrap().receive().await {
            Ok(Some(bytes)) => Ok(bytes),
            Err(StreamError::Remote { text }) => Err(text),
            other => panic!("call {call}: {other:?}"),
        }
    }

    async fn expect_answer(&mut self, number: usize, event: &Value, call: &str) {
        let answer = self.next(call).await;
        let answer = answer.unwrap_or_else(|error| panic!("event {number}: {error}"));
        let recorded = recorded_bytes(event);
        match event["decoded"]["type"].as_str().unwrap() {
            "ExpertInfo" => compare_info(number, &answer, &recorded),
            "PingResponse" => assert_eq!(answer, recorded, "event {number}"),
            _ => self.compare_tensors(number, answer, &recorded),
        }
        self.answers += 1;
    }

    fn compare_tensors(&self, number: usize, answer: Bytes, recorded: &[u8]) {
        let answer = proto::ExpertResponse::decode(answer).unwrap();
        let recorded = proto::ExpertResponse::decode(recorded).unwrap();
        assert_eq!(answer.tensors.len(), recorded.tensors.len(), "event {number}");
        for (ours, theirs) in answer.tensors.iter().zip(&recorded.tensors) {
            let head = |tensor: &proto::Tensor| {
                (
                    tensor.size.clone(),
                    tensor.dtype.clone(),
                    tensor.compression,
                    tensor.chunks,
                )
            };
            assert_eq!(head(ours), head(theirs), "event {number}");
            let recorded_compression = theirs.compression;
            let [ours, theirs] = [ours, theirs].map(|tensor| WireTensor::decode(tensor).unwrap().to_f32_vec());
            let tolerance = tolerance(self.tolerance, recorded_compression);
            // Gradients are as large as 150, where neighbouring float32 numbers are 1.5e-5 apart.
            let size = theirs.iter().fold(MAGNITUDE, |size, number| size.max(number.abs())) / MAGNITUDE;
            assert_close(&ours, &theirs, tolerance * size);
        }
    }

    async fn expect_error(&mut self, number: usize, call: &str, text: &str) {
        let error = self.next(call).await.expect_err("an error");
        let is_ours = self.ours.iter().any(|(ours, _)| *ours == number);
        let same = if is_ours {
            error.starts_with(text)
        } else {
            error == text
        };
        assert!(same, "event {number}: {error:?} instead of {text:?}");
        self.errors += 1;
        self.sessions.remove(call);
    }

    /// The server that has the first block of what is asked for.
    fn server(&self, event: &Value) -> PeerId {
        let uid = event["decoded"]["uid"].as_str().unwrap_or_default();
        let known = event["call"].as_str().and_then(|call| self.sessions.get(call));
        let second = known.is_none() && uid.contains("tiny-two-hf.2");
        self.servers[usize::from(second)].node.peer()
    }

    /// Puts the peer ids of our servers where the recorded ones are named.
    fn with_our_peers(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Ok(mut request) = proto::ExpertRequest::decode(&*bytes) else {
            return bytes;
        };
        let Ok(mut metadata) = StepMetadata::decode(&request.metadata) else {
            return bytes;
        };
        if metadata.next_servers.is_empty() {
            return bytes;
        }
        for next in &mut metadata.next_servers {
            next.peer_id = self.servers[1].node.peer().to_string();
        }
        request.metadata = metadata.encode();
        request.encode_to_vec()
    }
}

/// Values that travel as 16-bit floats may round to neighbours: 2^-8 apart at magnitude 12.
fn tolerance(computed: f32, compression: i32) -> f32 {
    if compression == Compression::Float16.id() {
        computed.max(0.01)
    } else {
        computed
    }
}

/// The message of an event. Two that are larger than 2 MB were recorded without their numbers, which do not matter.
fn recorded_bytes(event: &Value) -> Vec<u8> {
    if let Some(hex) = event["raw_hex"].as_str() {
        return hex::decode(hex).unwrap();
    }
    let decoded = &event["decoded"];
    let tensors = decoded["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| proto::Tensor {
            buffer: vec![0; usize::try_from(tensor["buffer_len"].as_u64().unwrap()).unwrap()].into(),
            size: serde_json::from_value(tensor["size"].clone()).unwrap(),
            dtype: tensor["dtype"].as_str().unwrap().to_owned(),
            ..proto::Tensor::default()
        });
    let request = proto::ExpertRequest {
        uid: decoded["uid"].as_str().unwrap().to_owned(),
        tensors: tensors.collect(),
        metadata: hex::decode(decoded["metadata_hex"].as_str().unwrap_or_default()).unwrap(),
    };
    request.encode_to_vec()
}

/// The text that the server sent, out of what Python made of it; `None` if it is about something else.
fn remote_text(error: &str) -> Option<String> {
    let quoted = error.strip_prefix("P2PHandlerError(")?.strip_suffix(')')?;
    let mut text = quoted[1..quoted.len() - 1].replace("\\'", "'").replace("\\\\", "\\");
    if text.starts_with("Failed to call handler") {
        text = text.split_once(": ").map(|(_, text)| text.to_owned())?;
    }
    Some(text)
}

/// Everything but the version is the same.
fn compare_info(number: usize, answer: &[u8], recorded: &[u8]) {
    let [ours, theirs] = [answer, recorded].map(|bytes| {
        let info = proto::ExpertInfo::decode(bytes).unwrap();
        RpcInfo {
            version: String::new(),
            ..RpcInfo::decode(&info.serialized_info).unwrap()
        }
    });
    assert_eq!(ours, theirs, "event {number}");
}

/// Says one file to one server and returns how many answers and errors were as recorded.
async fn replay(config: Config, file: &str, tolerance: f32, ours: &[(usize, &str)]) -> (usize, usize) {
    let swarm = Swarm::start().await;
    let (servers, node) = (vec![swarm.serve_with(config).await], swarm.caller().await);
    let mut replay = Replay::new(&node, &servers, tolerance);
    replay.ours = ours;
    replay.run(file, &[]).await;
    let done = (replay.answers, replay.errors);
    drop(replay);
    servers[0].idle().await;
    done
}

#[tokio::test]
async fn steps_and_a_rollback_are_answered_as_petals_answers_them() {
    assert_eq!(replay(config(0..4), "inference_basic.json", F32, &[]).await, (5, 0));
}

#[tokio::test]
async fn bfloat16_activations_are_answered_in_float32_by_a_float32_server() {
    assert_eq!(
        replay(config(0..4), "inference_bf16_client.json", F32, &[]).await,
        (3, 0)
    );
}

#[tokio::test]
async fn beams_and_deep_prompts_are_answered_as_petals_answers_them() {
    assert_eq!(replay(config(0..4), "inference_beam.json", F32, &[]).await, (4, 0));
    assert_eq!(replay(config(0..4), "inference_prompts.json", F32, &[]).await, (3, 0));
}

#[tokio::test]
async fn whole_generations_of_a_petals_client_are_answered_as_petals_answers_them() {
    assert_eq!(replay(config(0..4), "inference_generate.json", F32, &[]).await, (26, 0));
}

#[tokio::test]
async fn forward_and_backward_passes_are_answered_as_petals_answers_them() {
    assert_eq!(replay(config(0..4), "forward_backward.json", F32, &[]).await, (5, 0));
    // Petals has no text for activations of two dimensions.
    let ours = [(
        39,
        "ValueError('tensor hidden_states has shape [6, 64], expected [batch, tokens, 64]')",
    )];
    let done = replay(config(0..4), "forward_backward_stream.json", F32, &ours).await;
    assert_eq!(done, (6, 9));
}

#[tokio::test]
async fn a_request_that_petals_refuses_is_refused_with_the_same_words() {
    let ours = [
        // Petals accepts a position beyond the cache and attends to what it never wrote.
        (51, "start_from_position 2 is outside of the 0 tokens in the cache"),
        // What torch says there is about its own inside.
        (
            63,
            "tensor hidden_states has shape [2, 1, 64], expected [1, tokens, 64]",
        ),
        (
            80,
            "tensor hidden_states has shape [1, 3, 32], expected [batch, tokens, 64]",
        ),
    ];
    // 3692-14 ends with our error; what the recording client did afterwards has no meaning any more.
    let swarm = Swarm::start().await;
    let (servers, node) = (vec![swarm.serve(0..4).await], swarm.caller().await);
    let mut replay = Replay::new(&node, &servers, F32);
    replay.ours = &ours;
    replay.run("inference_errors.json", &[]).await;
    assert_eq!((replay.answers, replay.errors), (18, 15));
    drop(replay);
    servers[0].idle().await;
}

fn named(prefix: &str, blocks: std::ops::Range<u32>, dtype: WeightDType) -> Config {
    let mut config = config(blocks);
    config.prefix = prefix.to_owned();
    config.dtype = Some(dtype);
    config.limits.attn_cache_tokens = Some(256);
    config.limits.inference_max_length = Some(200);
    config
}

#[tokio::test]
async fn a_bfloat16_server_answers_as_petals_within_rounding() {
    let config = named("tiny-to-hf", 1..3, WeightDType::Bf16);
    let swarm = Swarm::start().await;
    let (servers, node) = (vec![swarm.serve_with(config).await], swarm.caller().await);
    let mut replay = Replay::new(&node, &servers, BF16);
    // The recorded server was behind a relay, and its rpc_info says so.
    replay.run("inference_bf16_server.json", &["9321-1"]).await;
    assert_eq!((replay.answers, replay.errors), (3, 0));
}

#[tokio::test]
async fn compressed_activations_are_answered_compressed() {
    let mut config = named("tiny-c16-hf", 1..3, WeightDType::F32);
    config.compression = Compression::Float16;
    assert_eq!(
        replay(config.clone(), "inference_f16compression.json", F32, &[]).await,
        (4, 0)
    );
    assert_eq!(replay(config, "rpc_info_f16compression.json", F32, &[]).await, (1, 2));
}

#[tokio::test]
async fn a_session_waits_for_cache_as_long_as_its_client_wants() {
    let config = named("tiny-to-hf", 1..3, WeightDType::Bf16);
    let swarm = Swarm::start().await;
    let (servers, node) = (vec![swarm.serve_with(config).await], swarm.caller().await);
    let mut replay = Replay::new(&node, &servers, BF16);
    // The first two calls sit out timeouts (see `limits.rs`); 5 and 8 are rpc_info of a server behind a relay.
    replay
        .run("inference_timeouts.json", &["9347-1", "9347-2", "9347-5", "9347-8"])
        .await;
    assert_eq!((replay.answers, replay.errors), (3, 2));
}

#[tokio::test]
async fn rpc_info_tells_what_petals_tells() {
    let swarm = Swarm::start().await;
    let (servers, node) = (vec![swarm.serve(0..4).await], swarm.caller().await);
    let mut replay = Replay::new(&node, &servers, F32);
    // The two rpc_check are about recorded peers.
    replay.run("rpc_info.json", &["1872-4", "1872-5"]).await;
    assert_eq!((replay.answers, replay.errors), (2, 1));
    let me = servers[0].node.peer();
    let question = proto::PingRequest {
        peer: Some(proto::NodeInfo { node_id: me.to_bytes() }),
        ..proto::PingRequest::default()
    };
    let answer = call(&node, me, names::REACHABILITY_CHECK, question.encode_to_vec()).await;
    assert_eq!(answer.unwrap(), [0x28, 0x01].as_slice());
}

#[tokio::test]
async fn a_recorded_client_gets_its_pushes() {
    let swarm = Swarm::start().await;
    let mut servers = Vec::new();
    for blocks in [0..2, 2..4] {
        servers.push(swarm.serve_with(named("tiny-two-hf", blocks, WeightDType::F32)).await);
    }
    let node = swarm.caller().await;
    let mut replay = Replay::new(&node, &servers, F32);
    replay.run("inference_two_servers_push.json", &["4640-1"]).await;
    assert_eq!((replay.answers, replay.errors), (10, 0));
    super::setup::until("pushes", || servers[0].server.stats().pushes_sent == 4).await;
    assert_eq!(servers[1].server.stats().pushes_received, 4);
}
