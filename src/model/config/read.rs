//! Fields of a `config.json` that many families have.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::parts::Activation;
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
