//! Fifty messages that no honest peer sends, over a real libp2p stream each: the server answers or closes, and goes on
//! serving the session beside. `errors.rs` has the well-formed mistakes.

use interop_tests::{
    hub::Hub,
    node::Swarm,
    raw::{self, RawClient},
};
use sepal_protocol::{
    Message,
    frame::{Record, delimited, uvarint},
    msgpack::{self, Value as Pack},
    names,
    proto::{CompressionType, ExpertRequest, ExpertUid, FindRequest, PingRequest, StoreRequest, Tensor},
    unary::{MAX_UNARY_BODY, UnaryRequest},
};
use serde_json::{Value, json};

/// What the server does with it, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// It closes the stream, with an error or without, although more could follow: what it read suffices.
    Closes,
    /// It answers, and may keep the stream open for more.
    Answers,
    /// It waits for more, and closes once the sender says that nothing follows.
    Ends,
}

/// A name of a call, the bytes that follow it, and what is wrong with them.
struct Case {
    what: &'static str,
    name: &'static str,
    bytes: Vec<u8>,
    outcome: Outcome,
}

fn case(what: &'static str, name: &'static str, bytes: impl Into<Vec<u8>>, outcome: Outcome) -> Case {
    Case {
        what,
        name,
        bytes: bytes.into(),
        outcome,
    }
}

/// A whole, correct unary frame around any data.
fn frame_for(name: &str, data: Vec<u8>) -> Vec<u8> {
    let request = UnaryRequest {
        call_id: [7; 16],
        peer: Vec::new(),
        proto: name.to_owned(),
        data: data.into(),
    };
    request.encode_frame().to_vec()
}

/// A whole, correct record of a stream around any data.
fn record_for(data: Vec<u8>) -> Vec<u8> {
    Record::Message(data.into()).encode().to_vec()
}

fn hidden(size: &[u32], dtype: &str, buffer: usize) -> Tensor {
    Tensor {
        buffer: vec![0; buffer].into(),
        size: size.to_vec(),
        dtype: dtype.to_owned(),
        compression: CompressionType::None as i32,
        chunks: 1,
        ..Tensor::default()
    }
}

fn empty(dtype: &str) -> Tensor {
    hidden(&[0], dtype, 0)
}

/// An otherwise correct first message of a session around this tensor.
fn session_with(tensor: Tensor) -> ExpertRequest {
    let metadata = Pack::Map(vec![(Pack::from("max_length"), Pack::from(8))]);
    ExpertRequest {
        uid: raw::chain(0, 4),
        tensors: vec![tensor, empty("float32"), empty("int64")],
        metadata: msgpack::encode(&metadata),
    }
}

/// The same around a tensor whose only dimension is this, which a proto of 32 bits cannot say.
fn session_with_dimension(dimension: u64) -> Vec<u8> {
    const SIZE: u8 = 2 << 3;
    const TENSORS: u8 = 2 << 3 | 2;
    let mut tensor = hidden(&[], "float32", 256).encode_to_vec();
    for part in [1, dimension, 64] {
        tensor.push(SIZE);
        tensor.extend(uvarint(part));
    }
    let mut request = session_with(empty("float32"));
    request.tensors.clear();
    let mut bytes = request.encode_to_vec();
    for tensor in [tensor, empty("float32").encode_to_vec(), empty("int64").encode_to_vec()] {
        bytes.push(TENSORS);
        bytes.extend(delimited(&tensor));
    }
    bytes
}

fn session_with_metadata(metadata: &[u8]) -> ExpertRequest {
    ExpertRequest {
        metadata: metadata.to_vec(),
        ..session_with(hidden(&[1, 1, 64], "float32", 256))
    }
}

/// Lengths that a frame of a unary call cannot have.
fn unary_lengths() -> Vec<Case> {
    let with = |what, bytes: &[u8], outcome| case(what, names::FORWARD, bytes, outcome);
    let of = |what, length| case(what, names::FORWARD, uvarint(length), Outcome::Closes);
    vec![
        with("nothing at all", &[], Outcome::Ends),
        with("half a varint", &[0x80], Outcome::Ends),
        with("a varint that never ends", &[0xff; 11], Outcome::Closes),
        with(
            "a varint over 64 bits",
            &[&[0xff; 9][..], &[0x7f]].concat(),
            Outcome::Closes,
        ),
        of("a length of 0", 0),
        of("one byte over the limit", MAX_UNARY_BODY as u64 + 1),
        of("a length of 2^31", 1 << 31),
        of("a length of 2^63", 1 << 63),
        of("a length of 2^64 - 1", u64::MAX),
    ]
}

/// Frames of a unary call whose content is wrong.
fn unary_frames() -> Vec<Case> {
    let name = names::FORWARD;
    let good = frame_for(name, session_with(hidden(&[1, 1, 64], "float32", 256)).encode_to_vec());
    let with = |what, bytes: &[u8], outcome| case(what, name, bytes, outcome);
    vec![
        with("a frame cut in half", &good[..good.len() / 2], Outcome::Ends),
        with("a frame without its last byte", &good[..good.len() - 1], Outcome::Ends),
        with("no protobuf", &delimited(&[0xff; 4]), Outcome::Closes),
        with("a body of zeros", &delimited(&[0; 40]), Outcome::Closes),
        with(
            "an envelope without a call",
            &delimited(&[0x0a, 0x01, 0x41]),
            Outcome::Closes,
        ),
        with(
            "another name in the envelope",
            &frame_for("Somebody.else", Vec::new()),
            Outcome::Ends,
        ),
        with(
            "a request that is no protobuf",
            &frame_for(name, vec![0xff; 30]),
            Outcome::Answers,
        ),
        with("an empty request", &frame_for(name, Vec::new()), Outcome::Answers),
        with(
            "two requests on one stream",
            &[&good[..], &good].concat(),
            Outcome::Closes,
        ),
        with(
            "a request and a stray byte",
            &[&good[..], &[0]].concat(),
            Outcome::Closes,
        ),
        with("the records of a stream", &record_for(b"x".to_vec()), Outcome::Ends),
    ]
}

/// The records of a stream call.
fn records() -> Vec<Case> {
    let name = names::INFERENCE;
    let good = record_for(session_with(hidden(&[1, 1, 64], "float32", 256)).encode_to_vec());
    let header = |marker: u8, length: u64| [&[marker][..], &length.to_be_bytes()].concat();
    vec![
        case("nothing", name, [], Outcome::Ends),
        case("a marker that does not exist", name, header(9, 1), Outcome::Closes),
        case("the marker 255", name, header(255, 0), Outcome::Closes),
        case("half a header", name, &good[..5], Outcome::Ends),
        case("a length of 2^63", name, header(good[0], 1 << 63), Outcome::Closes),
        case("a length of 2^64 - 1", name, header(good[0], u64::MAX), Outcome::Closes),
        case("a length of 2^40", name, header(good[0], 1 << 40), Outcome::Closes),
        case("a message cut in half", name, &good[..good.len() / 2], Outcome::Ends),
        case(
            "a message that is no protobuf",
            name,
            record_for(vec![0xff; 64]),
            Outcome::Closes,
        ),
        case(
            "a message whose inner length lies",
            name,
            record_for(vec![0x0a, 0xff, 0xff, 0x03]),
            Outcome::Closes,
        ),
        case(
            "the frame of a unary call",
            name,
            frame_for(name, Vec::new()),
            Outcome::Ends,
        ),
        case(
            "an error record from a caller",
            name,
            Record::Error("me".into()).encode().to_vec(),
            Outcome::Ends,
        ),
    ]
}

/// Tensors that do not add up, inside otherwise correct first messages of a session.
fn tensors() -> Vec<Case> {
    let with = |what, tensor: Tensor| {
        let bytes = record_for(session_with(tensor).encode_to_vec());
        case(what, names::INFERENCE, bytes, Outcome::Closes)
    };
    let dimension = |what, dimension| {
        let bytes = record_for(session_with_dimension(dimension));
        case(what, names::INFERENCE, bytes, Outcome::Closes)
    };
    let compressed = |compression: i32| Tensor {
        compression,
        ..hidden(&[1, 1, 64], "float32", 256)
    };
    vec![
        dimension("a dimension of -1", u64::MAX),
        dimension("a dimension of -2^63", 1 << 63),
        dimension("a dimension of 2^62", 1 << 62),
        with(
            "dimensions whose product overflows",
            hidden(&[u32::MAX; 3], "float32", 256),
        ),
        with("2^32 - 1 tokens", hidden(&[1, u32::MAX, 64], "float32", 256)),
        with("a buffer that is too short", hidden(&[1, 2, 64], "float32", 256)),
        with("a buffer that is too long", hidden(&[1, 1, 64], "float32", 1024)),
        with("a buffer cut within an item", hidden(&[1, 1, 64], "float32", 255)),
        with("a dtype that does not exist", hidden(&[1, 1, 64], "float17", 256)),
        Case {
            outcome: Outcome::Answers, // a number of another kind is still one
            ..with("a dtype of another kind", hidden(&[1, 1, 64], "bool", 64))
        },
        with("no dtype", hidden(&[1, 1, 64], "", 256)),
        with("no shape", hidden(&[], "float32", 256)),
        with("five dimensions", hidden(&[1, 1, 1, 1, 64], "float32", 256)),
        with("a compression that does not exist", compressed(77)),
        with("a negative compression", compressed(-1)),
        with(
            "blockwise numbers that are none",
            compressed(CompressionType::Blockwise8bit as i32),
        ),
        with(
            "quantiles that are none",
            compressed(CompressionType::Quantile8bit as i32),
        ),
    ]
}

/// MessagePack that a server does not expect, as the metadata of a session.
fn metadata() -> Vec<Case> {
    let with = |what, bytes: &[u8]| {
        let record = record_for(session_with_metadata(bytes).encode_to_vec());
        case(what, names::INFERENCE, record, Outcome::Closes)
    };
    let nested = [vec![0x91; 100_000], vec![0xc0]].concat();
    vec![
        with("metadata that is a list", &[0x91, 0x01]),
        with("metadata that is cut off", &[0x82, 0xa1, 0x61]),
        with("metadata with bytes behind it", &[0x80, 0x80]),
        with("the byte that means nothing", &[0xc1]),
        with("a map of 2^32 - 1 entries", &[0xdf, 0xff, 0xff, 0xff, 0xff]),
        with("a text of 4 GiB", &[0xdb, 0xff, 0xff, 0xff, 0xff, 0x61]),
        with("a hundred thousand lists in each other", &nested),
        with("an extension of a kind that nobody knows", &[0xd4, 0x7b, 0x00]),
        with("a key that is no text", &[0x81, 0x01, 0x01]),
    ]
}

/// The other calls of a server.
fn other_calls() -> Vec<Case> {
    let junk_uid = ExpertUid {
        uid: "\u{0}".repeat(5000),
    };
    let call = |what, name, data: Vec<u8>| case(what, name, frame_for(name, data), Outcome::Answers);
    let store = StoreRequest {
        keys: vec![vec![1, 2, 3]],
        ..StoreRequest::default()
    };
    let find = FindRequest {
        keys: vec![vec![0; 3], vec![0; 4000]],
        ..FindRequest::default()
    };
    vec![
        call("a uid of zeros", names::INFO, junk_uid.encode_to_vec()),
        call("a ping that is no protobuf", names::DHT_PING, vec![0xff; 9]),
        call(
            "a ping of nobody",
            names::DHT_PING,
            PingRequest::default().encode_to_vec(),
        ),
        call("a store without values", names::DHT_STORE, store.encode_to_vec()),
        call("a find of keys that are no ids", names::DHT_FIND, find.encode_to_vec()),
        call("a push of nothing", names::PUSH, Vec::new()),
        call(
            "a check of no peer",
            names::REACHABILITY_CHECK,
            PingRequest::default().encode_to_vec(),
        ),
    ]
}

#[test]
fn malformed_messages_are_answered_or_cut_off_and_the_session_beside_goes_on() {
    let hub = Hub::new().unwrap();
    let swarm = Swarm::start(&hub, &["0:4"], &[]).unwrap();
    let server = &swarm.servers[0];
    let mut attacker = RawClient::start(&hub, &[&server.addr]).unwrap();
    let mut client = RawClient::start(&hub, &[&server.addr]).unwrap();
    let step = |at: usize, stream: &str| {
        let fields = json!({"session_id": stream, "step_id": format!("step {at}"), "max_length": 256});
        raw::inference(&raw::chain(0, 4), raw::random(1, at as u64), fields)
    };
    client.open("beside", &server.peer_id).unwrap();
    let mut seen = vec![client.step("beside", &step(0, "beside")).unwrap()];

    let cases: Vec<Case> = [
        unary_lengths(),
        unary_frames(),
        records(),
        tensors(),
        metadata(),
        other_calls(),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(cases.len() >= 50, "only {}", cases.len());
    for case in cases {
        let bytes: String = case.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut order = json!({"op": "raw", "peer": server.peer_id, "name": case.name, "bytes": bytes, "timeout": 20});
        order["end"] = json!(case.outcome == Outcome::Ends);
        order["until"] = json!(if case.outcome == Outcome::Answers {
            "answer"
        } else {
            "close"
        });
        let answer: Value = attacker.ask(&order).unwrap();
        assert_eq!(answer["done"], true, "{} ({}): {answer}", case.what, case.name);
        seen.push(client.step("beside", &step(seen.len(), "beside")).unwrap());
    }

    client.open("undisturbed", &server.peer_id).unwrap();
    for (at, want) in seen.iter().enumerate() {
        let got = client.step("undisturbed", &step(at, "undisturbed")).unwrap();
        assert!(raw::difference(&got, want) < 1e-5, "step {at}");
    }
}
