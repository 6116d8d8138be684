//! Logits to a token: greedy or drawn, with the penalties and filters of transformers in transformers' order. It knows no
//! tensors and keeps no history; the caller passes both.

use std::cmp::Ordering;

use rand::{Rng, SeedableRng, rngs::StdRng};
use thiserror::Error;

/// How the next token is chosen. The default is greedy.
///
/// The order and the arithmetic are those of transformers 4.43 (`generation/logits_process.py`): repetition penalty,
/// then, when drawing, temperature, top-k, top-p.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before drawing; 0 means greedy.
    pub temperature: f32,
    /// Only the `top_k` highest logits are drawn from (more if several are equal to the lowest of them); 0 means all.
    pub top_k: usize,
    /// Only the most probable tokens that together reach this probability are drawn from; 1 means all.
    pub top_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred before, prompt included; 1 means none.
    pub repetition_penalty: f32,
    /// Start of the random sequence. The same seed gives the same draws in the same release of this program.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// A parameter out of its range, or logits that no choice can be made from.
#[derive(Debug, Error, PartialEq)]
pub enum SampleError {
    /// Negative or not a number.
    #[error("temperature must be a number >= 0, not {0}")]
    Temperature(f32),
    /// Not a probability.
    #[error("top-p must be above 0 and at most 1, not {0}")]
    TopP(f32),
    /// Zero, negative or not a number.
    #[error("repetition penalty must be a number above 0, not {0}")]
    RepetitionPenalty(f32),
    /// A computation went wrong on the way: some server of the route returned values that are not numbers.
    #[error("the model's output is not a number for some token: a server computes wrongly")]
    NotANumber,
    /// No logits at all, or all of them minus infinity.
    #[error("the model's output rules out every token")]
    NoCandidate,
}

/// Chooses tokens, one after another; holds the random state.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: StdRng,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    /// Before softmax; 0 for the highest, so that no temperature makes it overflow.
    score: f32,
}

impl Sampler {
    /// Checks the parameters and starts the random sequence.
    ///
    /// # Errors
    /// A parameter is out of its range.
    pub fn new(params: SamplingParams) -> Result<Self, SampleError> {
        if !(params.temperature >= 0.0 && params.temperature.is_finite()) {
            return Err(SampleError::Temperature(params.temperature));
        }
        if !(params.top_p > 0.0 && params.top_p <= 1.0) {
            return Err(SampleError::TopP(params.top_p));
        }
        if !(params.repetition_penalty > 0.0 && params.repetition_penalty.is_finite()) {
            return Err(SampleError::RepetitionPenalty(params.repetition_penalty));
        }
        let rng = StdRng::seed_from_u64(params.seed);
        Ok(Self { params, rng })
    }

    /// The next token. `logits` has one number per token of the vocabulary, `history` the ids of prompt and output so far.
    /// Of equal highest logits the lowest id wins when greedy, as `torch.argmax` on a CPU.
    ///
    /// # Errors
    /// The logits are not numbers or rule out every token.
    pub fn next(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SampleError> {
        let mut scores = logits.to_vec();
        penalise(&mut scores, history, self.params.repetition_penalty);
        if scores.iter().any(|score| score.is_nan() || *score == f32::INFINITY) {
            return Err(SampleError::NotANumber);
        }
        if self.params.temperature == 0.0 {
            return highest(&scores);
        }
        let drawn_from = candidates(&scores, &self.params);
        let drawn = self.draw(&weights(&drawn_from));
        drawn_from
            .get(drawn)
            .map(|candidate| candidate.token)
            .ok_or(SampleError::NoCandidate)
    }

    /// An index into `weights`, each with a chance in proportion to its value.
    fn draw(&mut self, weights: &[f32]) -> usize {
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let mut left = self.rng.random::<f64>() * total;
        for (index, &weight) in weights.iter().enumerate() {
            left -= f64::from(weight);
            if left < 0.0 {
                return index;
            }
        }
        // Rounding left a crumb: it belongs to the last one that has a chance at all.
        weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0)
    }
}

fn highest(scores: &[f32]) -> Result<u32, SampleError> {
    let mut best: Option<(usize, f32)> = None;
    for (token, &score) in scores.iter().enumerate() {
        if score > best.map_or(f32::NEG_INFINITY, |(_, best)| best) {
            best = Some((token, score));
        }
    }
    best.map(|(token, _)| token as u32).ok_or(SampleError::NoCandidate)
}

/// `RepetitionPenaltyLogitsProcessor`: each token that occurred is penalised once, however often it occurred.
fn penalise(scores: &mut [f32], history: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen: Vec<u32> = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = if *score < 0.0 {
                *score * penalty
            } else {
                *score / penalty
            };
        }
    }
}

/// Temperature, top-k and top-p: who remains, the most probable first, equals by id.
fn candidates(scores: &[f32], params: &SamplingParams) -> Vec<Candidate> {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut remaining: Vec<Candidate> = scores
        .iter()
        .enumerate()
        .filter(|(_, score)| **score > f32::NEG_INFINITY)
        .map(|(token, score)| Candidate {
            token: token as u32,
            score: (score - top) / params.temperature,
        })
        .collect();
    keep_top_k(&mut remaining, params.top_k);
    remaining.sort_unstable_by(most_probable_first);
    keep_top_p(&mut remaining, params.top_p);
    remaining
}

fn most_probable_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.token.cmp(&b.token))
}

/// `TopKLogitsWarper`: everything below the k-th highest score goes, its equals stay.
fn keep_top_k(remaining: &mut Vec<Candidate>, top_k: usize) {
    if top_k == 0 || top_k >= remaining.len() {
        return;
    }
    let (_, lowest_kept, _) = remaining.select_nth_unstable_by(top_k - 1, most_probable_first);
    let lowest_kept = lowest_kept.score;
    remaining.retain(|candidate| candidate.score >= lowest_kept);
}

/// `TopPLogitsWarper`: from the least probable up, tokens go while their sum is at most `1 - top_p`; one always stays.
fn keep_top_p(remaining: &mut Vec<Candidate>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let weights = weights(remaining);
    let total: f32 = weights.iter().rev().sum();
    let mut tail = 0.0;
    let dropped = weights
        .iter()
        .rev()
        .take_while(|weight| {
            tail += **weight / total;
            tail <= 1.0 - top_p
        })
        .count();
    remaining.truncate(remaining.len().saturating_sub(dropped).max(1));
}

/// Softmax without the division: the highest has weight 1.
fn weights(candidates: &[Candidate]) -> Vec<f32> {
    candidates.iter().map(|candidate| candidate.score.exp()).collect()
}

#[cfg(test)]
mod tests;
