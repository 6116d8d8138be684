//! What the DHT stores under a key: a regular value, or a dictionary whose entries have subkeys and their own end of life.
//!
//! Values are bytes here; what Petals puts into them is in [`record`](crate::record). Which store wins over which is
//! decided by the storage of the node, not here.

use crate::{
    error::WireError,
    msgpack::{self, EXT_DICTIONARY, Value},
};

/// The subkey tag of an entry of a store request: what kind of value the entry carries.
///
/// Source: `IS_REGULAR_VALUE` and `IS_DICTIONARY` (hivemind, `dht/protocol.py`).
#[derive(Debug, Clone, PartialEq)]
pub enum Subkey {
    /// A regular value. On the wire the byte c0.
    None,
    /// A whole [`Dictionary`]. On the wire no bytes at all.
    WholeDictionary,
    /// One entry of a dictionary. On the wire the MessagePack of the subkey.
    Key(Value),
}

impl Subkey {
    /// The subkey that is this text, such as a peer id.
    pub fn text(text: &str) -> Self {
        Self::Key(Value::from(text))
    }

    /// Reads the tag of an entry.
    ///
    /// # Errors
    /// [`WireError`] if it is neither of the two special tags nor a MessagePack value.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, WireError> {
        Ok(match bytes {
            [] => Self::WholeDictionary,
            [0xc0] => Self::None,
            _ => Self::Key(msgpack::decode(bytes)?),
        })
    }

    /// The tag of an entry.
    pub fn to_wire(&self) -> Vec<u8> {
        match self {
            Self::None => vec![0xc0],
            Self::WholeDictionary => Vec::new(),
            Self::Key(key) => msgpack::encode(key),
        }
    }
}

/// One entry of a dictionary.
#[derive(Debug, Clone, PartialEq)]
pub struct DictEntry {
    /// Name of the entry; Petals uses the peer id of the announcing server, in base58.
    pub subkey: Value,
    /// The serialized value. It need not be MessagePack: whoever reads it must be ready for anything.
    pub value: Vec<u8>,
    /// End of life in Unix seconds.
    pub expiration: f64,
}

/// A dictionary as it travels: in a store request as a whole, or in the answer to a find request.
#[derive(Debug, Clone, PartialEq)]
pub struct Dictionary {
    /// How many entries the sender would keep; `None` for any number.
    pub max_size: Option<u64>,
    /// Latest end of life that any entry ever had, in Unix seconds; minus infinity if there never was one.
    pub latest_expiration: f64,
    /// The entries, oldest first, with distinct subkeys.
    pub entries: Vec<DictEntry>,
}

/// What signatures of records cover, Hivemind's and ours: the tuple of the id of the key, the subkey tag, the value and
/// the expiration in Unix seconds (hivemind, `dht/crypto.py`, `_serialize_record`).
pub fn signed_tuple(key: &[u8], subkey: &[u8], value: &[u8], expiration: f64) -> Vec<u8> {
    msgpack::encode(&msgpack::tuple(vec![
        Value::Binary(key.to_vec()),
        Value::Binary(subkey.to_vec()),
        Value::Binary(value.to_vec()),
        Value::F64(expiration),
    ]))
}

const WHAT: &str = "dictionary";

impl Default for Dictionary {
    fn default() -> Self {
        Self {
            max_size: None,
            latest_expiration: f64::NEG_INFINITY,
            entries: Vec::new(),
        }
    }
}

impl FromIterator<DictEntry> for Dictionary {
    fn from_iter<I: IntoIterator<Item = DictEntry>>(entries: I) -> Self {
        let entries: Vec<_> = entries.into_iter().collect();
        let latest_expiration = entries
            .iter()
            .map(|entry| entry.expiration)
            .fold(f64::NEG_INFINITY, f64::max);
        Self {
            max_size: None,
            latest_expiration,
            entries,
        }
    }
}

impl Dictionary {
    /// The entry with this subkey.
    pub fn get(&self, subkey: &Value) -> Option<&DictEntry> {
        self.entries.iter().rev().find(|entry| entry.subkey == *subkey)
    }

    /// The serialized dictionary: extension 0x50 of `[size limit, latest expiration, [[subkey, value, expiration]…]]`,
    /// where no size limit is the float infinity.
    pub fn encode(&self) -> Vec<u8> {
        let max_size = self.max_size.map_or(Value::F64(f64::INFINITY), Value::from);
        let entries = self.entries.iter().map(|entry| {
            Value::Array(vec![
                entry.subkey.clone(),
                Value::Binary(entry.value.clone()),
                Value::F64(entry.expiration),
            ])
        });
        let parts = vec![
            max_size,
            Value::F64(self.latest_expiration),
            Value::Array(entries.collect()),
        ];
        msgpack::encode(&Value::Ext(EXT_DICTIONARY, msgpack::encode(&Value::Array(parts))))
    }

    /// Reads a serialized dictionary.
    ///
    /// # Errors
    /// [`WireError`] if the bytes are anything else, or an expiration is not a number.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let Value::Ext(EXT_DICTIONARY, payload) = msgpack::decode(bytes)? else {
            return Err(wrong("the value", "extension 0x50"));
        };
        let parts = sequence(&msgpack::decode(&payload)?, "the content")?;
        let [max_size, latest_expiration, entries] = parts.as_slice() else {
            return Err(wrong("the content", "three values"));
        };
        let max_size = match max_size {
            Value::F64(limit) if *limit == f64::INFINITY => None,
            limit => Some(
                limit
                    .as_u64()
                    .ok_or(wrong("the size limit", "a whole number or infinity"))?,
            ),
        };
        Ok(Self {
            max_size,
            latest_expiration: seconds(latest_expiration)?,
            entries: sequence(entries, "the list of entries")?
                .iter()
                .map(entry)
                .collect::<Result<_, _>>()?,
        })
    }
}

fn entry(value: &Value) -> Result<DictEntry, WireError> {
    match <[Value; 3]>::try_from(sequence(value, "an entry")?) {
        Ok([subkey, Value::Binary(value), expiration]) => Ok(DictEntry {
            subkey,
            value,
            expiration: seconds(&expiration)?,
        }),
        _ => Err(wrong("an entry", "a subkey, bytes and an expiration")),
    }
}

fn sequence(value: &Value, field: &'static str) -> Result<Vec<Value>, WireError> {
    msgpack::as_sequence(value).ok_or(wrong(field, "a tuple or an array"))
}

/// A time. Python never checks its type, so that a whole number does as well.
fn seconds(value: &Value) -> Result<f64, WireError> {
    value
        .as_f64()
        .filter(|seconds| !seconds.is_nan())
        .ok_or(wrong("an expiration", "a number"))
}

fn wrong(field: &'static str, expected: &'static str) -> WireError {
    WireError::WrongType {
        what: WHAT,
        field,
        expected,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    /// A float of a vector file, in which infinities are text.
    fn float(json: &serde_json::Value) -> f64 {
        json.as_f64().unwrap_or_else(|| json.as_str().unwrap().parse().unwrap())
    }

    #[test]
    fn dictionaries_of_python_are_read_and_written_back_the_same() {
        let file = testing::vectors("hivemind/msgpack.json");
        let cases = file["dictionary_values"].as_array().unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let bytes = testing::bytes(&case["msgpack"]);
            let dictionary = Dictionary::decode(&bytes).unwrap();
            assert_eq!(dictionary.encode(), bytes);
            assert_eq!(dictionary.latest_expiration, float(&case["latest_expiration_time"]));
            let max_size = case["maxsize"].as_str().unwrap().parse().ok();
            assert_eq!(dictionary.max_size, max_size);
            let items = case["items"].as_array().unwrap();
            assert_eq!(dictionary.entries.len(), items.len());
            for (entry, item) in dictionary.entries.iter().zip(items) {
                let subkey = item["subkey"].as_str().unwrap();
                assert_eq!(entry.subkey.to_string().replace('"', "'"), subkey);
                assert_eq!(entry.value, testing::bytes(&item["value"]));
                assert_eq!(entry.expiration, float(&item["expiration"]));
                assert_eq!(dictionary.get(&entry.subkey), Some(entry));
            }
        }
    }

    #[test]
    fn a_dictionary_knows_its_latest_expiration() {
        let entry = |expiration| DictEntry {
            subkey: Value::from(expiration),
            value: vec![],
            expiration,
        };
        let dictionary: Dictionary = [entry(2.0), entry(3.0), entry(1.0)].into_iter().collect();
        assert_eq!(dictionary.latest_expiration, 3.0);
        assert_eq!(Dictionary::from_iter([]), Dictionary::default());
    }

    #[test]
    fn tags_of_store_requests_are_told_apart() {
        let constants = &testing::vectors("hivemind/protobuf.json")["constants"];
        let tags = [
            (Subkey::None, testing::bytes(&constants["IS_REGULAR_VALUE"])),
            (Subkey::WholeDictionary, testing::bytes(&constants["IS_DICTIONARY"])),
        ];
        for (subkey, bytes) in tags {
            assert_eq!(Subkey::from_wire(&bytes).unwrap(), subkey);
            assert_eq!(subkey.to_wire(), bytes);
        }
        let file = testing::vectors("petals/model_info.json");
        for (text, bytes) in file["subkeys_msgpack_hex"].as_object().unwrap() {
            let bytes = testing::bytes(bytes);
            assert_eq!(Subkey::text(text).to_wire(), bytes);
            assert_eq!(Subkey::from_wire(&bytes).unwrap(), Subkey::text(text));
        }
        assert!(Subkey::from_wire(&[0xc1]).is_err());
    }

    #[test]
    fn what_is_not_a_dictionary_is_refused() {
        let content = |parts: Vec<Value>| {
            let payload = msgpack::encode(&Value::Array(parts));
            Dictionary::decode(&msgpack::encode(&Value::Ext(EXT_DICTIONARY, payload)))
        };
        let none = || Value::Array(vec![]);
        assert!(content(vec![Value::from(8), Value::from(1), none()]).is_ok());
        let short = Value::Array(vec![Value::Array(vec![Value::from("k"), Value::Binary(vec![])])]);
        let text = Value::Array(vec![Value::from("k"), Value::from("v"), Value::from(1.0)]);
        for parts in [
            vec![],
            vec![Value::from(8), Value::from(1.0)],
            vec![Value::from(-8), Value::from(1.0), none()],
            vec![Value::from(8), Value::Nil, none()],
            vec![Value::from(8), Value::from(f64::NAN), none()],
            vec![Value::from(8), Value::from(1.0), Value::Nil],
            vec![Value::from(8), Value::from(1.0), short],
            vec![Value::from(8), Value::from(1.0), Value::Array(vec![text])],
        ] {
            assert!(content(parts.clone()).is_err(), "{parts:?}");
        }
        assert!(Dictionary::decode(&[0x90]).is_err());
        assert!(Dictionary::decode(&[0xd4, 0x50, 0xc1]).is_err());
    }

    fn any_entry() -> impl Strategy<Value = DictEntry> {
        (".{0,8}", prop::collection::vec(any::<u8>(), 0..40), 0.0..1e10_f64).prop_map(|(subkey, value, expiration)| {
            DictEntry {
                subkey: Value::from(subkey),
                value,
                expiration,
            }
        })
    }

    proptest! {
        #[test]
        fn dictionaries_survive_the_wire(
            entries in prop::collection::vec(any_entry(), 0..8),
            max_size: Option<u64>,
        ) {
            let mut dictionary: Dictionary = entries.into_iter().collect();
            dictionary.max_size = max_size;
            prop_assert_eq!(Dictionary::decode(&dictionary.encode()).unwrap(), dictionary);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Subkey::from_wire(&payload);
            let _ = Dictionary::decode(&payload);
            let _ = Dictionary::decode(&msgpack::encode(&Value::Ext(EXT_DICTIONARY, payload)));
        }
    }
}
