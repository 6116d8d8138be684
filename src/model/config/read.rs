//! Fields of a `config.json` that many families have.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::parts::{Activation, SlidingWindow};
use crate::model::ConfigError;

/// A field that may be absent or null.
pub(crate) fn optional<T: DeserializeOwned>(raw: &Map<String, Value>, field: &str) -> Result<Option<T>, ConfigError> {
    match raw.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value.clone())
            .map(Some)
            .map_err(ConfigError::Json),
    }
}

/// A field that every configuration of the family has.
pub(crate) fn required<T: DeserializeOwned>(raw: &Map<String, Value>, field: &'static str) -> Result<T, ConfigError> {
    optional(raw, field)?.ok_or(ConfigError::Missing { field })
}

/// One token id or a list of them (`eos_token_id` is written both ways); negative ids mean none.
pub(crate) fn token_ids(raw: &Map<String, Value>, field: &str) -> Result<Vec<u32>, ConfigError> {
    let ids: Vec<i64> = match raw.get(field) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => serde_json::from_value(Value::Array(list.clone())).map_err(ConfigError::Json)?,
        Some(value) => vec![serde_json::from_value(value.clone()).map_err(ConfigError::Json)?],
    };
    Ok(ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect())
}

/// The name of an activation as transformers writes it.
pub(crate) fn activation(raw: &Map<String, Value>, field: &'static str) -> Result<Option<Activation>, ConfigError> {
    let name: Option<String> = optional(raw, field)?;
    match name.as_deref() {
        None => Ok(None),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some("gelu") => Ok(Some(Activation::Gelu)),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Some(Activation::GeluTanh)),
        Some("relu") => Ok(Some(Activation::Relu)),
        Some(_) => Err(ConfigError::Value {
            field,
            problem: "is not silu, gelu, gelu_new, gelu_pytorch_tanh or relu",
        }),
    }
}

/// `raw` with the fields it leaves out; null is left as it is, since it may mean that there is no such part.
pub(crate) fn with_defaults(raw: &Map<String, Value>, defaults: &[(&str, Value)]) -> Map<String, Value> {
    let mut filled = raw.clone();
    for (field, value) in defaults {
        filled.entry(*field).or_insert_with(|| value.clone());
    }
    filled
}

/// What transformers 5 keeps in `rope_parameters` alone.
const IN_ROPE_PARAMETERS: [&str; 3] = [
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
];

/// `raw` with what is in `rope_parameters` alone where older versions have it, so that no family's defaults go before it.
pub(crate) fn with_rope_outside(raw: &Map<String, Value>) -> Result<Map<String, Value>, ConfigError> {
    let mut raw = raw.clone();
    let parameters: Map<String, Value> = optional(&raw, "rope_parameters")?.unwrap_or_default();
    for field in IN_ROPE_PARAMETERS {
        if let Some(value) = parameters.get(field)
            && raw.get(field).is_none_or(Value::is_null)
        {
            raw.insert(field.to_owned(), value.clone());
        }
    }
    Ok(raw)
}

/// `raw` with a family's own names of fields (first of each pair) replaced by the usual ones.
pub(crate) fn renamed(raw: &Map<String, Value>, names: &[(&str, &str)]) -> Map<String, Value> {
    let mut renamed = raw.clone();
    for (own, usual) in names {
        if let Some(value) = renamed.remove(*own) {
            renamed.insert((*usual).to_owned(), value);
        }
    }
    renamed
}

/// `sliding_window`, if there is one, in the blocks that `layer_types` names, or without that in those that `usual` does.
pub(crate) fn sliding_blocks(
    raw: &Map<String, Value>,
    n_blocks: u32,
    usual: impl Fn(u32) -> bool,
) -> Result<Option<SlidingWindow>, ConfigError> {
    let Some(tokens) = optional(raw, "sliding_window")? else {
        return Ok(None);
    };
    let types: Option<Vec<String>> = optional(raw, "layer_types")?;
    let blocks: Vec<bool> = match types {
        None => (0..n_blocks).map(usual).collect(),
        Some(types) if types.len() == n_blocks as usize => {
            types.iter().map(|name| name == "sliding_attention").collect()
        }
        Some(_) => {
            return Err(ConfigError::Value {
                field: "layer_types",
                problem: "is not one for each block",
            });
        }
    };
    Ok(Some(SlidingWindow {
        tokens,
        blocks,
        rope: None,
    }))
}
