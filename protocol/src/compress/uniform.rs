//! UNIFORM_8BIT, the encoder: 256 bins of equal width, six standard deviations in all, centred on the mean.
//!
//! What lies outside goes to the outermost bins. Layout and decoder are in `codebook.rs`.

use bytes::Bytes;

use super::{Head, codebook};

/// Width of all bins together, in standard deviations (Hivemind's `RANGE_IN_SIGMAS`).
const RANGE_IN_STDS: f64 = 6.0;

/// Code of the mean.
const CENTRE: f32 = 128.0;

pub(super) fn encode(head: &Head, data: &[u8]) -> Bytes {
    let values = super::values(head, data);
    let n_items = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / n_items;
    let squares = values
        .iter()
        .map(|value| (f64::from(*value) - mean).powi(2))
        .sum::<f64>();
    let bin = RANGE_IN_STDS * (squares / (n_items - 1.0)).sqrt() / codebook::N_BINS as f64;
    // A constant tensor or a single item has no usable width: it goes to the centre. A tensor with NaN goes to one bin,
    // whose mean is NaN: the receiver sees that something was broken.
    let per_value = if bin.is_finite() && bin > 0.0 {
        1.0 / bin as f32
    } else {
        0.0
    };
    let mean = mean as f32;
    let code = |value: &f32| ((value - mean) * per_value).round_ties_even() + CENTRE;
    let codes: Vec<u8> = values.iter().map(|value| code(value) as u8).collect();
    codebook::encode(&values, &codes)
}
