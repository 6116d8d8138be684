//! What QUANTILE_8BIT and UNIFORM_8BIT share: i64 C ‖ C × f32 codebook ‖ N × u8 index into it.
//!
//! The two differ only in how the encoder chooses bins. C is 256 in every Hivemind version; any size is read.

use bytes::Bytes;

use super::Head;
use crate::tensor::{DType, TensorError, build, read_f32};

/// Bins of a byte, and entries of the codebooks that are sent.
pub(super) const N_BINS: usize = 256;

/// Bytes of a count in a header.
pub(super) const COUNT_BYTES: usize = 8;

/// The parts of a buffer.
pub(super) struct Parts<'a> {
    pub(super) codebook: &'a [u8],
    pub(super) codes: &'a [u8],
}

pub(super) fn parse<'a>(head: &Head, buffer: &'a [u8]) -> Result<Parts<'a>, TensorError> {
    let (size, rest) = read_count(head, buffer, COUNT_BYTES)?;
    head.check_length((COUNT_BYTES + size * 4) as u64 + head.n_items as u64, buffer.len())?;
    let (codebook, codes) = rest.split_at(size * 4);
    Ok(Parts { codebook, codes })
}

/// Reads the count of a table of 4-byte entries at the start of `buffer`, and what follows the count. A count whose
/// table could not fit the rest of the buffer is refused, so that it can be computed with. `header` is the size of the
/// whole header, for the error.
pub(super) fn read_count<'a>(head: &Head, buffer: &'a [u8], header: usize) -> Result<(usize, &'a [u8]), TensorError> {
    let Some((count, rest)) = buffer.split_first_chunk() else {
        return Err(head.length_error((header + head.n_items) as u64, buffer.len()));
    };
    let claimed = i64::from_le_bytes(*count);
    let fits = usize::try_from(claimed).ok().filter(|count| *count <= rest.len() / 4);
    fits.map(|count| (count, rest)).ok_or(TensorError::Header {
        compression: head.compression,
        claimed,
    })
}

pub(super) fn decode(head: &Head, buffer: &[u8]) -> Result<Bytes, TensorError> {
    let parts = parse(head, buffer)?;
    let table = table(&parts)?;
    Ok(build(head.dtype, head.n_items, |start, block| {
        look_up(&table, &parts.codes[start..], block)
    }))
}

/// The codebook, filled up to one entry for each possible code after checking that no code needs the filling.
pub(super) fn table(parts: &Parts<'_>) -> Result<[f32; N_BINS], TensorError> {
    let size = parts.codebook.len() / 4;
    if let Some(index) = parts
        .codes
        .iter()
        .copied()
        .max()
        .filter(|max| usize::from(*max) >= size)
    {
        return Err(TensorError::OutsideCodebook { index, size });
    }
    let mut table = [0.0; N_BINS];
    read_f32(DType::F32, parts.codebook, &mut table);
    Ok(table)
}

/// Writes the table's value of each code.
pub(super) fn look_up(table: &[f32; N_BINS], codes: &[u8], values: &mut [f32]) {
    for (value, code) in values.iter_mut().zip(codes) {
        *value = table[usize::from(*code)];
    }
}

/// The buffer for these codes: each bin's codebook entry is the mean of its members, 0 for an empty bin.
pub(super) fn encode(values: &[f32], codes: &[u8]) -> Bytes {
    let mut sums = [0.0f64; N_BINS];
    let mut counts = [0u64; N_BINS];
    for (value, code) in values.iter().zip(codes) {
        sums[usize::from(*code)] += f64::from(*value);
        counts[usize::from(*code)] += 1;
    }
    let mut buffer = Vec::with_capacity(COUNT_BYTES + N_BINS * 4 + codes.len());
    buffer.extend_from_slice(&(N_BINS as i64).to_le_bytes());
    for (sum, count) in sums.iter().zip(counts) {
        let mean = (sum / count.max(1) as f64) as f32;
        buffer.extend_from_slice(&mean.to_le_bytes());
    }
    buffer.extend_from_slice(codes);
    Bytes::from(buffer)
}
