//! What is no call: the node closes the stream as Hivemind's daemon does, and goes on serving.

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use sepal_protocol::{
    frame::{delimited, legacy},
    names,
    unary::UnaryRequest,
};

use super::{ECHO, LONG, echo, pair, soon};
use crate::{
    p2p::{Handler, HandlerLimits, P2p},
    task::Tasks,
};

const STREAM: &str = "Test.rpc_stream";

fn handlers() -> Vec<Handler> {
    let stream = Handler::stream(
        STREAM,
        HandlerLimits::default(),
        |_, mut receiver, mut sender| async move {
            while let Ok(Some(message)) = receiver.recv().await {
                let _ = sender.send(message).await;
            }
            Ok(())
        },
    );
    let legacy = Handler::legacy(names::LEGACY_RPC, HandlerLimits::default(), |_, request| async move {
        Ok(request)
    });
    vec![echo(), stream, legacy]
}

/// Writes raw bytes on a fresh stream and returns everything that comes back until its end.
async fn say(caller: &P2p, callee: &P2p, name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream: Stream = caller.open(callee.peer_id(), name).await.unwrap();
    // The other side may stop reading at the first byte that is wrong.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut answer = Vec::new();
    let _ = soon("the stream ends", stream.read_to_end(&mut answer)).await;
    answer
}

async fn still_serves(caller: &P2p, callee: &P2p) {
    let answer = caller
        .call_unary(callee.peer_id(), ECHO, Bytes::from_static(b"on"), LONG)
        .await;
    assert_eq!(answer.unwrap(), "on");
}

fn request(proto: &str) -> UnaryRequest {
    UnaryRequest {
        call_id: [3; 16],
        peer: Vec::new(),
        proto: proto.to_owned(),
        data: Bytes::from_static(b"data"),
    }
}

#[tokio::test]
async fn requests_that_are_none_are_closed_without_an_answer() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, handlers()).await;
    let mut with_surplus = request(ECHO).encode_frame().to_vec();
    with_surplus.push(0);
    let short_id = b"\x0a\x03abc";
    for (what, bytes) in [
        ("an endless varint", vec![0xff; 11]),
        ("a length of 2^63", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01".to_vec()),
        ("a body over 4 MiB", b"\x81\x80\x80\x02".to_vec()),
        ("an empty body", vec![0]),
        ("a body that is no protobuf", delimited(&[0xff; 20]).to_vec()),
        ("a short call id", delimited(short_id).to_vec()),
        ("no name", request("").encode_frame().to_vec()),
        ("another name", request("Other.rpc_name").encode_frame().to_vec()),
        ("a surplus byte", with_surplus),
        (
            "a stream's framing",
            b"\x00\x00\x00\x00\x00\x00\x00\x00\x04abcd".to_vec(),
        ),
    ] {
        let answer = say(&caller, &callee, ECHO, &bytes).await;
        assert!(answer.is_empty(), "{what} was answered with {answer:?}");
        still_serves(&caller, &callee).await;
    }
}

#[tokio::test]
async fn records_that_are_none_end_the_stream_without_an_error_record() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, handlers()).await;
    for (what, bytes) in [
        ("a wrong marker", b"\x02\x00\x00\x00\x00\x00\x00\x00\x00".to_vec()),
        ("a length of 2^63", b"\x00\x80\x00\x00\x00\x00\x00\x00\x00".to_vec()),
        ("a unary frame", request(STREAM).encode_frame().to_vec()),
    ] {
        let answer = say(&caller, &callee, STREAM, &bytes).await;
        assert!(answer.is_empty(), "{what} was answered with {answer:?}");
        still_serves(&caller, &callee).await;
    }
}

#[tokio::test]
async fn a_half_request_followed_by_a_reset_does_no_harm() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, handlers()).await;
    for name in [ECHO, STREAM, names::LEGACY_RPC, "/ipfs/kad/1.0.0"] {
        let mut stream = caller.open(callee.peer_id(), name).await.unwrap();
        stream.write_all(b"\x00\x00").await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
        still_serves(&caller, &callee).await;
    }
}

#[tokio::test]
async fn the_legacy_name_is_answered_also_when_the_caller_closes_its_side() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, handlers()).await;
    for close in [false, true] {
        let mut stream = caller.open(callee.peer_id(), names::LEGACY_RPC).await.unwrap();
        stream.write_all(&legacy::message(b"who")).await.unwrap();
        stream.flush().await.unwrap();
        if close {
            stream.close().await.unwrap();
        }
        let mut answer = Vec::new();
        soon("an answer", stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer, legacy::message(b"who"));
    }
}

#[tokio::test]
async fn kad_requests_of_other_kinds_and_garbage_close_the_stream() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, handlers()).await;
    for bytes in [
        delimited(b"\x08\x01").to_vec(),
        delimited(&[0xff; 9]).to_vec(),
        vec![0xff; 11],
    ] {
        let answer = say(&caller, &callee, "/ipfs/kad/1.0.0", &bytes).await;
        assert!(answer.is_empty());
        still_serves(&caller, &callee).await;
    }
}
