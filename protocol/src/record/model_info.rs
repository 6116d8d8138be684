//! The record of a model in the registry of a swarm.

use crate::{
    error::WireError,
    fields::Fields,
    msgpack::{self, Value},
};

/// DHT key of the registry: a dictionary from the prefix of each model to its [`ModelInfo`]. Models whose prefix
/// starts with an underscore are not in it.
pub const MODEL_REGISTRY_KEY: &str = "_petals.models";

/// A model that somebody serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Number of its blocks, at least one.
    pub num_blocks: u32,
    /// Where it comes from: `https://huggingface.co/<name>`. The health monitor shows only models that have this.
    pub repository: Option<String>,
}

const WHAT: &str = "model record";

impl ModelInfo {
    /// The serialized record.
    pub fn encode(&self) -> Vec<u8> {
        let repository = self.repository.as_deref().map_or(Value::Nil, Value::from);
        msgpack::encode(&Value::Map(vec![
            (Value::from("num_blocks"), Value::from(self.num_blocks)),
            (Value::from("repository"), repository),
        ]))
    }

    /// Reads a serialized record; unknown keys are ignored.
    ///
    /// # Errors
    /// [`WireError`] if it is not a map, or has no whole number of blocks from one.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let value = msgpack::decode(bytes)?;
        let fields = Fields::of(WHAT, &value)?;
        let num_blocks = fields.read("num_blocks", "a whole number from 1", |value| {
            value.as_u64()?.try_into().ok().filter(|n_blocks| *n_blocks > 0)
        })?;
        Ok(Self {
            num_blocks: fields.require("num_blocks", num_blocks)?,
            repository: fields.text("repository")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn records_of_petals_are_those_we_write() {
        let file = testing::vectors("petals/model_info.json");
        assert_eq!(file["models_registry_key"], MODEL_REGISTRY_KEY);
        for (name, case) in file["values"].as_object().unwrap() {
            let bytes = testing::bytes(&case["msgpack_hex"]);
            let info = ModelInfo::decode(&bytes).unwrap();
            assert_eq!(u64::from(info.num_blocks), case["dict"]["num_blocks"].as_u64().unwrap());
            assert_eq!(info.repository.as_deref(), case["dict"]["repository"].as_str());
            assert_eq!(info.encode(), bytes, "{name}");
        }
    }

    #[test]
    fn the_record_in_the_hivemind_vectors_is_read_and_written_back_the_same() {
        let file = testing::vectors("hivemind/msgpack.json");
        let cases = file["petals"].as_array().unwrap();
        let case = cases
            .iter()
            .find(|case| case["kind"] == "petals.ModelInfo.to_dict()")
            .unwrap();
        let bytes = testing::bytes(&case["msgpack"]);
        assert_eq!(ModelInfo::decode(&bytes).unwrap().encode(), bytes);
    }

    #[test]
    fn records_with_other_types_are_refused() {
        for (num_blocks, repository) in [
            (Value::from(0), Value::Nil),
            (Value::from(-1), Value::Nil),
            (Value::from(4.0), Value::Nil),
            (Value::from(true), Value::Nil),
            (Value::Nil, Value::Nil),
            (Value::from(1_u64 << 32), Value::Nil),
            (Value::from(4), Value::from(5)),
        ] {
            let map = vec![
                (Value::from("num_blocks"), num_blocks),
                (Value::from("repository"), repository),
            ];
            let bytes = msgpack::encode(&Value::Map(map));
            assert!(ModelInfo::decode(&bytes).is_err(), "{}", hex::encode(bytes));
        }
        assert!(ModelInfo::decode(&[0x90]).is_err());
    }
}
