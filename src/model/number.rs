//! Numbers in memory: buffers and views of f32, bf16, f16 and i8, and the ways between them. It computes nothing.

use std::ops::Range;

use bytemuck::Pod;
use bytes::Bytes;
use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::WeightDType;

#[cfg(target_endian = "big")]
compile_error!("weights are used in place, and checkpoints are little-endian");

/// A number type weights and caches are stored in.
pub(crate) trait Number: Pod + Send + Sync {
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    /// Unlike `half`'s this leaves signalling NaNs as they are, so that it is one shift and loops of it vectorise.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Number for f16 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl Number for i8 {
    /// To a whole number, halves to the even one, -128 and 127 beyond.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value.round_ties_even() as i8
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

/// A view of numbers of one of the types the kernels load. What an i8 is worth is known to whoever scaled it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slice<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    I8(&'a [i8]),
}

impl<'a> Slice<'a> {
    /// How many numbers.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(items) => items.len(),
            Self::Bf16(items) => items.len(),
            Self::F16(items) => items.len(),
            Self::I8(items) => items.len(),
        }
    }

    /// What they are as weights.
    pub(crate) fn weight_dtype(self) -> Option<WeightDType> {
        match self {
            Self::F32(_) => Some(WeightDType::F32),
            Self::Bf16(_) => Some(WeightDType::Bf16),
            Self::F16(_) => Some(WeightDType::F16),
            Self::I8(_) => None,
        }
    }

    /// A part of it.
    ///
    /// # Panics
    /// If `range` is not inside.
    pub(crate) fn range(self, range: Range<usize>) -> Slice<'a> {
        match self {
            Self::F32(items) => Slice::F32(&items[range]),
            Self::Bf16(items) => Slice::Bf16(&items[range]),
            Self::F16(items) => Slice::F16(&items[range]),
            Self::I8(items) => Slice::I8(&items[range]),
        }
    }

    /// Writes the numbers as f32 to `out`.
    ///
    /// # Panics
    /// If `out` has another length.
    pub(crate) fn widen_into(self, out: &mut [f32]) {
        match self {
            Self::F32(items) => out.copy_from_slice(items),
            Self::Bf16(items) => widen(items, out),
            Self::F16(items) => items.convert_to_f32_slice(out),
            Self::I8(items) => widen(items, out),
        }
    }

    /// A copy as f32.
    pub(crate) fn to_f32_vec(self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.widen_into(&mut out);
        out
    }
}

fn widen<N: Number>(items: &[N], out: &mut [f32]) {
    assert_eq!(items.len(), out.len(), "widening into a buffer of another length");
    for (out, item) in out.iter_mut().zip(items) {
        *out = item.to_f32();
    }
}

/// Numbers of one of the three types of weights, owned.
#[derive(Clone, Debug)]
pub(crate) enum Buffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Buffer {
    /// None yet, with room for `n` of type `dtype`.
    pub(crate) fn with_capacity(dtype: WeightDType, n: usize) -> Self {
        match dtype {
            WeightDType::F32 => Self::F32(Vec::with_capacity(n)),
            WeightDType::Bf16 => Self::Bf16(Vec::with_capacity(n)),
            WeightDType::F16 => Self::F16(Vec::with_capacity(n)),
        }
    }

    /// Adds numbers, rounded to their type.
    pub(crate) fn extend(&mut self, numbers: &[f32]) {
        match self {
            Self::F32(items) => items.extend_from_slice(numbers),
            Self::Bf16(items) => items.extend(numbers.iter().map(|number| bf16::from_f32(*number))),
            Self::F16(items) => items.extend(numbers.iter().map(|number| f16::from_f32(*number))),
        }
    }

    pub(crate) fn as_slice(&self) -> Slice<'_> {
        match self {
            Self::F32(items) => Slice::F32(items),
            Self::Bf16(items) => Slice::Bf16(items),
            Self::F16(items) => Slice::F16(items),
        }
    }
}

/// Numbers that are never written: part of a mapped file, or owned.
#[derive(Clone, Debug)]
pub(crate) struct Frozen(Store);

#[derive(Clone, Debug)]
enum Store {
    /// Aligned for the type and a whole number of items; `Frozen::in_place` checked it.
    InPlace(WeightDType, Bytes),
    Owned(Buffer),
}

impl Frozen {
    /// Uses `bytes` where they are; `None` if they are not aligned for `dtype` or not a whole number of items.
    pub(crate) fn in_place(dtype: WeightDType, bytes: Bytes) -> Option<Self> {
        let fits = match dtype {
            WeightDType::F32 => bytemuck::try_cast_slice::<u8, f32>(&bytes).is_ok(),
            WeightDType::Bf16 | WeightDType::F16 => bytemuck::try_cast_slice::<u8, u16>(&bytes).is_ok(),
        };
        fits.then_some(Self(Store::InPlace(dtype, bytes)))
    }

    pub(crate) fn owned(buffer: Buffer) -> Self {
        Self(Store::Owned(buffer))
    }

    pub(crate) fn as_slice(&self) -> Slice<'_> {
        match &self.0 {
            Store::InPlace(WeightDType::F32, bytes) => Slice::F32(bytemuck::cast_slice(bytes)),
            Store::InPlace(WeightDType::Bf16, bytes) => Slice::Bf16(bytemuck::cast_slice(bytes)),
            Store::InPlace(WeightDType::F16, bytes) => Slice::F16(bytemuck::cast_slice(bytes)),
            Store::Owned(buffer) => buffer.as_slice(),
        }
    }
}
