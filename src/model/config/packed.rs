//! `quantization_config`: checkpoints whose matrices are published in 4 bits. What is read is told apart here; how it is
//! unpacked is `load/grouped.rs`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::read::optional;
use crate::model::{ConfigError, WeightFormat};

/// Matrices in codes of 4 bits with a scale and a zero for each group of columns. Those that a checkpoint has as numbers,
/// which may be any, are not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedWeights {
    /// Who packed them.
    pub method: PackingMethod,
    /// Columns of a group; `None` for all.
    pub group_size: Option<usize>,
    /// Every zero is 8, and groups are columns side by side.
    pub is_plain: bool,
}

/// Where codes and zeros are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackingMethod {
    /// Eight columns in a word, in order. The zeros are stored less 1 (format 1, which most have) or as they are (2).
    Gptq {
        /// What is missing from a stored zero.
        less: u8,
    },
    /// Eight rows in a word, the even ones first (AutoAWQ's `gemm`).
    Awq,
}

impl PackedWeights {
    /// The format that has the same weights without rounding: 4 bits around 8 are q4_0, codes less another zero q8_0.
    pub(crate) fn own_format(self) -> WeightFormat {
        if self.is_plain {
            WeightFormat::Q4_0
        } else {
            WeightFormat::Q8_0
        }
    }
}

#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(default)]
    quant_method: String,
    #[serde(alias = "w_bit")]
    bits: Option<u32>,
    #[serde(alias = "q_group_size")]
    group_size: Option<i64>,
    sym: Option<bool>,
    desc_act: Option<bool>,
    zero_point: Option<bool>,
    checkpoint_format: Option<String>,
    version: Option<String>,
    lm_head: Option<bool>,
}

impl Raw {
    fn method(&self) -> Option<PackingMethod> {
        let format = self.checkpoint_format.as_deref().unwrap_or("gptq");
        let version = self.version.as_deref().unwrap_or("gemm").to_lowercase();
        match (self.quant_method.as_str(), format, version.as_str()) {
            ("gptq", "gptq", _) => Some(PackingMethod::Gptq { less: 1 }),
            ("gptq", "gptq_v2", _) => Some(PackingMethod::Gptq { less: 0 }),
            ("awq", _, "gemm") => Some(PackingMethod::Awq),
            _ => None,
        }
    }
}

/// `None` where matrices are numbers, or packed as the family says (MXFP4).
///
/// # Errors
/// [`ConfigError::Quantization`] for what is packed in another way: without this the first tensor would be missing, by a
/// name that nobody knows.
pub(super) fn read(raw: &Map<String, Value>) -> Result<Option<PackedWeights>, ConfigError> {
    let Some(raw) = optional::<Raw>(raw, "quantization_config")? else {
        return Ok(None);
    };
    if raw.quant_method == "mxfp4" {
        return Ok(None);
    }
    let refused = |what: &str| ConfigError::Quantization {
        method: format!("{}{what}", raw.quant_method),
    };
    if !["gptq", "awq"].contains(&raw.quant_method.as_str()) {
        return Err(refused(""));
    }
    let Some(method) = raw.method() else {
        let layout = raw.checkpoint_format.as_ref().or(raw.version.as_ref());
        return Err(refused(&format!(
            " in the layout {}",
            layout.map_or("", String::as_str)
        )));
    };
    match raw.bits {
        Some(4) => {}
        bits => return Err(refused(&format!(" in {} bits", bits.unwrap_or(0)))),
    }
    if raw.lm_head == Some(true) {
        return Err(refused(", the head too"));
    }
    let is_plain = match method {
        PackingMethod::Gptq { .. } => raw.sym == Some(true) && raw.desc_act != Some(true),
        PackingMethod::Awq => raw.zero_point == Some(false),
    };
    Ok(Some(PackedWeights {
        method,
        group_size: raw.group_size.and_then(|size| usize::try_from(size).ok()),
        is_plain,
    }))
}
