//! Messages that are wrong in every way we could think of: the server says so or hangs up, and goes on with the session
//! beside it.

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt};
use sepal_protocol::{
    Message,
    frame::{Marker, RecordHeader},
    msgpack::{self, Value},
    names, proto,
    tensor::DType,
};

use super::{
    caller::{Session, Step, call},
    setup::{Node, PREFIX, Swarm, TestServer, WIDTH, assert_close, reference, soon, tokens},
};
use crate::model::Hidden;

/// A record with a body.
fn record(body: &[u8]) -> Vec<u8> {
    let mut bytes = header(Marker::Message, body.len() as u64);
    bytes.extend_from_slice(body);
    bytes
}

fn header(marker: Marker, len: u64) -> Vec<u8> {
    RecordHeader { marker, len }.encode().to_vec()
}

/// A step that would be answered.
fn good() -> proto::ExpertRequest {
    let x = Hidden::new(vec![0.5; WIDTH], 1, 1, WIDTH).unwrap();
    Step::first(&x, 8).request()
}

/// A good step with one thing changed.
fn changed(change: impl FnOnce(&mut proto::ExpertRequest)) -> Vec<u8> {
    let mut request = good();
    change(&mut request);
    request.encode_to_vec()
}

/// A good step with other bytes as metadata.
fn metadata(bytes: impl Into<Vec<u8>>) -> Vec<u8> {
    changed(|request| request.metadata = bytes.into())
}

/// A good step in whose metadata one key has another value.
fn key(name: &str, value: Value) -> Vec<u8> {
    changed(|request| {
        let Ok(Value::Map(mut map)) = msgpack::decode(&request.metadata) else {
            panic!("metadata is a map")
        };
        map.retain(|(key, _)| key.as_str() != Some(name));
        map.push((Value::from(name), value));
        request.metadata = msgpack::encode(&Value::Map(map));
    })
}

/// A good step in which one tensor is changed.
fn tensor(index: usize, change: impl FnOnce(&mut proto::Tensor)) -> Vec<u8> {
    changed(|request| change(&mut request.tensors[index]))
}

/// Bytes on the stream that are no records, or not whole ones. Some can only be told from slow senders once they end.
fn streams() -> Vec<(&'static str, Vec<u8>)> {
    let truncated = record(&good().encode_to_vec());
    let mut wrong_marker = truncated.clone();
    wrong_marker[0] = 2;
    let mut error = header(Marker::Error, 5);
    error.extend_from_slice(b"\x0a\x03abc");
    let mut after_end = header(Marker::Error, 0);
    after_end.extend_from_slice(&truncated);
    vec![
        ("nothing", Vec::new()),
        ("half a header", vec![0, 0, 0]),
        ("half a record", truncated[..truncated.len() / 2].to_vec()),
        ("a header without a body", header(Marker::Message, 10)),
        ("marker 2", wrong_marker),
        ("marker 255", vec![0xff; 9]),
        ("a length of 2^63", header(Marker::Message, 1 << 63)),
        ("a length of 2^64 - 1", header(Marker::Message, u64::MAX)),
        ("a length just over the limit", header(Marker::Message, (576 << 20) + 1)),
        ("an error record", error),
        ("END", header(Marker::Error, 0)),
        ("a record after END", after_end),
        (
            "another protocol",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
        ("zeros", vec![0; 4096]),
    ]
}

/// Records whose body is no message of the right kind.
fn protobufs() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("no protobuf", vec![0xff; 64]),
        ("a text where a tensor belongs", b"\x12\x05hello".to_vec()),
        ("a number where the uid belongs", b"\x08\x05".to_vec()),
        (
            "a field longer than the message",
            b"\x0a\xff\xff\xff\xff\x07abc".to_vec(),
        ),
        (
            "a field of 2^63 bytes",
            b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01abc".to_vec(),
        ),
        ("an endless varint", vec![0x80; 32]),
        ("groups in groups", vec![0x0b; 10_000]),
        ("a uid that is no text", b"\x0a\x02\xff\xfe".to_vec()),
        ("twenty thousand tensors", [0x12, 0x00].repeat(20_000)),
        (
            "two hundred thousand blocks",
            changed(|request| request.uid = format!("{PREFIX}.0 ").repeat(200_000)),
        ),
        (
            "a block with a sign",
            changed(|request| request.uid = format!("{PREFIX}.+1")),
        ),
        (
            "a block of 2^64",
            changed(|request| request.uid = format!("{PREFIX}.18446744073709551616")),
        ),
        (
            "another model",
            changed(|request| request.uid = "other-hf.0".to_owned()),
        ),
    ]
}

/// Metadata that is no metadata.
fn metadatas() -> Vec<(&'static str, Vec<u8>)> {
    let nested = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
    let foreign = Value::Ext(-1, vec![0; 12]);
    let marker = |text: &str| msgpack::tuple(vec![Value::Binary(text.as_bytes().to_vec()); 3]);
    let structure = |args: Value| msgpack::tuple(vec![args, Value::Map(Vec::new())]);
    vec![
        ("the byte that means nothing", metadata([0xc1])),
        ("half a map", metadata([0x82, 0xa1, b'a', 0x01])),
        ("a list instead of a map", metadata([0x90])),
        ("a map of 2^32 entries", metadata([0xdf, 0xff, 0xff, 0xff, 0xff])),
        ("lists in lists", metadata(nested(100_000))),
        ("a map and more", metadata([0x80, 0x80])),
        (
            "a text that is none",
            metadata(b"\x81\xaasession_id\xa2\xff\xfe".to_vec()),
        ),
        ("a session id that is a number", key("session_id", Value::from(5))),
        ("a length that is a text", key("max_length", Value::from("8"))),
        ("a length that is a fraction", key("max_length", Value::from(8.0))),
        ("a length below zero", key("max_length", Value::from(-1))),
        ("a length of 2^63", key("max_length", Value::from(1_u64 << 63))),
        ("a length that is nil", key("max_length", Value::Nil)),
        ("foreign msgpack as length", key("max_length", foreign.clone())),
        ("foreign msgpack as structure", key("args_structure", foreign)),
        ("a structure that is a number", key("args_structure", Value::from(1))),
        (
            "a structure of tensors that are not there",
            key("args_structure", structure(marker("__T9"))),
        ),
        (
            "a structure of tensors below zero",
            key("args_structure", structure(marker("__T-1"))),
        ),
        (
            "a position that is a text",
            key("start_from_position", Value::from("0")),
        ),
        (
            "a position of 2^63",
            key("start_from_position", Value::from(1_u64 << 63)),
        ),
        ("a wait that is a text", key("alloc_timeout", Value::from("soon"))),
        ("a wait that is no number", key("alloc_timeout", Value::from(f64::NAN))),
        (
            "next servers that are none",
            key("next_servers", Value::from(vec![Value::from(1)])),
        ),
        ("points that are a text", key("points", Value::from("5"))),
        (
            "an adapter that nobody has",
            key("active_adapter", Value::from("foo/bar")),
        ),
    ]
}

/// Tensors that are no activations.
fn activations() -> Vec<(&'static str, Vec<u8>)> {
    let shape = |size: Vec<u32>| tensor(0, |tensor| tensor.size = size);
    vec![
        ("no tensors but one", changed(|request| request.tensors.truncate(1))),
        (
            "whole numbers as activations",
            tensor(0, |tensor| *tensor = integers(&[1, 1, 8])),
        ),
        (
            "an unknown dtype",
            tensor(0, |tensor| tensor.dtype = "float99".to_owned()),
        ),
        ("no dtype", tensor(0, |tensor| tensor.dtype.clear())),
        ("activations without dimensions", shape(Vec::new())),
        ("activations of four dimensions", shape(vec![1, 1, 1, 64])),
        ("activations of another width", shape(vec![1, 2, 32])),
        ("a negative dimension", shape(vec![1, u32::MAX, 64])),
        ("a huge dimension", shape(vec![1, 1 << 31, 64])),
        ("more numbers than fit in 64 bits", shape(vec![u32::MAX; 8])),
        ("a thousand dimensions", shape(vec![1; 1000])),
        ("no rows", shape(vec![0, 1, 64])),
        (
            "fewer bytes than the shape says",
            tensor(0, |tensor| tensor.buffer = Bytes::from_static(&[0; 100])),
        ),
        (
            "more bytes than the shape says",
            tensor(0, |tensor| tensor.buffer = vec![0; 300].into()),
        ),
        ("an unknown compression", tensor(0, |tensor| tensor.compression = 99)),
        ("a negative compression", tensor(0, |tensor| tensor.compression = -1)),
        (
            "8-bit quantiles without a codebook",
            tensor(0, |tensor| tensor.compression = 3),
        ),
        (
            "8-bit blocks without a header",
            tensor(0, |tensor| {
                tensor.compression = 5;
                tensor.buffer = Bytes::from_static(&[1, 2, 3]);
            }),
        ),
    ]
}

/// Rows and prompts that are none.
fn other_tensors() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "rows of another dtype",
            tensor(2, |tensor| tensor.dtype = "int32".to_owned()),
        ),
        (
            "rows of half a number",
            tensor(2, |tensor| {
                tensor.size = vec![1];
                tensor.buffer = Bytes::from_static(&[0; 7]);
            }),
        ),
        ("a row that is not there", tensor(2, |tensor| *tensor = integers(&[7]))),
        (
            "prompts of five dimensions",
            tensor(1, |tensor| {
                tensor.size = vec![1, 1, 1, 1, 64];
                tensor.buffer = vec![0; 256].into();
            }),
        ),
        (
            "prompts for too many blocks",
            tensor(1, |tensor| {
                tensor.size = vec![5, 1, 1, 64];
                tensor.buffer = vec![0; 5 * 256].into();
            }),
        ),
    ]
}

fn tensors() -> Vec<(&'static str, Vec<u8>)> {
    [activations(), other_tensors()].concat()
}

/// Small whole numbers of this shape.
fn integers(shape: &[u32]) -> proto::Tensor {
    let n_items: u32 = shape.iter().product();
    proto::Tensor {
        buffer: [7_u64.to_le_bytes(); 64][..n_items as usize].concat().into(),
        size: shape.to_vec(),
        dtype: DType::I64.as_str().to_owned(),
        ..proto::Tensor::default()
    }
}

/// A server, and a session that must not notice anything.
struct Scene {
    _swarm: Swarm,
    server: TestServer,
    node: Node,
    bystander: Session,
    step: Step,
    expected: Hidden,
}

impl Scene {
    async fn new() -> Self {
        let swarm = Swarm::start().await;
        let (server, node) = (swarm.serve(0..4).await, swarm.caller().await);
        let reference = reference();
        let mut bystander = Session::open(&node, server.node.peer()).await;
        let first = Step::first(&tokens(&reference.embeddings, 0..4), 12).session("bystander");
        bystander.step(&first).await.output();
        Self {
            _swarm: swarm,
            server,
            node,
            bystander,
            step: Step::next(&tokens(&reference.embeddings, 4..5)).from(4),
            expected: tokens(&reference.blocks[3], 4..5),
        }
    }

    /// Says `bytes` and returns what comes back until the server hangs up. It has to, by itself if `bytes` are wrong
    /// beyond doubt, or once we hang up (`leave`) if more could have come.
    async fn say(&self, what: &str, name: &str, bytes: &[u8], leave: bool) -> Vec<u8> {
        let mut stream = self.node.p2p.open_raw(self.server.node.peer(), name).await.unwrap();
        // The server may stop reading at the first wrong byte.
        drop(stream.write_all(bytes).await);
        drop(stream.flush().await);
        if leave {
            drop(stream.close().await);
        }
        let mut answer = Vec::new();
        drop(soon(what, stream.read_to_end(&mut answer)).await);
        answer
    }

    /// The session beside goes on.
    async fn goes_on(&mut self, what: &str) {
        let output = self.bystander.step(&self.step).await.output();
        assert_close(&output.to_f32_vec(), &self.expected.data, 1e-4);
        assert_eq!(output.shape, [1, 1, WIDTH], "{what}");
    }

    /// Only the bystander's cache is in use.
    async fn end(mut self) {
        self.bystander.finish().await;
        self.server.idle().await;
    }
}

#[tokio::test]
async fn streams_that_are_none_are_closed_without_a_word() {
    let mut scene = Scene::new().await;
    for name in [names::INFERENCE, names::FORWARD_STREAM] {
        for (what, bytes) in streams() {
            let answer = scene.say(what, name, &bytes, true).await;
            // Where the records themselves were whole, the server may have had something to say before we left.
            assert!(answer.is_empty() || answer[0] == 1, "{what}: {answer:?}");
            scene.goes_on(what).await;
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn lengths_and_markers_that_are_wrong_beyond_doubt_end_the_stream_at_once() {
    let mut scene = Scene::new().await;
    for (what, bytes) in streams() {
        if what.starts_with("marker") || what.starts_with("a length") || what == "another protocol" {
            assert!(
                scene.say(what, names::INFERENCE, &bytes, false).await.is_empty(),
                "{what}"
            );
            scene.goes_on(what).await;
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_get_an_error_and_the_server_goes_on() {
    let mut scene = Scene::new().await;
    let cases = [protobufs(), metadatas(), tensors()].concat();
    assert!(cases.len() > 50);
    let n_cases = cases.len() as u64;
    for (what, body) in cases {
        let answer = scene.say(what, names::INFERENCE, &record(&body), false).await;
        assert_eq!(
            answer.first(),
            Some(&1),
            "{what}: an error record is expected, not {answer:?}"
        );
        scene.goes_on(what).await;
    }
    // Once more as the second message of a session that began well, with the same metadata rules.
    for (what, body) in tensors() {
        let both = [record(&good().encode_to_vec()), record(&body)].concat();
        let answer = scene.say(what, names::INFERENCE, &both, false).await;
        assert_eq!(answer.first(), Some(&0), "{what}: the first message is answered");
        let first = u64::from_be_bytes(answer[1..9].try_into().unwrap());
        let second = 9 + usize::try_from(first).unwrap();
        assert_eq!(answer.get(second), Some(&1), "{what}: the second is not");
        scene.goes_on(what).await;
    }
    assert!(scene.server.server.stats().rejected >= n_cases);
    scene.end().await;
}

#[tokio::test]
async fn calls_that_make_no_sense_get_an_error_and_the_server_goes_on() {
    let mut scene = Scene::new().await;
    let server = scene.server.node.peer();
    for (what, body) in [protobufs(), tensors()].concat() {
        // What is wrong with rows is no concern of a forward pass.
        if !what.contains("row") || what == "no rows" {
            let answer = call(&scene.node, server, names::FORWARD, body.clone()).await;
            assert!(answer.is_err(), "{what}: {answer:?}");
        }
        scene.goes_on(what).await;
    }
    for (what, body) in [protobufs(), metadatas()].concat() {
        // Pushes are told nothing about whether they are of use; they are looked at when their turn comes.
        drop(call(&scene.node, server, names::PUSH, body).await);
        scene.goes_on(what).await;
    }
    for body in [b"\xff\xff".as_slice(), b"\x0a\x05ab", b"\x0a\x02\xff\xfe"] {
        assert!(call(&scene.node, server, names::INFO, body.to_vec()).await.is_err());
        scene.goes_on("rpc_info").await;
    }
    scene.end().await;
}

#[tokio::test]
async fn pushes_that_make_no_sense_do_no_harm_to_the_session_they_are_for() {
    let mut scene = Scene::new().await;
    let server = scene.server.node.peer();
    for (what, body) in tensors() {
        let Ok(mut request) = proto::ExpertRequest::decode(&*body) else {
            continue;
        };
        request.metadata = scene.step.clone().session("bystander").metadata.encode();
        call(&scene.node, server, names::PUSH, request.encode_to_vec())
            .await
            .unwrap();
        scene.goes_on(what).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn tensors_in_parts_that_do_not_fit_together_are_refused() {
    let mut scene = Scene::new().await;
    let request = |uid: &str, tensor: proto::Tensor| {
        let request = proto::ExpertRequest {
            uid: uid.to_owned(),
            tensors: vec![tensor],
            metadata: Vec::new(),
        };
        record(&request.encode_to_vec())
    };
    let uid = format!("{PREFIX}.0");
    let whole = good().tensors.remove(0);
    let part = |bytes: usize| proto::Tensor {
        buffer: vec![0; bytes].into(),
        ..proto::Tensor::default()
    };
    let first = |chunks: i32| proto::Tensor {
        chunks,
        ..whole.clone()
    };
    let empty = good().tensors.remove(1);
    let cases = [
        ("a part of nothing", vec![request(&uid, part(10))]),
        (
            "a part too many",
            vec![request(&uid, first(1)), request(&uid, part(10))],
        ),
        (
            "a part too few",
            vec![request(&uid, first(3)), request(&uid, empty.clone())],
        ),
        (
            "other blocks in between",
            vec![request(&uid, first(1)), request("other-hf.0", empty.clone())],
        ),
        ("too many tensors", vec![request(&uid, first(1)); 20]),
        ("one tensor", vec![request(&uid, first(1))]),
        (
            "a part over the limit",
            vec![request(&uid, first(2)), header(Marker::Message, 17 << 20)],
        ),
    ];
    for (what, parts) in cases {
        let mut bytes = parts.concat();
        if !what.ends_with("limit") {
            bytes.extend(header(Marker::Error, 0));
        }
        let answer = scene.say(what, names::FORWARD_STREAM, &bytes, false).await;
        assert!(answer.first().is_none_or(|marker| *marker == 1), "{what}: {answer:?}");
        assert_eq!(answer.is_empty(), what.ends_with("limit"), "{what}");
        scene.goes_on(what).await;
    }
    scene.end().await;
}
