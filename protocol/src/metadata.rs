//! The metadata of compute requests: who steps which session, where it goes on, and which tensor is which argument.
//!
//! One MessagePack map serves `rpc_inference`, `rpc_push`, `rpc_forward` and `rpc_backward`; each uses some of the keys.
//! Types are checked here, values (limits, uniqueness, positions) where their meaning is known.

use crate::{
    error::WireError,
    fields::Fields,
    msgpack::{self, Value},
};

mod args;

pub use args::{args_structure, tensor_order};

/// The server after this one, to which outputs are pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextServer {
    /// Its peer id in base58.
    pub peer_id: String,
    /// Id of the client's session there.
    pub session_id: String,
    /// First block of its part of the chain.
    pub start: u32,
    /// Block after the last one of its part.
    pub end: u32,
}

/// The metadata of one request. A key that is missing and one that is nil are the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepMetadata {
    /// Id of the session on this server; pushes need it.
    pub session_id: Option<String>,
    /// Id of the step, the same on all servers of the chain; a step that comes twice is computed once.
    pub step_id: Option<String>,
    /// Length of the session in tokens, as it was sent; in the first message only. See [`Self::max_length_tokens`].
    pub max_length: Option<Value>,
    /// An offer for priority, as it was sent; see [`Self::has_valid_points`].
    pub points: Option<Value>,
    /// Adapter to use; none if missing or empty.
    pub active_adapter: Option<String>,
    /// Seconds to wait for cache memory.
    pub alloc_timeout: Option<f64>,
    /// How the tensors map to arguments, as it was sent; see [`tensor_order`].
    pub args_structure: Option<Value>,
    /// Tokens of the session that stay valid before this step; missing from old clients.
    pub start_from_position: Option<i64>,
    /// The rest of the chain, nearest first.
    pub next_servers: Vec<NextServer>,
    /// Whether this comes from another server instead of the client.
    pub pushed: bool,
    /// Encodings of the outputs, in place of the server's own choice.
    pub output_compression: Option<Vec<i64>>,
    /// How an inference session wants its outputs encoded, such as `bfloat16`; Sepal's own, Python ignores it.
    pub activations: Option<String>,
    /// Whether a signed receipt is wanted with the answer; Sepal's own, Python ignores it. See [`ReplyMetadata`].
    pub receipt: bool,
    /// Whether all tensors of a push belong to its step; Sepal's own, Python ignores it. Petals' servers send the deep prompts
    /// and rows of the session's first step with every later one.
    pub current: bool,
    /// Keys that are not known here, for passing on.
    pub other: Vec<(Value, Value)>,
}

/// A value of [`StepMetadata::activations`]: outputs in bfloat16, also where the server computes in float32.
pub const BFLOAT16: &str = "bfloat16";

/// A value of [`StepMetadata::activations`]: outputs as BLOCKWISE_8BIT.
pub const INT8: &str = "int8";

const WHAT: &str = "request metadata";

/// Asks for a receipt in a request, and carries it in a reply.
const RECEIPT: &str = "sepal_receipt";

/// Says that a push has no tensor of an earlier step.
const CURRENT: &str = "sepal_current";

const KEYS: [&str; 14] = [
    "session_id",
    "step_id",
    "max_length",
    "points",
    "active_adapter",
    "next_servers",
    "args_structure",
    "start_from_position",
    "alloc_timeout",
    "pushed",
    "output_compression",
    "activations",
    RECEIPT,
    CURRENT,
];

impl StepMetadata {
    /// Reads the metadata of a request; no bytes at all are an empty map.
    ///
    /// # Errors
    /// [`WireError`] if the bytes are not a map, or a key has a value of a type that Python could not use.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let value = msgpack::decode(bytes)?;
        let fields = Fields::of(WHAT, &value)?;
        let is_known = |key: &Value| key.as_str().is_some_and(|key| KEYS.contains(&key));
        let other = fields.entries().iter().filter(|(key, _)| !is_known(key));
        Ok(Self {
            session_id: fields.text("session_id")?,
            step_id: fields.text("step_id")?,
            max_length: fields.value("max_length").cloned(),
            points: fields.value("points").cloned(),
            active_adapter: fields.text("active_adapter")?,
            alloc_timeout: fields.read("alloc_timeout", "a number of seconds", seconds)?,
            args_structure: fields.value("args_structure").cloned(),
            start_from_position: fields.read("start_from_position", "a whole number", saturating_int)?,
            next_servers: fields
                .read(
                    "next_servers",
                    "a list of peer id, session id, start and end",
                    next_servers,
                )?
                .unwrap_or_default(),
            pushed: fields.boolean("pushed")?.unwrap_or(false),
            output_compression: fields.read("output_compression", "a tuple of whole numbers", ints)?,
            activations: fields.text("activations")?,
            receipt: fields.boolean(RECEIPT)?.unwrap_or(false),
            current: fields.boolean(CURRENT)?.unwrap_or(false),
            other: other.cloned().collect(),
        })
    }

    /// The bytes of the metadata. Missing keys stay missing, known keys come first.
    pub fn encode(&self) -> Vec<u8> {
        fn text(text: &Option<String>) -> Option<Value> {
            text.as_deref().map(Value::from)
        }
        let servers = self.next_servers.iter().map(NextServer::to_value).collect();
        let compression = self
            .output_compression
            .as_ref()
            .map(|codes| msgpack::tuple(codes.iter().copied().map(Value::from).collect()));
        let values = [
            text(&self.session_id),
            text(&self.step_id),
            self.max_length.clone(),
            self.points.clone(),
            text(&self.active_adapter),
            Some(Value::Array(servers)).filter(|_| !self.next_servers.is_empty()),
            self.args_structure.clone(),
            self.start_from_position.map(Value::from),
            self.alloc_timeout.map(Value::from),
            Some(Value::from(true)).filter(|_| self.pushed),
            compression,
            text(&self.activations),
            Some(Value::from(true)).filter(|_| self.receipt),
            Some(Value::from(true)).filter(|_| self.current),
        ];
        let known = KEYS.into_iter().zip(values);
        let known = known.filter_map(|(key, value)| value.map(|value| (Value::from(key), value)));
        msgpack::encode(&Value::Map(known.chain(self.other.iter().cloned()).collect()))
    }

    /// The length of the session in tokens, if it is a whole number. (A boolean is one in Python, and here.)
    pub fn max_length_tokens(&self) -> Option<i64> {
        match self.max_length.as_ref()? {
            Value::Boolean(on) => Some(i64::from(*on)),
            other => saturating_int(other),
        }
    }

    /// Whether the points are missing or a number, which is all that is ever asked of them.
    pub fn has_valid_points(&self) -> bool {
        matches!(
            self.points,
            None | Some(Value::Integer(_) | Value::F32(_) | Value::F64(_) | Value::Boolean(_))
        )
    }

    /// What this server sends along when it pushes its outputs to the next one: the same, seen from there.
    ///
    /// `None` if there is no next server. Source: `TransformerConnectionHandler._push_outputs` (petals,
    /// `server/handler.py`).
    pub fn for_push(&self) -> Option<(NextServer, Self)> {
        let (next, rest) = self.next_servers.split_first()?;
        let pushed = Self {
            session_id: Some(next.session_id.clone()),
            next_servers: rest.to_vec(),
            pushed: true,
            ..self.clone()
        };
        Some((next.clone(), pushed))
    }
}

/// The metadata of one reply: none in Petals, whose clients do not look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyMetadata {
    /// The receipt that was asked for, as text.
    pub receipt: Option<String>,
}

impl ReplyMetadata {
    /// Reads the metadata of a reply; no bytes at all are an empty map.
    ///
    /// # Errors
    /// [`WireError`] if the bytes are not a map, or the receipt is no text.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let value = msgpack::decode(bytes)?;
        let fields = Fields::of("reply metadata", &value)?;
        Ok(Self {
            receipt: fields.text(RECEIPT)?,
        })
    }

    /// The bytes of the metadata; none if there is nothing to say, as Petals has it.
    pub fn encode(&self) -> Vec<u8> {
        let entry = |text: &String| (Value::from(RECEIPT), Value::from(text.as_str()));
        match &self.receipt {
            Some(text) => msgpack::encode(&Value::Map(vec![entry(text)])),
            None => Vec::new(),
        }
    }
}

impl NextServer {
    fn to_value(&self) -> Value {
        msgpack::tuple(vec![
            Value::from(self.peer_id.as_str()),
            Value::from(self.session_id.as_str()),
            Value::from(self.start),
            Value::from(self.end),
        ])
    }

    fn from_value(value: &Value) -> Option<Self> {
        let parts = msgpack::as_sequence(value)?;
        let [peer_id, session_id, start, end] = parts.as_slice() else {
            return None;
        };
        Some(Self {
            peer_id: peer_id.as_str()?.to_string(),
            session_id: session_id.as_str()?.to_string(),
            start: start.as_u64()?.try_into().ok()?,
            end: end.as_u64()?.try_into().ok()?,
        })
    }
}

fn next_servers(value: &Value) -> Option<Vec<NextServer>> {
    msgpack::as_sequence(value)?
        .iter()
        .map(NextServer::from_value)
        .collect()
}

fn ints(value: &Value) -> Option<Vec<i64>> {
    msgpack::as_sequence(value)?.iter().map(saturating_int).collect()
}

fn seconds(value: &Value) -> Option<f64> {
    value.as_f64().filter(|seconds| !seconds.is_nan())
}

/// A whole number; one beyond 63 bits is as good as the largest.
fn saturating_int(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(number.as_i64().unwrap_or(i64::MAX)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
