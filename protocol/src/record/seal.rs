//! The signature that a Sepal server puts into its records, as bytes: where it stands and what it covers.
//!
//! Petals signs nothing, so anyone can store a record in the name of any server. A record of ours carries one field more
//! than Petals knows, behind the thirteen: `sepal_signature`, an array of the signature and, only if the peer id is a hash
//! of it, the public key. Readers in Python ignore the field (`server_info.json`, `reader_acceptance`). Keys are handled
//! elsewhere; here nothing is signed or checked.

use crate::{
    error::WireError,
    msgpack::{self, Value},
    value,
};

const FIELD: &str = "sepal_signature";
const WHAT: &str = "record signature";

/// Before what is signed, so that the signature means nothing elsewhere: the same key signs libp2p handshakes.
const DOMAIN: &[u8] = b"sepal-server-record:";

/// Who wrote a record, proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// By the key of the peer under whose id the record is, over [`Seal::message`].
    pub signature: Vec<u8>,
    /// A serialized [`PublicKey`](crate::proto::PublicKey), for peer ids that do not contain it (RSA).
    pub public_key: Option<Vec<u8>>,
}

impl Seal {
    /// What is signed: the name of this kind of signature, then the [tuple](value::signed_tuple) of the id of the key,
    /// the subkey tag, the record without its seal, and the expiration in Unix seconds.
    pub fn message(key: &[u8], subkey: &[u8], bare: &[u8], expiration: f64) -> Vec<u8> {
        [DOMAIN, &value::signed_tuple(key, subkey, bare, expiration)].concat()
    }

    /// A serialized server record with this seal; `None` if it is no such record, or has a seal already.
    pub fn attach(&self, bare: &[u8]) -> Option<Vec<u8>> {
        let [state, throughput, Value::Map(mut fields)] = parts(bare)? else {
            return None;
        };
        if fields.iter().any(is_seal) {
            return None;
        }
        let mut content = vec![Value::Binary(self.signature.clone())];
        content.extend(self.public_key.clone().map(Value::Binary));
        fields.push((Value::from(FIELD), Value::Array(content)));
        Some(whole(state, throughput, fields))
    }

    /// Takes the seal off a serialized record: the record without it, and the seal. `None` if there is none, as in the
    /// records of Python servers and in values that are no server records.
    ///
    /// # Errors
    /// [`WireError`] if there is something in its place that no server of ours writes.
    pub fn detach(sealed: &[u8]) -> Result<Option<(Vec<u8>, Self)>, WireError> {
        let mentions = sealed.windows(FIELD.len()).any(|window| window == FIELD.as_bytes());
        let Some([state, throughput, Value::Map(mut fields)]) = mentions.then(|| parts(sealed)).flatten() else {
            return Ok(None);
        };
        if !fields.iter().any(is_seal) {
            return Ok(None);
        }
        let seal = fields.pop().filter(is_seal).and_then(|(_, content)| read(content));
        let seal = seal.ok_or(WireError::WrongType {
            what: WHAT,
            field: "the last field",
            expected: "a signature and perhaps a key",
        })?;
        let bare = whole(state, throughput, fields);
        if seal.attach(&bare).as_deref() != Some(sealed) {
            return Err(WireError::Malformed {
                what: WHAT,
                problem: "the record around it is written in another way than it was signed in",
            });
        }
        Ok(Some((bare, seal)))
    }
}

fn is_seal((name, _): &(Value, Value)) -> bool {
    name.as_str() == Some(FIELD) || name.as_slice() == Some(FIELD.as_bytes())
}

/// State, throughput and fields of a serialized record.
fn parts(record: &[u8]) -> Option<[Value; 3]> {
    let value = msgpack::decode(record).ok()?;
    msgpack::as_sequence(&value)?.try_into().ok()
}

fn whole(state: Value, throughput: Value, fields: Vec<(Value, Value)>) -> Vec<u8> {
    msgpack::encode(&msgpack::tuple(vec![state, throughput, Value::Map(fields)]))
}

fn read(content: Value) -> Option<Seal> {
    let Value::Array(content) = content else { return None };
    let mut content = content.into_iter().map(|part| match part {
        Value::Binary(bytes) => Some(bytes),
        _ => None,
    });
    let seal = Seal {
        signature: content.next()??,
        public_key: match content.next() {
            Some(key) => Some(key?),
            None => None,
        },
    };
    content.next().is_none().then_some(seal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        record::{ServerInfo, ServerState},
        testing,
    };

    fn seal(with_key: bool) -> Seal {
        Seal {
            signature: vec![7; 64],
            public_key: with_key.then(|| vec![8; 294]),
        }
    }

    #[test]
    fn a_sealed_record_reads_the_same_and_comes_apart_again() {
        let file = testing::vectors("petals/server_info.json");
        for (name, case) in file["cases"].as_object().unwrap() {
            let bare = testing::bytes(&case["msgpack_hex"]);
            assert_eq!(Seal::detach(&bare), Ok(None), "{name}");
            for with_key in [false, true] {
                let sealed = seal(with_key).attach(&bare).unwrap();
                assert_eq!(ServerInfo::decode(&sealed), ServerInfo::decode(&bare), "{name}");
                assert_eq!(
                    Seal::detach(&sealed),
                    Ok(Some((bare.clone(), seal(with_key)))),
                    "{name}"
                );
                assert_eq!(seal(false).attach(&sealed), None, "one seal is enough");
            }
        }
    }

    #[test]
    fn the_seal_is_the_fourteenth_field() {
        let bare = ServerInfo::new(ServerState::Online, 1.0).to_value();
        let names = |value: &Value| -> Vec<String> {
            let parts = msgpack::as_sequence(value).unwrap();
            let fields = parts[2].as_map().unwrap();
            fields
                .iter()
                .map(|(name, _)| name.as_str().unwrap().to_owned())
                .collect()
        };
        let sealed = seal(false).attach(&msgpack::encode(&bare)).unwrap();
        let sealed = names(&msgpack::decode(&sealed).unwrap());
        assert_eq!(sealed[..13], names(&bare));
        assert_eq!(sealed[13..], [FIELD]);
    }

    #[test]
    fn what_is_signed_names_its_purpose_and_all_four_parts() {
        let message = Seal::message(b"k", b"s", b"v", 1.0);
        let tuple = "c7 13 40 94 c4 01 6b c4 01 73 c4 01 76 cb 3f f0 00 00 00 00 00 00".replace(' ', "");
        assert_eq!(message, [DOMAIN, &hex::decode(tuple).unwrap()].concat());
    }

    #[test]
    fn what_no_server_of_ours_writes_is_no_seal() {
        let fields = |fields: Vec<(&str, Value)>| {
            let fields = fields.into_iter().map(|(name, value)| (Value::from(name), value));
            whole(Value::from(2), Value::F64(1.0), fields.collect())
        };
        let good = || Value::Array(vec![Value::Binary(vec![1])]);
        assert!(Seal::detach(&fields(vec![(FIELD, good())])).unwrap().is_some());
        let text = Value::Array(vec![Value::from("text")]);
        let three = Value::Array(vec![Value::Binary(vec![]); 3]);
        for content in [Value::Nil, Value::Binary(vec![1]), Value::Array(vec![]), text, three] {
            assert!(
                Seal::detach(&fields(vec![(FIELD, content.clone())])).is_err(),
                "{content}"
            );
        }
        assert!(
            Seal::detach(&fields(vec![(FIELD, good()), ("version", Value::Nil)])).is_err(),
            "not last"
        );
        assert!(
            Seal::detach(&fields(vec![(FIELD, good()), (FIELD, good())])).is_err(),
            "twice"
        );
        let array = Value::Array(vec![
            Value::from(2),
            Value::F64(1.0),
            Value::Map(vec![(Value::from(FIELD), good())]),
        ]);
        assert!(
            Seal::detach(&msgpack::encode(&array)).is_err(),
            "an array instead of a tuple"
        );
        let named = fields(vec![("public_name", Value::from(FIELD))]);
        assert_eq!(Seal::detach(&named), Ok(None), "a name is no field");
        assert_eq!(seal(false).attach(b"\x05"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Seal::detach(&bytes);
            let _ = seal(true).attach(&bytes);
            bytes.extend(FIELD.as_bytes());
            let _ = Seal::detach(&bytes);
        }
    }
}
