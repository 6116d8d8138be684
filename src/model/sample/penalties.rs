//! What is added to and taken off the logits before a token is chosen: biases, and penalties for tokens that were there.

use std::collections::HashMap;

use super::{SamplingParams, Seen};

/// Changes `scores`, one for each token of the vocabulary, in the order that [`SamplingParams`] tells.
pub(super) fn apply(scores: &mut [f32], seen: Seen<'_>, params: &SamplingParams) {
    // `SequenceBiasLogitsProcessor` with sequences of one token.
    for (token, bias) in &params.logit_bias {
        if let Some(score) = scores.get_mut(*token as usize) {
            *score += bias;
        }
    }
    penalise_repetition(scores, seen, params.repetition_penalty);
    penalise_output(scores, seen.output, params);
}

/// `RepetitionPenaltyLogitsProcessor`: each token that occurred is penalised once, however often it occurred.
fn penalise_repetition(scores: &mut [f32], seen: Seen<'_>, penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut occurred = [seen.prompt, seen.output].concat();
    occurred.sort_unstable();
    occurred.dedup();
    for token in occurred {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = if *score < 0.0 {
                *score * penalty
            } else {
                *score / penalty
            };
        }
    }
}

/// OpenAI's formula: `logit - count · frequency_penalty - (count > 0) · presence_penalty`, counted in the output.
fn penalise_output(scores: &mut [f32], output: &[u32], params: &SamplingParams) {
    if params.presence_penalty == 0.0 && params.frequency_penalty == 0.0 {
        return;
    }
    let mut counts: HashMap<u32, f32> = HashMap::new();
    for token in output {
        *counts.entry(*token).or_default() += 1.0;
    }
    for (token, count) in counts {
        if let Some(score) = scores.get_mut(token as usize) {
            *score -= count * params.frequency_penalty + params.presence_penalty;
        }
    }
}
