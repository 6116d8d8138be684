//! Streamed passes on their way in: what is refused at once, who waits, and that nothing stays of whom.

use sepal_protocol::{
    Message,
    compress::Compression,
    metadata::StepMetadata,
    names, proto,
    tensor::{DType, WireTensor, split},
};

use super::{
    caller::{Session, empty},
    setup::{Node, PREFIX, Swarm, TestServer, WIDTH, config, soon, until},
};
use crate::server::{Config, Hold, Politeness, Who};

/// Rows of one token.
const ROWS: usize = 4096;
/// Of their numbers in float32.
const BYTES: usize = ROWS * WIDTH * 4;
const PART: usize = BYTES / 4;

struct Scene {
    _swarm: Swarm,
    server: TestServer,
    node: Node,
}

impl Scene {
    async fn start() -> Self {
        Self::with(|_| config(0..4)).await
    }

    /// With a server that is told of the caller.
    async fn with(config: impl FnOnce(&Node) -> Config) -> Self {
        let swarm = Swarm::start().await;
        let node = swarm.caller().await;
        let server = swarm.serve_with(config(&node)).await;
        Self {
            _swarm: swarm,
            server,
            node,
        }
    }

    async fn open(&self, name: &str) -> Session {
        Session::open_named(&self.node, self.server.node.peer(), name).await
    }

    /// What the server says to the first part of a request alone.
    async fn refusal(&self, name: &str, parts: &[Vec<u8>]) -> String {
        let mut stream = self.open(name).await;
        stream.send_bytes(parts[0].clone()).await;
        let answer = stream.answer().await.error();
        self.server.idle().await;
        answer
    }

    /// Sends parts, and reads the answer.
    async fn pass(&self, stream: &mut Session, parts: &[Vec<u8>]) -> Result<usize, String> {
        for part in parts {
            stream.send_bytes(part.clone()).await;
        }
        stream.finish().await;
        let mut n_bytes = 0;
        loop {
            match stream.receive().await {
                Ok(None) => return Ok(n_bytes),
                Ok(Some(part)) => {
                    let part = proto::ExpertResponse::decode(part).unwrap();
                    n_bytes += part.tensors[0].buffer.len();
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// A forward pass through `n_blocks` blocks, cut into parts: four of activations, and those of prompts.
fn forward(prompts: WireTensor, n_blocks: usize) -> Vec<Vec<u8>> {
    let x = WireTensor::from_f32(&vec![0.5; ROWS * WIDTH], [ROWS, 1, WIDTH], DType::F32).unwrap();
    let tensors = [x, prompts].map(|tensor| tensor.encode(Compression::None).unwrap());
    parts(tensors, n_blocks)
}

fn parts(tensors: [proto::Tensor; 2], n_blocks: usize) -> Vec<Vec<u8>> {
    let parts = tensors.into_iter().flat_map(|tensor| split(tensor, PART));
    let messages = parts.map(|part| proto::ExpertRequest {
        uid: vec![format!("{PREFIX}.0"); n_blocks].join(" "),
        tensors: vec![part],
        metadata: StepMetadata::default().encode(),
    });
    messages.map(|message| message.encode_to_vec()).collect()
}

fn plain() -> Vec<Vec<u8>> {
    forward(empty(DType::F32), 1)
}

#[tokio::test]
async fn who_is_denied_is_told_so_after_the_first_part() {
    let denied = |node: &Node| Config {
        politeness: Politeness {
            deny: vec![Who::Peer(node.peer())],
            ..Politeness::default()
        },
        ..config(0..4)
    };
    let scene = Scene::with(denied).await;
    // Not even those that wait delay that.
    let _taken = scene.server.server.take_undecoded().await;
    for name in [names::FORWARD_STREAM, names::BACKWARD_STREAM] {
        let mut stream = scene.open(name).await;
        stream.send_bytes(plain().remove(0)).await;
        assert_eq!(stream.answer().await.error(), "server does not compute for this peer");
    }
}

#[tokio::test]
async fn what_is_refused_whatever_follows_is_refused_after_the_first_part() {
    let scene = Scene::start().await;
    let unknown = StepMetadata {
        active_adapter: Some("foo/bar".to_owned()),
        ..StepMetadata::default()
    };
    let mut first = proto::ExpertRequest::decode(plain()[0].as_slice()).unwrap();
    first.metadata = unknown.encode();
    let refusal = scene.refusal(names::FORWARD_STREAM, &[first.encode_to_vec()]).await;
    assert_eq!(refusal, "'adapter foo/bar not found'");
    first.metadata = StepMetadata::default().encode();
    first.tensors[0].size[0] = 8193;
    let refusal = scene.refusal(names::FORWARD_STREAM, &[first.encode_to_vec()]).await;
    assert_eq!(
        refusal,
        "Task size greater than max_batch_size (8192), it can't be processed"
    );
    first.tensors[0].size = vec![1, 8192, 64];
    first.uid = vec![format!("{PREFIX}.0"); 1024].join(" ");
    let refusal = scene.refusal(names::BACKWARD_STREAM, &[first.encode_to_vec()]).await;
    assert!(
        refusal.starts_with("a pass of 8192 tokens through 1024 blocks needs "),
        "{refusal}"
    );
    scene.server.server.set_paused(true, Hold::ForGood);
    for name in [names::FORWARD_STREAM, names::BACKWARD_STREAM] {
        let refusal = scene.refusal(name, &plain()).await;
        assert_eq!(refusal, "server takes no new sessions right now");
    }
}

#[tokio::test]
async fn who_sends_more_than_it_said_is_refused() {
    let scene = Scene::start().await;
    let parts = plain();
    // With what comes before its tensor, the first one is a little over a sixth of the limit.
    let long = [&parts[0], &parts[1], &parts[1], &parts[1], &parts[1], &parts[1]];
    let mut stream = scene.open(names::FORWARD_STREAM).await;
    for part in long {
        stream.send_bytes(part.clone()).await;
    }
    let text = "request has more than the 1572864 bytes that the sizes of its tensors come to";
    assert_eq!(stream.answer().await.error(), text);
    scene.server.idle().await;
    // What it holds beside its tensors counts as well.
    let mut parts = plain();
    let mut last = proto::ExpertRequest::decode(parts.pop().unwrap().as_slice()).unwrap();
    last.metadata = vec![0; 1 << 20];
    parts.push(last.encode_to_vec());
    let mut stream = scene.open(names::FORWARD_STREAM).await;
    let error = scene.pass(&mut stream, &parts).await.unwrap_err();
    assert!(error.contains(text), "{error}");
    scene.server.idle().await;
}

#[tokio::test]
async fn a_request_waits_with_its_first_part_until_there_is_room_for_all_of_it() {
    let scene = Scene::start().await;
    let parts = plain();
    let taken = scene.server.server.take_undecoded().await;
    let mut leaving = scene.open(names::FORWARD_STREAM).await;
    leaving.send_bytes(parts[0].clone()).await;
    until("it waits", || scene.server.server.n_waiting_streams() == 1).await;
    drop(leaving);
    until("its place is free", || scene.server.server.n_waiting_streams() == 0).await;
    let mut waiting = scene.open(names::FORWARD_STREAM).await;
    waiting.send_bytes(parts[0].clone()).await;
    until("it waits", || scene.server.server.n_waiting_streams() == 1).await;
    // It is not a pass yet.
    assert_eq!(scene.server.server.reserved_for_passes(), 0);
    drop(taken);
    let answered = scene.pass(&mut waiting, &parts[1..]).await;
    assert_eq!(answered, Ok(BYTES));
    scene.server.idle().await;
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_request_holds_nothing() {
    let scene = Scene::start().await;
    let prompts = WireTensor::from_f32(&vec![0.5; 2 * ROWS * WIDTH], [2, ROWS, 1, WIDTH], DType::F32).unwrap();
    let parts = forward(prompts, 2);
    for n_parts in [1, 4, 5, parts.len()] {
        let mut stream = scene.open(names::FORWARD_STREAM).await;
        // Without the memory of passes it does not get further.
        let _taken = scene.server.server.take_pass_memory().await;
        for part in &parts[..n_parts] {
            stream.send_bytes(part.clone()).await;
        }
        until("it is there", || !scene.server.server.has_no_streams()).await;
        if n_parts == parts.len() {
            stream.finish().await;
            until("it waits", || scene.server.server.n_waiting_passes() == 1).await;
        }
        drop(stream);
        until("it is gone", || scene.server.server.has_no_streams()).await;
    }
    scene.server.idle().await;
    let mut stream = scene.open(names::FORWARD_STREAM).await;
    assert_eq!(scene.pass(&mut stream, &parts).await, Ok(BYTES));
    scene.server.idle().await;
}

#[tokio::test]
async fn bytes_are_held_until_they_are_decoded_and_the_answer_until_it_is_taken() {
    let scene = Scene::start().await;
    let parts = plain();
    let mut stream = scene.open(names::FORWARD_STREAM).await;
    let taken = scene.server.server.take_pass_memory().await;
    for part in &parts {
        stream.send_bytes(part.clone()).await;
    }
    stream.finish().await;
    until("it waits", || scene.server.server.n_waiting_passes() == 1).await;
    assert!(!scene.server.server.has_no_streams());
    drop(taken);
    // The caller does not read, and what lies on the line in between is less.
    let answered = || scene.server.server.reserved_for_passes() == BYTES as u64;
    until("only the answer is there", answered).await;
    assert!(scene.server.server.has_no_streams());
    let mut answer = 0;
    while let Some(part) = soon("the answer", stream.receive()).await.unwrap() {
        let part = proto::ExpertResponse::decode(part).unwrap();
        answer += part.tensors[0].buffer.len();
    }
    assert_eq!(answer, BYTES);
    scene.server.idle().await;
}
