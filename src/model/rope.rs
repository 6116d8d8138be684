//! Rotary position embedding: which angle a pair of numbers turns by at a position, for every kind of scaling of
//! transformers 4.43 (`modeling_rope_utils.py`), computed in f32 as there.

use std::{f32::consts::PI, ops::Range};

use super::{
    config::rope::{RopeConfig, RopeScaling},
    cpu::{Pool, for_parts},
};

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

    /// Whether all angles are those of `other`.
    pub(crate) fn turns_as(&self, other: &Self) -> bool {
        self.config == other.config
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

    /// Writes radians per token for a sequence of `sequence_len` tokens. Only `Dynamic` and `LongRope` depend on the
    /// length, and keys that were cached when the sequence was shorter keep their angles, as in transformers.
    fn frequencies_to(&self, sequence_len: usize, out: &mut Vec<f32>) {
        let RopeConfig {
            theta,
            max_positions,
            rotary_dim,
            ..
        } = self.config;
        out.clear();
        match &self.config.scaling {
            RopeScaling::Dynamic { factor } => {
                let dim = rotary_dim as f32;
                let growth = factor * sequence_len.max(max_positions) as f32 / max_positions as f32 - (factor - 1.0);
                out.extend(plain(theta * growth.powf(dim / (dim - 2.0)), rotary_dim));
            }
            RopeScaling::LongRope {
                long_divisors,
                original_max_positions,
                ..
            } if sequence_len > *original_max_positions => out.extend(divided(&self.config, long_divisors)),
            _ => out.extend_from_slice(&self.frequencies),
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

/// Sines and cosines of consecutive tokens of a step, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Angles {
    half: usize,
    /// `[tokens, 2, rotary_dim / 2]`: cosines, then sines.
    numbers: Vec<f32>,
    frequencies: Vec<f32>,
}

impl Angles {
    pub(crate) fn new(rope: &Rope) -> Self {
        let mut angles = Self::default();
        angles.reset(rope);
        angles
    }

    /// Forgets all tokens; those that follow turn as `rope` says.
    pub(crate) fn reset(&mut self, rope: &Rope) {
        self.half = rope.rotary_dim() / 2;
        self.numbers.clear();
    }

    /// Adds the tokens at `positions` of a sequence that has `sequence_len` tokens after this step.
    pub(crate) fn push(&mut self, rope: &Rope, positions: Range<usize>, sequence_len: usize, pool: &Pool) {
        rope.frequencies_to(sequence_len, &mut self.frequencies);
        let (frequencies, amplitude) = (&self.frequencies, rope.amplitude());
        let (old, width) = (self.numbers.len(), 2 * self.half);
        self.numbers.resize(old + positions.len() * width, 0.0);
        let new = &mut self.numbers[old..];
        for_parts(pool, new.len(), (new, width.max(1)), &|token, numbers| {
            let (cos, sin) = numbers.split_at_mut(numbers.len() / 2);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                let (sine, cosine) = ((positions.start + token) as f32 * frequency).sin_cos();
                (*sin, *cos) = (sine * amplitude, cosine * amplitude);
            }
        });
    }

    /// Those of all tokens, `[tokens, rotary_dim]`.
    pub(crate) fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    /// `rotary_dim / 2` cosines of token `token`, and as many sines.
    #[inline(always)]
    pub(crate) fn of(&self, token: usize) -> (&[f32], &[f32]) {
        self.numbers[token * 2 * self.half..][..2 * self.half].split_at(self.half)
    }

    /// Turns one head of token `token`: number i together with number i + rotary_dim / 2. The rest stays.
    #[inline(always)]
    pub(crate) fn rotate(&self, token: usize, head: &mut [f32]) {
        let (cos, sin) = self.of(token);
        let (first, second) = head[..2 * self.half].split_at_mut(self.half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `theta^(-2i/dim)`
fn plain(theta: f32, dim: usize) -> impl Iterator<Item = f32> {
    powers(theta, dim).map(|power| 1.0 / power)
}

fn powers(theta: f32, dim: usize) -> impl Iterator<Item = f32> {
    (0..dim / 2).map(move |i| theta.powf((2 * i) as f32 / dim as f32))
}

fn scaled(config: &RopeConfig) -> Vec<f32> {
    let plain = plain(config.theta, config.rotary_dim);
    match &config.scaling {
        RopeScaling::Default | RopeScaling::Dynamic { .. } => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let original = *original_max_positions as f32;
            plain
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
                .enumerate()
                .map(|(i, frequency)| ramp(frequency, *factor, 1.0 - (i as f32 - low) / (high - low)))
                .collect()
        }
        RopeScaling::LongRope { short_divisors, .. } => divided(config, short_divisors).collect(),
    }
}

fn divided(config: &RopeConfig, divisors: &[f32]) -> impl Iterator<Item = f32> {
    powers(config.theta, config.rotary_dim)
        .zip(divisors)
        .map(|(power, divisor)| 1.0 / (divisor * power))
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
