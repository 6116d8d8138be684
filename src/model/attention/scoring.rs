//! What makes a score out of the product of a query and a key.

use crate::model::{config::parts::AlibiKind, cpu::Slope};

/// How a block scores keys, besides the product of query and key.
#[derive(Clone, Debug)]
pub(crate) struct Scoring {
    /// Multiplies query · key.
    pub(crate) scale: f32,
    /// Scaled products become `softcap · tanh(product / softcap)`.
    pub(crate) softcap: Option<f32>,
    /// A query sees itself and the `window - 1` tokens before it.
    pub(crate) window: Option<usize>,
    /// Added after that, by the position of the key.
    pub(crate) alibi: Option<Alibi>,
    /// For each query head the score of a key that is always seen and has no value.
    pub(crate) sinks: Option<Vec<f32>>,
}

impl Scoring {
    /// Keys that a query sees at most.
    pub(super) fn window(&self) -> usize {
        self.window.unwrap_or(usize::MAX)
    }
}

/// Scores that grow with the position of the key.
#[derive(Clone, Debug)]
pub(crate) struct Alibi {
    /// For each query head.
    pub(in crate::model) slopes: Vec<Slope>,
}

impl Alibi {
    /// The slopes of Press et al., 2021: powers of 2, and for other numbers of heads than powers of 2 every second one of
    /// the next finer series (transformers `build_alibi_tensor`). `scale` multiplies the sum of product and bias in one
    /// of the kinds.
    pub(crate) fn new(n_heads: usize, kind: AlibiKind, scale: f32) -> Self {
        let whole = 1_usize << n_heads.max(1).ilog2();
        let base = |n: usize| (-8.0 / n as f32).exp2();
        let coarse = (1..=whole as i32).map(|i| base(whole).powi(i));
        let finer = (0..n_heads - whole).map(|i| base(2 * whole).powi(2 * i as i32 + 1));
        let slope = |per_token: f32| match kind {
            AlibiKind::Exact => Slope {
                per_token,
                scale: 1.0,
                rounded: false,
            },
            AlibiKind::Bfloat16 => Slope {
                per_token: half::bf16::from_f32(per_token).to_f32(),
                scale,
                rounded: true,
            },
        };
        Self {
            slopes: coarse.chain(finer).map(slope).collect(),
        }
    }
    /// What is added to the scaled product of a query of `head` and the key at `position`.
    pub(crate) fn bias(&self, head: usize, position: usize) -> f32 {
        let slope = &self.slopes[head];
        let round = |x: f32| {
            if slope.rounded {
                half::bf16::from_f32(x).to_f32()
            } else {
                x
            }
        };
        round(slope.per_token * round(position as f32)) * slope.scale
    }
}
