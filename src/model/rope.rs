//! Rotary position embedding: which angle a pair of numbers turns by at a position, for every kind of scaling of
//! transformers 4.43 (`modeling_rope_utils.py`), computed in f32 as there.

use std::{borrow::Cow, f32::consts::PI, ops::Range};

use super::config::rope::{RopeConfig, RopeScaling};

/// The frequencies of one model.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    config: RopeConfig,
    /// Radians per token, `rotary_dim / 2` of them, for sequences up to the original context.
    frequencies: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(config: &RopeConfig) -> Self {
        Self {
            config: config.clone(),
            frequencies: scaled(config),
        }
    }

    /// How many numbers at the start of a head are rotated.
    pub(crate) fn rotary_dim(&self) -> usize {
        self.config.rotary_dim
    }

    /// Whether angles are others than those of shorter sequences if a sequence has `sequence_len` tokens.
    pub(crate) fn depends_on(&self, sequence_len: usize) -> bool {
        match &self.config.scaling {
            RopeScaling::Dynamic { .. } => sequence_len > self.config.max_positions,
            RopeScaling::LongRope {
                original_max_positions, ..
            } => sequence_len > *original_max_positions,
            _ => false,
        }
    }

    /// Radians per token for a sequence of `sequence_len` tokens. Only `Dynamic` and `LongRope` depend on the length, and
    /// keys that were cached when the sequence was shorter keep their angles, as in transformers.
    fn frequencies(&self, sequence_len: usize) -> Cow<'_, [f32]> {
        let RopeConfig {
            theta,
            max_positions,
            rotary_dim,
            ..
        } = self.config;
        match &self.config.scaling {
            RopeScaling::Dynamic { factor } => {
                let dim = rotary_dim as f32;
                let growth = factor * sequence_len.max(max_positions) as f32 / max_positions as f32 - (factor - 1.0);
                Cow::Owned(plain(theta * growth.powf(dim / (dim - 2.0)), rotary_dim))
            }
            RopeScaling::LongRope {
                long_divisors,
                original_max_positions,
                ..
            } if sequence_len > *original_max_positions => Cow::Owned(divided(&self.config, long_divisors)),
            _ => Cow::Borrowed(&self.frequencies),
        }
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
    /// `[tokens, rotary_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    pub(crate) fn new(rope: &Rope) -> Self {
        Self {
            half: rope.rotary_dim() / 2,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Adds the tokens at `positions` of a sequence that has `sequence_len` tokens after this step.
    pub(crate) fn push(&mut self, rope: &Rope, positions: Range<usize>, sequence_len: usize) {
        let frequencies = rope.frequencies(sequence_len);
        let amplitude = rope.amplitude();
        for position in positions {
            for frequency in frequencies.iter() {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                self.cos.push(cos * amplitude);
                self.sin.push(sin * amplitude);
            }
        }
    }

    /// `rotary_dim / 2` cosines of token `token`, and as many sines.
    pub(crate) fn of(&self, token: usize) -> (&[f32], &[f32]) {
        let range = token * self.half..(token + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Turns one head of token `token`: number i together with number i + rotary_dim / 2. The rest stays.
    pub(crate) fn rotate(&self, token: usize, head: &mut [f32]) {
        let (cos, sin) = self.of(token);
        let (first, second) = head[..2 * self.half].split_at_mut(self.half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `theta^(-2i/dim)`
fn plain(theta: f32, dim: usize) -> Vec<f32> {
    powers(theta, dim).map(|power| 1.0 / power).collect()
}

fn powers(theta: f32, dim: usize) -> impl Iterator<Item = f32> {
    (0..dim / 2).map(move |i| theta.powf((2 * i) as f32 / dim as f32))
}

fn scaled(config: &RopeConfig) -> Vec<f32> {
    let plain = plain(config.theta, config.rotary_dim);
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
            original_max_positions,
            truncate,
            ..
        } => {
            let (low, high) = yarn_range(config, [*beta_fast, *beta_slow], *original_max_positions, *truncate);
            plain
                .into_iter()
                .enumerate()
                .map(|(i, frequency)| ramp(frequency, *factor, 1.0 - (i as f32 - low) / (high - low)))
                .collect()
        }
        RopeScaling::LongRope { short_divisors, .. } => divided(config, short_divisors),
    }
}

fn divided(config: &RopeConfig, divisors: &[f32]) -> Vec<f32> {
    powers(config.theta, config.rotary_dim)
        .zip(divisors)
        .map(|(power, divisor)| 1.0 / (divisor * power))
        .collect()
}

/// `frequency` where `keep` is 1 or more, divided by `factor` where it is 0 or less, a mixture between.
fn ramp(frequency: f32, factor: f32, keep: f32) -> f32 {
    let keep = keep.clamp(0.0, 1.0);
    (1.0 - keep) * frequency / factor + keep * frequency
}

/// Between which dimensions the ramp of YaRN lies: those that make `turns` in the original context.
fn yarn_range(config: &RopeConfig, turns: [f32; 2], original_max_positions: usize, truncate: bool) -> (f32, f32) {
    let dim = config.rotary_dim as f64;
    let dimension = |turns: f32| {
        let turns_of_first = original_max_positions as f64 / (f64::from(turns) * 2.0 * std::f64::consts::PI);
        dim * turns_of_first.ln() / (2.0 * f64::from(config.theta).ln())
    };
    let [mut low, mut high] = turns.map(dimension);
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0) as f32, high.min(dim - 1.0) as f32);
    // Equal ends would divide by zero.
    (low, if low == high { high + 0.001 } else { high })
}

#[cfg(test)]
mod tests;
