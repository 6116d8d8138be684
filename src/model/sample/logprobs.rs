//! How probable tokens were: natural logarithms of the softmax of the logits as the model gave them.

use std::cmp::Ordering;

/// Log-probabilities at one place of the output. They are those of the unmodified distribution, before biases, penalties,
/// temperature and filters, as vLLM's `raw_logprobs`, its default; OpenAI does not say.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token that was chosen, which need not be among the most probable.
    pub chosen: f32,
    /// The most probable tokens, the first one most; equals by id.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of `token` and of the `top` most probable.
    pub(super) fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
        let log_sum = f64::from(highest) + sum.ln();
        let logprob = |token: u32| {
            let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            (f64::from(logit) - log_sum) as f32
        };
        let by_logit = |a: &u32, b: &u32| -> Ordering {
            let logit = |token: &u32| logits.get(*token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            logit(b).total_cmp(&logit(a)).then(a.cmp(b))
        };
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        if (1..tokens.len()).contains(&top) {
            tokens.select_nth_unstable_by(top - 1, by_logit);
        }
        tokens.truncate(top);
        tokens.sort_unstable_by(by_logit);
        Self {
            chosen: logprob(token),
            top: tokens.into_iter().map(|token| (token, logprob(token))).collect(),
        }
    }
}
