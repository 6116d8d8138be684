//! Speculative decoding: tokens are guessed ahead, one step through the swarm checks all of them, and the wrong ones are
//! taken back. A step costs a round trip through all servers, so each right guess saves one.
//!
//! ```text
//! text ─▶ guess k tokens ─▶ one step of k + 1 ─▶ choose after each, as without guesses ─▶ the first other choice ends it
//!            │  lookup: what followed the last time            │
//!            │  drafter: what a small model would say          └─ Session::rewind behind the last right guess
//!            └─ pace: which of them is worth while, and how many?
//! ```
//!
//! What is chosen never depends on a guess: the sampler keeps no state and sees the same logits, so greedy and drawn
//! texts are those of a run without guesses, token for token, seed for seed. That is the distribution that the rejection
//! rule of Leviathan et al. 2023 and Chen et al. 2023 gives, without its second source of randomness. A draft model's
//! guesses are drawn with the text's own seed and place, so that they are right nearly as often as by that rule (see the
//! sampler); a guess that is certain of itself is right with the same probability. On servers whose sums depend on how
//! many tokens come at once (torch), and where activations are rounded for a whole message, it holds as far as the logits
//! agree.
//!
//! It knows no servers.

mod drafter;
mod lookup;
mod pace;
mod vocabulary;

use std::{ops::AddAssign, time::Duration};

use tracing::warn;

pub(super) use self::drafter::Drafts;
pub use self::vocabulary::{DraftError, DraftModel};
use self::{
    drafter::Drafter,
    pace::{MOST, Offer, Pace, Source},
};
use super::local::LocalError;

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
    /// Steps that had guesses with them.
    pub steps: usize,
    /// Those of `drafted` that a draft model guessed.
    pub drafted_by_model: usize,
    /// Those of `accepted` that a draft model guessed.
    pub accepted_by_model: usize,
}

impl AddAssign for Guesses {
    fn add_assign(&mut self, other: Self) {
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.steps += other.steps;
        self.drafted_by_model += other.drafted_by_model;
        self.accepted_by_model += other.accepted_by_model;
    }
}

impl Guesses {
    /// Right guesses of a step that had some with it; 0 if there was none.
    pub fn accepted_per_step(&self) -> f64 {
        if self.steps == 0 {
            return 0.0;
        }
        self.accepted as f64 / self.steps as f64
    }
}

/// Tokens that may come next; none for a plain step.
#[derive(Debug, Default)]
pub(super) struct Draft {
    source: Option<Source>,
    /// So many are to come from the draft model, and are not here yet.
    pub(super) wanted: usize,
    pub(super) tokens: Vec<u32>,
}

impl Draft {
    /// What sending it adds to what came of guesses.
    pub(super) fn sent(&self) -> Guesses {
        let n = self.tokens.len();
        Guesses {
            drafted: n,
            steps: n.min(1),
            drafted_by_model: if self.is_of_model() { n } else { 0 },
            ..Guesses::default()
        }
    }

    /// What each right token of it adds.
    pub(super) fn accepted(&self) -> Guesses {
        Guesses {
            accepted: 1,
            accepted_by_model: usize::from(self.is_of_model()),
            ..Guesses::default()
        }
    }

    fn is_of_model(&self) -> bool {
        self.source == Some(Source::Model)
    }
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
#[derive(Debug)]
pub(super) struct Speculator {
    mode: Speculate,
    pace: Pace,
    drafter: Option<Drafter>,
    /// A guess that was not sent: whether it was right is learnt all the same.
    untried: Option<(Source, u32)>,
}

impl Speculator {
    /// With a drafter, if there is one to ask.
    pub(super) fn new(mode: Speculate, drafter: Option<Drafter>) -> Self {
        Self {
            mode,
            pace: Pace::default(),
            drafter,
            untried: None,
        }
    }

    /// Has the draft model read a prompt while the servers do.
    pub(super) fn read(&mut self, tokens: &[u32]) {
        if let Some(drafter) = &mut self.drafter
            && !self.pace.is_hopeless(Source::Model)
        {
            let read = drafter.read(tokens);
            self.keep(read);
        }
    }

    /// At most `most` tokens that may follow `tokens`, or how many to ask the draft model for.
    pub(super) async fn draft(&mut self, tokens: &[u32], most: usize) -> Draft {
        let limit = match self.mode {
            Speculate::Off => 0,
            Speculate::Auto => MOST,
            Speculate::Always(n) => n,
        };
        let most = most.min(limit);
        if most == 0 {
            return Draft::default();
        }
        let found = lookup::find(tokens);
        let model = self.drafter.as_ref().map(|_| Source::Model);
        let sources = found.map(|found| Source::Lookup(found.len)).into_iter().chain(model);
        let mut offers: Vec<Offer> = sources.map(|source| Offer { source, most }).collect();
        let mut taken = self.choose(&offers);
        if taken.is_some_and(|offer| offer.source == Source::Model) && !self.has_read(tokens).await {
            self.pace.postponed();
            offers.retain(|offer| offer.source != Source::Model);
            taken = self.choose(&offers);
        }
        let source = taken.map(|offer| offer.source);
        let n = taken.map_or(0, |offer| offer.most);
        let guess = |n: usize| found.map_or_else(Vec::new, |found| found.draft(tokens, n));
        if matches!(source, Some(Source::Lookup(_))) {
            self.untried = None;
            return Draft {
                source,
                wanted: 0,
                tokens: guess(n),
            };
        }
        let first = guess(1).first().copied();
        self.untried = found.map(|found| Source::Lookup(found.len)).zip(first);
        Draft {
            source,
            wanted: n,
            tokens: Vec::new(),
        }
    }

    /// What the draft model has to say after `tokens`: scores of all tokens that it knows. `None` if it fails; the text can
    /// do without.
    pub(super) async fn after(&mut self, tokens: &[u32]) -> Option<Vec<f32>> {
        let logits = self.drafter.as_mut()?.next(tokens).await;
        self.keep(logits)
    }

    /// Notes that the draft model took so long for so many tokens.
    pub(super) fn asked(&mut self, tokens: usize, took: Duration) {
        self.pace.drafted(tokens, took.as_secs_f64());
    }

    /// Notes what came of a step that took so long: the tokens chosen in it, the right guesses first.
    pub(super) fn checked(&mut self, draft: &Draft, chosen: &[u32], took: Duration) {
        self.pace.stepped(draft.tokens.len(), took.as_secs_f64());
        match draft.source.filter(|_| !draft.tokens.is_empty()) {
            Some(source) => {
                let right = chosen.len().saturating_sub(1);
                self.pace.verified(source, draft.tokens.len(), right);
            }
            None => self.pace.postponed(),
        }
        if let (Some((source, token)), Some(first)) = (self.untried.take(), chosen.first()) {
            self.pace.verified(source, 1, usize::from(token == *first));
        }
    }

    fn choose(&mut self, offers: &[Offer]) -> Option<Offer> {
        match self.mode {
            Speculate::Always(_) => self.pace.most_right(offers),
            Speculate::Off | Speculate::Auto => self.pace.choose(offers),
        }
    }

    /// Whether the draft model can go on from `tokens` at once. Only those who always guess wait for that.
    async fn has_read(&mut self, tokens: &[u32]) -> bool {
        let Some(drafter) = &mut self.drafter else { return false };
        let read = match self.mode {
            Speculate::Always(_) => drafter.catch_up(tokens).await.map(|()| true),
            Speculate::Off | Speculate::Auto => drafter.read(tokens),
        };
        self.keep(read).unwrap_or(false)
    }

    /// Gives up a draft model that failed.
    fn keep<T>(&mut self, outcome: Result<T, LocalError>) -> Option<T> {
        if let Err(error) = &outcome {
            let error: &dyn std::error::Error = error;
            warn!(error, "the draft model fails, going on without it");
            self.drafter = None;
        }
        outcome.ok()
    }
}

#[cfg(test)]
mod tests;
