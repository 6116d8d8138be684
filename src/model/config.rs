//! What the blocks need to know of a `config.json`. The keys of a family are read in `family/`.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ConfigError, Family, kv::KvShape};

/// The number type of weights and cached keys and values. Activations are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightDType {
    /// 4 bytes, IEEE single.
    F32,
    /// 2 bytes, the upper half of an f32.
    Bf16,
    /// 2 bytes, IEEE half.
    F16,
}

impl WeightDType {
    /// As Petals announces it (`torch_dtype` of a server's record).
    pub fn as_torch_str(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// The inverse of [`WeightDType::as_torch_str`]; `None` for every other name.
    pub fn from_torch_str(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16]
            .into_iter()
            .find(|dtype| dtype.as_torch_str() == name)
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// The shape of a model and of its blocks. Sizes are counts of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which block it is made of.
    pub family: Family,
    /// Transformer blocks in the whole model.
    pub n_blocks: u32,
    /// Width of the activations between blocks.
    pub hidden_size: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Numbers per head; explicit in some configurations, else `hidden_size / n_heads`.
    pub head_dim: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Added to the variance in every norm.
    pub rms_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Query, key, value and output projections have a bias.
    pub attention_bias: bool,
    /// The three feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// The head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; any of them does.
    pub eos_token_ids: Vec<u32>,
    /// The type the checkpoint was saved in, if it is said and one of ours.
    pub torch_dtype: Option<WeightDType>,
}

/// Rotary position embedding: base frequency and how it is stretched.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// `rope_theta`.
    pub theta: f32,
    /// Positions the model was trained for (`max_position_embeddings`), in tokens.
    pub max_positions: usize,
    /// The stretch.
    pub scaling: RopeScaling,
}

/// `rope_scaling` of `config.json`, the kinds of transformers 4.43 (`modeling_rope_utils.py`).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Stretch.
        factor: f32,
    },
    /// The base grows with the length of the sequence once it exceeds `max_positions`.
    Dynamic {
        /// Stretch.
        factor: f32,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// Stretch.
        factor: f32,
        /// Fewer turns than this over the original context: divided.
        low_freq_factor: f32,
        /// More turns than this: kept.
        high_freq_factor: f32,
        /// The original context, in tokens.
        original_max_positions: usize,
    },
    /// As Llama3 with the ramp over dimensions, and an attention temperature.
    Yarn {
        /// Stretch.
        factor: f32,
        /// Multiplies sine and cosine.
        attention_factor: f32,
        /// Turns above which a dimension is kept.
        beta_fast: f32,
        /// Turns below which a dimension is divided.
        beta_slow: f32,
    },
    /// One divisor per frequency.
    LongRope {
        /// `head_dim / 2` divisors, already chosen between the long and the short list.
        divisors: Vec<f32>,
        /// Multiplies sine and cosine.
        attention_factor: f32,
    },
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Not JSON, an unknown `model_type`, a missing size, or sizes that do not fit together.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let raw: Map<String, Value> = serde_json::from_slice(json).map_err(ConfigError::Json)?;
        let model_type: String = optional(&raw, "model_type")?.unwrap_or_default();
        let config = Family::of_model_type(&model_type)?.read_config(&raw)?;
        config.check()?;
        Ok(config)
    }

    /// The dtype `--dtype auto` means: the checkpoint's own, but bfloat16 where that is float32 or not said
    /// (Petals `server/block_utils.py: resolve_block_dtype`).
    pub fn auto_dtype(&self) -> WeightDType {
        match self.torch_dtype {
            Some(dtype) if dtype != WeightDType::F32 => dtype,
            _ => WeightDType::Bf16,
        }
    }

    /// Bytes of K and V for one token of one sequence in one block, kept as `dtype`.
    pub fn cache_bytes_per_token(&self, dtype: WeightDType) -> usize {
        KvShape::new(self, dtype).bytes_per_token()
    }

    /// Query heads per key/value head.
    pub fn group_size(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    fn check(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("num_hidden_layers", self.n_blocks as usize),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.rope.max_positions),
        ];
        for (field, size) in sizes {
            if size == 0 || size > MAX_SIZE {
                return Err(ConfigError::Value {
                    field,
                    problem: "is out of range",
                });
            }
        }
        let value = |field, problem| Err(ConfigError::Value { field, problem });
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return value("num_key_value_heads", "does not divide num_attention_heads");
        }
        if !self.head_dim.is_multiple_of(2) {
            return value("head_dim", "is odd, but rotation needs pairs");
        }
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0) {
            return value("rms_norm_eps", "is not a number >= 0");
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 1.0) {
            return value("rope_theta", "is not a number > 1");
        }
        Ok(())
    }
}

/// No published model has a dimension near this; it keeps products of two sizes far from overflow.
const MAX_SIZE: usize = 1 << 28;

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

const ROPE_TYPES: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// Reads `rope_theta` and `rope_scaling`, in the spellings of all versions: `rope_type` or `type` inside, and
/// `rope_parameters` (which holds the theta as well) since transformers 5.
pub(crate) fn read_rope(raw: &Map<String, Value>, head_dim: usize) -> Result<RopeConfig, ConfigError> {
    let max_positions = optional(raw, "max_position_embeddings")?.unwrap_or(2048);
    let scaling: Map<String, Value> = match optional(raw, "rope_scaling")? {
        Some(scaling) => scaling,
        None => optional(raw, "rope_parameters")?.unwrap_or_default(),
    };
    let theta = match optional(raw, "rope_theta")? {
        Some(theta) => theta,
        None => optional(&scaling, "rope_theta")?.unwrap_or(10_000.0),
    };
    let rope_type: Option<String> = match optional(&scaling, "rope_type")? {
        Some(rope_type) => Some(rope_type),
        None => optional(&scaling, "type")?,
    };
    let scaling = match rope_type.as_deref() {
        None | Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear {
            factor: factor(&scaling)?,
        },
        Some("dynamic") => RopeScaling::Dynamic {
            factor: factor(&scaling)?,
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor: factor(&scaling)?,
            low_freq_factor: required(&scaling, "low_freq_factor")?,
            high_freq_factor: required(&scaling, "high_freq_factor")?,
            original_max_positions: required(&scaling, "original_max_position_embeddings")?,
        },
        Some("yarn") => read_yarn(&scaling)?,
        Some("longrope") => read_longrope(raw, &scaling, max_positions, head_dim)?,
        Some(other) => {
            return Err(ConfigError::UnknownRopeType {
                rope_type: other.to_owned(),
                supported: ROPE_TYPES,
            });
        }
    };
    Ok(RopeConfig {
        theta,
        max_positions,
        scaling,
    })
}

fn factor(scaling: &Map<String, Value>) -> Result<f32, ConfigError> {
    let factor: f32 = required(scaling, "factor")?;
    if factor.is_finite() && factor >= 1.0 {
        Ok(factor)
    } else {
        Err(ConfigError::Value {
            field: "rope_scaling.factor",
            problem: "is not a number >= 1",
        })
    }
}

fn read_yarn(scaling: &Map<String, Value>) -> Result<RopeScaling, ConfigError> {
    let factor = factor(scaling)?;
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor: optional(scaling, "attention_factor")?.unwrap_or(0.1 * factor.ln() + 1.0),
        beta_fast: optional(scaling, "beta_fast")?.unwrap_or(32.0),
        beta_slow: optional(scaling, "beta_slow")?.unwrap_or(1.0),
    })
}

/// `original_max_position_embeddings` beside `rope_scaling` decides the stretch; without it `factor` does.
fn read_longrope(
    raw: &Map<String, Value>,
    scaling: &Map<String, Value>,
    max_positions: usize,
    head_dim: usize,
) -> Result<RopeScaling, ConfigError> {
    let original: Option<usize> = optional(raw, "original_max_position_embeddings")?;
    let factor = match original {
        Some(original) => max_positions as f32 / original.max(1) as f32,
        None => factor(scaling)?,
    };
    let trained = original.unwrap_or(max_positions) as f32;
    let attention_factor = match optional(scaling, "attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / trained.ln()).sqrt(),
    };
    let list = if factor > 1.0 { "long_factor" } else { "short_factor" };
    let divisors: Vec<f32> = required(scaling, list)?;
    if divisors.len() != head_dim / 2 || !divisors.iter().all(|divisor| *divisor > 0.0) {
        return Err(ConfigError::Value {
            field: list,
            problem: "is not head_dim / 2 positive numbers",
        });
    }
    Ok(RopeScaling::LongRope {
        divisors,
        attention_factor,
    })
}

#[cfg(test)]
mod tests;
