//! From when on a server's silence means something, and when a server is slow. Pure: times go in, patience comes out.
//!
//! What a step should take is known twice: from what the server announces, the way to it and the size of the step; and from
//! the steps of this session. Neither is a promise. So silence is believed only after several times as long, and even then
//! the server is not given up: another one is brought to where it is, and whoever is first goes on (see `session/rescue`).

use std::time::Duration;

use sepal_protocol::record::ServerInfo;

use crate::swarm::route::{DEFAULT_DELAY_S, DEFAULT_INFERENCE_RPS, HOP_OVERHEAD_S};

/// How many times as long as expected a step may take before the server counts as silent. Steps of others, that it computes
/// together with ours or before them, make a step take several times as long as alone.
const PATIENCE: f64 = 10.0;
/// Least patience with a step. A long prompt of somebody else, a packet sent again and again, a machine that was busy:
/// all of them hold up a step for a second or two now and then, and bringing up another server costs as much.
const LEAST: Duration = Duration::from_secs(3);
/// Least patience with the first step on a server, which also reserves memory: it may wait for that, for up to 10 s, and
/// it is better to ask another one meanwhile.
const LEAST_FIRST: Duration = Duration::from_secs(6);
/// The slowest line for which steps need not be repeated, bytes per second: 1 Mbit/s.
const SLOWEST_LINE: f64 = 128.0 * 1024.0;
/// Steps of at most so many tokens take about as long as those of one: weights are read once for all of them.
const FEW_TOKENS: usize = 16;
/// Weight of a new step in the smoothed time of steps.
const SMOOTHING: f64 = 0.25;
/// Steps after which the smoothed time is worth something.
const KNOWN_AFTER: u32 = 4;
/// How many times as slow as it was, and as another one would be, a server has to become to be left.
const SLOW: f64 = 4.0;
/// How many times as long as announced steps usually take at most, with other sessions on the server.
const BEHIND: f64 = 2.5;
/// Seconds that a step has to be slower than on another server, so that leaving, which means to replay, can pay.
const SLOW_BY_S: f64 = 0.05;
/// Steps in a row that have to be slow.
const SLOW_STEPS: u32 = 3;

/// What a step is made of, as far as its time goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Rows × tokens.
    pub(crate) tokens: usize,
    /// Of activations, one way.
    pub(crate) bytes: usize,
    /// The session begins on this server with it.
    pub(crate) first: bool,
}

/// What a step of many tokens takes on one hop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LongStep {
    /// Seconds of a step of one token, there and back.
    pub(crate) at_least: f64,
    /// Seconds of each further token.
    pub(crate) each_token: f64,
}

impl LongStep {
    pub(crate) fn seconds(&self, tokens: f64) -> f64 {
        self.at_least + self.each_token * (tokens - 1.0).max(0.0)
    }
}

/// What is expected of one server for the blocks of one hop.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Seconds there and back.
    rtt: f64,
    /// Seconds of a step of one token through all blocks.
    one_token: f64,
    /// Seconds of each token of a long step.
    each_token: f64,
    /// Whether that was announced.
    tells_long_steps: bool,
    /// Smoothed seconds of steps of few tokens, and how many there were.
    recent: f64,
    n_steps: u32,
    /// The least that `recent` was.
    best: f64,
    /// Steps in a row that took much longer than the best.
    n_slow: u32,
    /// How often patience ran out and the server was the first all the same.
    doubts: u32,
}

impl Pace {
    /// Of a server that announces `info`, for `n_blocks` of its blocks; `rtt` is in seconds, if it is known.
    pub(crate) fn new(info: Option<&ServerInfo>, n_blocks: u32, rtt: Option<f64>) -> Self {
        let announced = |rps: Option<f64>| rps.filter(|rps| *rps > 0.0 && rps.is_finite());
        let n_blocks = f64::from(n_blocks);
        let steps = announced(info.and_then(|info| info.inference_rps)).unwrap_or(DEFAULT_INFERENCE_RPS);
        // Tokens of a long step never take longer than as many steps.
        let long_steps = announced(info.and_then(|info| info.forward_rps));
        let tokens = long_steps.map_or(steps, |rps| rps.max(steps));
        Self {
            rtt: rtt.filter(|rtt| rtt.is_finite()).unwrap_or(2.0 * DEFAULT_DELAY_S),
            one_token: n_blocks / steps,
            each_token: n_blocks / tokens,
            tells_long_steps: long_steps.is_some(),
            recent: 0.0,
            n_steps: 0,
            best: f64::INFINITY,
            n_slow: 0,
            doubts: 0,
        }
    }

    /// What long steps take, if the server announces how many tokens a second it computes in these.
    pub(crate) fn long_step(&self) -> Option<LongStep> {
        self.tells_long_steps.then(|| LongStep {
            at_least: self.predicted(1),
            each_token: self.each_token,
        })
    }

    /// Takes in what a step took.
    pub(crate) fn took(&mut self, size: Size, time: Duration) {
        if size.first || size.tokens > FEW_TOKENS {
            return;
        }
        let seconds = time.as_secs_f64();
        self.recent = match self.n_steps {
            0 => seconds,
            _ => SMOOTHING * seconds + (1.0 - SMOOTHING) * self.recent,
        };
        self.n_steps += 1;
        if self.n_steps >= KNOWN_AFTER {
            self.best = self.best.min(self.recent);
        }
        // One that is slow from the start is so in comparison with what it announces.
        let usual = self.best.min(BEHIND * self.predicted(1));
        let slow = seconds > SLOW * usual && seconds > usual + SLOW_BY_S;
        self.n_slow = if slow { self.n_slow + 1 } else { 0 };
    }

    /// How long to wait for a step before others are asked as well.
    pub(crate) fn patience(&self, size: Size) -> Duration {
        let few = size.tokens <= FEW_TOKENS;
        let seconds = match few && self.n_steps >= KNOWN_AFTER {
            true => self.recent,
            false => self.predicted(size.tokens).max(self.recent),
        };
        let transport = 2.0 * size.bytes as f64 / SLOWEST_LINE;
        let seconds = PATIENCE * seconds + transport;
        let least = if size.first { LEAST_FIRST } else { LEAST };
        // What a server cannot announce in earnest is no reason to panic.
        let patience = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        patience.max(least).saturating_mul(1 << self.doubts.min(10))
    }

    /// Patience ran out, and then the answer came first all the same: more patience from now on.
    pub(crate) fn doubted_wrongly(&mut self) {
        self.doubts += 1;
    }

    /// The seconds that a step has come to take, if the server became much slower than it was and stays so.
    pub(crate) fn slowed(&self) -> Option<f64> {
        (self.n_slow >= SLOW_STEPS).then_some(self.recent)
    }

    /// It is not left for being slow: it will have to be slow for as long again.
    pub(crate) fn stay(&mut self) {
        self.n_slow = 0;
    }

    fn predicted(&self, tokens: usize) -> f64 {
        self.rtt + HOP_OVERHEAD_S + self.one_token + self.each_token * tokens.saturating_sub(1) as f64
    }
}

/// Whether it pays to leave a server whose steps take `now` seconds for others that would take `there`.
pub(crate) fn is_worth_leaving(now: f64, there: f64) -> bool {
    now > SLOW * there && now > there + SLOW_BY_S
}

#[cfg(test)]
mod tests {
    use sepal_protocol::record::ServerState;

    use super::*;

    const ONE: Size = Size {
        tokens: 1,
        bytes: 8192,
        first: false,
    };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn announcing(inference: f64, forward: f64) -> ServerInfo {
        ServerInfo {
            inference_rps: Some(inference),
            forward_rps: Some(forward),
            ..ServerInfo::new(ServerState::Online, 1.0)
        }
    }

    #[test]
    fn a_quick_server_gets_the_least_patience_and_a_slow_one_ten_steps() {
        let mut pace = Pace::new(None, 4, Some(0.01));
        assert_eq!(pace.patience(ONE), LEAST);
        assert_eq!(pace.patience(Size { first: true, ..ONE }), LEAST_FIRST);
        for _ in 0..KNOWN_AFTER {
            pace.took(ONE, seconds(2.0));
        }
        let patience = pace.patience(ONE).as_secs_f64();
        assert!((20.0..21.0).contains(&patience), "{patience}");
    }

    #[test]
    fn what_a_server_announces_counts_until_its_steps_are_known() {
        let mut pace = Pace::new(Some(&announcing(2.0, 100.0)), 8, Some(0.1));
        let patience = pace.patience(ONE).as_secs_f64();
        assert!((41.0..42.0).contains(&patience), "four seconds, ten times: {patience}");
        for _ in 0..KNOWN_AFTER {
            pace.took(ONE, seconds(0.2));
        }
        assert_eq!(pace.patience(ONE), LEAST);
        // A prompt of 1001 tokens is expected to take 80 s more.
        let prompt = Size {
            tokens: 1001,
            bytes: 0,
            first: true,
        };
        let patience = pace.patience(prompt).as_secs_f64();
        assert!((841.0..842.0).contains(&patience), "{patience}");
    }

    #[test]
    fn large_messages_get_the_time_of_a_slow_line() {
        let pace = Pace::new(Some(&announcing(1e6, 1e6)), 1, Some(0.001));
        let large = Size {
            tokens: 1024,
            bytes: 8 << 20,
            first: false,
        };
        assert!(pace.patience(large) > Duration::from_secs(128));
    }

    #[test]
    fn announcements_that_are_no_numbers_are_not_believed() {
        for rps in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300] {
            let pace = Pace::new(Some(&announcing(rps, rps)), 4, Some(f64::INFINITY));
            assert!(pace.patience(ONE) >= LEAST, "{rps}");
        }
    }

    #[test]
    fn doubting_a_server_wrongly_doubles_the_patience_with_it() {
        let mut pace = Pace::new(None, 4, Some(0.01));
        pace.doubted_wrongly();
        pace.doubted_wrongly();
        assert_eq!(pace.patience(ONE), LEAST * 4);
    }

    #[test]
    fn a_server_is_slow_after_several_slow_steps_in_a_row() {
        let mut pace = Pace::new(None, 4, Some(0.01));
        for _ in 0..KNOWN_AFTER {
            pace.took(ONE, seconds(0.02));
        }
        for time in [1.0, 1.0, 0.02, 1.0, 1.0] {
            pace.took(ONE, seconds(time));
            assert_eq!(pace.slowed(), None);
        }
        pace.took(ONE, seconds(1.0));
        assert!(pace.slowed().is_some_and(|now| now > 0.5));
        pace.stay();
        assert_eq!(pace.slowed(), None);
    }

    #[test]
    fn a_server_may_be_slow_from_the_start() {
        let mut pace = Pace::new(Some(&announcing(100.0, 100.0)), 2, Some(0.002));
        for _ in 0..SLOW_STEPS {
            assert_eq!(pace.slowed(), None);
            pace.took(ONE, seconds(0.5));
        }
        assert!(pace.slowed().is_some());
    }

    #[test]
    fn prompts_and_first_steps_say_nothing_about_the_pace() {
        let mut pace = Pace::new(None, 4, Some(0.01));
        for _ in 0..10 {
            pace.took(Size { tokens: 100, ..ONE }, seconds(50.0));
            pace.took(Size { first: true, ..ONE }, seconds(50.0));
        }
        assert_eq!(pace.patience(ONE), LEAST);
    }

    #[test]
    fn leaving_pays_when_others_are_several_times_as_quick() {
        assert!(is_worth_leaving(1.0, 0.2));
        assert!(!is_worth_leaving(1.0, 0.3));
        assert!(!is_worth_leaving(0.05, 0.001), "a replay costs more than that");
    }
}
