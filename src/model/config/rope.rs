//! Rotary position embedding as `config.json` describes it, in the spellings of all versions. The angles are computed in
//! `model/rope.rs`.

use serde_json::{Map, Value};

use super::read::{optional, required};
use crate::model::ConfigError;

/// Rotary position embedding: base frequency and how it is stretched.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// `rope_theta`.
    pub theta: f32,
    /// Positions the model was trained for (`max_position_embeddings`), in tokens.
    pub max_positions: usize,
    /// How many numbers at the start of each head are rotated: all of them, or fewer in Phi-2.
    pub rotary_dim: usize,
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
        /// The context in which turns are counted, in tokens.
        original_max_positions: usize,
        /// The ends of the ramp are whole dimensions.
        truncate: bool,
    },
    /// One divisor per frequency, from one of two lists of `rotary_dim / 2`.
    LongRope {
        /// For sequences of up to `original_max_positions` tokens.
        short_divisors: Vec<f32>,
        /// For longer ones.
        long_divisors: Vec<f32>,
        /// The original context, in tokens.
        original_max_positions: usize,
        /// Multiplies sine and cosine.
        attention_factor: f32,
    },
}

impl RopeConfig {
    pub(super) fn check(&self, head_dim: usize) -> Result<(), ConfigError> {
        let value = |field, problem| Err(ConfigError::Value { field, problem });
        if self.max_positions == 0 || self.max_positions > super::MAX_SIZE {
            return value("max_position_embeddings", "is out of range");
        }
        if !self.rotary_dim.is_multiple_of(2) {
            return value("head_dim", "is odd, but rotation needs pairs");
        }
        if self.rotary_dim == 0 || self.rotary_dim > head_dim {
            return value("partial_rotary_factor", "is not between 0 and 1");
        }
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return value("rope_theta", "is not a number > 1");
        }
        Ok(())
    }
}

const ROPE_TYPES: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// What decides between the two lists of divisors of longrope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LongRopeChoice {
    /// Whether the configuration stretches at all (transformers 4.43, and so Petals, for Llama).
    Factor,
    /// How long the sequence is (transformers for Phi-3).
    Length,
}

/// Reads `rope_theta` and `rope_scaling`, in the spellings of all versions: `rope_type` or `type` inside, and
/// `rope_parameters` since transformers 5, from which the theta was taken out. The first `rotary_dim` numbers of a head are
/// rotated.
pub(crate) fn read_rope(
    raw: &Map<String, Value>,
    rotary_dim: usize,
    choice: LongRopeChoice,
) -> Result<RopeConfig, ConfigError> {
    let max_positions = optional(raw, "max_position_embeddings")?.unwrap_or(2048);
    let scaling: Map<String, Value> = match optional(raw, "rope_scaling")? {
        Some(scaling) => scaling,
        None => optional(raw, "rope_parameters")?.unwrap_or_default(),
    };
    let theta = optional(raw, "rope_theta")?.unwrap_or(10_000.0);
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
        Some("yarn") => read_yarn(&scaling, max_positions)?,
        // Older Phi-3 repositories call theirs "su".
        Some("longrope" | "su") => read_longrope(raw, &scaling, rotary_dim, choice)?,
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
        rotary_dim,
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

fn read_yarn(scaling: &Map<String, Value>, max_positions: usize) -> Result<RopeScaling, ConfigError> {
    let factor = factor(scaling)?;
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor: optional(scaling, "attention_factor")?.unwrap_or(0.1 * factor.ln() + 1.0),
        beta_fast: optional(scaling, "beta_fast")?.unwrap_or(32.0),
        beta_slow: optional(scaling, "beta_slow")?.unwrap_or(1.0),
        original_max_positions: optional(scaling, "original_max_position_embeddings")?.unwrap_or(max_positions),
        truncate: optional(scaling, "truncate")?.unwrap_or(true),
    })
}

/// `original_max_position_embeddings` beside `rope_scaling` decides the stretch; without it `factor` does.
fn read_longrope(
    raw: &Map<String, Value>,
    scaling: &Map<String, Value>,
    rotary_dim: usize,
    choice: LongRopeChoice,
) -> Result<RopeScaling, ConfigError> {
    let max_positions = optional(raw, "max_position_embeddings")?.unwrap_or(2048);
    let original: Option<usize> = optional(raw, "original_max_position_embeddings")?;
    let factor = match original {
        Some(original) => max_positions as f32 / original.max(1) as f32,
        None => factor(scaling)?,
    };
    let trained = original.unwrap_or(max_positions);
    let attention_factor = match optional(scaling, "attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (trained as f32).ln()).sqrt(),
    };
    let (short, long) = match choice {
        LongRopeChoice::Length => ("short_factor", "long_factor"),
        LongRopeChoice::Factor if factor > 1.0 => ("long_factor", "long_factor"),
        LongRopeChoice::Factor => ("short_factor", "short_factor"),
    };
    Ok(RopeScaling::LongRope {
        short_divisors: divisors(scaling, short, rotary_dim)?,
        long_divisors: divisors(scaling, long, rotary_dim)?,
        original_max_positions: trained,
        attention_factor,
    })
}

fn divisors(scaling: &Map<String, Value>, list: &'static str, rotary_dim: usize) -> Result<Vec<f32>, ConfigError> {
    let divisors: Vec<f32> = required(scaling, list)?;
    if divisors.len() != rotary_dim / 2 || !divisors.iter().all(|divisor| *divisor > 0.0) {
        return Err(ConfigError::Value {
            field: list,
            problem: "is not one positive number for each pair that is rotated",
        });
    }
    Ok(divisors)
}
