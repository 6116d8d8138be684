//! What a weight format costs in accuracy: the logits and block outputs of one against those of another. It only
//! compares numbers; what to compare is the caller's.

use super::{Blocks, ComputeError, Ends};

/// How far the logits of one model are from those of another for the same texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitDistance {
    /// Kullback-Leibler divergence of the next token's distribution from the reference's: mean over positions, in nats.
    pub divergence: f64,
    /// Share of positions where both have the same most likely token.
    pub top_agreement: f64,
}

/// The logits after every token of a text, `[tokens, vocabulary]`, by a model whose blocks are all loaded.
///
/// # Errors
/// A token that the model does not have, or `blocks` and `ends` of different models.
pub fn logits(blocks: &Blocks, ends: &Ends, tokens: &[u32]) -> Result<Vec<f32>, ComputeError> {
    let mut x = ends.embed(tokens)?;
    for block in blocks.span() {
        blocks.forward(block, &mut x)?;
    }
    ends.logits(&x.data)
}

/// The distance of `logits` from `reference`, both `[positions, vocabulary]`.
///
/// # Panics
/// If they have different lengths, are empty, or are not whole positions.
pub fn logit_distance(reference: &[f32], logits: &[f32], vocabulary: usize) -> LogitDistance {
    assert_eq!(reference.len(), logits.len(), "logits of different texts");
    assert!(
        !logits.is_empty() && logits.len().is_multiple_of(vocabulary),
        "logits are not whole positions"
    );
    let positions = (logits.len() / vocabulary) as f64;
    let pairs = || reference.chunks_exact(vocabulary).zip(logits.chunks_exact(vocabulary));
    let same = pairs().filter(|(reference, logits)| most_likely(reference) == most_likely(logits));
    LogitDistance {
        divergence: pairs().map(|(p, q)| divergence(p, q)).sum::<f64>() / positions,
        top_agreement: same.count() as f64 / positions,
    }
}

/// The largest difference of any output of a block, over the root mean square of the reference's.
///
/// # Panics
/// If the two have different lengths.
pub fn max_error(reference: &[f32], output: &[f32]) -> f64 {
    assert_eq!(reference.len(), output.len(), "outputs of different inputs");
    let largest = reference
        .iter()
        .zip(output)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    let squares: f64 = reference.iter().map(|x| f64::from(*x).powi(2)).sum();
    largest.fold(0.0, f64::max) / (squares / reference.len().max(1) as f64).sqrt()
}

fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    // Rounding may leave a divergence of almost nothing below zero.
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::MIN, |max, x| max.max(f64::from(*x)));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    logits.iter().map(|x| f64::from(*x) - max - sum.ln()).collect()
}

fn most_likely(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

#[cfg(test)]
mod tests;
