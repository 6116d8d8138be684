//! Feed-forward parts backwards: one, or a mixture of experts with the router that weighs them. Which experts a token
//! goes through is taken as given, as autograd does.

use super::{Breath, Through, add};
use crate::model::{
    ComputeError,
    config::parts::{Activation, Routing},
    cpu::exp,
    feed_forward::{Choice, Choices, Experts, FeedForward, Mlp},
    lora::Target,
};

/// Tokens whose inner activations exist at a time.
pub(crate) const INNER_TOKENS_ON_THE_WAY_BACK: usize = 1024;

/// Inner activations that are differentiated without a breath.
const NUMBERS_AT_A_TIME: usize = 1 << 20;

impl FeedForward {
    /// `x` is `[tokens, hidden]`; returns the same shape.
    ///
    /// # Errors
    /// Those of `breath`.
    pub(super) fn forward(
        &self,
        through: Through<'_>,
        x: &[f32],
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        match self {
            Self::Dense(mlp) => mlp.forward(through, x, breath),
            Self::Experts(experts) => Ok(experts.run(through.engine, x)),
        }
    }

    /// The gradient by `x`, from that by the output; all are `[tokens, hidden]`.
    ///
    /// # Errors
    /// Those of `breath`.
    pub(super) fn back(
        &self,
        through: Through<'_>,
        x: &[f32],
        by_out: &[f32],
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        match self {
            Self::Dense(mlp) => mlp.back(through, x, by_out, breath),
            Self::Experts(experts) => experts.back(through, x, by_out, breath),
        }
    }
}

impl Mlp {
    fn forward(&self, through: Through<'_>, x: &[f32], breath: &mut Breath<'_>) -> Result<Vec<f32>, ComputeError> {
        let len = INNER_TOKENS_ON_THE_WAY_BACK * self.up.weight.cols();
        let mut out = Vec::with_capacity(x.len());
        for x in x.chunks(len) {
            let mut inner = through.apply(Target::Up, &self.up, x, breath)?;
            match &self.gate {
                None => self.activation.apply(&mut inner),
                Some(gate) => {
                    let mut gated = through.apply(Target::Gate, gate, x, breath)?;
                    self.activation.apply_gated(&mut gated, &inner);
                    inner = gated;
                }
            }
            out.append(&mut through.apply(Target::Down, &self.down, &inner, breath)?);
        }
        Ok(out)
    }

    fn back(
        &self,
        through: Through<'_>,
        x: &[f32],
        by_out: &[f32],
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        let len = INNER_TOKENS_ON_THE_WAY_BACK * self.up.weight.cols();
        let mut by_x = Vec::with_capacity(x.len());
        for (x, by_out) in x.chunks(len).zip(by_out.chunks(len)) {
            by_x.append(&mut self.back_some(through, x, by_out, breath)?);
        }
        Ok(by_x)
    }

    fn back_some(
        &self,
        through: Through<'_>,
        x: &[f32],
        by_out: &[f32],
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        let mut up = through.apply(Target::Up, &self.up, x, breath)?;
        let mut by_inner = through.back(Target::Down, &self.down, by_out, breath)?;
        let Some(gate) = &self.gate else {
            let parts = by_inner.chunks_mut(NUMBERS_AT_A_TIME).zip(up.chunks(NUMBERS_AT_A_TIME));
            for (by_inner, up) in parts {
                for (by_inner, up) in by_inner.iter_mut().zip(up) {
                    *by_inner *= self.activation.slope(*up);
                }
                breath()?;
            }
            return through.back(Target::Up, &self.up, &by_inner, breath);
        };
        // In place: `by_inner` becomes the gradient by the gate, `up` that by itself.
        let gate_out = through.apply(Target::Gate, gate, x, breath)?;
        let parts = by_inner
            .chunks_mut(NUMBERS_AT_A_TIME)
            .zip(up.chunks_mut(NUMBERS_AT_A_TIME));
        for ((by_inner, up), gate) in parts.zip(gate_out.chunks(NUMBERS_AT_A_TIME)) {
            self.back_gated(by_inner, up, gate);
            breath()?;
        }
        drop(gate_out);
        let mut by_x = through.back(Target::Gate, gate, &by_inner, breath)?;
        add(&mut by_x, &through.back(Target::Up, &self.up, &up, breath)?);
        Ok(by_x)
    }

    /// From the gradient by their product to that by the gate, and from what the gate lets through to the gradient by that.
    fn back_gated(&self, by_inner: &mut [f32], up: &mut [f32], gate: &[f32]) {
        let mut activated = gate.to_vec();
        self.activation.apply(&mut activated);
        let parts = gate.iter().zip(&activated);
        for ((by_inner, up), (gate, activated)) in by_inner.iter_mut().zip(up).zip(parts) {
            let (factor, slope) = self.activation.factor(*up);
            let by_up = *by_inner * activated * slope;
            *by_inner *= self.activation.slope(*gate) * factor;
            *up = by_up;
        }
    }
}

impl Experts {
    fn back(
        &self,
        through: Through<'_>,
        x: &[f32],
        by_out: &[f32],
        breath: &mut Breath<'_>,
    ) -> Result<Vec<f32>, ComputeError> {
        let width = self.router.weight.cols();
        let scores = self.router.applied(through.engine, x);
        let mut by_x = vec![0.0; x.len()];
        // By the weight of each expert for each token, where it was chosen.
        let mut by_weight = vec![None; scores.len()];
        let mut choices = Choices::default();
        choices.choose(self.config, &scores);
        for (expert, choices) in choices.by_expert.iter().enumerate() {
            if choices.is_empty() {
                continue;
            }
            let mlp = &self.experts[expert];
            let taken = |from: &[f32]| -> Vec<f32> {
                let row = |choice: &Choice| from[choice.token * width..][..width].to_vec();
                choices.iter().flat_map(row).collect()
            };
            let (inputs, mut by_fed) = (taken(x), taken(by_out));
            let fed = mlp.forward(through, &inputs, breath)?;
            let rows = by_fed.chunks_exact_mut(width).zip(fed.chunks_exact(width));
            for (choice, (by_fed, fed)) in choices.iter().zip(rows) {
                let product: f32 = by_fed.iter().zip(fed).map(|(by_fed, fed)| by_fed * fed).sum();
                by_weight[choice.token * self.experts.len() + expert] = Some((choice.weight, product));
                by_fed.iter_mut().for_each(|by_fed| *by_fed *= choice.weight);
            }
            let by_inputs = mlp.back(through, &inputs, &by_fed, breath)?;
            for (choice, by_input) in choices.iter().zip(by_inputs.chunks_exact(width)) {
                add(&mut by_x[choice.token * width..][..width], by_input);
            }
        }
        let by_scores = self.back_weights(&scores, &by_weight);
        add(&mut by_x, &through.back_frozen(&self.router, &by_scores, breath)?);
        Ok(by_x)
    }

    /// The gradient by the router's scores, from weights and the gradients by them. A weight is a share of a softmax, so
    /// its change with the score of expert `j` is `weight · (is j - share of j)`.
    fn back_weights(&self, scores: &[f32], by_weight: &[Option<(f32, f32)>]) -> Vec<f32> {
        let n_experts = self.experts.len();
        let mut by_scores = vec![0.0; scores.len()];
        let rows = scores.chunks_exact(n_experts).zip(by_weight.chunks_exact(n_experts));
        for (by_scores, (scores, by_weight)) in by_scores.chunks_exact_mut(n_experts).zip(rows) {
            let mean: f32 = by_weight.iter().flatten().map(|(weight, by)| weight * by).sum();
            let highest = scores.iter().copied().fold(f32::MIN, f32::max);
            let total: f32 = scores.iter().map(|score| exp(score - highest)).sum();
            for ((by_score, score), chosen) in by_scores.iter_mut().zip(scores).zip(by_weight) {
                *by_score = match (chosen, self.config.routing) {
                    (Some((weight, by)), _) => weight * (by - mean),
                    (None, Routing::SoftmaxAll) => -exp(score - highest) / total * mean,
                    (None, Routing::SoftmaxChosen) => 0.0,
                };
            }
        }
        by_scores
    }
}

impl Activation {
    /// Its derivative at `x`.
    fn slope(self, x: f32) -> f32 {
        let sigmoid = |x: f32| 1.0 / (1.0 + exp(-x));
        match self {
            Self::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
            Self::Gelu => {
                // x · share(x) is the function itself, and the density of the normal distribution the share's slope.
                let mut value = [x];
                self.apply(&mut value);
                let share = if x == 0.0 { 0.5 } else { value[0] / x };
                share
                    + x * exp(-0.5 * x * x) * (0.5 * std::f32::consts::FRAC_1_SQRT_2 * std::f32::consts::FRAC_2_SQRT_PI)
            }
            Self::GeluTanh => {
                let (linear, cubic) = (0.797_884_6, 0.044_715);
                let tanh = (linear * (x + cubic * x * x * x)).tanh();
                0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * linear * (1.0 + 3.0 * cubic * x * x)
            }
            Self::Relu => f32::from(u8::from(x > 0.0)),
            Self::ClampedSwiglu { limit } if x > limit => 0.0,
            Self::ClampedSwiglu { .. } => {
                let sigmoid = sigmoid(1.702 * x);
                sigmoid * (1.0 + 1.702 * x * (1.0 - sigmoid))
            }
        }
    }

    /// What the activated gate is multiplied by, and that factor's derivative.
    fn factor(self, up: f32) -> (f32, f32) {
        match self {
            Self::ClampedSwiglu { limit } => {
                let inside = up.abs() <= limit;
                (up.clamp(-limit, limit) + 1.0, f32::from(u8::from(inside)))
            }
            _ => (up, 1.0),
        }
    }
}
