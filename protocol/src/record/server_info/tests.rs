//! Server records against those that Petals wrote, and against the table of what its reader takes or drops.

use proptest::prelude::*;

use super::*;
use crate::testing;

/// The record as Python prints it after reading.
fn python_repr(info: &ServerInfo) -> String {
    let text = |text: &Option<String>| text.as_ref().map_or("None".into(), |text| format!("'{text}'"));
    let number = |value: Option<Value>| PythonText(value.as_ref()).to_string();
    let adapters = info.adapters.iter().map(|name| Value::from(name.as_str())).collect();
    let pings = info.next_pings.as_ref().map(|pings| {
        Value::Map(
            pings
                .iter()
                .map(|(peer, rtt)| (Value::from(peer.as_str()), Value::from(*rtt)))
                .collect(),
        )
    });
    let pings = pings.map_or("None".into(), |pings| {
        let Value::Map(entries) = pings else { panic!() };
        let entries: Vec<String> = entries
            .iter()
            .map(|(peer, rtt)| format!("'{}': {}", peer.as_str().unwrap(), PythonText(Some(rtt))))
            .collect();
        format!("{{{}}}", entries.join(", "))
    });
    format!(
        "ServerInfo(state=<ServerState.{}: {}>, throughput={}, start_block={}, end_block={}, public_name={}, \
         version={}, network_rps={}, forward_rps={}, inference_rps={}, adapters={}, torch_dtype={}, quant_type={}, \
         using_relay={}, cache_tokens_left={}, next_pings={pings})",
        info.state.name().to_uppercase(),
        info.state as u8,
        number(Some(info.throughput.into())),
        number(info.start_block.map(Value::from)),
        number(info.end_block.map(Value::from)),
        text(&info.public_name),
        text(&info.version),
        number(info.network_rps.map(Value::from)),
        number(info.forward_rps.map(Value::from)),
        number(info.inference_rps.map(Value::from)),
        PythonText(Some(&msgpack::tuple(adapters))),
        text(&info.torch_dtype),
        text(&info.quant_type),
        number(info.using_relay.map(Value::from)),
        number(info.cache_tokens_left.map(Value::from)),
    )
}

#[test]
fn records_of_petals_are_read_and_written_back_the_same() {
    let file = testing::vectors("petals/server_info.json");
    let cases = file["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 5);
    for (name, case) in cases {
        let bytes = testing::bytes(&case["msgpack_hex"]);
        assert_eq!(ServerInfo::decode(&bytes).unwrap().encode(), bytes, "{name}");
    }
    let minimal = testing::bytes(&cases["minimal"]["msgpack_hex"]);
    assert_eq!(ServerInfo::new(ServerState::Online, 1.0).encode(), minimal);

    let full = ServerInfo::decode(&testing::bytes(&cases["full_direct_nf4"]["msgpack_hex"])).unwrap();
    assert_eq!((full.start_block, full.end_block), (Some(10), Some(34)));
    assert_eq!(full.adapters.len(), 2);
    assert_eq!(full.quant_type.as_deref(), Some("nf4"));
    assert_eq!(full.using_relay, Some(false));
    assert_eq!(full.cache_tokens_left, Some(786_432));
    assert_eq!(full.next_pings.unwrap()[1].1, f64::INFINITY);
}

#[test]
fn python_s_reader_and_ours_take_and_drop_the_same_records() {
    let file = testing::vectors("petals/server_info.json");
    let table = file["reader_acceptance"].as_object().unwrap();
    assert_eq!(table.len(), 33);
    for (name, case) in table {
        let read = ServerInfo::decode(&testing::bytes(&case["msgpack_hex"]));
        if case["accepted"].as_bool().unwrap() {
            let expected = case["parsed"]
                .as_str()
                .unwrap()
                .replace("adapters=['a']", "adapters=('a',)");
            assert_eq!(python_repr(&read.unwrap()), expected, "{name}");
        } else {
            assert!(read.is_err(), "{name}");
        }
    }
}

#[test]
fn records_in_the_hivemind_vectors_are_read_and_written_back_the_same() {
    let file = testing::vectors("hivemind/msgpack.json");
    let mut n_records = 0;
    for case in file["petals"].as_array().unwrap() {
        let bytes = testing::bytes(&case["msgpack"]);
        match case["kind"].as_str().unwrap() {
            "petals.ServerInfo.to_tuple()" => {
                assert_eq!(
                    ServerInfo::decode(&bytes).unwrap().encode(),
                    bytes,
                    "{}",
                    case["python"]
                );
            }
            kind if kind.starts_with("petals.ServerInfo.from_tuple") => {
                let info = ServerInfo::decode(&bytes).unwrap();
                assert_eq!(python_repr(&info), case["decoded"].as_str().unwrap());
            }
            _ => continue,
        }
        n_records += 1;
    }
    assert_eq!(n_records, 7);
}

#[test]
fn what_pydantic_would_convert_is_converted() {
    let read = |key: &str, value: Value| {
        let map = Value::Map(vec![(Value::from(key), value)]);
        ServerInfo::from_value(&msgpack::tuple(vec![Value::from(2), Value::from(1.0), map]))
    };
    let on = |value: Value| read("using_relay", value).ok().and_then(|info| info.using_relay);
    assert_eq!(on(Value::from("Yes")), Some(true));
    assert_eq!(on(Value::Binary(b"off".to_vec())), Some(false));
    assert_eq!(on(Value::from(1.0)), Some(true));
    assert_eq!(on(Value::from("maybe")), None);
    assert_eq!(on(Value::from(2)), None);
    let name = |value: Value| read("public_name", value).ok().and_then(|info| info.public_name);
    assert_eq!(name(Value::from(true)).as_deref(), Some("True"));
    assert_eq!(name(Value::from(2.5)).as_deref(), Some("2.5"));
    assert_eq!(name(Value::Binary(vec![0xff])), None);
    assert_eq!(name(Value::Array(vec![])), None);
    let state = |state: Value| {
        let record = msgpack::tuple(vec![state, Value::from(1.0)]);
        ServerInfo::from_value(&record).ok().map(|info| info.state)
    };
    assert_eq!(state(Value::from(true)), Some(ServerState::Joining));
    assert_eq!(state(Value::from(0.5)), None);
    assert!(read("start_block", Value::from(u64::MAX)).is_err());
}

#[test]
fn a_key_that_is_not_text_drops_the_record() {
    let map = Value::Map(vec![(Value::Binary(b"version".to_vec()), Value::from("1"))]);
    let record = msgpack::tuple(vec![Value::from(2), Value::from(1.0), map]);
    assert!(ServerInfo::from_value(&record).is_err());
}

#[test]
fn a_map_monitor_gets_every_field() {
    let bytes = ServerInfo::new(ServerState::Online, 1.0)
        .encode_for_map_monitor()
        .unwrap();
    let Value::Map(entries) = msgpack::decode(&bytes).unwrap() else {
        panic!()
    };
    assert_eq!(entries.len(), 15);
    assert!(entries.iter().all(|(_, value)| !value.is_nil()));
    assert_eq!(msgpack::get(&entries, "state"), Some(&Value::from("online")));
}

fn any_info() -> impl Strategy<Value = ServerInfo> {
    let blocks: (BoxedStrategy<Option<u32>>, BoxedStrategy<Option<u32>>) =
        (any::<Option<u32>>().boxed(), any::<Option<u32>>().boxed());
    let words = prop::option::of(".{0,10}");
    let rates = prop::option::of(0.0..1e9_f64);
    let pings = prop::option::of(prop::collection::vec((".{0,10}", 0.0..10.0_f64), 0..4));
    let state = prop_oneof![
        Just(ServerState::Offline),
        Just(ServerState::Joining),
        Just(ServerState::Online)
    ];
    (
        (state, 0.0..1e9_f64, blocks, words.clone(), words),
        (rates.clone(), rates, prop::collection::vec(".{0,10}", 0..3)),
        (any::<Option<bool>>(), any::<Option<u64>>(), pings),
    )
        .prop_map(
            |((state, throughput, blocks, name, dtype), (network, inference, adapters), rest)| ServerInfo {
                start_block: blocks.0,
                end_block: blocks.1,
                public_name: name,
                torch_dtype: dtype,
                network_rps: network,
                inference_rps: inference,
                adapters,
                using_relay: rest.0,
                cache_tokens_left: rest.1,
                next_pings: rest.2,
                ..ServerInfo::new(state, throughput)
            },
        )
}

proptest! {
    #[test]
    fn records_survive_the_wire(info in any_info()) {
        prop_assert_eq!(ServerInfo::decode(&info.encode()).unwrap(), info);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = ServerInfo::decode(&bytes);
    }
}
