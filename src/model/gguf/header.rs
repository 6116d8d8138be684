//! The header of a GGUF file: metadata, and where which tensor is. Files come from strangers: every length is held
//! against what is left of the file before anything is read or allocated.

use std::collections::HashMap;

use bytes::Bytes;
use candle_core::quantized::GgmlDType;

use super::{GgufError, HEADER, Spans};

const MAGIC: &[u8] = b"GGUF";
/// Metadata keys and tensors of the largest models are some thousands.
const MAX_ENTRIES: u64 = 1 << 20;
/// As ggml has it (`GGML_MAX_DIMS`).
const MAX_DIMENSIONS: u32 = 4;
/// Where numbers begin is a multiple of this, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Items of all arrays: the largest vocabularies have a quarter of a million tokens, with a score, a kind and two merges each.
/// In the file an item may take a byte, in memory it takes a [`Value`].
pub(super) const MAX_ITEMS: u64 = 1 << 22;
/// Arrays of arrays are not used by anybody.
const MAX_DEPTH: u32 = 2;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Unsigned or not.
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Vec<Value>),
}

/// Where a tensor is.
#[derive(Clone, Debug)]
pub(super) struct Info {
    /// Rows first, as everywhere but in the file.
    pub(super) shape: Vec<usize>,
    /// ggml's number for how the numbers are written.
    pub(super) kind: u32,
    /// From the beginning of its file.
    pub(super) offset: u64,
    /// Which of the model's files.
    pub(super) part: usize,
}

#[derive(Debug)]
pub(crate) struct Header {
    metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, Info>,
}

impl Header {
    pub(super) fn read(content: &[u8]) -> Result<Self, GgufError> {
        let mut reader = Reader {
            content,
            at: 0,
            n_items: 0,
        };
        if reader.take(4).ok() != Some(MAGIC) || !matches!(reader.u32(), Ok(2 | 3)) {
            return Err(GgufError::NotGguf);
        }
        let (n_tensors, n_entries) = (reader.u64()?, reader.u64()?);
        if n_tensors > MAX_ENTRIES || n_entries > MAX_ENTRIES {
            return Err(GgufError::Damaged("it announces millions of tensors"));
        }
        let mut metadata = HashMap::new();
        for _ in 0..n_entries {
            let key = reader.text()?;
            let kind = reader.u32()?;
            let value = reader.value(&key, kind, 0)?;
            metadata.insert(key, value);
        }
        let mut tensors: HashMap<String, Info> = HashMap::new();
        for _ in 0..n_tensors {
            let name = reader.text()?;
            let info = reader.info()?;
            tensors.insert(name, info);
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Integer(alignment)) => u64::try_from(*alignment).unwrap_or(0),
            _ => DEFAULT_ALIGNMENT,
        };
        if !alignment.is_power_of_two() {
            return Err(GgufError::Damaged("its alignment is not a power of two"));
        }
        let data_start = (reader.at as u64)
            .checked_next_multiple_of(alignment)
            .ok_or(GgufError::Damaged("its alignment is too large"))?;
        for info in tensors.values_mut() {
            let start = data_start.checked_add(info.offset);
            info.offset = start.ok_or(GgufError::Damaged("a tensor is not inside"))?;
        }
        Ok(Self { metadata, tensors })
    }

    /// Takes over the tensors of another file of the model.
    pub(super) fn join(&mut self, other: Self, part: usize) {
        let tensors = other.tensors.into_iter();
        self.tensors
            .extend(tensors.map(|(name, info)| (name, Info { part, ..info })));
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The first if there is one for each block: blocks that differ are not supported, and their shapes tell.
    pub(super) fn integer(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Integer(integer) => u64::try_from(*integer).ok(),
            Value::Array(items) => match items.first()? {
                Value::Integer(integer) => u64::try_from(*integer).ok(),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Float(float) => Some(*float),
            Value::Integer(integer) => Some(*integer as f64),
            _ => None,
        }
    }

    pub(super) fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Those bytes of `begun`, where the tensor begins, that it is if its numbers are written as `kind`.
    pub(super) fn bytes(info: &Info, kind: GgmlDType, begun: &Bytes) -> Result<Bytes, GgufError> {
        let row = info.shape.last().copied().unwrap_or(0);
        let numbers = info
            .shape
            .iter()
            .try_fold(1usize, |product, dim| product.checked_mul(*dim));
        let numbers = numbers.filter(|_| row.is_multiple_of(kind.block_size()));
        let len = numbers.and_then(|numbers| (numbers / kind.block_size()).checked_mul(kind.type_size()));
        let len = len.filter(|len| *len <= begun.len());
        len.map(|len| begun.slice(..len))
            .ok_or(GgufError::Damaged("a tensor is not inside"))
    }

    /// What the file is made of if it has `size` bytes.
    ///
    /// # Errors
    /// Tensors that are not inside, or are in each other.
    pub(super) fn spans(&self, size: u64) -> Result<Spans, GgufError> {
        let mut starts: Vec<(u64, &str)> = self.tensors.iter().map(|(name, info)| (info.offset, &**name)).collect();
        starts.push((0, HEADER));
        starts.sort_unstable();
        let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([size]);
        let spans = starts.iter().zip(ends).map(|((start, name), end)| {
            let is_sound = *start <= end && (*start == 0) == (*name == HEADER);
            is_sound
                .then(|| ((*name).to_owned(), *start..end))
                .ok_or(GgufError::Damaged("a tensor is not inside"))
        });
        spans.collect()
    }
}

/// How ggml writes numbers, if we read it.
pub(super) fn kind(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// `enum ggml_type` of `ggml.h`, as far as we refuse it.
pub(super) fn kind_name(number: u32) -> String {
    let names = [
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    let known = names.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned())
}

struct Reader<'a> {
    content: &'a [u8],
    at: usize,
    /// Of all arrays so far.
    n_items: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.content.len());
        let end = end.ok_or(GgufError::Damaged("the header is cut off"))?;
        let taken = &self.content[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let len = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        // Vocabularies of some files have tokens that are no text by themselves.
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    fn value(&mut self, key: &str, kind: u32, depth: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(u8::from_le_bytes(self.array()?) != 0),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, len) = (self.u32()?, self.u64()?);
                self.n_items = self.n_items.saturating_add(len);
                if self.n_items > MAX_ITEMS {
                    return Err(GgufError::TooLong { key: key.to_owned() });
                }
                // Every item takes at least a byte.
                if depth >= MAX_DEPTH || len > (self.content.len() - self.at) as u64 {
                    return Err(GgufError::Damaged("an array is longer than the file"));
                }
                Value::Array(
                    (0..len)
                        .map(|_| self.value(key, kind, depth + 1))
                        .collect::<Result<_, _>>()?,
                )
            }
            10 => Value::Integer(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(GgufError::Damaged("a value has an unknown type")),
        })
    }

    fn info(&mut self) -> Result<Info, GgufError> {
        let n_dimensions = self.u32()?;
        if n_dimensions > MAX_DIMENSIONS {
            return Err(GgufError::Damaged("a tensor has more than four dimensions"));
        }
        let mut shape = (0..n_dimensions)
            .map(|_| Ok(usize::try_from(self.u64()?).unwrap_or(usize::MAX)))
            .collect::<Result<Vec<usize>, GgufError>>()?;
        shape.reverse();
        Ok(Info {
            shape,
            kind: self.u32()?,
            offset: self.u64()?,
            part: 0,
        })
    }
}
