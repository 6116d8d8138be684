//! A block of a card brought back to the CPU, for gradients: these are computed there, from the numbers that the card has.
//! Right, and slow: all weights cross the bus and are f32 meanwhile.

use super::{
    BothNorm, CardBlock,
    feed_forward::{CardFeedForward, CardMlp},
};
use crate::model::{
    block::Block,
    cpu::Engine,
    cuda::{CudaError, kernels::linear::CardLinear},
    feed_forward::{Experts, FeedForward, Mlp},
    linear::{Linear, Matrix},
};

impl CardBlock {
    /// The block without its adapters, its matrices in f32.
    ///
    /// # Errors
    /// When the card is lost.
    pub(crate) fn on_host(&self, engine: &Engine) -> Result<Block, CudaError> {
        let linear = |linear: &CardLinear| on_host(linear, engine);
        let mlp = |mlp: &CardMlp| {
            Ok(Mlp {
                activation: mlp.activation,
                gate: mlp.gate.as_ref().map(linear).transpose()?,
                up: linear(&mlp.up)?,
                down: linear(&mlp.down)?,
            })
        };
        let norm = |norm: &BothNorm| norm.host.clone();
        Ok(Block {
            residual: self.residual,
            attention_norm: norm(&self.attention_norm),
            query: linear(&self.query)?,
            key: linear(&self.key)?,
            value: linear(&self.value)?,
            qk_norm: self.qk_norm.as_ref().map(|norms| norms.each_ref().map(norm)),
            rope: self.rope.clone(),
            scoring: self.host_scoring.clone(),
            output: linear(&self.output)?,
            attention_post_norm: self.attention_post_norm.as_ref().map(norm),
            mlp_norm: self.mlp_norm.as_ref().map(norm),
            feed_forward: match &self.feed_forward {
                CardFeedForward::Dense(dense) => FeedForward::Dense(mlp(dense.as_ref())?),
                CardFeedForward::Experts(experts) => FeedForward::Experts(Experts {
                    config: experts.config,
                    router: linear(&experts.router)?,
                    experts: experts.experts.iter().map(mlp).collect::<Result<_, CudaError>>()?,
                }),
            },
            mlp_post_norm: self.mlp_post_norm.as_ref().map(norm),
            adapters: Vec::new(),
        })
    }
}

fn on_host(linear: &CardLinear, engine: &Engine) -> Result<Linear, CudaError> {
    let shape = [linear.weight.rows(), linear.weight.cols()];
    let bias = linear.bias.as_ref().map(|bias| {
        let mut numbers = vec![0.0; bias.len()];
        bias.download(0, &mut numbers).map(|()| numbers)
    });
    Ok(Linear {
        weight: Matrix::of_f32(shape, &linear.weight.to_f32()?, engine),
        bias: bias.transpose()?,
    })
}
