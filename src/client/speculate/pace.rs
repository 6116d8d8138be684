//! How many tokens to guess ahead: as many as bring most tokens per second, by what steps took and how many guesses were
//! right in this session. Pure arithmetic; it is told all numbers and looks at no clock.
//!
//! ```text
//! tokens of a step with k guesses, each right with chance a       1 + a + a² + … + aᵏ
//! seconds of it                                                   plain + k · (further + drafting)
//! ```
//!
//! `plain` is mostly the line; `further` is next to nothing on servers that wait for their memory, and as much as a step
//! on servers that wait for their arithmetic. Where no k beats plain steps nothing is guessed, and from time to time one
//! small guess finds out whether that has changed, ever more rarely while it has not.

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
    /// A small model.
    Model,
}

/// How often guesses of each kind are right before any was made: matches of 1, 2, 3, 4 to 6 and more tokens, a model.
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
}

/// A guess that could be made: where from, and of how many tokens at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) source: Source,
    pub(super) most: usize,
}

/// What is known of the steps of one session.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Seconds of a step of one token.
    plain: Mean,
    /// Seconds that each further token of a step takes.
    further: Mean,
    /// Seconds that the small model takes for a token.
    drafting: Mean,
    right: [Mean; FIRST_RIGHT.len()],
    since_plain: u32,
    pause: u32,
    waited: u32,
    trial: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            plain: Mean::default(),
            further: Mean::default(),
            drafting: Mean::default(),
            right: FIRST_RIGHT.map(|value| Mean { value, n: FIRST_WEIGHT }),
            since_plain: 0,
            pause: SHORTEST_PAUSE,
            waited: 0,
            trial: false,
        }
    }
}

impl Pace {
    /// Which of `offers` to take, and how many tokens of it. `None` for a plain step.
    pub(super) fn choose(&mut self, offers: &[Offer]) -> Option<Offer> {
        if self.plain.n < FIRST_PLAIN || self.since_plain >= RENEW_PLAIN {
            return None;
        }
        let best = |hope: f64| {
            let gains = offers.iter().filter_map(|offer| self.best(*offer, hope));
            gains.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, offer)| offer)
        };
        if let Some(offer) = best(1.0) {
            (self.pause, self.waited, self.trial) = (SHORTEST_PAUSE, 0, false);
            return Some(offer);
        }
        let hoped = best(HOPE)?;
        self.waited += 1;
        if self.waited <= self.pause {
            return None;
        }
        self.trial = true;
        let most = hoped.most.min(TRIAL);
        Some(Offer { most, ..hoped })
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

    /// Notes that the small model took `seconds` for so many tokens.
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
        if std::mem::take(&mut self.trial) {
            if right == guessed {
                // Worth another one at once.
                self.waited = self.pause;
            } else {
                (self.pause, self.waited) = ((self.pause * 2).min(LONGEST_PAUSE), 0);
            }
        }
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
        let longest = if self.further.n == 0 { FIRST_GUESS } else { MOST };
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
mod tests {
    use super::*;

    /// A swarm and a text, in numbers.
    #[derive(Clone, Copy)]
    struct Scenario {
        source: Source,
        plain: f64,
        further: f64,
        drafting: f64,
        right: f64,
    }

    /// 1500 tokens, with guesses as `choose` has it: tokens per second, and steps with guesses.
    fn run(scenario: Scenario, choose: &mut dyn FnMut(&mut Pace, &[Offer]) -> Option<Offer>) -> (f64, usize) {
        let (mut pace, mut tokens, mut time, mut guesses) = (Pace::default(), 0, 0.0, 0);
        let mut state = 1_u32;
        let mut chance = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 24)
        };
        while tokens < 1500 {
            let offers = [Offer {
                source: scenario.source,
                most: MOST,
            }];
            let taken = choose(&mut pace, &offers).map_or(0, |offer| offer.most);
            // Lines are never quite even.
            let seconds = (scenario.plain + taken as f64 * scenario.further) * (0.95 + 0.1 * chance());
            let drafting = taken as f64 * scenario.drafting;
            pace.stepped(taken, seconds);
            time += seconds + drafting;
            let right = (0..taken).take_while(|_| chance() < scenario.right).count();
            if taken > 0 {
                guesses += 1;
                pace.drafted(taken, drafting);
                pace.verified(scenario.source, taken, right);
            } else if scenario.source != Source::Model {
                // What costs nothing is guessed in any case, and compared.
                pace.verified(scenario.source, 1, usize::from(chance() < scenario.right));
            }
            tokens += right + 1;
        }
        (f64::from(tokens as u32) / time, guesses)
    }

    /// Its speed by the rule, as multiples of no guesses and of the best fixed number of guesses.
    fn gains(scenario: Scenario) -> (f64, f64) {
        let fixed = |n: usize| {
            let mut choose = |_: &mut Pace, offers: &[Offer]| (n > 0).then_some(Offer { most: n, ..offers[0] });
            run(scenario, &mut choose).0
        };
        let best = (0..=MOST).map(fixed).fold(0.0, f64::max);
        let found = run(scenario, &mut |pace, offers| pace.choose(offers)).0;
        (found / fixed(0), found / best)
    }

    fn scenarios() -> impl Iterator<Item = Scenario> {
        let sources = [Source::Lookup(1), Source::Lookup(3), Source::Lookup(16), Source::Model];
        // Seconds of a round trip: a local network, a country, the other side of the world.
        let lines = [0.005, 0.05, 0.15];
        // What a token costs the servers: waiting for memory, in between, and as much as the first one.
        let costs = [0.0002, 0.005, 0.03];
        let rights = [0.0, 0.2, 0.5, 0.8, 0.95];
        sources.into_iter().flat_map(move |source| {
            lines.into_iter().flat_map(move |line| {
                costs.into_iter().flat_map(move |further| {
                    rights.into_iter().map(move |right| Scenario {
                        source,
                        plain: line + 0.03,
                        further,
                        drafting: if source == Source::Model { 0.01 } else { 0.0 },
                        right,
                    })
                })
            })
        })
    }

    #[test]
    fn guessing_never_costs_more_than_a_little_and_brings_most_of_what_there_is() {
        for scenario in scenarios() {
            let (over_plain, of_best) = gains(scenario);
            let Scenario {
                source,
                plain,
                further,
                right,
                ..
            } = scenario;
            let name = format!("{source:?}, plain {plain}, further {further}, right {right}: {over_plain}, {of_best}");
            assert!(over_plain > 0.97, "{name}");
            assert!(of_best > 0.85, "{name}");
        }
    }

    #[test]
    fn good_guesses_over_a_slow_line_are_several_times_as_fast() {
        let scenario = Scenario {
            source: Source::Lookup(8),
            plain: 0.18,
            further: 0.003,
            drafting: 0.0,
            right: 0.9,
        };
        let (over_plain, _) = gains(scenario);
        assert!(over_plain > 4.0, "{over_plain}");
    }

    #[test]
    fn guesses_that_do_not_pay_become_rare() {
        let scenario = Scenario {
            source: Source::Model,
            plain: 0.035,
            further: 0.03,
            drafting: 0.02,
            right: 0.7,
        };
        let (_, guesses) = run(scenario, &mut |pace, offers| pace.choose(offers));
        assert!((1..30).contains(&guesses), "{guesses}");
    }

    #[test]
    fn what_has_become_better_is_found_out() {
        let mut pace = Pace::default();
        let offers = [Offer {
            source: Source::Model,
            most: MOST,
        }];
        for _ in 0..3 {
            pace.stepped(0, 0.1);
        }
        for _ in 0..20 {
            pace.stepped(4, 0.1);
            pace.drafted(4, 0.01);
            pace.verified(Source::Model, 4, 0);
        }
        pace.stepped(0, 0.1);
        assert_eq!(pace.choose(&offers), None);
        let mut found = None;
        for step in 0..200 {
            let taken = pace.choose(&offers).map_or(0, |offer| offer.most);
            pace.stepped(taken, 0.1);
            if taken > 0 {
                pace.verified(Source::Model, taken, taken);
            }
            if taken > TRIAL {
                found = Some(step);
                break;
            }
        }
        assert!(found.is_some_and(|step| step < 60), "{found:?}");
    }

    #[test]
    fn nothing_is_guessed_before_plain_steps_are_known() {
        let mut pace = Pace::default();
        let offers = [Offer {
            source: Source::Lookup(16),
            most: 9,
        }];
        assert_eq!(pace.choose(&offers), None);
        pace.stepped(0, 0.1);
        assert_eq!(pace.choose(&offers), None);
        pace.stepped(0, 0.1);
        assert_eq!(pace.choose(&offers).map(|offer| offer.most), Some(FIRST_GUESS));
    }

    #[test]
    fn a_step_in_which_a_server_was_replaced_says_nothing() {
        let mut pace = Pace::default();
        for _ in 0..5 {
            pace.stepped(0, 0.1);
        }
        pace.stepped(0, 3.0);
        pace.stepped(2, 3.0);
        assert!((pace.plain.value - 0.1).abs() < 1e-9);
        assert_eq!(pace.further.n, 0);
    }

    #[test]
    fn the_source_that_was_right_more_often_is_taken() {
        let offers = [
            Offer {
                source: Source::Lookup(1),
                most: 4,
            },
            Offer {
                source: Source::Model,
                most: 4,
            },
        ];
        let mut pace = Pace::default();
        assert_eq!(pace.most_right(&offers), Some(offers[1]));
        for _ in 0..50 {
            pace.verified(Source::Model, 4, 0);
        }
        assert_eq!(pace.most_right(&offers), Some(offers[0]));
    }
}
