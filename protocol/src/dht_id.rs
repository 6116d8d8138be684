//! Ids of the Hivemind DHT: what a key hashes to, and how far two ids are apart. They are not peer ids.

use std::fmt;

use sha1::{Digest, Sha1};

use crate::{error::WireError, msgpack, msgpack::Value};

/// A point of the DHT's key space: 160 bits, read as a big-endian number.
///
/// Keys get theirs from [`DhtId::of_str`]; a node takes 20 random bytes, unrelated to its peer id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DhtId([u8; DhtId::LEN]);

impl DhtId {
    /// Length in bytes.
    pub const LEN: usize = 20;
    /// Length in bits.
    pub const BITS: usize = 160;

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The id with these bytes, if there are 20 of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The id in a field of a message.
    ///
    /// # Errors
    /// [`WireError::OutOfRange`] if there are not 20 bytes.
    pub fn from_wire(what: &'static str, field: &'static str, bytes: &[u8]) -> Result<Self, WireError> {
        Self::from_slice(bytes).ok_or(WireError::OutOfRange {
            what,
            field,
            expected: "20 bytes long",
        })
    }

    /// The bytes, most significant first.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The id of a text key such as `bloom-petals.3`: SHA-1 of its MessagePack (hivemind, `dht/routing.py`, `DHTID`).
    pub fn of_str(key: &str) -> Self {
        Self::of_raw(&msgpack::encode(&Value::from(key)))
    }

    /// The id of any key. Python hashes a `bytes` key as it is and everything else as MessagePack.
    pub fn of_value(key: &Value) -> Self {
        match key {
            Value::Binary(bytes) => Self::of_raw(bytes),
            other => Self::of_raw(&msgpack::encode(other)),
        }
    }

    /// The id of a key that is already serialized: SHA-1 of the bytes.
    pub fn of_raw(bytes: &[u8]) -> Self {
        Self(Sha1::digest(bytes).into())
    }

    /// How far two ids are apart: their exclusive or, read as a number.
    #[inline]
    pub fn distance(&self, other: &Self) -> Distance {
        let ((high, low), (other_high, other_low)) = (self.halves(), other.halves());
        Distance {
            high: high ^ other_high,
            low: low ^ other_low,
        }
    }

    /// The first 16 bytes and the last four, as numbers.
    #[inline]
    fn halves(&self) -> (u128, u32) {
        let (mut high, mut low) = ([0; 16], [0; 4]);
        high.copy_from_slice(&self.0[..16]);
        low.copy_from_slice(&self.0[16..]);
        (u128::from_be_bytes(high), u32::from_be_bytes(low))
    }

    /// Bit `idx`, where bit 0 is the most significant one; false beyond the 160th.
    #[inline]
    pub fn bit(&self, idx: usize) -> bool {
        bit(&self.0, idx)
    }

    /// The same id with bit `idx` set to `on`; unchanged if there is no such bit.
    #[must_use]
    pub fn with_bit(mut self, idx: usize, on: bool) -> Self {
        if let Some(byte) = self.0.get_mut(idx / 8) {
            let mask = 0x80 >> (idx % 8);
            *byte = if on { *byte | mask } else { *byte & !mask };
        }
        self
    }
}

#[inline]
fn bit(bytes: &[u8; DhtId::LEN], idx: usize) -> bool {
    bytes.get(idx / 8).is_some_and(|byte| byte & (0x80 >> (idx % 8)) != 0)
}

impl fmt::Display for DhtId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DhtId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DhtId({self})")
    }
}

/// The distance of two [`DhtId`]s. Smaller is nearer. Two numbers, because comparing those is what searches and routing
/// tables do most of the time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance {
    /// The upper 128 bits.
    high: u128,
    /// The lower 32 bits.
    low: u32,
}

impl Distance {
    /// Nothing is nearer than this: the distance of an id to itself.
    pub const ZERO: Self = Self { high: 0, low: 0 };
    /// Nothing is farther than this.
    pub const MAX: Self = Self {
        high: u128::MAX,
        low: u32::MAX,
    };

    /// The bytes, most significant first.
    pub fn to_bytes(&self) -> [u8; DhtId::LEN] {
        let mut bytes = [0; DhtId::LEN];
        bytes[..16].copy_from_slice(&self.high.to_be_bytes());
        bytes[16..].copy_from_slice(&self.low.to_be_bytes());
        bytes
    }

    /// The distance with all but its first `bits` bits cleared.
    #[must_use]
    #[inline]
    pub fn prefix(self, bits: usize) -> Self {
        let low_bits = bits.saturating_sub(128) as u32;
        Self {
            high: self.high & !u128::MAX.checked_shr(bits as u32).unwrap_or(0),
            low: self.low & !u32::MAX.checked_shr(low_bits).unwrap_or(0),
        }
    }

    /// Number of leading bits in which the two ids agree: 160 for equal ones.
    pub fn leading_zeros(&self) -> usize {
        let zeros = match self.high {
            0 => 128 + self.low.leading_zeros(),
            high => high.leading_zeros(),
        };
        zeros as usize
    }

    /// Bit `idx`, where bit 0 is the most significant one; false beyond the 160th.
    #[inline]
    pub fn bit(&self, idx: usize) -> bool {
        bit(&self.to_bytes(), idx)
    }
}

impl fmt::Debug for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Distance({})", DhtId(self.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    fn id(hex_text: &serde_json::Value) -> DhtId {
        DhtId::from_slice(&testing::bytes(hex_text)).unwrap()
    }

    #[test]
    fn keys_hash_to_the_ids_that_python_computes() {
        for case in testing::vectors("hivemind/dhtid.json")["cases"].as_array().unwrap() {
            let hashed = testing::bytes(&case["hashed_bytes"]);
            assert_eq!(DhtId::of_raw(&hashed), id(&case["dhtid"]), "{case}");
            let source = case["source_python"].as_str().unwrap();
            if source.starts_with("b'") {
                let key = Value::Binary(hashed);
                assert_eq!(DhtId::of_value(&key), id(&case["dhtid"]), "{case}");
            } else {
                let key = msgpack::decode(&hashed).unwrap();
                assert_eq!(DhtId::of_value(&key), id(&case["dhtid"]), "{case}");
                if let Some(text) = key.as_str() {
                    assert_eq!(DhtId::of_str(text), id(&case["dhtid"]), "{case}");
                }
            }
        }
    }

    #[test]
    fn petals_keys_hash_to_the_ids_that_python_computes() {
        let file = testing::vectors("petals/model_info.json");
        for (key, case) in file["dht_keys"].as_object().unwrap() {
            assert_eq!(DhtId::of_str(key), id(&case["dhtid_hex"]), "{key}");
            assert_eq!(
                msgpack::encode(&Value::from(key.as_str())),
                testing::bytes(&case["msgpack_hex"])
            );
        }
    }

    #[test]
    fn distances_are_those_that_python_computes() {
        for case in testing::vectors("hivemind/dhtid.json")["xor"].as_array().unwrap() {
            let distance = id(&case["a"]).distance(&id(&case["b"]));
            assert_eq!(distance.to_bytes().to_vec(), testing::bytes(&case["xor_hex"]));
            assert_eq!(
                distance.leading_zeros() as u64,
                case["common_prefix_bits"].as_u64().unwrap()
            );
        }
    }

    #[test]
    fn an_id_is_at_no_distance_from_itself() {
        let id = DhtId::of_str("a");
        assert_eq!(id.distance(&id), Distance::ZERO);
        assert_eq!(Distance::ZERO.leading_zeros(), DhtId::BITS);
        assert!(DhtId::from_slice(&[0; 19]).is_none());
    }

    proptest! {
        #[test]
        fn bits_spell_the_id(bytes: [u8; 20], other: [u8; 20]) {
            let id = DhtId::from_bytes(bytes);
            let mut copy = DhtId::from_bytes(other);
            for idx in 0..DhtId::BITS {
                copy = copy.with_bit(idx, id.bit(idx));
            }
            prop_assert_eq!(copy, id);
            prop_assert!(!id.bit(DhtId::BITS));
            let distance = id.distance(&DhtId::from_bytes(other));
            let zeros = (0..DhtId::BITS).take_while(|idx| !distance.bit(*idx)).count();
            prop_assert_eq!(distance.leading_zeros(), zeros);
            for bits in 0..=DhtId::BITS {
                let prefix = distance.prefix(bits);
                prop_assert!((0..bits).all(|idx| prefix.bit(idx) == distance.bit(idx)));
                prop_assert!(!(bits..DhtId::BITS).any(|idx| prefix.bit(idx)));
            }
        }
    }
}
