//! Speculative decoding: tokens are guessed ahead, one step through the swarm checks all of them, and the wrong ones are
//! taken back. A step costs a round trip through all servers, so each right guess saves one.
//!
//! ```text
//! text ─▶ guess k tokens ─▶ one step of k + 1 ─▶ choose after each, as without guesses ─▶ the first other choice ends it
//!            │  lookup: what followed the last time            │
//!            └─ pace: is it worth while, and how many?         └─ Session::rewind behind the last right guess
//! ```
//!
//! What is chosen never depends on a guess: the sampler keeps no state and sees the same logits, so greedy and drawn
//! texts are those of a run without guesses, token for token, seed for seed. That is the distribution that the rejection
//! rule of Leviathan et al. 2023 and Chen et al. 2023 gives, without its second source of randomness; a guess is right
//! with the same probability. On servers whose sums depend on how many tokens come at once (torch), and where activations
//! are rounded for a whole message, it holds as far as the logits agree.
//!
//! It knows no servers and computes no blocks.

mod lookup;
mod pace;

use std::time::Duration;

use self::pace::{MOST, Offer, Pace};

/// Whether tokens are guessed ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculate {
    /// Never.
    #[default]
    Off,
    /// As many as pay, by what steps take and how many guesses are right.
    Auto,
    /// So many at each step, whether that pays or not.
    Always(usize),
}

/// What came of guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guesses {
    /// Tokens that were guessed and sent to the servers.
    pub drafted: usize,
    /// Those of them that are in the output.
    pub accepted: usize,
}

/// Tokens that may come next; none for a plain step.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// Tokens that agree with those before.
    matched: usize,
    pub(super) tokens: Vec<u32>,
}

/// Calls `choose` for the token at each place that `draft` reaches, as long as its guesses are right: at least once, at
/// most once more than there are guesses. `choose` knows nothing of the guesses; it returns the token, and whether it is
/// the last one.
///
/// # Errors
/// Those of `choose`.
pub(super) fn verify<E>(draft: &[u32], mut choose: impl FnMut() -> Result<(u32, bool), E>) -> Result<(), E> {
    for guess in draft.iter().copied().map(Some).chain([None]) {
        let (token, last) = choose()?;
        if last || guess != Some(token) {
            break;
        }
    }
    Ok(())
}

/// Guesses for one text, and what is known of earlier ones.
#[derive(Clone, Debug)]
pub(super) struct Speculator {
    mode: Speculate,
    pace: Pace,
    /// A guess that was not worth while to send: whether it was right is learnt all the same.
    untried: Option<(usize, u32)>,
}

impl Speculator {
    pub(super) fn new(mode: Speculate) -> Self {
        Self {
            mode,
            pace: Pace::default(),
            untried: None,
        }
    }

    /// At most `most` tokens that may follow `tokens`.
    pub(super) fn draft(&mut self, tokens: &[u32], most: usize) -> Draft {
        let limit = match self.mode {
            Speculate::Off => 0,
            Speculate::Auto => MOST,
            Speculate::Always(n) => n,
        };
        let Some(found) = lookup::find(tokens).filter(|_| limit > 0) else {
            return Draft::default();
        };
        let matched = found.len;
        let most = most.min(limit);
        let taken = match self.mode {
            Speculate::Always(_) => most,
            Speculate::Off | Speculate::Auto => self.pace.choose(Offer { matched, most }),
        };
        if taken == 0 {
            self.untried = found.draft(tokens, 1).first().map(|token| (matched, *token));
        }
        Draft {
            matched,
            tokens: found.draft(tokens, taken),
        }
    }

    /// Notes what came of a step that took so long: the tokens chosen in it, the right guesses first.
    pub(super) fn checked(&mut self, draft: &Draft, chosen: &[u32], took: Duration) {
        self.pace.stepped(draft.tokens.len(), took.as_secs_f64());
        if !draft.tokens.is_empty() {
            let right = chosen.len().saturating_sub(1);
            self.pace.verified(draft.matched, draft.tokens.len(), right);
        }
        if let (Some((matched, token)), Some(first)) = (self.untried.take(), chosen.first()) {
            self.pace.verified(matched, 1, usize::from(token == *first));
        }
    }
}

#[cfg(test)]
mod tests;
