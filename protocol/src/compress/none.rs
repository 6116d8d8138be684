//! NONE: the items themselves, N × item.
//!
//! One exception: Hivemind's own default sends bfloat16 as 4-byte floats, Petals as 2 raw bytes. Nothing in the message
//! tells them apart but its length, so both are accepted; 2 bytes are sent, which every Petals version understands.

use bytes::Bytes;

use super::Head;
use crate::tensor::{DType, TensorError, build, read_f32};

/// Which items a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Those of the dtype.
    Raw,
    /// Floats, each of them a widened bfloat16.
    LegacyBf16,
}

impl Encoding {
    pub(super) fn of(head: &Head, buffer: &[u8]) -> Result<Encoding, TensorError> {
        let n_items = head.n_items as u64;
        if head.dtype == DType::Bf16 && n_items > 0 && buffer.len() as u64 == n_items * 4 {
            return Ok(Encoding::LegacyBf16);
        }
        head.check_length(n_items * head.dtype.size() as u64, buffer.len())?;
        Ok(Encoding::Raw)
    }
}

pub(super) fn decode(head: &Head, buffer: &Bytes) -> Result<Bytes, TensorError> {
    Ok(match Encoding::of(head, buffer)? {
        Encoding::Raw => buffer.clone(),
        Encoding::LegacyBf16 => build(DType::Bf16, head.n_items, |start, block| {
            read_f32(DType::F32, &buffer[start * 4..], block)
        }),
    })
}
