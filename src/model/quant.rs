//! The formats that weights are kept in, and what each costs in memory. How a format's blocks are made and laid out is
//! in `quant/`, how they are multiplied in `cpu/quant/`.

mod encode;
pub(crate) mod ggml;
mod packed;
mod row;
mod super_block;

use super::WeightDType;
pub(crate) use encode::{byte_at, nibble};
pub(crate) use packed::QuantMatrix;
#[cfg(test)]
pub(crate) use packed::encode_panel;
pub(crate) use row::PanelRow;

/// Rows of a panel: weights are kept in groups of this many rows, column after column, and padded to whole panels.
const PANEL_ROWS: usize = 16;

/// The format of weights in memory. Caches, and replies on the wire, have a [`WeightDType`] of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// IEEE single.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half.
    F16,
    /// 8 bit signed in blocks of 32 with a scale each: ggml's `Q8_0`.
    Q8_0,
    /// 4 bit around 8 in blocks of 32 with a scale each: ggml's `Q4_0`.
    Q4_0,
    /// 4 bit in super-blocks of 8 times 32, each 32 with a scale and a minimum of 6 bit: ggml's `Q4_K`.
    Q4K,
    /// 4 bit into the 16 quantiles of a normal distribution, in blocks of 64 scaled by their largest weight: the NF4 of
    /// bitsandbytes.
    Nf4,
}

impl WeightFormat {
    /// All of them, the most precise first.
    pub const ALL: [Self; 7] = [
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::Q8_0,
        Self::Q4K,
        Self::Nf4,
        Self::Q4_0,
    ];

    /// The name for people and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => WeightDType::F32.as_torch_str(),
            Self::Bf16 => WeightDType::Bf16.as_torch_str(),
            Self::F16 => WeightDType::F16.as_torch_str(),
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Nf4 => "nf4",
        }
    }

    /// The inverse of [`WeightFormat::as_str`], which also knows `int8`, as Petals calls 8 bits; `None` for every other
    /// name.
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "int8" {
            return Some(Self::Q8_0);
        }
        Self::ALL.into_iter().find(|format| format.as_str() == name)
    }

    /// As a server announces it (`quant_type` of its record): Petals' words `none`, `int8` and `nf4` where they fit
    /// (`petals/utils/convert_block.py`, `QuantType`).
    pub fn quant_type(self) -> &'static str {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => "none",
            Self::Q8_0 => "int8",
            Self::Q4_0 | Self::Q4K | Self::Nf4 => self.as_str(),
        }
    }

    /// The type of single numbers, if it is a format of such and not of blocks.
    pub fn dtype(self) -> Option<WeightDType> {
        match self {
            Self::F32 => Some(WeightDType::F32),
            Self::Bf16 => Some(WeightDType::Bf16),
            Self::F16 => Some(WeightDType::F16),
            Self::Q8_0 | Self::Q4_0 | Self::Q4K | Self::Nf4 => None,
        }
    }

    /// Bits that a weight takes, scales included.
    pub fn bits_per_weight(self) -> f64 {
        let group = self.group();
        (self.group_bytes() * 8) as f64 / (PANEL_ROWS * group) as f64
    }

    /// Bytes of a matrix `[rows, cols]`, filled up to whole panels and blocks.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL_ROWS) * cols.div_ceil(self.group()) * self.group_bytes()
    }

    /// Columns that are packed together; a row is filled up with zeros to whole groups.
    pub(crate) fn group(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => 1,
            // Two blocks each, so that scales and weights are whole cache lines.
            Self::Q8_0 | Self::Q4_0 => 64,
            Self::Nf4 => 128,
            Self::Q4K => 256,
        }
    }

    /// Bytes of a group of a panel: of [`WeightFormat::group`] columns of 16 rows.
    pub(crate) fn group_bytes(self) -> usize {
        let weights = PANEL_ROWS * self.group();
        const F16: usize = 2;
        match self {
            Self::F32 => weights * 4,
            Self::Bf16 | Self::F16 => weights * 2,
            Self::Q8_0 => weights + PANEL_ROWS * 2 * F16,
            Self::Q4_0 | Self::Nf4 => weights / 2 + PANEL_ROWS * 2 * F16,
            // d and dmin, and 8 scales and 8 minima, which take a byte each here.
            Self::Q4K => weights / 2 + PANEL_ROWS * (2 * F16 + 8 + 8),
        }
    }
}

/// How blocks are loaded: weights in one format, everything else in a type of single numbers. Files that
/// [keep their formats](super::ModelFiles::with_own_formats) have matrices in others as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Precision {
    /// Of the weight matrices.
    pub weights: WeightFormat,
    /// Of caches, and of activations in replies.
    pub dtype: WeightDType,
}

impl From<WeightDType> for Precision {
    fn from(dtype: WeightDType) -> Self {
        Self {
            weights: dtype.into(),
            dtype,
        }
    }
}

impl From<WeightDType> for WeightFormat {
    fn from(dtype: WeightDType) -> Self {
        match dtype {
            WeightDType::F32 => Self::F32,
            WeightDType::Bf16 => Self::Bf16,
            WeightDType::F16 => Self::F16,
        }
    }
}

#[cfg(test)]
mod tests;
