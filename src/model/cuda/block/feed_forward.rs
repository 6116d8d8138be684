//! The feed-forward part of a block on a card: one, or a mixture of experts. Which experts a token goes through is decided
//! on the host, as on the CPU, from scores that the card computed.

use std::sync::Arc;

use super::{CardBlock, Run};
use crate::model::{
    config::parts::{Activation, ExpertsConfig},
    cpu::Engine,
    cuda::{
        Buffer, CudaError, Device, View,
        kernels::{
            elementwise::{activate, activate_gated, gather_rows, scatter_add_rows},
            linear::CardLinear,
        },
        steps::Steps,
    },
    feed_forward::{Choices, FeedForward, Mlp},
    linear::Linear,
    lora::Target,
};

/// After attention.
#[derive(Debug)]
pub(super) enum CardFeedForward {
    Dense(Box<CardMlp>),
    Experts(CardExperts),
}

/// `down(activation(gate(x)) · up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Debug)]
pub(super) struct CardMlp {
    pub(super) activation: Activation,
    pub(super) gate: Option<CardLinear>,
    pub(super) up: CardLinear,
    pub(super) down: CardLinear,
}

/// A router, and the experts that its scores choose from.
#[derive(Debug)]
pub(super) struct CardExperts {
    pub(super) config: ExpertsConfig,
    pub(super) router: CardLinear,
    pub(super) experts: Vec<CardMlp>,
}

impl CardFeedForward {
    /// # Errors
    /// When the card has no memory for it.
    pub(super) fn of(part: &FeedForward, engine: &Engine, device: &Arc<Device>) -> Result<Self, CudaError> {
        let linear = |linear: &Linear| CardLinear::of(linear, engine, device);
        let mlp = |mlp: &Mlp| {
            Ok(CardMlp {
                activation: mlp.activation,
                gate: mlp.gate.as_ref().map(linear).transpose()?,
                up: linear(&mlp.up)?,
                down: linear(&mlp.down)?,
            })
        };
        match part {
            FeedForward::Dense(dense) => Ok(Self::Dense(Box::new(mlp(dense)?))),
            FeedForward::Experts(experts) => Ok(Self::Experts(CardExperts {
                config: experts.config,
                router: linear(&experts.router)?,
                experts: experts.experts.iter().map(mlp).collect::<Result<_, CudaError>>()?,
            })),
        }
    }
}

impl CardBlock {
    /// `out = feed_forward(x)`, both `[tokens, hidden]`. Adapters change no experts.
    pub(super) fn feed(&self, x: View<'_, f32>, out: &mut Buffer<f32>, run: &Run<'_>) -> Result<(), CudaError> {
        match &self.feed_forward {
            CardFeedForward::Dense(mlp) => self.run_mlp(mlp, x, out, run),
            CardFeedForward::Experts(experts) => self.mix(experts, x, out, run),
        }
    }

    /// Each expert runs once, for all of its tokens; what the experts of a token give is added in the order of their
    /// numbers.
    fn mix(
        &self,
        experts: &CardExperts,
        x: View<'_, f32>,
        out: &mut Buffer<f32>,
        run: &Run<'_>,
    ) -> Result<(), CudaError> {
        let width = experts.router.weight.cols();
        let mut scores_on_card = self.temporary(run.steps.tokens() * experts.experts.len())?;
        experts.router.apply(x, run.steps.all(), scores_on_card.all_mut())?;
        let mut scores = vec![0.0; scores_on_card.len()];
        scores_on_card.download(0, &mut scores)?;
        let mut choices = Choices::default();
        choices.choose(experts.config, &scores);

        let all = || choices.by_expert.iter().flatten();
        let tokens: Vec<u32> = all().map(|choice| choice.token as u32).collect();
        let weights: Vec<f32> = all().map(|choice| choice.weight).collect();
        let mut tokens_on_card = Buffer::temporary(&self.device, tokens.len())?;
        tokens_on_card.upload(0, &tokens)?;
        let mut weights_on_card = self.temporary(weights.len())?;
        weights_on_card.upload(0, &weights)?;

        out.clear()?;
        let (mut first, mut steps) = (0, Steps::default());
        for (expert, choices) in experts.experts.iter().zip(&choices.by_expert) {
            let chosen = first..first + choices.len();
            first = chosen.end;
            if choices.is_empty() {
                continue;
            }
            let rows = tokens_on_card.view(chosen.clone());
            let mut gathered = self.temporary(choices.len() * width)?;
            gather_rows(&self.device, (x, width), rows, &mut gathered.all_mut())?;
            let mut fed = self.temporary(choices.len() * width)?;
            steps.choose(run.steps, choices.iter().map(|choice| choice.token));
            let alone = Run {
                steps: &steps,
                updates: &[],
                ..*run
            };
            self.run_mlp(expert, gathered.all(), &mut fed, &alone)?;
            let weighed = (rows, weights_on_card.view(chosen));
            scatter_add_rows(&self.device, (fed.all(), width), weighed, &mut out.all_mut())?;
        }
        Ok(())
    }

    fn run_mlp(&self, mlp: &CardMlp, x: View<'_, f32>, out: &mut Buffer<f32>, run: &Run<'_>) -> Result<(), CudaError> {
        let mut inner = self.temporary(run.steps.tokens() * mlp.up.weight.rows())?;
        match &mlp.gate {
            Some(gate) => {
                let mut up = self.temporary(inner.len())?;
                let outs = [inner.all_mut(), up.all_mut()];
                CardLinear::apply_each([gate, &mlp.up], x, run.steps.all(), outs)?;
                self.update(Target::Gate, x, &mut inner, run)?;
                self.update(Target::Up, x, &mut up, run)?;
                activate_gated(&self.device, mlp.activation, &mut inner.all_mut(), up.all())?;
            }
            None => {
                mlp.up.apply(x, run.steps.all(), inner.all_mut())?;
                self.update(Target::Up, x, &mut inner, run)?;
                activate(&self.device, mlp.activation, &mut inner.all_mut())?;
            }
        }
        mlp.down.apply(inner.all(), run.steps.all(), out.all_mut())?;
        self.update(Target::Down, inner.all(), out, run)
    }
}
