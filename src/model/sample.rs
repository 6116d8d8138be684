//! Logits to a token: greedy or drawn, with the penalties and filters of transformers in transformers' order. It knows no
//! tensors and keeps no history; the caller passes both. Nor does it keep a random state: what is drawn depends on the
//! seed, on the place in the text and on the probabilities there, so whoever guesses tokens ahead (`client/speculate`)
//! gets the same text as whoever does not.
//!
//! ```text
//! logits ─▶ bias ─▶ penalties ─▶ what is allowed ─▶ temperature ─▶ top-k ─▶ top-p ─▶ min-p ─▶ token
//!    └────▶ log-probabilities, of the distribution as the model gave it
//! ```

mod logprobs;
mod noise;
mod penalties;

use std::cmp::Ordering;

use thiserror::Error;

pub use self::logprobs::Logprobs;
use self::noise::Noise;

/// How the next token is chosen. The default is greedy.
///
/// The order and the arithmetic are those of transformers 4.57 (`generation/logits_process.py`): biases, repetition penalty,
/// then, when drawing, temperature, top-k, top-p, min-p. Presence and frequency penalties, which transformers has not, are
/// those of OpenAI's API and come after the repetition penalty, as in vLLM.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before drawing; 0 means greedy.
    pub temperature: f32,
    /// Only the `top_k` highest logits are drawn from (more if several are equal to the lowest of them); 0 means all.
    pub top_k: usize,
    /// Only the most probable tokens that together reach this probability are drawn from; 1 means all.
    pub top_p: f32,
    /// Only tokens are drawn that are at least so many times as probable as the most probable one; 0 means all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred before, prompt included; 1 means none.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens that were generated before, -2 to 2; 0 means none.
    pub presence_penalty: f32,
    /// Taken off as often as a token was generated before, -2 to 2; 0 means none.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens, before everything else.
    pub logit_bias: Vec<(u32, f32)>,
    /// Log-probabilities to tell with each token: how many of the most probable ones, besides the one that was chosen.
    pub logprobs: Option<usize>,
    /// What draws depend on. The same seed gives the same draws in the same release of this program.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
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
    /// Not a share.
    #[error("min-p must be at least 0 and at most 1, not {0}")]
    MinP(f32),
    /// Zero, negative or not a number.
    #[error("repetition penalty must be a number above 0, not {0}")]
    RepetitionPenalty(f32),
    /// Beyond what the API of OpenAI allows.
    #[error("presence and frequency penalties must be from -2 to 2, not {0}")]
    Penalty(f32),
    /// Not a number.
    #[error("the bias of token {0} must be a number")]
    Bias(u32),
    /// More log-probabilities than are told.
    #[error("at most {MAX_LOGPROBS} log-probabilities are told for a token, not {0}")]
    Logprobs(usize),
    /// A computation went wrong on the way: some server of the route returned values that are not numbers.
    #[error("the model's output is not a number for some token: a server computes wrongly")]
    NotANumber,
    /// No logits at all, or all of them minus infinity.
    #[error("the model's output rules out every token")]
    NoCandidate,
}

/// Most log-probabilities told for one token; OpenAI and vLLM tell 20.
pub const MAX_LOGPROBS: usize = 20;
/// OpenAI's range of presence and frequency penalties, on both sides of 0.
const MAX_PENALTY: f32 = 2.0;

/// The tokens so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen<'a> {
    /// What the model was given.
    pub prompt: &'a [u32],
    /// What was generated.
    pub output: &'a [u32],
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// How probable it was, where that was asked for.
    pub logprobs: Option<Logprobs>,
}

/// Chooses tokens, each by itself.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    /// Before softmax; 0 for the highest, so that no temperature makes it overflow.
    score: f32,
}

impl Sampler {
    /// Checks the parameters.
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
        if !(0.0..=1.0).contains(&params.min_p) {
            return Err(SampleError::MinP(params.min_p));
        }
        for penalty in [params.presence_penalty, params.frequency_penalty] {
            if !(-MAX_PENALTY..=MAX_PENALTY).contains(&penalty) {
                return Err(SampleError::Penalty(penalty));
            }
        }
        if let Some((token, _)) = params.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            return Err(SampleError::Bias(*token));
        }
        if let Some(wanted) = params.logprobs.filter(|wanted| *wanted > MAX_LOGPROBS) {
            return Err(SampleError::Logprobs(wanted));
        }
        if !(params.repetition_penalty > 0.0 && params.repetition_penalty.is_finite()) {
            return Err(SampleError::RepetitionPenalty(params.repetition_penalty));
        }
        Ok(Self { params })
    }

    /// The next token. `logits` has one number per token of the vocabulary; `allows` rules tokens out. Of equal highest
    /// logits the lowest id wins when greedy, as `torch.argmax` on a CPU. The same arguments give the same token.
    ///
    /// # Errors
    /// The logits are not numbers or every token is ruled out.
    pub fn next(
        &self,
        logits: &[f32],
        seen: Seen<'_>,
        allows: Option<&dyn Fn(u32) -> bool>,
    ) -> Result<Choice, SampleError> {
        if logits.iter().any(|score| score.is_nan() || *score == f32::INFINITY) {
            return Err(SampleError::NotANumber);
        }
        let mut scores = logits.to_vec();
        penalties::apply(&mut scores, seen, &self.params);
        if let Some(allows) = allows {
            for (token, score) in scores.iter_mut().enumerate() {
                if !allows(token as u32) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        let token = if self.params.temperature == 0.0 {
            highest(&scores)?
        } else {
            let noise = Noise::new(self.params.seed, seen.prompt.len() + seen.output.len());
            draw(&candidates(&scores, &self.params), noise).ok_or(SampleError::NoCandidate)?
        };
        Ok(Choice {
            token,
            logprobs: self.params.logprobs.map(|top| Logprobs::of(logits, token, top)),
        })
    }
}

/// One of the candidates, each with a chance in proportion to its weight: the first to finish, if each runs for an
/// exponentially distributed time divided by its weight. As the time belongs to the token, two distributions that are
/// alike mostly give the same token, which is what lets a small model's guesses be right (Daliri, Musco and Suresh 2024,
/// "Coupling without communication and drafter-invariant speculative decoding").
fn draw(candidates: &[Candidate], noise: Noise) -> Option<u32> {
    let finish = |candidate: &Candidate| noise.exponential(candidate.token) / f64::from(candidate.score.exp());
    let times = candidates.iter().map(|candidate| (finish(candidate), candidate.token));
    times.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, token)| token)
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

/// Temperature, top-k, top-p and min-p: who remains, the most probable first, equals by id.
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
    keep_min_p(&mut remaining, params.min_p);
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

/// `MinPLogitsWarper`: what is less probable than `min_p` of the most probable goes. Sorted candidates in, sorted out.
fn keep_min_p(remaining: &mut Vec<Candidate>, min_p: f32) {
    if min_p > 0.0 {
        remaining.retain(|candidate| candidate.score.exp() >= min_p);
    }
}

/// Softmax without the division: the highest has weight 1.
fn weights(candidates: &[Candidate]) -> Vec<f32> {
    candidates.iter().map(|candidate| candidate.score.exp()).collect()
}

#[cfg(test)]
mod tests;
