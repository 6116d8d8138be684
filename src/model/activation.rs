//! The functions between the projections of a feed-forward part, elementwise and written so that the loops vectorise.

use super::{
    config::parts::Activation,
    cpu::{exp, silu_times},
};

/// The slope inside GPT-OSS's gate.
pub(crate) const CLAMPED_SLOPE: f32 = 1.702;

impl Activation {
    /// `x := activation(x)`
    #[inline(always)]
    pub(crate) fn apply(self, x: &mut [f32]) {
        match self {
            Self::Silu => each(x, silu),
            Self::Gelu => each(x, gelu),
            Self::GeluTanh => each(x, gelu_tanh),
            Self::Relu => each(x, |x| x.max(0.0)),
            Self::ClampedSwiglu { limit } => each(x, |x| clamped_gate(x, limit)),
        }
    }

    /// `gate := activation(gate) · up`
    #[inline(always)]
    pub(crate) fn apply_gated(self, gate: &mut [f32], up: &[f32]) {
        match self {
            Self::Silu => silu_times(gate, up),
            Self::Gelu => pairs(gate, up, |gate, up| gelu(gate) * up),
            Self::GeluTanh => pairs(gate, up, |gate, up| gelu_tanh(gate) * up),
            Self::Relu => pairs(gate, up, |gate, up| gate.max(0.0) * up),
            Self::ClampedSwiglu { limit } => pairs(gate, up, |gate, up| {
                clamped_gate(gate, limit) * (up.clamp(-limit, limit) + 1.0)
            }),
        }
    }
}

#[inline(always)]
fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
    x.iter_mut().for_each(|x| *x = f(*x));
}

#[inline(always)]
fn pairs(gate: &mut [f32], up: &[f32], f: impl Fn(f32, f32) -> f32) {
    gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = f(*gate, *up));
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn clamped_gate(x: f32, limit: f32) -> f32 {
    let x = x.min(limit);
    x / (1.0 + exp(-CLAMPED_SLOPE * x))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_BY_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(SQRT_2_BY_PI * (x + 0.044_715 * x * x * x)))
}

/// Within 1e-7; without a branch or a call, unlike the standard library's.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The error function within 3e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let tail = t * 1.061_405_4 - 1.453_152;
    let tail = t * tail + 1.421_413_7;
    let tail = t * tail - 0.284_496_74;
    let tail = t * tail + 0.254_829_6;
    (1.0 - t * tail * exp(-size * size)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_near(activation: Activation, cases: &[(f32, f32)]) {
        for (x, expected) in cases {
            let mut found = [*x];
            activation.apply(&mut found);
            assert!((found[0] - expected).abs() < 1e-6, "{activation:?} of {x}: {found:?}");
            let mut gated = [*x];
            activation.apply_gated(&mut gated, &[0.0]);
            let plus_one = matches!(activation, Activation::ClampedSwiglu { .. });
            assert_eq!(gated[0], if plus_one { found[0] } else { 0.0 });
        }
    }

    /// Computed in f64.
    #[test]
    fn activations_have_their_known_values() {
        assert_near(Activation::Silu, &[(1.0, 0.731_058_6), (-2.0, -0.238_405_8)]);
        assert_near(
            Activation::Gelu,
            &[(1.0, 0.841_344_8), (-0.5, -0.154_268_8), (3.0, 2.995_950_3)],
        );
        assert_near(Activation::GeluTanh, &[(1.0, 0.841_192), (-0.5, -0.154_286)]);
        assert_near(Activation::Relu, &[(1.0, 1.0), (-2.0, 0.0)]);
        assert_near(
            Activation::ClampedSwiglu { limit: 2.0 },
            &[(1.0, 0.845_795_8), (5.0, 1.935_658_6)],
        );
    }

    #[test]
    fn activations_of_extreme_numbers_are_their_limits() {
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let mut x = [1e30, -1e30, 0.0];
            activation.apply(&mut x);
            assert_eq!(x[0], 1e30);
            assert_eq!([x[1].abs(), x[2]], [0.0, 0.0]);
        }
    }
}
