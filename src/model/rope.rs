//! Rotary position embedding: which angle a pair of numbers turns by at a position, for every kind of scaling of
//! transformers 4.43 (`modeling_rope_utils.py`), computed in f32 as there.

use std::{f32::consts::PI, ops::Range};

use super::{RopeConfig, RopeScaling};

/// The frequencies of one model.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    config: RopeConfig,
    head_dim: usize,
    /// Radians per token, `head_dim / 2` of them, for sequences up to `max_positions`.
    frequencies: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(config: &RopeConfig, head_dim: usize) -> Self {
        let frequencies = scaled(config, head_dim);
        Self {
            config: config.clone(),
            head_dim,
            frequencies,
        }
    }

    /// Radians per token for a sequence of `sequence_len` tokens. Only `Dynamic` scaling depends on the length, and
    /// keys that were cached when the sequence was shorter keep their angles, as in transformers.
    fn frequencies(&self, sequence_len: usize) -> Vec<f32> {
        let RopeScaling::Dynamic { factor } = self.config.scaling else {
            return self.frequencies.clone();
        };
        let max_positions = self.config.max_positions;
        let dim = self.head_dim as f32;
        let growth = factor * sequence_len.max(max_positions) as f32 / max_positions as f32 - (factor - 1.0);
        plain(self.config.theta * growth.powf(dim / (dim - 2.0)), self.head_dim)
    }

    /// Sines and cosines are multiplied by this.
    fn amplitude(&self) -> f32 {
        match self.config.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }
}

/// Sines and cosines of consecutive tokens of a step.
#[derive(Debug)]
pub(crate) struct Angles {
    half: usize,
    /// `[tokens, head_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    pub(crate) fn new(rope: &Rope) -> Self {
        Self {
            half: rope.head_dim / 2,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Adds the tokens at `positions` of a sequence that has `sequence_len` tokens after this step.
    pub(crate) fn push(&mut self, rope: &Rope, positions: Range<usize>, sequence_len: usize) {
        let frequencies = rope.frequencies(sequence_len);
        let amplitude = rope.amplitude();
        for position in positions {
            for frequency in &frequencies {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                self.cos.push(cos * amplitude);
                self.sin.push(sin * amplitude);
            }
        }
    }

    /// `head_dim / 2` cosines of token `token`, and as many sines.
    pub(crate) fn of(&self, token: usize) -> (&[f32], &[f32]) {
        let range = token * self.half..(token + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Turns one head of token `token`: number i together with number i + head_dim / 2.
    pub(crate) fn rotate(&self, token: usize, head: &mut [f32]) {
        let (cos, sin) = self.of(token);
        let (first, second) = head.split_at_mut(self.half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `theta^(-2i/dim)`
fn plain(theta: f32, head_dim: usize) -> Vec<f32> {
    powers(theta, head_dim).map(|power| 1.0 / power).collect()
}

fn powers(theta: f32, head_dim: usize) -> impl Iterator<Item = f32> {
    (0..head_dim / 2).map(move |i| theta.powf((2 * i) as f32 / head_dim as f32))
}

fn scaled(config: &RopeConfig, head_dim: usize) -> Vec<f32> {
    let plain = plain(config.theta, head_dim);
    match &config.scaling {
        RopeScaling::Default | RopeScaling::Dynamic { .. } => plain,
        RopeScaling::Linear { factor } => plain.into_iter().map(|frequency| frequency / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let original = *original_max_positions as f32;
            plain
                .into_iter()
                .map(|frequency| {
                    let turns = original * frequency / (2.0 * PI);
                    let keep = if turns >= *high_freq_factor {
                        1.0
                    } else {
                        (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
                    };
                    ramp(frequency, *factor, keep)
                })
                .collect()
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            ..
        } => {
            let (low, high) = yarn_range(config, head_dim, *beta_fast, *beta_slow);
            plain
                .into_iter()
                .enumerate()
                .map(|(i, frequency)| ramp(frequency, *factor, 1.0 - (i as f32 - low) / (high - low)))
                .collect()
        }
        RopeScaling::LongRope { divisors, .. } => powers(config.theta, head_dim)
            .zip(divisors)
            .map(|(power, divisor)| 1.0 / (divisor * power))
            .collect(),
    }
}

/// `frequency` where `keep` is 1 or more, divided by `factor` where it is 0 or less, a mixture between.
fn ramp(frequency: f32, factor: f32, keep: f32) -> f32 {
    let keep = keep.clamp(0.0, 1.0);
    (1.0 - keep) * frequency / factor + keep * frequency
}

/// Between which dimensions the ramp of YaRN lies: those that turn `beta_fast` and `beta_slow` times in the original
/// context.
fn yarn_range(config: &RopeConfig, head_dim: usize, beta_fast: f32, beta_slow: f32) -> (f32, f32) {
    let dim = head_dim as f64;
    let max_positions = config.max_positions as f64;
    let dimension = |turns: f32| {
        let turns_of_first = max_positions / (f64::from(turns) * 2.0 * std::f64::consts::PI);
        dim * turns_of_first.ln() / (2.0 * f64::from(config.theta).ln())
    };
    let low = dimension(beta_fast).floor().max(0.0) as f32;
    let high = dimension(beta_slow).ceil().min(dim - 1.0) as f32;
    // Equal ends would divide by zero.
    (low, if low == high { high + 0.001 } else { high })
}

#[cfg(test)]
mod tests;
