//! The generated messages against what Python serialized, byte for byte.

use proptest::prelude::*;
use prost::Message;

use crate::{
    dht_id::DhtId,
    names,
    proto::*,
    record::{BlockUid, MODEL_REGISTRY_KEY, ModelInfo, ServerInfo, ServerState},
    testing,
    value::{Dictionary, Subkey},
};

/// The bytes after a trip through the message type of this name.
fn again(name: &str, bytes: &[u8]) -> Vec<u8> {
    fn trip<M: Message + Default>(bytes: &[u8]) -> Vec<u8> {
        M::decode(bytes).unwrap().encode_to_vec()
    }
    match name {
        "PingRequest" => trip::<PingRequest>(bytes),
        "PingResponse" => trip::<PingResponse>(bytes),
        "StoreRequest" => trip::<StoreRequest>(bytes),
        "StoreResponse" => trip::<StoreResponse>(bytes),
        "FindRequest" => trip::<FindRequest>(bytes),
        "FindResponse" => trip::<FindResponse>(bytes),
        "RequestAuthInfo" => trip::<RequestAuthInfo>(bytes),
        "ExpertRequest" => trip::<ExpertRequest>(bytes),
        "ExpertResponse" => trip::<ExpertResponse>(bytes),
        "ExpertUID" => trip::<ExpertUid>(bytes),
        "ExpertInfo" => trip::<ExpertInfo>(bytes),
        "JoinRequest" => trip::<JoinRequest>(bytes),
        "MessageFromLeader" => trip::<MessageFromLeader>(bytes),
        other => panic!("unknown message {other}"),
    }
}

#[test]
fn every_message_of_the_vectors_is_read_and_written_back_the_same() {
    let file = testing::vectors("hivemind/protobuf.json");
    let cases = file["messages"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    for case in cases {
        let bytes = testing::bytes(&case["hex"]);
        assert_eq!(
            again(case["message"].as_str().unwrap(), &bytes),
            bytes,
            "{}",
            case["name"]
        );
    }
}

fn message(name: &str) -> Vec<u8> {
    let file = testing::vectors("hivemind/protobuf.json");
    let cases = file["messages"].as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == name).unwrap();
    testing::bytes(&case["hex"])
}

#[test]
fn fields_have_the_numbers_that_python_gives_them() {
    let node_id = hex::decode("8d7b683efcbb17fee571d866f14231d6293b55df").unwrap();
    let peer = Some(NodeInfo { node_id });

    let ping = PingResponse {
        peer: peer.clone(),
        dht_time: 1_700_000_000.25,
        available: true,
        ..PingResponse::default()
    };
    assert_eq!(ping.encode_to_vec(), message("PingResponse available"));

    let client = PingRequest {
        peer: Some(NodeInfo::default()),
        ..PingRequest::default()
    };
    assert_eq!(
        client.encode_to_vec(),
        message("PingRequest client mode (peer present but empty)")
    );

    let store = StoreRequest::decode(&*message(
        "StoreRequest two keys, second is a whole dictionary in cache",
    ))
    .unwrap();
    assert_eq!(store.keys[0], DhtId::of_str("bloom-petals.3").as_bytes());
    assert_eq!(store.keys[1], DhtId::of_str(MODEL_REGISTRY_KEY).as_bytes());
    let peer_id = "QmedTaZXmULqwspJXz44SsPZyTNKxhnnFvYRajfH7MGhCY";
    assert_eq!(Subkey::from_wire(&store.subkeys[0]).unwrap(), Subkey::text(peer_id));
    assert_eq!(Subkey::from_wire(&store.subkeys[1]).unwrap(), Subkey::WholeDictionary);
    assert_eq!(ServerInfo::decode(&store.values[0]).unwrap().state, ServerState::Online);
    let dictionary = Dictionary::decode(&store.values[1]).unwrap();
    assert_eq!(dictionary.entries[0].value, store.values[0]);
    assert_eq!(store.expiration_time, [4_102_444_800.5; 2]);
    assert_eq!(store.in_cache, [false, true]);
    assert_eq!(store.peer, peer);

    let found = FindResponse::decode(&*message("FindResponse")).unwrap();
    let kinds: Vec<ResultType> = found.results.iter().map(FindResult::r#type).collect();
    assert_eq!(
        kinds,
        [
            ResultType::NotFound,
            ResultType::FoundRegular,
            ResultType::FoundDictionary
        ]
    );
    assert_eq!(found.results[2].nearest_node_ids.len(), 2);
    assert_eq!(found.results[2].nearest_peer_ids.len(), 2);
}

/// The message type of a recorded event; some events say it only by their call.
fn recorded_type(event: &serde_json::Value) -> String {
    let sends = event["event"] == "caller sends";
    match (event["decoded"]["type"].as_str(), event["rpc"].as_str()) {
        (Some(name), _) => name.to_string(),
        (None, Some(names::DHT_PING)) if sends => "PingRequest".to_string(),
        (None, Some(names::DHT_PING)) => "PingResponse".to_string(),
        _ => panic!("unknown message: {event}"),
    }
}

#[test]
fn every_recorded_petals_message_is_read_and_written_back_the_same() {
    let mut n_messages = 0;
    for (file, event) in testing::recorded_events() {
        if event["raw_hex"].is_null() {
            continue;
        }
        let bytes = testing::bytes(&event["raw_hex"]);
        assert_eq!(bytes.len() as u64, event["raw_len"].as_u64().unwrap());
        assert_eq!(
            again(&recorded_type(&event), &bytes),
            bytes,
            "{file}: {}",
            event["call"]
        );
        n_messages += 1;
    }
    assert_eq!(n_messages, 329);
}

#[test]
fn recorded_tensors_have_the_recorded_fields() {
    let mut n_tensors = 0;
    for (file, event) in testing::recorded_events() {
        // Two messages of 2 MiB were recorded without their bytes.
        if event["raw_hex"].is_null() {
            continue;
        }
        let decoded = &event["decoded"];
        let tensors = match decoded["type"].as_str() {
            Some("ExpertRequest") => {
                let request = ExpertRequest::decode(&*testing::bytes(&event["raw_hex"])).unwrap();
                assert_eq!(request.uid, decoded["uid"].as_str().unwrap(), "{file}");
                request.tensors
            }
            Some("ExpertResponse") => {
                ExpertResponse::decode(&*testing::bytes(&event["raw_hex"]))
                    .unwrap()
                    .tensors
            }
            _ => continue,
        };
        let expected = decoded["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), expected.len(), "{file}");
        for (tensor, expected) in tensors.iter().zip(expected) {
            let size: Vec<u64> = tensor.size.iter().map(|dim| u64::from(*dim)).collect();
            assert_eq!(serde_json::json!(size), expected["size"], "{file}");
            assert_eq!(tensor.dtype, expected["dtype"].as_str().unwrap());
            assert_eq!(i64::from(tensor.compression), expected["compression"].as_i64().unwrap());
            assert_eq!(tensor.requires_grad, expected["requires_grad"].as_bool().unwrap());
            assert_eq!(i64::from(tensor.chunks), expected["chunks"].as_i64().unwrap());
            assert_eq!(tensor.buffer.len() as u64, expected["buffer_len"].as_u64().unwrap());
            n_tensors += 1;
        }
    }
    assert!(n_tensors > 400, "{n_tensors}");
}

#[test]
fn a_server_announces_joining_then_online_then_offline() {
    let file = testing::vectors("petals/server_lifecycle.json");
    let mut states = Vec::new();
    for event in file["events"].as_array().unwrap() {
        if event["rpc"] != names::DHT_STORE {
            continue;
        }
        let store = StoreRequest::decode(&*testing::bytes(&event["raw_hex"])).unwrap();
        for (key, value) in store.keys.iter().zip(&store.values) {
            if *key == DhtId::of_str(MODEL_REGISTRY_KEY).as_bytes() {
                let model = ModelInfo::decode(value).unwrap();
                assert_eq!((model.num_blocks, &model.encode()), (4, value));
                continue;
            }
            let info = ServerInfo::decode(value).unwrap();
            assert_eq!(info.encode(), *value);
            let blocks = info.start_block.unwrap()..info.end_block.unwrap();
            let uids = BlockUid::format_chain("tiny-two-hf", blocks);
            assert!(
                uids.split(' ')
                    .any(|uid| DhtId::of_str(uid).as_bytes() == key.as_slice())
            );
            states.push(info.state);
        }
    }
    let (joining, online, offline) = (ServerState::Joining, ServerState::Online, ServerState::Offline);
    assert_eq!(states, [joining, joining, online, online, offline, offline]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = PingRequest::decode(&*bytes);
        let _ = PingResponse::decode(&*bytes);
        let _ = StoreRequest::decode(&*bytes);
        let _ = FindRequest::decode(&*bytes);
        let _ = FindResponse::decode(&*bytes);
        let _ = ExpertRequest::decode(&*bytes);
        let _ = ExpertResponse::decode(&*bytes);
        let _ = ExpertInfo::decode(&*bytes);
        let _ = PrivateKey::decode(&*bytes);
    }
}
