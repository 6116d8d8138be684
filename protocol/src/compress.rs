//! The six encodings of a tensor's buffer: bytes to items and back, exact to Python.
//!
//! One file per codec, each with the layout of its buffer at the top. Decoders accept what any Hivemind version sends
//! and give the bits that Hivemind gives. Encoders of the 8-bit codecs may choose other codes than Hivemind does for the
//! same tensor; the error they make is not larger. Shapes and dtypes are checked in `tensor`, before this.

mod blockwise;
mod codebook;
mod dynamic_map;
mod float16;
mod mean_std;
mod none;
mod quantile;
#[cfg(test)]
mod tests;
mod uniform;

use std::fmt;

use bytes::Bytes;

use crate::tensor::{DType, Head, TensorError};

/// How a tensor message holds its items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// The items themselves.
    #[default]
    None,
    /// Halves, after the mean and the standard deviation of each row along the last axis were taken out.
    MeanStd16,
    /// Halves, limited to the finite ones.
    Float16,
    /// One byte per item: index into 256 means of equally populated bins.
    Quantile8,
    /// One byte per item: index into 256 means of equally wide bins.
    Uniform8,
    /// One byte per item: index into a fixed table that is scaled for each 4096 items.
    Blockwise8,
}

impl Compression {
    /// All of them, in the order of their numbers on the wire.
    pub const ALL: [Compression; 6] = [
        Compression::None,
        Compression::MeanStd16,
        Compression::Float16,
        Compression::Quantile8,
        Compression::Uniform8,
        Compression::Blockwise8,
    ];

    /// The number in messages and descriptors (`CompressionType` of Hivemind's `runtime.proto`).
    pub fn id(self) -> i32 {
        self as i32
    }

    /// The compression of that number, the inverse of [`Compression::id`].
    pub fn from_id(id: i32) -> Option<Compression> {
        Compression::ALL.into_iter().find(|compression| compression.id() == id)
    }

    /// Hivemind's name, which is also what Petals' command line takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Compression::None => "NONE",
            Compression::MeanStd16 => "MEANSTD_16BIT",
            Compression::Float16 => "FLOAT16",
            Compression::Quantile8 => "QUANTILE_8BIT",
            Compression::Uniform8 => "UNIFORM_8BIT",
            Compression::Blockwise8 => "BLOCKWISE_8BIT",
        }
    }

    /// The compression of that name, the inverse of [`Compression::as_str`].
    pub fn from_name(name: &str) -> Option<Compression> {
        Compression::ALL
            .into_iter()
            .find(|compression| compression.as_str() == name)
    }

    /// The dtype a message names when a tensor of `dtype` is encoded this way; `None` when it cannot be.
    ///
    /// bfloat16 stays bfloat16 under NONE only. Hivemind refuses to encode it as FLOAT16 or MEANSTD_16BIT, and cannot
    /// decode such a message either, because its decoders hand the name to numpy, which has no bfloat16; up to 1.1.10
    /// that is so for the 8-bit codecs too. A Petals server in bfloat16 with such a compression therefore fails every
    /// request. Labelled float32, the same bytes are read by every version, and Petals casts what it receives to its
    /// own dtype anyway.
    ///
    /// Integers have only NONE and BLOCKWISE_8BIT, as in Hivemind.
    pub fn label(self, dtype: DType) -> Option<DType> {
        match self {
            Compression::None => Some(dtype),
            _ if dtype == DType::Bf16 => Some(DType::F32),
            Compression::Blockwise8 => Some(dtype),
            _ => dtype.is_float().then_some(dtype),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Checks that a buffer has the layout and the length its description asks for, without decoding it.
pub(crate) fn check(head: &Head, buffer: &[u8]) -> Result<(), TensorError> {
    match head.compression {
        Compression::None => none::Encoding::of(head, buffer).map(drop),
        Compression::MeanStd16 => mean_std::parse(head, buffer).map(drop),
        Compression::Float16 => float16::check(head, buffer),
        Compression::Quantile8 | Compression::Uniform8 => codebook::parse(head, buffer).map(drop),
        Compression::Blockwise8 => blockwise::parse(head, buffer).map(drop),
    }
}

/// The items of a message's buffer, in memory layout.
pub(crate) fn decode(head: &Head, buffer: &Bytes) -> Result<Bytes, TensorError> {
    match head.compression {
        Compression::None => none::decode(head, buffer),
        Compression::MeanStd16 => mean_std::decode(head, buffer),
        Compression::Float16 => float16::decode(head, buffer),
        Compression::Quantile8 | Compression::Uniform8 => codebook::decode(head, buffer),
        Compression::Blockwise8 => blockwise::decode(head, buffer),
    }
}

/// The buffer of a message for items in memory layout, which fill `head`'s shape and whose dtype has a label.
pub(crate) fn encode(head: &Head, data: &Bytes) -> Result<Bytes, TensorError> {
    match head.compression {
        Compression::None => Ok(data.clone()),
        Compression::MeanStd16 => mean_std::encode(head, data),
        Compression::Float16 => Ok(float16::encode(head, data)),
        Compression::Quantile8 => Ok(quantile::encode(head, data)),
        Compression::Uniform8 => Ok(uniform::encode(head, data)),
        Compression::Blockwise8 => Ok(blockwise::encode(head, data)),
    }
}

/// All items of a tensor in memory as `f32`: the lossy codecs compute in it whatever the dtype, as Hivemind does.
fn values(head: &Head, data: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; head.n_items];
    crate::tensor::read_f32(head.dtype, data, &mut values);
    values
}
