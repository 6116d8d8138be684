//! The reader of MessagePack: one pass over the bytes, bounded in depth, allocating only what the bytes can fill.

use super::{EXT_TUPLE, Value};
use crate::error::WireError;

/// How deep containers may be nested, tuples included. Real messages need six levels.
pub const MAX_DEPTH: usize = 32;

const WHAT: &str = "MessagePack value";

/// The value that the bytes encode, and nothing after it.
///
/// # Errors
/// [`WireError`] if the bytes are cut off, go on, are nested deeper than [`MAX_DEPTH`], or are something that Python's
/// reader refuses.
pub fn decode(bytes: &[u8]) -> Result<Value, WireError> {
    let mut n_values_left = bytes.len();
    decode_at(bytes, 0, &mut n_values_left)
}

fn decode_at(bytes: &[u8], depth: usize, n_values_left: &mut usize) -> Result<Value, WireError> {
    let mut reader = Reader {
        rest: bytes,
        n_values_left,
    };
    let value = reader.value(depth)?;
    match reader.rest.len() {
        0 => Ok(value),
        extra => Err(WireError::Trailing { what: WHAT, extra }),
    }
}

struct Reader<'b, 'n> {
    rest: &'b [u8],
    /// How many more values the whole input can hold at most. Memory is reserved only for those.
    n_values_left: &'n mut usize,
}

impl<'b> Reader<'b, '_> {
    fn take(&mut self, len: usize) -> Result<&'b [u8], WireError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(WireError::Truncated { what: WHAT })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(WireError::Truncated { what: WHAT })?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A big-endian length of one, two or four bytes.
    fn len(&mut self, width: u8) -> Result<usize, WireError> {
        let bytes = self.take(usize::from(width))?;
        let len = bytes.iter().fold(0_u64, |len, byte| len << 8 | u64::from(*byte));
        usize::try_from(len).map_err(|_| WireError::Truncated { what: WHAT })
    }

    fn value(&mut self, depth: usize) -> Result<Value, WireError> {
        let [marker] = self.array()?;
        match marker {
            0x00..=0x7f => Ok(Value::from(marker)),
            0x80..=0x8f => self.map(usize::from(marker & 0x0f), depth),
            0x90..=0x9f => self.elements(usize::from(marker & 0x0f), depth),
            0xa0..=0xbf => self.text(usize::from(marker & 0x1f)),
            0xc0 => Ok(Value::Nil),
            0xc1 => Err(WireError::Malformed {
                what: WHAT,
                problem: "the byte c1 begins nothing",
            }),
            0xc2 => Ok(Value::Boolean(false)),
            0xc3 => Ok(Value::Boolean(true)),
            0xc4..=0xc6 => {
                let len = self.len(1 << (marker - 0xc4))?;
                Ok(Value::Binary(self.take(len)?.to_vec()))
            }
            0xc7..=0xc9 => {
                let len = self.len(1 << (marker - 0xc7))?;
                self.extension(len, depth)
            }
            0xca..=0xd3 => self.number(marker),
            0xd4..=0xd8 => self.extension(1 << (marker - 0xd4), depth),
            0xd9..=0xdb => {
                let len = self.len(1 << (marker - 0xd9))?;
                self.text(len)
            }
            0xdc..=0xdd => {
                let len = self.len(2 << (marker - 0xdc))?;
                self.elements(len, depth)
            }
            0xde..=0xdf => {
                let len = self.len(2 << (marker - 0xde))?;
                self.map(len, depth)
            }
            0xe0..=0xff => Ok(Value::from(marker as i8)),
        }
    }

    fn number(&mut self, marker: u8) -> Result<Value, WireError> {
        Ok(match marker {
            0xca => Value::F32(f32::from_be_bytes(self.array()?)),
            0xcb => Value::F64(f64::from_be_bytes(self.array()?)),
            0xcc => Value::from(u8::from_be_bytes(self.array()?)),
            0xcd => Value::from(u16::from_be_bytes(self.array()?)),
            0xce => Value::from(u32::from_be_bytes(self.array()?)),
            0xcf => Value::from(u64::from_be_bytes(self.array()?)),
            0xd0 => Value::from(i8::from_be_bytes(self.array()?)),
            0xd1 => Value::from(i16::from_be_bytes(self.array()?)),
            0xd2 => Value::from(i32::from_be_bytes(self.array()?)),
            _ => Value::from(i64::from_be_bytes(self.array()?)),
        })
    }

    fn text(&mut self, len: usize) -> Result<Value, WireError> {
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| WireError::Malformed {
            what: WHAT,
            problem: "text is not UTF-8",
        })?;
        Ok(Value::from(text))
    }

    /// Depth of what is inside a container at `depth`; refuses a container that announces more values than there are
    /// bytes for. Every value takes at least one byte, in whatever container it is, so one count serves them all.
    fn enter(&mut self, n_values: Option<usize>, depth: usize) -> Result<usize, WireError> {
        if depth >= MAX_DEPTH {
            return Err(WireError::TooDeep {
                what: WHAT,
                limit: MAX_DEPTH,
            });
        }
        let n_left = n_values.and_then(|n_values| self.n_values_left.checked_sub(n_values));
        *self.n_values_left = n_left.ok_or(WireError::Truncated { what: WHAT })?;
        Ok(depth + 1)
    }

    fn elements(&mut self, len: usize, depth: usize) -> Result<Value, WireError> {
        let inside = self.enter(Some(len), depth)?;
        let mut elements = Vec::with_capacity(len);
        for _ in 0..len {
            elements.push(self.value(inside)?);
        }
        Ok(Value::Array(elements))
    }

    fn map(&mut self, len: usize, depth: usize) -> Result<Value, WireError> {
        let inside = self.enter(len.checked_mul(2), depth)?;
        let mut entries = Vec::with_capacity(len);
        for _ in 0..len {
            let key = self.value(inside)?;
            if !matches!(key, Value::String(_) | Value::Binary(_)) {
                return Err(WireError::Malformed {
                    what: WHAT,
                    problem: "a map key is neither text nor bytes",
                });
            }
            entries.push((key, self.value(inside)?));
        }
        Ok(Value::Map(entries))
    }

    /// An extension; the elements of a tuple are checked now, so that a value that was read can be taken apart later.
    fn extension(&mut self, len: usize, depth: usize) -> Result<Value, WireError> {
        let [code] = self.array::<1>()?.map(|byte| byte as i8);
        let payload = self.take(len)?;
        if code == EXT_TUPLE {
            let inside = self.enter(Some(0), depth)?;
            if !matches!(decode_at(payload, inside, self.n_values_left)?, Value::Array(_)) {
                return Err(WireError::Malformed {
                    what: WHAT,
                    problem: "a tuple is not an array inside",
                });
            }
        }
        Ok(Value::Ext(code, payload.to_vec()))
    }
}
