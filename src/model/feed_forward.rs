//! The feed-forward part of a block: one, or a mixture of experts of which each token goes through a few. What comes out
//! for a token depends on no other token.

use std::sync::atomic::AtomicBool;

use super::{
    LoadError, ModelConfig,
    config::parts::{Activation, ExpertsConfig, Routing},
    cpu::{AT_A_TIME, Disjoint, Engine, Source, exp, for_parts},
    layout::{BlockLayout, MlpSpec},
    linear::{Linear, apply_each, apply_gated},
    load::TensorReader,
    lora::{self, Target, Updates},
};

/// After attention.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one in a block")]
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

    /// What is computed of the activations `x`, `[tokens, hidden]`, before anything is written to them. Adapters change
    /// no experts.
    pub(crate) fn begin(&self, engine: &Engine, updates: Updates<'_>, x: Source<'_>, scratch: &mut Scratch) {
        match self {
            Self::Dense(mlp) => mlp.inner(engine, updates, x, scratch),
            Self::Experts(experts) => apply_each(engine, [&experts.router], x, [&mut scratch.scores]),
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

/// Memory of feed-forward parts that is used again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Before the last projection, `[tokens, inner]`.
    pub(crate) inner: Vec<f32>,
    /// The same of what a gate is multiplied with, where the two are not computed together.
    up: Vec<f32>,
    pub(crate) updates: lora::Buffers,
    /// Of the router, `[tokens, experts]`.
    scores: Vec<f32>,
    choices: Choices,
    /// The tokens of one expert, before and after it.
    gathered: Vec<f32>,
    fed: Vec<f32>,
    taken: Vec<AtomicBool>,
}

impl Mlp {
    /// Before the last projection: `scratch.inner`.
    fn inner(&self, engine: &Engine, updates: Updates<'_>, mut x: Source<'_>, scratch: &mut Scratch) {
        let Scratch {
            inner,
            up,
            updates: buffers,
            ..
        } = scratch;
        let activation = self.activation;
        if !updates.change(&[Target::Gate, Target::Up]) {
            return self.inner_alone(engine, x, inner);
        }
        // Something is added before the activation.
        let (tokens, cols) = (x.len() / self.up.weight.cols(), self.up.weight.cols());
        let Some(gate) = &self.gate else {
            apply_each(engine, [&self.up], x.tokens(0..tokens, cols), [inner]);
            updates.add(Target::Up, engine, (x.rows(), inner), buffers);
            return for_parts(&engine.pool, inner.len(), (inner, AT_A_TIME), &|_, x| {
                engine.quant.vectorise(|| activation.apply(x));
            });
        };
        apply_each(engine, [gate, &self.up], x.tokens(0..tokens, cols), [inner, up]);
        let x = x.rows();
        updates.add(Target::Gate, engine, (x, inner), buffers);
        updates.add(Target::Up, engine, (x, up), buffers);
        for_parts(&engine.pool, inner.len(), (inner, AT_A_TIME), &|i, gate| {
            let up = &up[i * AT_A_TIME..][..gate.len()];
            engine.quant.vectorise(|| activation.apply_gated(gate, up));
        });
    }

    fn inner_alone(&self, engine: &Engine, x: Source<'_>, inner: &mut Vec<f32>) {
        let activation = self.activation;
        match &self.gate {
            Some(gate) => apply_gated(engine, [gate, &self.up], x, inner, &|gate, up| {
                activation.apply_gated(gate, up);
            }),
            None => self.up.apply_then(engine, x, inner, &|x| activation.apply(x)),
        }
    }
}

/// A token on its way through an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) token: usize,
    pub(crate) weight: f32,
}

/// Which tokens go through which experts, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Choices {
    pub(crate) by_expert: Vec<Vec<Choice>>,
    /// The experts of one token.
    chosen: Vec<(usize, f32)>,
}

impl Experts {
    /// `x` is `[tokens, hidden]`; returns the same shape.
    pub(crate) fn run(&self, engine: &Engine, x: &[f32]) -> Vec<f32> {
        let (mut scratch, mut out) = (Scratch::default(), Vec::new());
        self.router.apply(engine, x, &mut scratch.scores);
        self.mix(engine, x, &mut scratch, &mut out);
        out
    }

    /// `out` becomes what the experts give for `x`, `[tokens, hidden]`, whose scores are in `scratch`. Each expert runs
    /// once, for all of its tokens; what the experts of a token give is added in the order of their numbers.
    pub(crate) fn mix(&self, engine: &Engine, x: &[f32], scratch: &mut Scratch, out: &mut Vec<f32>) {
        let width = self.router.weight.cols();
        out.clear();
        out.resize(x.len(), 0.0);
        let Scratch {
            inner,
            scores,
            choices,
            gathered,
            fed,
            taken,
            ..
        } = scratch;
        choices.choose(self.config, scores);
        for (expert, choices) in self.experts.iter().zip(&choices.by_expert) {
            if choices.is_empty() {
                continue;
            }
            gathered.resize(choices.len() * width, 0.0);
            let gather = |first: usize, rows: &mut [f32]| {
                for (choice, row) in choices[first..].iter().zip(rows.chunks_exact_mut(width)) {
                    row.copy_from_slice(&x[choice.token * width..][..width]);
                }
            };
            let source = Source::Made {
                make: &gather,
                first: 0,
                out: gathered,
            };
            expert.inner_alone(engine, source, inner);
            expert.down.apply(engine, inner, fed);
            let sums = Disjoint::new(out, width, taken);
            for_parts(&engine.pool, fed.len(), (fed, width), &|i, fed| {
                let Choice { token, weight } = choices[i];
                let sums = sums.take(token).iter_mut().zip(fed);
                sums.for_each(|(sum, fed)| *sum += weight * *fed);
            });
        }
    }
}

impl Choices {
    /// The tokens of each expert, from the router's scores `[tokens, experts]`.
    pub(crate) fn choose(&mut self, config: ExpertsConfig, scores: &[f32]) {
        let Self { by_expert, chosen } = self;
        by_expert.resize(config.n_experts, Vec::new());
        by_expert.iter_mut().for_each(Vec::clear);
        for (token, scores) in scores.chunks_exact(config.n_experts).enumerate() {
            route(config, scores, chosen);
            for (expert, weight) in &*chosen {
                by_expert[*expert].push(Choice { token, weight: *weight });
            }
        }
    }
}

/// Writes the experts of one token and their weights, the highest first. Of equal scores the first is taken.
fn route(config: ExpertsConfig, scores: &[f32], chosen: &mut Vec<(usize, f32)>) {
    let n = config.experts_per_token.min(scores.len());
    chosen.clear();
    for (expert, score) in scores.iter().enumerate() {
        let place = chosen.iter().rposition(|(_, other)| other.total_cmp(score).is_ge());
        let place = place.map_or(0, |place| place + 1);
        if place < n {
            chosen.truncate(n - 1);
            chosen.insert(place, (expert, *score));
        }
    }
    let highest = chosen.first().map_or(0.0, |(_, score)| *score);
    let share = |score: f32| exp(score - highest);
    let total: f32 = match config.routing {
        Routing::SoftmaxAll => scores.iter().map(|score| share(*score)).sum(),
        Routing::SoftmaxChosen => chosen.iter().map(|(_, score)| share(*score)).sum(),
    };
    chosen.iter_mut().for_each(|(_, score)| *score = share(*score) / total);
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
        let mut chosen = vec![(7, 1.0)];
        route(config, &scores, &mut chosen);
        chosen
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
