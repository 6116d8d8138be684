//! The gradient of a block by its input, for frozen weights of any format: every part differentiated by hand, in the
//! order in which the block runs them, backwards. Nothing is cached, and a matrix is f32 only while it is multiplied by.
//!
//! Products go through the same kernels as everything else; of attention only a few queries' scores exist at a time.
//! So a pass needs memory for some activations of all its tokens, whatever their number.

mod attention;
mod feed_forward;
mod norm;
mod through;

use attention::Attention;
pub(crate) use through::Through;

use super::{Hidden, ModelConfig, block::Block, lora::Target, norm::Norm};

/// The gradient of `Σ block(x) · grad_out` by `x`; all are `[batch, tokens, hidden]`, positions from 0.
pub(crate) fn backward(
    block: &Block,
    through: Through<'_>,
    config: &ModelConfig,
    x: &Hidden,
    grad_out: &Hidden,
) -> Hidden {
    let pass = Pass {
        block,
        through,
        config,
        batch: x.batch,
        tokens: x.tokens,
    };
    let data = if block.residual.is_parallel() {
        pass.parallel(&x.data, &grad_out.data)
    } else {
        pass.sequential(&x.data, &grad_out.data)
    };
    Hidden {
        data,
        batch: x.batch,
        tokens: x.tokens,
        width: x.width,
    }
}

/// One block's way back.
struct Pass<'a> {
    block: &'a Block,
    through: Through<'a>,
    config: &'a ModelConfig,
    batch: usize,
    /// Of each sequence.
    tokens: usize,
}

impl Pass<'_> {
    /// `x1 = x + post(attention(norm(x)))`, `out = x1 + post(feed_forward(norm(x1)))`
    fn sequential(&self, x: &[f32], by_out: &[f32]) -> Vec<f32> {
        let block = self.block;
        let normed = block.attention_norm.apply(x);
        let attention = Attention::new(self, &normed);
        let attended = self.through.apply(Target::Output, &block.output, &attention.output());
        let mut x1 = normed_by(block.attention_post_norm.as_ref(), &attended);
        add(&mut x1, x);

        let mut gradient = by_out.to_vec();
        let mlp_normed = normed_by(block.mlp_norm.as_ref(), &x1);
        let by_fed = match &block.mlp_post_norm {
            None => by_out.to_vec(),
            Some(norm) => norm.back(&block.feed_forward.forward(self.through, &mlp_normed), by_out),
        };
        let by_normed = block.feed_forward.back(self.through, &mlp_normed, &by_fed);
        add(&mut gradient, &back_by(block.mlp_norm.as_ref(), &x1, by_normed));

        let by_attended = back_by(block.attention_post_norm.as_ref(), &attended, gradient.clone());
        let by_normed = attention.back(&self.through.back(Target::Output, &block.output, &by_attended));
        add(&mut gradient, &block.attention_norm.back(x, &by_normed));
        gradient
    }

    /// `out = x + attention(norm(x)) + feed_forward(norm(x))`, with one norm or two.
    fn parallel(&self, x: &[f32], by_out: &[f32]) -> Vec<f32> {
        let block = self.block;
        let normed = block.attention_norm.apply(x);
        let mut gradient = by_out.to_vec();
        let mut by_normed =
            Attention::new(self, &normed).back(&self.through.back(Target::Output, &block.output, by_out));
        match &block.mlp_norm {
            None => add(&mut by_normed, &block.feed_forward.back(self.through, &normed, by_out)),
            Some(norm) => {
                let by_fed = block.feed_forward.back(self.through, &norm.apply(x), by_out);
                add(&mut gradient, &norm.back(x, &by_fed));
            }
        }
        add(&mut gradient, &block.attention_norm.back(x, &by_normed));
        gradient
    }
}

fn normed_by(norm: Option<&Norm>, x: &[f32]) -> Vec<f32> {
    norm.map_or_else(|| x.to_vec(), |norm| norm.apply(x))
}

fn back_by(norm: Option<&Norm>, x: &[f32], by_out: Vec<f32>) -> Vec<f32> {
    match norm {
        None => by_out,
        Some(norm) => norm.back(x, &by_out),
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;
