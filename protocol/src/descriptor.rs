//! What a server says about a tensor it expects: MessagePack extension 0x51.
//!
//! Source: `BatchTensorDescriptor` (hivemind, `utils/tensor_descr.py`). Clients read the compression and count the
//! descriptors; the other fields must be there and mean little.

use crate::{
    compress::Compression,
    error::WireError,
    fields::Fields,
    msgpack::{self, EXT_TENSOR_DESCRIPTOR, Value},
};

/// Shape and type of a tensor whose first dimension, the batch, is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchTensorDescriptor {
    /// Dimensions after the batch.
    pub dims: Vec<u64>,
    /// Item type with Torch's prefix, such as `torch.bfloat16`.
    pub dtype: String,
    /// Memory layout: `torch.strided` for everything that is sent.
    pub layout: String,
    /// Whether gradients of it are tracked.
    pub requires_grad: bool,
    /// Whether its memory is pinned.
    pub pin_memory: bool,
    /// Encoding in which the server wants it.
    pub compression: Compression,
    /// Kind of its device, such as `cpu`; absent in what Petals sends.
    pub device_type: Option<String>,
    /// Number of its device.
    pub device_index: Option<u64>,
}

/// Keys of the map in the order in which Python writes them. Its reader fails on any other key.
const KEYS: [&str; 8] = [
    "size",
    "dtype",
    "layout",
    "requires_grad",
    "pin_memory",
    "compression",
    "device_type",
    "device_index",
];

const WHAT: &str = "tensor descriptor";

impl BatchTensorDescriptor {
    /// A tensor with these dimensions after the batch, of an item type without prefix, such as `bfloat16`.
    pub fn new(dims: &[u64], dtype: &str, compression: Compression) -> Self {
        Self {
            dims: dims.to_vec(),
            dtype: format!("torch.{dtype}"),
            layout: "torch.strided".to_string(),
            requires_grad: false,
            pin_memory: false,
            compression,
            device_type: None,
            device_index: None,
        }
    }

    /// The descriptor as a MessagePack value.
    pub fn to_value(&self) -> Value {
        let size = std::iter::once(Value::Nil)
            .chain(self.dims.iter().copied().map(Value::from))
            .collect();
        let values = [
            msgpack::tuple(size),
            Value::from(self.dtype.as_str()),
            Value::from(self.layout.as_str()),
            Value::from(self.requires_grad),
            Value::from(self.pin_memory),
            Value::from(self.compression.id()),
            self.device_type.as_deref().map_or(Value::Nil, Value::from),
            self.device_index.map_or(Value::Nil, Value::from),
        ];
        let map = KEYS.into_iter().map(Value::from).zip(values).collect();
        Value::Ext(EXT_TENSOR_DESCRIPTOR, msgpack::encode(&Value::Map(map)))
    }

    /// Reads a descriptor.
    ///
    /// # Errors
    /// [`WireError`] if it is not extension 0x51, has not exactly the eight keys, or one is of a wrong type.
    pub fn from_value(value: &Value) -> Result<Self, WireError> {
        let Value::Ext(EXT_TENSOR_DESCRIPTOR, payload) = value else {
            return Err(WireError::WrongType {
                what: WHAT,
                field: "the value",
                expected: "extension 0x51",
            });
        };
        let map = msgpack::decode(payload)?;
        let fields = Fields::of(WHAT, &map)?;
        let is_known = |key: &Value| key.as_str().is_some_and(|key| KEYS.contains(&key));
        if !fields.entries().iter().all(|(key, _)| is_known(key)) {
            return Err(WireError::Malformed {
                what: WHAT,
                problem: "there is an unknown key",
            });
        }
        Ok(Self {
            dims: fields.require("size", fields.read("size", "nil and whole numbers", dims)?)?,
            dtype: fields.require("dtype", fields.text("dtype")?)?,
            layout: fields.require("layout", fields.text("layout")?)?,
            requires_grad: fields.require("requires_grad", fields.boolean("requires_grad")?)?,
            pin_memory: fields.require("pin_memory", fields.boolean("pin_memory")?)?,
            compression: fields.require(
                "compression",
                fields.read("compression", "a known compression", compression)?,
            )?,
            device_type: fields.text("device_type")?,
            device_index: fields.uint("device_index")?,
        })
    }
}

fn dims(value: &Value) -> Option<Vec<u64>> {
    match msgpack::as_sequence(value)?.as_slice() {
        [Value::Nil, dims @ ..] => dims.iter().map(Value::as_u64).collect(),
        _ => None,
    }
}

fn compression(value: &Value) -> Option<Compression> {
    let code = i32::try_from(value.as_i64()?).ok()?;
    Compression::from_id(code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    fn read(bytes: &[u8]) -> BatchTensorDescriptor {
        BatchTensorDescriptor::from_value(&msgpack::decode(bytes).unwrap()).unwrap()
    }

    #[test]
    fn descriptors_of_petals_are_those_we_write() {
        let file = testing::vectors("petals/batch_tensor_descriptor.json");
        let cases = file["vectors"].as_object().unwrap();
        assert_eq!(cases.len(), 8);
        for (name, case) in cases {
            let bytes = testing::bytes(&case["as_value_hex"]);
            assert_eq!(msgpack::encode(&read(&bytes).to_value()), bytes, "{name}");
            let ours = match name.as_str() {
                "prompts descriptor bf16" => BatchTensorDescriptor::new(&[], "bfloat16", Compression::None),
                "hypo_ids descriptor" => BatchTensorDescriptor::new(&[], "int64", Compression::None),
                _ => {
                    let (dtype, compression) = name.strip_prefix("args torch.").unwrap().split_once(' ').unwrap();
                    let code = compression
                        .strip_prefix("compression=")
                        .unwrap()
                        .parse::<i32>()
                        .unwrap();
                    BatchTensorDescriptor::new(&[1, 2048, 8192], dtype, Compression::from_id(code).unwrap())
                }
            };
            assert_eq!(read(&bytes), ours, "{name}");
            if !case["payload_hex"].is_null() {
                let payload = testing::bytes(&case["payload_hex"]);
                assert_eq!(ours.to_value(), Value::Ext(0x51, payload), "{name}");
            }
        }
    }

    #[test]
    fn descriptors_of_hivemind_are_those_we_write() {
        let file = testing::vectors("hivemind/msgpack.json");
        let cases = file["tensor_descriptors"].as_array().unwrap();
        let open = BatchTensorDescriptor::new(&[4096], "bfloat16", Compression::None);
        let on_cpu = BatchTensorDescriptor {
            device_type: Some("cpu".into()),
            ..BatchTensorDescriptor::new(&[2, 8], "float16", Compression::Float16)
        };
        assert_eq!(cases.len(), 2);
        for (case, ours) in cases.iter().zip([open, on_cpu]) {
            let bytes = testing::bytes(&case["msgpack"]);
            assert_eq!(read(&bytes), ours);
            assert_eq!(msgpack::encode(&ours.to_value()), bytes);
        }
    }

    #[test]
    fn a_descriptor_with_other_keys_or_types_is_refused() {
        let good = BatchTensorDescriptor::new(&[1], "float32", Compression::None);
        let Value::Ext(_, payload) = good.to_value() else {
            panic!()
        };
        let Value::Map(entries) = msgpack::decode(&payload).unwrap() else {
            panic!()
        };
        let refused = |entries: Vec<(Value, Value)>| {
            let value = Value::Ext(0x51, msgpack::encode(&Value::Map(entries)));
            BatchTensorDescriptor::from_value(&value).is_err()
        };
        assert!(!refused(entries.clone()));
        for idx in 0..6 {
            let mut without = entries.clone();
            without.remove(idx);
            assert!(refused(without), "without {}", KEYS[idx]);
            let mut wrong = entries.clone();
            wrong[idx].1 = Value::Binary(vec![]);
            assert!(refused(wrong), "bytes as {}", KEYS[idx]);
        }
        let mut more = entries.clone();
        more.push((Value::from("color"), Value::Nil));
        assert!(refused(more));
        let mut unknown = entries;
        unknown[5].1 = Value::from(6);
        assert!(refused(unknown), "compression 6");
        assert!(BatchTensorDescriptor::from_value(&Value::Nil).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = BatchTensorDescriptor::from_value(&Value::Ext(0x51, payload));
        }
    }
}
