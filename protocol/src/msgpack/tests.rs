//! The dialect against vectors from Python, and the reader against bytes that nobody should send.

use proptest::prelude::*;

use super::*;
use crate::{error::WireError, testing};

#[test]
fn everything_python_wrote_is_read_and_written_back_the_same() {
    let file = testing::vectors("hivemind/msgpack.json");
    let mut n_cases = 0;
    for case in file["cases"].as_array().unwrap() {
        let bytes = testing::bytes(&case["msgpack"]);
        n_cases += 1;
        if case["decode_error"].is_null() {
            let value = decode(&bytes).unwrap();
            assert_eq!(encode(&value), bytes, "{}", case["python"]);
        } else {
            assert!(decode(&bytes).is_err(), "Python refuses {}", case["python"]);
        }
    }
    assert_eq!(n_cases, 54);
}

#[test]
fn values_print_as_the_python_expressions_they_came_from() {
    let file = testing::vectors("hivemind/msgpack.json");
    for case in file["cases"].as_array().unwrap() {
        let python = case["python"].as_str().unwrap();
        if python.len() > 30 || python.starts_with('\'') || !case["decode_error"].is_null() {
            continue;
        }
        let value = decode(&testing::bytes(&case["msgpack"])).unwrap();
        assert_eq!(PythonText(Some(&value)).to_string(), python);
    }
}

#[test]
fn tuples_nest_and_come_apart() {
    let value = tuple(vec![
        Value::from("a"),
        tuple(vec![Value::from(1), tuple(vec![Value::from(2)])]),
    ]);
    assert_eq!(encode(&value), hex::decode("c70c4092a161c706409201d5409102").unwrap());
    let outer = as_sequence(&value).unwrap();
    let inner = as_sequence(&outer[1]).unwrap();
    assert_eq!(as_sequence(&inner[1]).unwrap(), [Value::from(2)]);
    assert_eq!(as_sequence(&Value::from("text")), None);
    assert_eq!(as_sequence(&Value::Ext(0x50, vec![0x90])), None);
}

#[test]
fn a_short_float_is_written_with_64_bits_wherever_it_is() {
    let value = Value::Map(vec![(Value::from("x"), Value::Array(vec![Value::F32(5.5)]))]);
    let read = decode(&encode(&value)).unwrap();
    assert_eq!(
        read,
        Value::Map(vec![(Value::from("x"), Value::Array(vec![Value::F64(5.5)]))])
    );
    assert_eq!(
        encode(&tuple(vec![Value::F32(5.5)])),
        encode(&tuple(vec![Value::F64(5.5)]))
    );
}

#[test]
fn of_equal_keys_the_last_one_counts() {
    let map = [(Value::from("k"), Value::from(1)), (Value::from("k"), Value::from(2))];
    assert_eq!(get(&map, "k"), Some(&Value::from(2)));
    assert_eq!(get(&map, "l"), None);
}

#[test]
fn lengths_beyond_the_bytes_are_refused_before_anything_is_allocated() {
    for head in ["c6", "c9", "db", "dd", "df"] {
        for tail in ["ffffffff", "ffffffff00", "7fffffffc0c0c0"] {
            let bytes = hex::decode(format!("{head}{tail}")).unwrap();
            assert_eq!(
                decode(&bytes),
                Err(WireError::Truncated {
                    what: "MessagePack value"
                })
            );
        }
    }
}

#[test]
fn containers_share_the_bytes_that_are_left() {
    // Each of these alone could be filled, both together could not. What comes after them is not even looked at.
    let array = [0xdd, 0, 0, 0x80, 0];
    let mut nested = [array, array].concat();
    nested.resize(0x9000, 0xc1);
    assert_eq!(
        decode(&nested),
        Err(WireError::Truncated {
            what: "MessagePack value"
        })
    );

    let mut inside = vec![0xdc, 0x80, 0];
    inside.resize(0x9000, 0xc1);
    let mut tuples = [&array[..], &[0xc8, 0x90, 0x00, 0x40]].concat();
    tuples.extend(inside);
    assert_eq!(
        decode(&tuples),
        Err(WireError::Truncated {
            what: "MessagePack value"
        })
    );
}

#[test]
fn deep_nesting_is_refused_in_every_kind_of_container() {
    let arrays = vec![0x91; 100_000];
    let maps = [0x81, 0xa0].repeat(100_000);
    let mut tuples = vec![0x90];
    for _ in 0..40 {
        let mut outer = vec![0x91, 0xc8];
        outer.extend(u16::try_from(tuples.len()).unwrap().to_be_bytes());
        outer.push(0x40);
        outer.extend(&tuples);
        tuples = outer;
    }
    for bytes in [arrays, maps, tuples] {
        assert!(matches!(decode(&bytes), Err(WireError::TooDeep { .. })));
    }
}

#[test]
fn the_allowed_depth_is_enough_for_the_deepest_allowed_value() {
    let mut bytes = vec![0x91; MAX_DEPTH - 1];
    bytes.push(0x90);
    assert!(decode(&bytes).is_ok());
    bytes.insert(0, 0x91);
    assert!(decode(&bytes).is_err());
}

#[test]
fn malformed_values_are_refused_with_the_rule_they_break() {
    for (bytes, problem) in [
        ("c1", "the byte c1 begins nothing"),
        ("a2c328", "text is not UTF-8"),
        ("8190c0", "a map key is neither text nor bytes"),
        ("d44001", "a tuple is not an array inside"),
    ] {
        let refused = decode(&hex::decode(bytes).unwrap());
        assert!(
            matches!(refused, Err(WireError::Malformed { problem: found, .. }) if found == problem),
            "{bytes}"
        );
    }
    assert!(matches!(
        decode(&[0xc0, 0xc0, 0xc0]),
        Err(WireError::Trailing { extra: 2, .. })
    ));
    assert!(matches!(decode(&[]), Err(WireError::Truncated { .. })));
    assert!(decode(&[0xd4, 0x40, 0x91]).is_err(), "a tuple that is cut off inside");
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        (-1e300_f64..1e300).prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::Binary),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
            prop::collection::vec(inner.clone(), 0..20).prop_map(tuple),
            prop::collection::vec((".{0,8}".prop_map(Value::from), inner), 0..20).prop_map(Value::Map),
        ]
    })
}

proptest! {
    #[test]
    fn values_survive_the_wire(value in any_value()) {
        let bytes = encode(&value);
        let read = decode(&bytes).unwrap();
        prop_assert_eq!(&read, &value);
        prop_assert_eq!(encode(&read), bytes);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = decode(&bytes) {
            as_sequence(&value);
            PythonText(Some(&value)).to_string();
        }
    }

    #[test]
    fn a_cut_off_value_is_refused(value in any_value(), cut in 0.0..1.0_f64) {
        let bytes = encode(&value);
        let len = (bytes.len() as f64 * cut) as usize;
        prop_assert!(decode(&bytes[..len]).is_err());
    }
}
