//! The record of a server under each block it serves, read as strictly as Python reads it.
//!
//! Source: `ServerInfo` (petals, `data_structures.py`), a pydantic dataclass. Python drops a record that breaks a rule
//! here, so a reader that took it would see other servers than the rest of the swarm; and a writer that broke one would
//! be invisible.

use crate::{
    error::WireError,
    msgpack::{self, PythonText, Value},
};

/// What a server is doing. A later state is a better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerState {
    /// It stopped serving these blocks.
    Offline = 0,
    /// It is loading these blocks.
    Joining = 1,
    /// It serves these blocks.
    Online = 2,
}

impl ServerState {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Joining => "joining",
            Self::Online => "online",
        }
    }
}

/// What a server says about itself. Everything but the state and the throughput may be unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerInfo {
    /// What it is doing.
    pub state: ServerState,
    /// Tokens per second through its whole span, at least 0 and finite.
    pub throughput: f64,
    /// First block it serves.
    pub start_block: Option<u32>,
    /// Block after the last one it serves.
    pub end_block: Option<u32>,
    /// Name or link that the health monitor shows.
    pub public_name: Option<String>,
    /// Version of its software; free text.
    pub version: Option<String>,
    /// Requests of one token per second that its network can carry.
    pub network_rps: Option<f64>,
    /// Tokens per second of forward passes through one block.
    pub forward_rps: Option<f64>,
    /// Tokens per second of single-token inference steps through one block.
    pub inference_rps: Option<f64>,
    /// Adapters it has loaded.
    pub adapters: Vec<String>,
    /// Item type of its weights and outputs, such as `bfloat16`.
    pub torch_dtype: Option<String>,
    /// Quantization of its weights: `none`, `int8` or `nf4`.
    pub quant_type: Option<String>,
    /// Whether it can only be reached through a relay.
    pub using_relay: Option<bool>,
    /// Room in its caches, counted over keys and values of all blocks: divide by twice the span for tokens.
    pub cache_tokens_left: Option<u64>,
    /// Round trips in seconds to servers of the blocks after its own, by peer id; infinite for one that does not answer.
    pub next_pings: Option<Vec<(String, f64)>>,
}

const WHAT: &str = "server record";

impl ServerInfo {
    /// A server of which nothing else is known.
    pub fn new(state: ServerState, throughput: f64) -> Self {
        Self {
            state,
            throughput,
            start_block: None,
            end_block: None,
            public_name: None,
            version: None,
            network_rps: None,
            forward_rps: None,
            inference_rps: None,
            adapters: Vec::new(),
            torch_dtype: None,
            quant_type: None,
            using_relay: None,
            cache_tokens_left: None,
            next_pings: None,
        }
    }

    /// The record as a value: the tuple (state, throughput, map of the thirteen other fields in order of declaration).
    pub fn to_value(&self) -> Value {
        let adapters = msgpack::tuple(self.adapters.iter().map(|name| Value::from(name.as_str())).collect());
        let map = self.entries(adapters);
        msgpack::tuple(vec![
            Value::from(self.state as u8),
            Value::F64(self.throughput),
            Value::Map(map),
        ])
    }

    /// The serialized record.
    pub fn encode(&self) -> Vec<u8> {
        msgpack::encode(&self.to_value())
    }

    fn entries(&self, adapters: Value) -> Vec<(Value, Value)> {
        fn some<T: Clone>(value: &Option<T>) -> Value
        where
            Value: From<T>,
        {
            value.clone().map_or(Value::Nil, Value::from)
        }
        let pings = self.next_pings.as_ref().map_or(Value::Nil, |pings| {
            let entries = pings
                .iter()
                .map(|(peer, rtt)| (Value::from(peer.as_str()), Value::F64(*rtt)));
            Value::Map(entries.collect())
        });
        [
            ("start_block", some(&self.start_block)),
            ("end_block", some(&self.end_block)),
            ("public_name", some(&self.public_name)),
            ("version", some(&self.version)),
            ("network_rps", some(&self.network_rps)),
            ("forward_rps", some(&self.forward_rps)),
            ("inference_rps", some(&self.inference_rps)),
            ("adapters", adapters),
            ("torch_dtype", some(&self.torch_dtype)),
            ("quant_type", some(&self.quant_type)),
            ("using_relay", some(&self.using_relay)),
            ("cache_tokens_left", some(&self.cache_tokens_left)),
            ("next_pings", pings),
        ]
        .map(|(key, value)| (Value::from(key), value))
        .into()
    }

    /// Reads a serialized record.
    ///
    /// # Errors
    /// Those of [`ServerInfo::from_value`], and [`WireError`] if the bytes are not MessagePack.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        Self::from_value(&msgpack::decode(bytes)?)
    }

    /// Reads a record. Unknown fields are ignored, missing ones are unknown, and Petals 1.x sends no map at all.
    ///
    /// # Errors
    /// [`WireError`] where Python would drop the record; block indices over 32 bits, which Python takes, name no block.
    pub fn from_value(value: &Value) -> Result<Self, WireError> {
        let parts = msgpack::as_sequence(value).ok_or(wrong("the value", "a tuple or an array"))?;
        let (state, throughput, map) = match parts.as_slice() {
            [state, throughput] => (state, throughput, &[][..]),
            [state, throughput, Value::Map(map), ..] => (state, throughput, map.as_slice()),
            _ => return Err(wrong("the content", "a state, a throughput and a map")),
        };
        // Python passes the map as keyword arguments, next to these two.
        let is_keyword = |key: &Value| matches!(key.as_str(), Some(name) if name != "state" && name != "throughput");
        if !map.iter().all(|(key, _)| is_keyword(key)) {
            return Err(WireError::Malformed {
                what: WHAT,
                problem: "a key of the map is not a name of a field of its own",
            });
        }
        let fields = Extra { map };
        Ok(Self {
            state: state_of(state).ok_or(wrong("state", "0, 1 or 2"))?,
            throughput: float("throughput", throughput, f64::MAX)?,
            start_block: fields.read("start_block", block)?,
            end_block: fields.read("end_block", block)?,
            public_name: fields.read("public_name", text)?,
            version: fields.read("version", text)?,
            network_rps: fields.read("network_rps", rate)?,
            forward_rps: fields.read("forward_rps", rate)?,
            inference_rps: fields.read("inference_rps", rate)?,
            adapters: match msgpack::get(map, "adapters") {
                Some(value) => texts("adapters", value)?,
                None => Vec::new(),
            },
            torch_dtype: fields.read("torch_dtype", text)?,
            quant_type: fields.read("quant_type", text)?,
            using_relay: fields.read("using_relay", boolean)?,
            cache_tokens_left: fields.read("cache_tokens_left", |field, value| {
                value.as_u64().ok_or(wrong(field, "a whole number from 0"))
            })?,
            next_pings: fields.read("next_pings", pings)?,
        })
    }
}

fn wrong(field: &'static str, expected: &'static str) -> WireError {
    WireError::WrongType {
        what: WHAT,
        field,
        expected,
    }
}

/// The map of a record, in which nil is an allowed way to say "unknown".
struct Extra<'v> {
    map: &'v [(Value, Value)],
}

impl Extra<'_> {
    fn read<T>(
        &self,
        field: &'static str,
        read: impl FnOnce(&'static str, &Value) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        match msgpack::get(self.map, field) {
            None | Some(Value::Nil) => Ok(None),
            Some(value) => read(field, value).map(Some),
        }
    }
}

/// Python looks the state up by equality, and there `2.0 == 2` and `True == 1`.
fn state_of(value: &Value) -> Option<ServerState> {
    let number = match value {
        Value::Boolean(on) => f64::from(u8::from(*on)),
        Value::Integer(_) | Value::F32(_) | Value::F64(_) => value.as_f64()?,
        _ => return None,
    };
    [ServerState::Offline, ServerState::Joining, ServerState::Online]
        .into_iter()
        .find(|state| f64::from(*state as u8) == number)
}

/// A float from 0 to `max`; a whole number is not a float.
fn float(field: &'static str, value: &Value, max: f64) -> Result<f64, WireError> {
    let number = match value {
        Value::F32(short) => f64::from(*short),
        Value::F64(number) => *number,
        _ => return Err(wrong(field, "a float")),
    };
    if (0.0..=max).contains(&number) {
        return Ok(number);
    }
    Err(WireError::OutOfRange {
        what: WHAT,
        field,
        expected: "an allowed number from 0",
    })
}

fn rate(field: &'static str, value: &Value) -> Result<f64, WireError> {
    float(field, value, f64::MAX)
}

fn block(field: &'static str, value: &Value) -> Result<u32, WireError> {
    let block = value.as_u64().and_then(|block| block.try_into().ok());
    block.ok_or(wrong(field, "a whole number from 0"))
}

/// Text; pydantic turns numbers into text and decodes bytes.
fn text(field: &'static str, value: &Value) -> Result<String, WireError> {
    let text = match value {
        Value::String(text) => text.as_str().map(str::to_string),
        Value::Binary(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::Integer(_) | Value::F32(_) | Value::F64(_) | Value::Boolean(_) => {
            Some(PythonText(Some(value)).to_string())
        }
        _ => None,
    };
    text.ok_or(wrong(field, "text"))
}

fn texts(field: &'static str, value: &Value) -> Result<Vec<String>, WireError> {
    let elements = msgpack::as_sequence(value).ok_or(wrong(field, "a tuple or an array of text"))?;
    elements.iter().map(|element| text(field, element)).collect()
}

/// A boolean, or one of the words and numbers that pydantic takes for one.
fn boolean(field: &'static str, value: &Value) -> Result<bool, WireError> {
    let word = match value {
        Value::Boolean(on) => return Ok(*on),
        Value::Integer(_) | Value::F32(_) | Value::F64(_) if value.as_f64() == Some(0.0) => return Ok(false),
        Value::Integer(_) | Value::F32(_) | Value::F64(_) if value.as_f64() == Some(1.0) => return Ok(true),
        Value::String(_) | Value::Binary(_) => text(field, value)?.to_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "1" | "on" | "t" | "true" | "y" | "yes" => Ok(true),
        "0" | "off" | "f" | "false" | "n" | "no" => Ok(false),
        _ => Err(wrong(field, "a boolean")),
    }
}

fn pings(field: &'static str, value: &Value) -> Result<Vec<(String, f64)>, WireError> {
    let entries = value.as_map().ok_or(wrong(field, "a map"))?;
    entries
        .iter()
        .map(|(peer, rtt)| Ok((text(field, peer)?, float(field, rtt, f64::INFINITY)?)))
        .collect()
}

#[cfg(test)]
mod tests;
