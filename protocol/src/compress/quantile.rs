//! QUANTILE_8BIT, the encoder: 256 bins of about equally many items.
//!
//! Layout and decoder are in `codebook.rs`.

use bytes::Bytes;

use super::{Head, codebook, codebook::N_BINS};

/// Items sorted together. Longer tensors get quantiles of the quantiles of such chunks, which differ little from their
/// true ones: Hivemind does the same at the same size.
const CHUNK_ITEMS: usize = 100_000;

pub(super) fn encode(head: &Head, data: &[u8]) -> Bytes {
    let values = super::values(head, data);
    let borders = borders(&values);
    let codes: Vec<u8> = values.iter().map(|value| code(&borders, *value)).collect();
    codebook::encode(&values, &codes)
}

/// The bin of a value: how many borders are below it.
fn code(borders: &[f32], value: f32) -> u8 {
    borders.partition_point(|border| *border < value) as u8
}

/// The 255 borders between bins; none for an empty tensor.
fn borders(values: &[f32]) -> Vec<f32> {
    let mut sorted = values.to_vec();
    let n_chunks = values.len().div_ceil(CHUNK_ITEMS).max(1);
    let mut pooled = Vec::new();
    for chunk in sorted.chunks_mut(values.len().div_ceil(n_chunks).max(1)) {
        chunk.sort_unstable_by(f32::total_cmp);
        pooled.extend((0..=N_BINS).map(|i| quantile(chunk, i)));
    }
    if n_chunks > 1 {
        pooled.sort_unstable_by(f32::total_cmp);
        pooled = (0..=N_BINS).map(|i| quantile(&pooled, i)).collect();
    }
    pooled.get(1..N_BINS).map(<[f32]>::to_vec).unwrap_or_default()
}

/// The `i`-th of the 257 evenly spaced quantiles of sorted, non-empty values, between neighbours where it falls there.
fn quantile(sorted: &[f32], i: usize) -> f32 {
    let last = sorted.len() - 1;
    let position = last as f64 * i as f64 / N_BINS as f64;
    let below = position as usize;
    let above = (below + 1).min(last);
    let (low, high) = (f64::from(sorted[below]), f64::from(sorted[above]));
    (low + (high - low) * position.fract()) as f32
}
