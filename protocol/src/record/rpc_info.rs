//! The answer of `rpc_info`: what a server is, and which tensors its calls take.
//!
//! Source: `TransformerConnectionHandler.rpc_info` (petals, `server/handler.py`). A question without a uid gets the
//! first three fields, which is what the health monitor asks for; a question with one also gets the schema.

use crate::{
    compress::Compression,
    descriptor::BatchTensorDescriptor,
    error::WireError,
    fields::Fields,
    msgpack::{self, Value},
};

/// A server, and maybe the schema of one of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcInfo {
    /// Version of its software.
    pub version: String,
    /// Whether its DHT node is a client, which means that it cannot be reached directly.
    pub dht_client_mode: bool,
    /// Tokens for which its free cache would do, if only one block needed them.
    pub cache_tokens_available: u64,
    /// Tensors of the block that was asked about.
    pub schema: Option<BlockSchema>,
}

/// Tensors that go into a block and come out of it.
///
/// Python clients look at the compression of the first one and at how many there are, and apply the first answer they
/// get to all servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSchema {
    /// Inputs of a forward pass.
    pub forward: Vec<BatchTensorDescriptor>,
    /// Outputs.
    pub outputs: Vec<BatchTensorDescriptor>,
    /// Names of further inputs; always none.
    pub keyword_names: Vec<String>,
    /// Inputs of an inference step: hidden states, prompts, hypothesis ids.
    pub inference: Vec<BatchTensorDescriptor>,
}

impl BlockSchema {
    /// The schema of a Petals block. `dtype` is that of the block, such as `bfloat16`; `compression` is for hidden states
    /// alone, the other inputs are never compressed.
    pub fn of_block(hidden_size: u64, dtype: &str, compression: Compression) -> Self {
        /// Dimensions that Petals measures its blocks with; nobody reads them.
        const SAMPLE: [u64; 2] = [1, 2048];
        let dims = [SAMPLE[0], SAMPLE[1], hidden_size];
        let hidden = BatchTensorDescriptor::new(&dims, dtype, compression);
        let prompts = BatchTensorDescriptor::new(&[], dtype, Compression::None);
        let hypo_ids = BatchTensorDescriptor::new(&[], "int64", Compression::None);
        Self {
            forward: vec![hidden.clone()],
            outputs: vec![hidden.clone()],
            keyword_names: Vec::new(),
            inference: vec![hidden, prompts, hypo_ids],
        }
    }
}

const WHAT: &str = "rpc_info answer";

impl RpcInfo {
    /// The bytes for `ExpertInfo.serialized_info`.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = vec![
            (Value::from("version"), Value::from(self.version.as_str())),
            (Value::from("dht_client_mode"), Value::from(self.dht_client_mode)),
            (
                Value::from("cache_tokens_available"),
                Value::from(self.cache_tokens_available),
            ),
        ];
        if let Some(schema) = &self.schema {
            let names = schema.keyword_names.iter().map(|name| Value::from(name.as_str()));
            map.extend([
                (Value::from("forward_schema"), arguments(&schema.forward)),
                (Value::from("outputs_schema"), tuple_of(&schema.outputs)),
                (Value::from("keyword_names"), msgpack::tuple(names.collect())),
                (Value::from("inference_schema"), arguments(&schema.inference)),
            ]);
        }
        msgpack::encode(&Value::Map(map))
    }

    /// Reads `ExpertInfo.serialized_info`; unknown fields are ignored.
    ///
    /// # Errors
    /// [`WireError`] if one of the first three fields is missing, or any is of a wrong type, or the schema is incomplete.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let value = msgpack::decode(bytes)?;
        let fields = Fields::of(WHAT, &value)?;
        let schema = match fields.value("inference_schema") {
            None => None,
            Some(_) => Some(schema(&fields)?),
        };
        Ok(Self {
            version: fields.require("version", fields.text("version")?)?,
            dht_client_mode: fields.require("dht_client_mode", fields.boolean("dht_client_mode")?)?,
            cache_tokens_available: fields.require("cache_tokens_available", fields.uint("cache_tokens_available")?)?,
            schema,
        })
    }
}

fn tuple_of(tensors: &[BatchTensorDescriptor]) -> Value {
    msgpack::tuple(tensors.iter().map(BatchTensorDescriptor::to_value).collect())
}

/// Positional arguments, and no keyword arguments.
fn arguments(tensors: &[BatchTensorDescriptor]) -> Value {
    msgpack::tuple(vec![tuple_of(tensors), Value::Map(Vec::new())])
}

fn schema(fields: &Fields<'_>) -> Result<BlockSchema, WireError> {
    let positional = |field: &'static str| {
        let parts = fields.require(field, fields.sequence(field)?)?;
        match parts.as_slice() {
            [args, Value::Map(_)] => descriptors(field, args),
            _ => Err(wrong(field, "a tuple of arguments and a map")),
        }
    };
    let outputs = fields.require("outputs_schema", fields.value("outputs_schema"))?;
    let names = fields.require("keyword_names", fields.sequence("keyword_names")?)?;
    let text = |name: &Value| name.as_str().map(str::to_string);
    Ok(BlockSchema {
        forward: positional("forward_schema")?,
        outputs: descriptors("outputs_schema", outputs)?,
        keyword_names: names
            .iter()
            .map(text)
            .collect::<Option<_>>()
            .ok_or(wrong("keyword_names", "a tuple of text"))?,
        inference: positional("inference_schema")?,
    })
}

fn descriptors(field: &'static str, value: &Value) -> Result<Vec<BatchTensorDescriptor>, WireError> {
    let elements = msgpack::as_sequence(value).ok_or(wrong(field, "a tuple of tensors"))?;
    elements.iter().map(BatchTensorDescriptor::from_value).collect()
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
    use prost::Message;

    use super::*;
    use crate::{proto, testing};

    #[test]
    fn recorded_answers_are_read_and_written_back_the_same() {
        let mut n_answers = 0;
        for (file, event) in testing::recorded_events() {
            if event["decoded"]["type"] != "ExpertInfo" {
                continue;
            }
            let message = proto::ExpertInfo::decode(&*testing::bytes(&event["raw_hex"])).unwrap();
            assert_eq!(
                message.serialized_info,
                testing::bytes(&event["decoded"]["serialized_info_hex"])
            );
            let info = RpcInfo::decode(&message.serialized_info).unwrap();
            assert_eq!(info.encode(), message.serialized_info, "{file}");
            n_answers += 1;
        }
        assert_eq!(n_answers, 16);
    }

    #[test]
    fn the_schema_of_a_block_is_that_of_petals() {
        let file = testing::vectors("petals/rpc_info.json");
        let events = file["events"].as_array().unwrap();
        let answers: Vec<RpcInfo> = events
            .iter()
            .filter(|event| event["decoded"]["type"] == "ExpertInfo")
            .map(|event| RpcInfo::decode(&testing::bytes(&event["decoded"]["serialized_info_hex"])).unwrap())
            .collect();
        assert_eq!(answers[0].schema, None);
        assert_eq!(
            answers[1],
            RpcInfo {
                version: "2.3.0.dev2".into(),
                dht_client_mode: false,
                cache_tokens_available: 4096,
                schema: Some(BlockSchema::of_block(64, "float32", Compression::None)),
            }
        );
    }

    #[test]
    fn every_schema_petals_sent_is_one_we_would_send() {
        for (file, event) in testing::recorded_events() {
            if event["decoded"]["type"] != "ExpertInfo" {
                continue;
            }
            let info = RpcInfo::decode(&testing::bytes(&event["decoded"]["serialized_info_hex"])).unwrap();
            let Some(schema) = info.schema else { continue };
            let first = &schema.inference[0];
            let dtype = first.dtype.strip_prefix("torch.").unwrap();
            assert_eq!(schema, BlockSchema::of_block(64, dtype, first.compression), "{file}");
        }
    }

    #[test]
    fn an_incomplete_answer_is_refused() {
        let info = RpcInfo {
            version: "1".into(),
            dht_client_mode: false,
            cache_tokens_available: 1,
            schema: Some(BlockSchema::of_block(64, "float32", Compression::None)),
        };
        let Value::Map(entries) = msgpack::decode(&info.encode()).unwrap() else {
            panic!()
        };
        for idx in 0..6 {
            let mut without = entries.clone();
            let (key, _) = without.remove(idx);
            assert!(
                RpcInfo::decode(&msgpack::encode(&Value::Map(without))).is_err(),
                "without {key}"
            );
            let mut wrong = entries.clone();
            wrong[idx].1 = Value::from(1.5);
            assert!(
                RpcInfo::decode(&msgpack::encode(&Value::Map(wrong))).is_err(),
                "a float as {key}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = RpcInfo::decode(&bytes);
        }
    }
}
