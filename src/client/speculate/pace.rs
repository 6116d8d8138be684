//! How many tokens to guess ahead: as many as bring most tokens per second, by what steps took and how many guesses were
//! right in this session. Pure arithmetic; it is told all numbers and looks at no clock.
//!
//! ```text
//! tokens of a step with k guesses, each right with chance a       1 + a + a² + … + aᵏ
//! seconds of it                                                   plain + k · (further + drafting)
//! ```
//!
//! `plain` is mostly the line; `further` is next to nothing on servers that wait for their memory, and as much as a step
//! on servers that wait for their arithmetic; `drafting` is what a draft model takes for a token, and nothing for what is
//! looked up. Of several sources the one that brings most is taken. Where none beats plain steps nothing is guessed, and
//! from time to time one small guess finds out whether that has changed, ever more rarely while it has not.

/// Most tokens that are guessed ahead.
pub(super) const MOST: usize = 16;
/// A gain that counts; less is lost in what measuring gets wrong.
const WORTHWHILE: f64 = 1.05;
/// Plain steps that are measured before anything is guessed.
const FIRST_PLAIN: u32 = 2;
/// Steps with guesses after which a plain one is measured again.
const RENEW_PLAIN: u32 = 64;
/// What a further token takes before that was measured, in plain steps.
const FURTHER: f64 = 0.15;
/// Most guesses while that is not measured.
const FIRST_GUESS: usize = 4;
/// Guesses of a trial.
const TRIAL: usize = 2;
/// Chances that are let go before a trial, at first and at most.
const SHORTEST_PAUSE: u32 = 16;
const LONGEST_PAUSE: u32 = 512;
/// What a trial hopes for: that a token costs so many times what it did.
const HOPE: f64 = 0.5;
/// A step that took so many times what was expected says nothing about steps: a server was replaced.
const OUTLIER: f64 = 4.0;

/// Where a guess comes from, by how much it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A repetition of so many tokens.
    Lookup(usize),
    /// The draft model.
    Model,
}

/// How often guesses of each kind are right before any was made: after matches of 1, 2, 3, 4 to 6 and more tokens, and
/// those of a draft model.
const FIRST_RIGHT: [f64; 6] = [0.15, 0.35, 0.5, 0.65, 0.8, 0.6];
/// As how many observations that counts.
const FIRST_WEIGHT: u32 = 3;
/// Weight of the newest of many observations, of times and of guesses.
const NEWEST_TIME: f64 = 0.15;
const NEWEST_GUESS: f64 = 0.06;

impl Source {
    fn kind(self) -> usize {
        match self {
            Self::Lookup(len @ ..=3) => len.saturating_sub(1),
            Self::Lookup(4..=6) => 3,
            Self::Lookup(_) => 4,
            Self::Model => 5,
        }
    }

    /// Which pause it has.
    fn slot(self) -> usize {
        usize::from(self == Self::Model)
    }
}

/// A guess that could be made: where from, and of how many tokens at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) source: Source,
    pub(super) most: usize,
}

/// How long a source that does not pay is let go.
#[derive(Clone, Copy, Debug)]
struct Pause {
    /// Chances to let go before a trial.
    length: u32,
    /// Those that were.
    waited: u32,
}

impl Default for Pause {
    fn default() -> Self {
        Self {
            length: SHORTEST_PAUSE,
            waited: 0,
        }
    }
}

/// What is known of the steps of one session.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Seconds of a step of one token.
    plain: Mean,
    /// Seconds that each further token of a step takes.
    further: Mean,
    /// Seconds that the draft model takes for a token.
    drafting: Mean,
    right: [Mean; FIRST_RIGHT.len()],
    since_plain: u32,
    /// Of lookup and of the draft model.
    pauses: [Pause; 2],
    /// Whose guess of this step is a trial.
    trial: Option<Source>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            plain: Mean::default(),
            further: Mean::default(),
            drafting: Mean::default(),
            right: FIRST_RIGHT.map(|value| Mean { value, n: FIRST_WEIGHT }),
            since_plain: 0,
            pauses: [Pause::default(); 2],
            trial: None,
        }
    }
}

impl Pace {
    /// Which of `offers` to take, and how many tokens of it. `None` for a plain step.
    pub(super) fn choose(&mut self, offers: &[Offer]) -> Option<Offer> {
        if self.plain.n < FIRST_PLAIN || self.since_plain >= RENEW_PLAIN {
            return None;
        }
        self.trial = None;
        let best = self.most_gain(offers, 1.0);
        if let Some((_, offer)) = best {
            self.pauses[offer.source.slot()] = Pause::default();
        }
        // What may be better than that. Lookup is learnt of in any case: only where nothing pays it needs a trial.
        let gain = best.map_or(WORTHWHILE, |(gain, _)| gain);
        let others = offers.iter().filter(|offer| match best {
            Some((_, best)) => best.source != Source::Model && offer.source == Source::Model,
            None => true,
        });
        let others: Vec<Offer> = others.copied().collect();
        let hoped = self.most_gain(&others, HOPE).filter(|(hoped, _)| *hoped > gain);
        let best = best.map(|(_, offer)| offer);
        let Some((_, hoped)) = hoped else { return best };
        let pause = &mut self.pauses[hoped.source.slot()];
        pause.waited += 1;
        if pause.waited <= pause.length {
            return best;
        }
        self.trial = Some(hoped.source);
        let most = hoped.most.min(TRIAL);
        Some(Offer { most, ..hoped })
    }

    /// Notes that what was chosen was not guessed after all. A trial is made at the next chance.
    pub(super) fn postponed(&mut self) {
        self.trial = None;
    }

    /// Whether not even a trial of `source` could pay, by what steps take.
    pub(super) fn is_hopeless(&self, source: Source) -> bool {
        let any = [Offer { source, most: MOST }];
        self.plain.n >= FIRST_PLAIN && self.most_gain(&any, HOPE).is_none()
    }

    /// The most trustworthy of `offers`, whatever it costs.
    pub(super) fn most_right(&self, offers: &[Offer]) -> Option<Offer> {
        let right = |offer: &Offer| self.right[offer.source.kind()].value;
        offers.iter().copied().max_by(|a, b| right(a).total_cmp(&right(b)))
    }

    /// Notes that a step with so many guesses took `seconds`.
    pub(super) fn stepped(&mut self, guessed: usize, seconds: f64) {
        let expected = self.plain.value + guessed as f64 * self.further_seconds();
        if self.plain.n > 0 && seconds > OUTLIER * expected.max(self.plain.value * (1 + guessed) as f64) {
            return;
        }
        if guessed == 0 {
            self.plain.add(seconds, NEWEST_TIME);
            self.since_plain = 0;
        } else {
            self.since_plain += 1;
            if self.plain.n > 0 {
                self.further
                    .add((seconds - self.plain.value) / guessed as f64, NEWEST_TIME);
            }
        }
    }

    /// Notes that the draft model took `seconds` for so many tokens.
    pub(super) fn drafted(&mut self, tokens: usize, seconds: f64) {
        if tokens > 0 {
            self.drafting.add(seconds / tokens as f64, NEWEST_TIME);
        }
    }

    /// Notes how many of so many guesses were right, up to the first wrong one.
    pub(super) fn verified(&mut self, source: Source, guessed: usize, right: usize) {
        let mean = &mut self.right[source.kind()];
        for at in 0..guessed.min(right + 1) {
            mean.add(f64::from(u8::from(at < right)), NEWEST_GUESS);
        }
        if self.trial.is_some_and(|trial| trial.slot() == source.slot()) {
            self.trial = None;
            let pause = &mut self.pauses[source.slot()];
            if right == guessed {
                // Worth another one at once.
                pause.waited = pause.length;
            } else {
                (pause.length, pause.waited) = ((pause.length * 2).min(LONGEST_PAUSE), 0);
            }
        }
    }

    /// The best of `offers` that is worth while, and its gain.
    fn most_gain(&self, offers: &[Offer], hope: f64) -> Option<(f64, Offer)> {
        let gains = offers.iter().filter_map(|offer| self.best(*offer, hope));
        gains.max_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// The number of tokens of `offer` that brings most, and how many times the speed of plain steps that is; `None` if
    /// that is not worth while. `hope` is a factor of what tokens cost; whoever hopes also takes a model for as good as
    /// it was at first, because without guesses nobody learns that it has become better.
    fn best(&self, offer: Offer, hope: f64) -> Option<(f64, Offer)> {
        let mut right = self.right[offer.source.kind()].value;
        let mut cost = self.further_seconds();
        if offer.source == Source::Model {
            cost += self.drafting.value;
            if hope < 1.0 {
                right = right.max(FIRST_RIGHT[offer.source.kind()]);
            }
        }
        let longest = match (self.further.n, offer.source, self.drafting.n) {
            // It may take longer than the step.
            (_, Source::Model, 0) => TRIAL,
            (0, ..) => FIRST_GUESS,
            _ => MOST,
        };
        let mut tokens = 1.0;
        let mut chance = 1.0;
        let gains = (1..=offer.most.min(longest)).map(|n| {
            chance *= right;
            tokens += chance;
            let seconds = self.plain.value + n as f64 * cost * hope;
            (tokens * self.plain.value / seconds, n)
        });
        let (gain, most) = gains.max_by(|a, b| a.0.total_cmp(&b.0))?;
        (gain > WORTHWHILE).then_some((gain, Offer { most, ..offer }))
    }

    fn further_seconds(&self) -> f64 {
        if self.further.n == 0 {
            self.plain.value * FURTHER
        } else {
            self.further.value.max(0.0)
        }
    }
}

/// A mean in which old observations fade.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    value: f64,
    n: u32,
}

impl Mean {
    /// `newest` is the weight of the newest of many.
    fn add(&mut self, observed: f64, newest: f64) {
        self.n = self.n.saturating_add(1);
        self.value += (observed - self.value) * newest.max(1.0 / f64::from(self.n));
    }
}

#[cfg(test)]
mod tests;
