//! How many tokens to guess ahead: as many as bring most tokens per second, by what steps took and how many guesses were
//! right in this session. Pure arithmetic; it is told all numbers and looks at no clock.
//!
//! ```text
//! tokens of a step with k guesses, each right with chance a       1 + a + a² + … + aᵏ
//! seconds of it                                                   plain + k · further
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

/// How often guesses are right before any was made, after matches of 1, 2, 3, 4 to 6 and more tokens.
const FIRST_RIGHT: [f64; 5] = [0.15, 0.35, 0.5, 0.65, 0.8];
/// As how many observations that counts.
const FIRST_WEIGHT: u32 = 3;
/// Weight of the newest of many observations, of times and of guesses.
const NEWEST_TIME: f64 = 0.15;
const NEWEST_GUESS: f64 = 0.06;

/// A guess that could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Tokens that agree: how much it can be trusted.
    pub(super) matched: usize,
    /// Most tokens of it.
    pub(super) most: usize,
}

/// Which kind of guess follows a match of so many tokens.
fn kind(matched: usize) -> usize {
    match matched {
        0..=3 => matched.saturating_sub(1),
        4..=6 => 3,
        _ => 4,
    }
}

/// What is known of the steps of one session.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Seconds of a step of one token.
    plain: Mean,
    /// Seconds that each further token of a step takes.
    further: Mean,
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
            right: FIRST_RIGHT.map(|value| Mean { value, n: FIRST_WEIGHT }),
            since_plain: 0,
            pause: SHORTEST_PAUSE,
            waited: 0,
            trial: false,
        }
    }
}

impl Pace {
    /// How many tokens of `offer` to take; 0 for a plain step.
    pub(super) fn choose(&mut self, offer: Offer) -> usize {
        if self.plain.n < FIRST_PLAIN || self.since_plain >= RENEW_PLAIN {
            return 0;
        }
        let best = self.best(offer, 1.0);
        if best > 0 {
            (self.pause, self.waited, self.trial) = (SHORTEST_PAUSE, 0, false);
            return best;
        }
        let hoped = self.best(offer, HOPE);
        if hoped == 0 {
            return 0;
        }
        self.waited += 1;
        if self.waited <= self.pause {
            return 0;
        }
        self.trial = true;
        hoped.min(TRIAL)
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

    /// Notes how many of so many guesses after a match were right, up to the first wrong one.
    pub(super) fn verified(&mut self, matched: usize, guessed: usize, right: usize) {
        let mean = &mut self.right[kind(matched)];
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

    /// The number of tokens of `offer` that brings most; 0 if that is not worth while. `hope` is a factor of what tokens
    /// cost.
    fn best(&self, offer: Offer, hope: f64) -> usize {
        let right = self.right[kind(offer.matched)].value;
        let further = self.further_seconds() * hope;
        let longest = if self.further.n == 0 { FIRST_GUESS } else { MOST };
        let mut tokens = 1.0;
        let mut chance = 1.0;
        let gains = (1..=offer.most.min(longest)).map(|n| {
            chance *= right;
            tokens += chance;
            let seconds = self.plain.value + n as f64 * further;
            (tokens * self.plain.value / seconds, n)
        });
        let best = gains.max_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(gain, _)| *gain > WORTHWHILE).map_or(0, |(_, n)| n)
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
        matched: usize,
        plain: f64,
        further: f64,
        right: f64,
    }

    /// 1500 tokens, with guesses as `choose` has it: tokens per second, and steps with guesses.
    fn run(scenario: Scenario, choose: &mut dyn FnMut(&mut Pace, Offer) -> usize) -> (f64, usize) {
        let (mut pace, mut tokens, mut time, mut guesses) = (Pace::default(), 0, 0.0, 0);
        let mut state = 1_u32;
        let mut chance = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 24)
        };
        while tokens < 1500 {
            let matched = scenario.matched;
            let taken = choose(&mut pace, Offer { matched, most: MOST });
            // Lines are never quite even.
            let seconds = (scenario.plain + taken as f64 * scenario.further) * (0.95 + 0.1 * chance());
            pace.stepped(taken, seconds);
            time += seconds;
            let right = (0..taken).take_while(|_| chance() < scenario.right).count();
            if taken > 0 {
                guesses += 1;
                pace.verified(matched, taken, right);
            } else {
                // What costs nothing is guessed in any case, and compared.
                pace.verified(matched, 1, usize::from(chance() < scenario.right));
            }
            tokens += right + 1;
        }
        (f64::from(tokens as u32) / time, guesses)
    }

    /// Its speed by the rule, as multiples of no guesses and of the best fixed number of guesses.
    fn gains(scenario: Scenario) -> (f64, f64) {
        let fixed = |n: usize| {
            let mut choose = |_: &mut Pace, _: Offer| n;
            run(scenario, &mut choose).0
        };
        let best = (0..=MOST).map(fixed).fold(0.0, f64::max);
        let found = run(scenario, &mut |pace, offer| pace.choose(offer)).0;
        (found / fixed(0), found / best)
    }

    fn scenarios() -> impl Iterator<Item = Scenario> {
        let matches = [1, 3, 5, 16];
        // Seconds of a round trip: a local network, a country, the other side of the world.
        let lines = [0.005, 0.05, 0.15];
        // What a token costs the servers: waiting for memory, in between, and as much as the first one.
        let costs = [0.0002, 0.005, 0.03];
        let rights = [0.0, 0.2, 0.5, 0.8, 0.95];
        matches.into_iter().flat_map(move |matched| {
            lines.into_iter().flat_map(move |line| {
                costs.into_iter().flat_map(move |further| {
                    rights.into_iter().map(move |right| Scenario {
                        matched,
                        plain: line + 0.03,
                        further,
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
                matched,
                plain,
                further,
                right,
                ..
            } = scenario;
            let name =
                format!("match {matched}, plain {plain}, further {further}, right {right}: {over_plain}, {of_best}");
            assert!(over_plain > 0.97, "{name}");
            assert!(of_best > 0.85, "{name}");
        }
    }

    #[test]
    fn good_guesses_over_a_slow_line_are_several_times_as_fast() {
        let scenario = Scenario {
            matched: 8,
            plain: 0.18,
            further: 0.003,
            right: 0.9,
        };
        let (over_plain, _) = gains(scenario);
        assert!(over_plain > 4.0, "{over_plain}");
    }

    #[test]
    fn guesses_that_do_not_pay_become_rare() {
        let scenario = Scenario {
            matched: 5,
            plain: 0.035,
            further: 0.03,
            right: 0.7,
        };
        let (_, guesses) = run(scenario, &mut |pace, offer| pace.choose(offer));
        assert!((1..30).contains(&guesses), "{guesses}");
    }

    #[test]
    fn servers_that_have_become_quicker_are_found_out() {
        let mut pace = Pace::default();
        let offer = Offer { matched: 5, most: MOST };
        for _ in 0..3 {
            pace.stepped(0, 0.1);
        }
        for _ in 0..20 {
            pace.stepped(4, 0.5);
            pace.verified(offer.matched, 4, 3);
        }
        pace.stepped(0, 0.1);
        assert_eq!(pace.choose(offer), 0);
        let found = (0..400).find(|_| {
            let taken = pace.choose(offer);
            pace.stepped(taken, 0.1);
            pace.verified(offer.matched, taken.max(1), taken.max(1));
            taken > TRIAL
        });
        assert!(found.is_some_and(|step| step < 100), "{found:?}");
    }

    #[test]
    fn nothing_is_guessed_before_plain_steps_are_known() {
        let mut pace = Pace::default();
        let offer = Offer { matched: 16, most: 9 };
        assert_eq!(pace.choose(offer), 0);
        pace.stepped(0, 0.1);
        assert_eq!(pace.choose(offer), 0);
        pace.stepped(0, 0.1);
        assert_eq!(pace.choose(offer), FIRST_GUESS);
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
}
