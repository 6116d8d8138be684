//! MessagePack as Hivemind speaks it: tuples are extension 0x40, floats are always 64 bits, integers as short as they go.
//!
//! The source of the dialect is `MSGPackSerializer` (hivemind, `utils/serializer.py`). The reader here refuses what
//! Python's refuses (map keys that are neither text nor bytes, text that is not UTF-8), and keeps extensions it does
//! not know. Records themselves are read elsewhere; this is only their syntax.

pub use rmpv::Value;
use rmpv::encode::write_value;

mod read;
mod text;

pub use read::{MAX_DEPTH, decode};
pub use text::PythonText;

/// Extension code of a tuple: the payload is an array of its elements.
pub const EXT_TUPLE: i8 = 0x40;
/// Extension code of a dictionary of subkeys, see [`Dictionary`](crate::value::Dictionary).
pub const EXT_DICTIONARY: i8 = 0x50;
/// Extension code of a tensor descriptor, see [`BatchTensorDescriptor`](crate::descriptor::BatchTensorDescriptor).
pub const EXT_TENSOR_DESCRIPTOR: i8 = 0x51;

/// The bytes of a value. A 32 bit float is written as 64 bits: Python peers compare types, and have only one float.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = if has_short_float(value) {
        write_value(&mut bytes, &widen(value))
    } else {
        write_value(&mut bytes, value)
    };
    debug_assert!(written.is_ok(), "writing to memory does not fail");
    bytes
}

/// A Python tuple of these elements.
pub fn tuple(elements: Vec<Value>) -> Value {
    Value::Ext(EXT_TUPLE, encode(&Value::Array(elements)))
}

/// The elements of a tuple or of an array; `None` for anything else.
///
/// Python's readers hardly ever tell the two apart, so ours do not either.
pub fn as_sequence(value: &Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(elements) => Some(elements.clone()),
        Value::Ext(EXT_TUPLE, payload) => match decode(payload) {
            Ok(Value::Array(elements)) => Some(elements),
            _ => None,
        },
        _ => None,
    }
}

/// The value of a text key of a map. Of several equal keys the last one counts, as in a Python dict.
pub fn get<'v>(map: &'v [(Value, Value)], key: &str) -> Option<&'v Value> {
    map.iter()
        .rev()
        .find(|(name, _)| name.as_str() == Some(key))
        .map(|(_, value)| value)
}

fn has_short_float(value: &Value) -> bool {
    match value {
        Value::F32(_) => true,
        Value::Array(elements) => elements.iter().any(has_short_float),
        Value::Map(entries) => entries
            .iter()
            .any(|(key, value)| has_short_float(key) || has_short_float(value)),
        _ => false,
    }
}

fn widen(value: &Value) -> Value {
    match value {
        Value::F32(short) => Value::F64(f64::from(*short)),
        Value::Array(elements) => Value::Array(elements.iter().map(widen).collect()),
        Value::Map(entries) => Value::Map(entries.iter().map(|(key, value)| (widen(key), widen(value))).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
