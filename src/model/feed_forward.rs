//! The feed-forward part of a block: one, or a mixture of experts of which each token goes through a few. What comes out
//! for a token depends on no other token.

use super::{
    LoadError, ModelConfig,
    config::parts::{Activation, ExpertsConfig, Routing},
    cpu::{Engine, exp},
    layout::{BlockLayout, MlpSpec},
    linear::{Linear, apply_gated},
    load::TensorReader,
    lora::{Target, Updates},
};

/// After attention.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}

/// `down(activation(gate(x)) · up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) activation: Activation,
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// A router, and the experts it chooses from.
#[derive(Debug)]
pub(crate) struct Experts {
    pub(crate) config: ExpertsConfig,
    /// f32.
    pub(crate) router: Linear,
    pub(crate) experts: Vec<Mlp>,
}

impl FeedForward {
    /// # Errors
    /// The first tensor that is missing or not as the configuration says.
    pub(crate) fn load(
        reader: &mut TensorReader<'_>,
        config: &ModelConfig,
        layout: &BlockLayout,
    ) -> Result<Self, LoadError> {
        let activation = config.feed_forward.activation;
        let mut mlp = |spec: &MlpSpec| {
            Ok(Mlp {
                activation,
                gate: spec.gate.as_ref().map(|gate| reader.linear(gate)).transpose()?,
                up: reader.linear(&spec.up)?,
                down: reader.linear(&spec.down)?,
            })
        };
        match (config.feed_forward.experts, &layout.router) {
            (Some(experts), Some(router)) => Ok(Self::Experts(Experts {
                config: experts,
                experts: layout.mlps.iter().map(mlp).collect::<Result<_, LoadError>>()?,
                router: reader.linear_f32(router)?,
            })),
            _ => Ok(Self::Dense(mlp(&layout.mlps[0])?)),
        }
    }

    /// `x` is `[tokens, hidden]`; returns the same shape. Adapters change no experts.
    pub(crate) fn run(&self, engine: &Engine, updates: &Updates<'_>, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Dense(mlp) => mlp.run(engine, updates, x),
            Self::Experts(experts) => experts.run(engine, x),
        }
    }

    /// f32 numbers held at a time for each token.
    pub(crate) fn scratch_per_token(&self) -> usize {
        match self {
            Self::Dense(mlp) => 2 * mlp.up.weight.rows(),
            Self::Experts(experts) => {
                let widest = experts
                    .experts
                    .iter()
                    .map(|mlp| mlp.up.weight.rows() + mlp.down.weight.rows());
                experts.experts.len() + 2 * widest.max().unwrap_or(0)
            }
        }
    }
}

impl Mlp {
    fn run(&self, engine: &Engine, updates: &Updates<'_>, x: &[f32]) -> Vec<f32> {
        let inner = if updates.change(&[Target::Gate, Target::Up]) {
            self.inner_with(engine, updates, x)
        } else {
            self.inner(engine, x)
        };
        let mut out = self.down.applied(engine, &inner);
        updates.add(Target::Down, engine, &inner, &mut out);
        out
    }

    /// Before the last projection.
    fn inner(&self, engine: &Engine, x: &[f32]) -> Vec<f32> {
        let activation = self.activation;
        let mut inner = Vec::new();
        match &self.gate {
            Some(gate) => apply_gated(engine, [gate, &self.up], x, &mut inner, &|gate, up| {
                activation.apply_gated(gate, up);
            }),
            None => self.up.apply_then(engine, x, &mut inner, &|x| activation.apply(x)),
        }
        inner
    }

    /// The same where something is added before the activation.
    fn inner_with(&self, engine: &Engine, updates: &Updates<'_>, x: &[f32]) -> Vec<f32> {
        let mut up = self.up.applied(engine, x);
        updates.add(Target::Up, engine, x, &mut up);
        let Some(gate) = &self.gate else {
            self.activation.apply(&mut up);
            return up;
        };
        let mut inner = gate.applied(engine, x);
        updates.add(Target::Gate, engine, x, &mut inner);
        self.activation.apply_gated(&mut inner, &up);
        inner
    }
}

/// A token on its way through an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) token: usize,
    pub(crate) weight: f32,
}

impl Experts {
    /// Each expert runs once, for all of its tokens; what the experts of a token give is added in the order of their
    /// numbers.
    pub(crate) fn run(&self, engine: &Engine, x: &[f32]) -> Vec<f32> {
        let width = self.router.weight.cols();
        let mut out = vec![0.0; x.len()];
        let scores = self.router.applied(engine, x);
        let choices = self.choose(&scores);
        let chosen = self
            .experts
            .iter()
            .zip(&choices)
            .filter(|(_, choices)| !choices.is_empty());
        for (expert, choices) in chosen {
            let rows = choices.iter().map(|choice| &x[choice.token * width..][..width]);
            let fed = expert.run(engine, &Updates::default(), &rows.collect::<Vec<_>>().concat());
            for (choice, fed) in choices.iter().zip(fed.chunks_exact(width)) {
                let out = &mut out[choice.token * width..][..width];
                out.iter_mut()
                    .zip(fed)
                    .for_each(|(out, fed)| *out += choice.weight * fed);
            }
        }
        out
    }

    /// The tokens of each expert, from the router's scores `[tokens, experts]`.
    pub(crate) fn choose(&self, scores: &[f32]) -> Vec<Vec<Choice>> {
        let mut choices = vec![Vec::new(); self.experts.len()];
        for (token, scores) in scores.chunks_exact(self.experts.len()).enumerate() {
            for (expert, weight) in route(self.config, scores) {
                choices[expert].push(Choice { token, weight });
            }
        }
        choices
    }
}

/// The experts of one token and their weights. Of equal scores the first is taken.
fn route(config: ExpertsConfig, scores: &[f32]) -> Vec<(usize, f32)> {
    let mut by_score: Vec<usize> = (0..scores.len()).collect();
    by_score.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    by_score.truncate(config.experts_per_token);
    let highest = scores[by_score[0]];
    let share = |expert: usize| exp(scores[expert] - highest);
    let total: f32 = match config.routing {
        Routing::SoftmaxAll => (0..scores.len()).map(share).sum(),
        Routing::SoftmaxChosen => by_score.iter().map(|expert| share(*expert)).sum(),
    };
    by_score
        .into_iter()
        .map(|expert| (expert, share(expert) / total))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(routing: Routing) -> Vec<(usize, f32)> {
        let config = ExpertsConfig {
            n_experts: 4,
            experts_per_token: 2,
            routing,
            router_bias: false,
        };
        let scores = [0.0, 2.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln()];
        route(config, &scores)
    }

    #[test]
    fn the_weights_of_chosen_experts_are_shares_of_all_or_of_the_chosen() {
        for (routing, expected) in [
            (Routing::SoftmaxAll, [0.5, 0.2]),
            (Routing::SoftmaxChosen, [5.0 / 7.0, 2.0 / 7.0]),
        ] {
            let found = routed(routing);
            assert_eq!([found[0].0, found[1].0], [2, 1], "the first of equal scores");
            assert!((found[0].1 - expected[0]).abs() < 1e-6 && (found[1].1 - expected[1]).abs() < 1e-6);
        }
    }
}
