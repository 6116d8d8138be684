//! Metadata against what Petals clients and servers sent, and the reader against what they would not send.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{msgpack::PythonText, names, proto, testing};

fn vector(name: &str) -> Vec<u8> {
    testing::bytes(&testing::vectors("petals/metadata.json")["vectors"][name]["msgpack_hex"])
}

fn order_of(bytes: &[u8], n_tensors: usize) -> Result<Vec<usize>, WireError> {
    tensor_order(Some(&msgpack::decode(bytes).unwrap()), n_tensors)
}

#[test]
fn structures_of_petals_are_those_we_write() {
    for (name, n_tensors) in [
        ("inference_args_structure", 3),
        ("forward_args_structure", 2),
        ("backward_args_structure", 3),
    ] {
        let bytes = vector(name);
        assert_eq!(msgpack::encode(&args_structure(n_tensors)), bytes, "{name}");
        let in_order: Vec<usize> = (0..n_tensors).collect();
        assert_eq!(order_of(&bytes, n_tensors), Ok(in_order));
    }
}

#[test]
fn every_structure_in_the_vectors_is_read_and_written_back_the_same() {
    let file = testing::vectors("petals/metadata.json");
    for (name, case) in file["vectors"].as_object().unwrap() {
        let bytes = testing::bytes(&case["msgpack_hex"]);
        let value = msgpack::decode(&bytes).unwrap();
        assert_eq!(msgpack::encode(&value), bytes, "{name}");
        let python = case["repr"].as_str().unwrap();
        if python.len() < 100 {
            assert_eq!(PythonText(Some(&value)).to_string(), python, "{name}");
        }
    }
}

#[test]
fn a_tensor_that_was_sent_once_may_be_two_arguments() {
    let bytes = vector("same_tensor_object_twice (deduplicated!)");
    assert_eq!(order_of(&bytes, 2), Ok(vec![0, 0, 1]));
}

#[test]
fn arguments_after_one_that_is_no_tensor_are_left_out() {
    assert_eq!(order_of(&vector("nested_example"), 4), Ok(vec![0, 1]));
}

#[test]
fn without_a_structure_tensors_are_positional() {
    assert_eq!(tensor_order(None, 3), Ok(vec![0, 1, 2]));
    assert_eq!(tensor_order(Some(&Value::Nil), 2), Ok(vec![0, 1]));
}

#[test]
fn plain_arrays_do_as_structure() {
    let marker = |text: &str| Value::Binary(text.as_bytes().to_vec());
    let args = Value::Array(vec![marker("__T1"), marker("__T0")]);
    let structure = Value::Array(vec![args, Value::Map(vec![])]);
    assert_eq!(tensor_order(Some(&structure), 2), Ok(vec![1, 0]));
}

#[test]
fn a_structure_that_names_no_sent_tensor_is_refused() {
    assert!(matches!(
        order_of(&vector("inference_args_structure"), 2),
        Err(WireError::OutOfRange { .. })
    ));
    for marker in ["__T", "__T-1", "__Tx", "__T99999999999999999999"] {
        let args = Value::Array(vec![Value::Binary(marker.into())]);
        let structure = Value::Array(vec![args, Value::Nil]);
        assert!(tensor_order(Some(&structure), 2).is_err(), "{marker}");
    }
    for structure in [
        Value::from(1),
        Value::Array(vec![]),
        Value::Array(vec![Value::Nil, Value::Nil]),
    ] {
        assert!(tensor_order(Some(&structure), 2).is_err(), "{structure}");
    }
}

#[test]
fn the_first_message_of_a_session_is_understood() {
    let metadata = StepMetadata::decode(&vector("first_message_metadata_2_3_0dev2")).unwrap();
    assert_eq!(
        metadata.session_id.as_deref(),
        Some("4f0f2f1e-0000-4000-8000-000000000001")
    );
    assert_eq!(
        metadata.step_id.as_deref(),
        Some("4f0f2f1e-0000-4000-8000-000000000002")
    );
    assert_eq!(metadata.max_length_tokens(), Some(28));
    assert!(metadata.has_valid_points());
    assert_eq!(metadata.active_adapter, None);
    assert_eq!(metadata.start_from_position, Some(0));
    assert_eq!(tensor_order(metadata.args_structure.as_ref(), 3), Ok(vec![0, 1, 2]));
    assert_eq!((metadata.pushed, metadata.next_servers.len()), (false, 0));
}

#[test]
fn a_later_message_of_an_old_client_is_read_and_written_back_the_same() {
    let bytes = vector("later_message_metadata_2_2_0_with_next_servers");
    let metadata = StepMetadata::decode(&bytes).unwrap();
    let next = NextServer {
        peer_id: "QmS9KwZptnVdB9FFV7uGgaTq4sEKBwcYeKZDfSpyKDUd1g".into(),
        session_id: "4f0f2f1e-0000-4000-8000-000000000009".into(),
        start: 2,
        end: 4,
    };
    assert_eq!(metadata.next_servers, std::slice::from_ref(&next));
    assert_eq!(metadata.encode(), bytes);

    let (to, pushed) = metadata.for_push().unwrap();
    assert_eq!(to, next);
    assert_eq!(pushed.session_id, Some(next.session_id));
    assert_eq!(pushed.step_id, metadata.step_id);
    assert!(pushed.pushed);
    assert_eq!(pushed.for_push(), None);
}

/// The metadata of every recorded request, with the file it is in and the call.
fn recorded_metadata() -> Vec<(String, String, Vec<u8>)> {
    let requests = testing::recorded_events().into_iter().filter_map(|(file, event)| {
        if event["decoded"]["type"] != "ExpertRequest" {
            return None;
        }
        let metadata = testing::bytes(&event["decoded"]["metadata_hex"]);
        if !event["raw_hex"].is_null() {
            let request = proto::ExpertRequest::decode(&*testing::bytes(&event["raw_hex"])).unwrap();
            assert_eq!(request.metadata, metadata);
        }
        Some((file, event["rpc"].as_str().unwrap().to_string(), metadata))
    });
    requests.collect()
}

#[test]
fn all_recorded_metadata_is_understood_and_survives() {
    let all = recorded_metadata();
    assert_eq!(all.len(), 163);
    for (file, _, bytes) in all {
        let metadata = StepMetadata::decode(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(StepMetadata::decode(&metadata.encode()).unwrap(), metadata, "{file}");
        assert!(metadata.other.is_empty(), "{file}: {:?}", metadata.other);
    }
}

#[test]
fn recorded_pushes_are_what_we_would_push() {
    let all = recorded_metadata();
    let sent: Vec<StepMetadata> = all
        .iter()
        .filter(|(_, call, _)| call == names::INFERENCE)
        .map(|(_, _, bytes)| StepMetadata::decode(bytes).unwrap())
        .collect();
    let mut n_pushes = 0;
    for (file, call, bytes) in &all {
        if call != names::PUSH || file != "inference_two_servers_push.json" {
            continue;
        }
        let pushed = StepMetadata::decode(bytes).unwrap();
        let ours = sent
            .iter()
            .filter(|step| step.step_id == pushed.step_id)
            .find_map(|step| step.for_push().map(|(_, pushed)| pushed));
        assert_eq!(ours, Some(pushed));
        n_pushes += 1;
    }
    assert!(n_pushes >= 4, "{n_pushes} pushes");
}

fn with(key: &str, value: Value) -> Result<StepMetadata, WireError> {
    StepMetadata::decode(&msgpack::encode(&Value::Map(vec![(Value::from(key), value)])))
}

#[test]
fn unknown_keys_are_kept() {
    let metadata = with("color", Value::from("blue")).unwrap();
    assert_eq!(metadata.other, [(Value::from("color"), Value::from("blue"))]);
    assert_eq!(StepMetadata::decode(&metadata.encode()).unwrap(), metadata);
}

#[test]
fn no_bytes_are_no_metadata() {
    assert_eq!(StepMetadata::decode(&[]).unwrap(), StepMetadata::default());
    assert_eq!(StepMetadata::decode(&[0x80]).unwrap(), StepMetadata::default());
    assert_eq!(StepMetadata::default().encode(), [0x80]);
}

#[test]
fn a_length_of_a_wrong_type_is_kept_for_the_error_text() {
    let metadata = with("max_length", Value::from("16")).unwrap();
    assert_eq!(metadata.max_length_tokens(), None);
    assert_eq!(PythonText(metadata.max_length.as_ref()).to_string(), "16");
    assert_eq!(with("max_length", Value::from(2.0)).unwrap().max_length_tokens(), None);
    assert_eq!(
        with("max_length", Value::from(u64::MAX)).unwrap().max_length_tokens(),
        Some(i64::MAX)
    );
    assert_eq!(
        with("max_length", Value::from(-1)).unwrap().max_length_tokens(),
        Some(-1)
    );
    assert!(!with("points", Value::from("5")).unwrap().has_valid_points());
}

#[test]
fn values_of_unusable_types_are_refused_by_name() {
    for (key, value) in [
        ("session_id", Value::from(1)),
        ("step_id", Value::Array(vec![])),
        ("active_adapter", Value::from(1)),
        ("alloc_timeout", Value::from("soon")),
        ("alloc_timeout", Value::from(f64::NAN)),
        ("start_from_position", Value::from(1.0)),
        ("next_servers", Value::from("QmX")),
        (
            "next_servers",
            Value::Array(vec![Value::Array(vec![Value::from("QmX")])]),
        ),
        ("pushed", Value::from(1)),
        ("output_compression", Value::Array(vec![Value::from("NONE")])),
    ] {
        let refused = with(key, value).unwrap_err();
        assert!(
            matches!(refused, WireError::WrongType { field, .. } if field == key),
            "{key}: {refused}"
        );
    }
    assert!(StepMetadata::decode(&[0x90]).is_err());
}

fn any_metadata() -> impl Strategy<Value = StepMetadata> {
    let text = prop::option::of(".{0,12}");
    let server =
        (".{0,8}", ".{0,8}", any::<u32>(), any::<u32>()).prop_map(|(peer_id, session_id, start, end)| NextServer {
            peer_id,
            session_id,
            start,
            end,
        });
    (
        (
            text.clone(),
            text.clone(),
            text,
            any::<Option<u64>>(),
            prop::option::of(0.0..1e3_f64),
        ),
        (any::<Option<i64>>(), prop::collection::vec(server, 0..3), any::<bool>()),
        (
            prop::option::of(prop::collection::vec(any::<i64>(), 0..3)),
            prop::option::of(".{0,12}"),
        ),
    )
        .prop_map(
            |(
                (session_id, step_id, adapter, max_length, timeout),
                (position, next, pushed),
                (compression, activations),
            )| {
                StepMetadata {
                    session_id,
                    step_id,
                    active_adapter: adapter,
                    max_length: max_length.map(Value::from),
                    alloc_timeout: timeout,
                    start_from_position: position,
                    next_servers: next,
                    pushed,
                    output_compression: compression,
                    activations,
                    args_structure: Some(args_structure(3)),
                    ..StepMetadata::default()
                }
            },
        )
}

proptest! {
    #[test]
    fn metadata_survives_the_wire(metadata in any_metadata()) {
        prop_assert_eq!(StepMetadata::decode(&metadata.encode()).unwrap(), metadata);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = StepMetadata::decode(&bytes);
        if let Ok(value) = msgpack::decode(&bytes) {
            let _ = tensor_order(Some(&value), 3);
        }
    }
}

#[test]
fn a_receipt_is_asked_for_and_given_and_is_absent_otherwise() {
    let asking = StepMetadata {
        receipt: true,
        ..StepMetadata::default()
    };
    assert_eq!(StepMetadata::decode(&asking.encode()), Ok(asking));
    assert!(!StepMetadata::decode(&StepMetadata::default().encode()).unwrap().receipt);
    let reply = ReplyMetadata {
        receipt: Some("{}".to_owned()),
    };
    assert_eq!(ReplyMetadata::decode(&reply.encode()), Ok(reply));
    assert!(ReplyMetadata::default().encode().is_empty());
    let number = msgpack::encode(&Value::Map(vec![(Value::from("sepal_receipt"), Value::from(1))]));
    assert!(ReplyMetadata::decode(&number).is_err());
    assert!(ReplyMetadata::decode(b"\xc1").is_err());
}
