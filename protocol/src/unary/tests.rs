//! The envelope against frames of real daemons, and the reader against frames that no daemon sends.

use proptest::prelude::*;

use super::*;
use crate::{frame::DelimitedReader, proto, testing};

fn body_of(frame: &[u8]) -> Bytes {
    let mut reader = DelimitedReader::new(MAX_UNARY_BODY);
    reader.extend(frame);
    let body = reader.next_frame().unwrap().unwrap();
    assert!(reader.is_empty());
    body
}

/// Every unary frame of a capture file, requests and replies apart.
fn captured(name: &str) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let file = testing::vectors(name);
    let mut requests = Vec::new();
    let mut replies = Vec::new();
    for event in file.as_array().unwrap() {
        for field in ["frame", "request_frame"] {
            requests.extend(event.get(field).map(testing::bytes));
        }
        replies.extend(event.get("response_frame").map(testing::bytes));
    }
    (requests, replies)
}

#[test]
fn captured_frames_are_read_and_written_back_the_same() {
    let mut n_frames = 0;
    for name in ["cap_dht_client", "cap_dht_server", "cap_streams"] {
        let (requests, replies) = captured(&format!("hivemind/{name}.json"));
        n_frames += requests.len() + replies.len();
        for frame in requests {
            let request = UnaryRequest::decode(body_of(&frame)).unwrap();
            assert!(crate::peer_id::is_peer_id(&request.peer));
            assert_eq!(request.encode_frame(), frame);
        }
        for frame in replies {
            let reply = UnaryReply::decode(body_of(&frame)).unwrap();
            assert_eq!(reply.encode_frame(), frame);
        }
    }
    assert_eq!(n_frames, 38);
}

#[test]
fn captured_dht_calls_are_read_and_written_back_the_same() {
    let mut names = std::collections::BTreeSet::new();
    for name in ["cap_dht_client", "cap_dht_server"] {
        for frame in captured(&format!("hivemind/{name}.json")).0 {
            let request = UnaryRequest::decode(body_of(&frame)).unwrap();
            let again = match request.proto.as_str() {
                crate::names::DHT_PING => proto::PingRequest::decode(&*request.data).unwrap().encode_to_vec(),
                crate::names::DHT_STORE => proto::StoreRequest::decode(&*request.data).unwrap().encode_to_vec(),
                crate::names::DHT_FIND => proto::FindRequest::decode(&*request.data).unwrap().encode_to_vec(),
                other => panic!("unknown call {other}"),
            };
            assert_eq!(again, request.data, "{}", request.proto);
            names.insert(request.proto);
        }
    }
    assert_eq!(names.len(), 3);
}

#[test]
fn python_s_reply_to_a_request_it_cannot_parse_is_an_error_text() {
    let file = testing::vectors("hivemind/cap_dht_client.json");
    let events = file.as_array().unwrap();
    let event = events.iter().find(|event| event["what"] == "error response").unwrap();
    let reply = UnaryReply::decode(body_of(&testing::bytes(&event["response_frame"]))).unwrap();
    assert!(
        reply
            .result
            .unwrap_err()
            .starts_with("DecodeError(\"Error parsing message")
    );
}

#[test]
fn the_frames_python_writes_are_those_we_write() {
    let file = testing::vectors("hivemind/protobuf.json");
    let cases = file["unary_frames"].as_array().unwrap();
    let frames: Vec<Vec<u8>> = cases.iter().map(|case| testing::bytes(&case["frame"])).collect();
    let call_id: [u8; 16] = testing::bytes(&cases[0]["callId"]).try_into().unwrap();

    let request = UnaryRequest::decode(body_of(&frames[0])).unwrap();
    assert_eq!(request.call_id, call_id);
    assert_eq!(request.proto, crate::names::DHT_PING);
    assert!(proto::PingRequest::decode(&*request.data).unwrap().validate);
    assert_eq!(request.encode_frame(), frames[0]);

    let reply = UnaryReply::decode(body_of(&frames[1])).unwrap();
    let ping = proto::PingResponse::decode(reply.result.clone().unwrap()).unwrap();
    assert!(ping.available);
    assert_eq!(reply.encode_frame(), frames[1]);

    let empty = UnaryReply {
        call_id,
        result: Ok(Bytes::new()),
    };
    assert_eq!(empty.encode_frame(), frames[2]);
    let failed = UnaryReply {
        call_id,
        result: Err("ValueError('boom')".into()),
    };
    assert_eq!(failed.encode_frame(), frames[3]);
    assert_eq!(frames.len(), 4);
}

#[test]
fn what_a_daemon_does_not_answer_is_refused() {
    let request = UnaryRequest {
        call_id: [7; 16],
        peer: vec![],
        proto: "A.rpc_b".into(),
        data: Bytes::new(),
    };
    let good = request.clone().encode();
    assert_eq!(
        UnaryRequest::decode(good.clone()).unwrap(),
        request,
        "an empty peer is fine"
    );
    assert!(matches!(UnaryReply::decode(good), Err(WireError::Missing { .. })));

    let reply = UnaryReply {
        call_id: [7; 16],
        result: Ok(Bytes::new()),
    };
    assert!(matches!(
        UnaryRequest::decode(reply.encode()),
        Err(WireError::Missing { .. })
    ));

    for (hex_text, why) in [
        ("", "nothing"),
        ("0a100707070707070707070707070707070707", "a call id alone"),
        ("0a0f0707070707070707070707070707070a071a00", "a short call id"),
        ("0a1007070707070707070707070707070707071a00", "a call without a name"),
        ("0a10070707070707070707070707070707072200", "a reply without a result"),
        ("ffffffff", "no protobuf"),
    ] {
        let body = Bytes::from(hex::decode(hex_text).unwrap());
        assert!(UnaryRequest::decode(body.clone()).is_err(), "{why}");
        assert!(UnaryReply::decode(body).is_err(), "{why}");
    }
}

proptest! {
    #[test]
    fn requests_survive_the_wire(
        call_id: [u8; 16],
        peer in prop::collection::vec(any::<u8>(), 0..60),
        proto in "[A-Za-z.:_]{1,40}",
        data in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let request = UnaryRequest { call_id, peer, proto, data: data.into() };
        prop_assert_eq!(UnaryRequest::decode(request.clone().encode()).unwrap(), request);
    }

    #[test]
    fn replies_survive_the_wire(
        call_id: [u8; 16],
        data in prop::collection::vec(any::<u8>(), 0..300),
        text in ".{0,40}",
        ok: bool,
    ) {
        let reply = UnaryReply { call_id, result: if ok { Ok(data.into()) } else { Err(text) } };
        prop_assert_eq!(UnaryReply::decode(reply.clone().encode()).unwrap(), reply);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = UnaryRequest::decode(bytes.clone());
        let _ = UnaryReply::decode(bytes);
    }
}
