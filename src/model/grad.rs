//! The gradient of a block by its input, for frozen weights of any format: every part differentiated by hand, in the
//! order in which the block runs them, backwards. Nothing is cached, and a matrix is f32 only while it is multiplied by.
//!
//! Products go through the same kernels as everything else; of attention only a few queries' scores exist at a time.
//! So a pass needs memory for some activations of all its tokens, whatever their number. It takes a breath after every
//! piece, in which others may compute: what a block is for them is not changed by it.

mod attention;
mod feed_forward;
mod norm;
mod through;

use attention::Attention;
pub(crate) use feed_forward::INNER_TOKENS_ON_THE_WAY_BACK;
pub(crate) use through::{Breath, Through, bytes_on_the_way_back};

use super::{ComputeError, Hidden, ModelConfig, block::Block, lora::Target, norm::Norm};

/// The gradient of `Σ block(x) · grad_out` by `x`, `[x, grad_out]`; all are `[batch, tokens, hidden]`, positions from 0.
///
/// # Errors
/// Those of `breath`.
pub(crate) fn backward(
    block: &Block,
    through: Through<'_>,
    config: &ModelConfig,
    [x, grad_out]: [&Hidden; 2],
    breath: &mut Breath<'_>,
) -> Result<Hidden, ComputeError> {
    let pass = Pass {
        block,
        through,
        config,
        batch: x.batch,
        tokens: x.tokens,
    };
    let data = if block.residual.is_parallel() {
        pass.parallel(&x.data, &grad_out.data, breath)?
    } else {
        pass.sequential(&x.data, &grad_out.data, breath)?
    };
    Ok(Hidden {
        data,
        batch: x.batch,
        tokens: x.tokens,
        width: x.width,
    })
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
    fn sequential(&self, x: &[f32], by_out: &[f32], breath: &mut Breath<'_>) -> Result<Vec<f32>, ComputeError> {
        let (block, through) = (self.block, self.through);
        let normed = block.attention_norm.apply(x);
        let attention = Attention::new(self, &normed, breath)?;
        drop(normed);
        let attended = attention.output(breath)?;
        let attended = through.apply(Target::Output, &block.output, &attended, breath)?;
        let mut x1 = normed_by(block.attention_post_norm.as_ref(), &attended);
        add(&mut x1, x);

        let mut gradient = by_out.to_vec();
        let mlp_normed = normed_by(block.mlp_norm.as_ref(), &x1);
        breath()?;
        let by_normed = match &block.mlp_post_norm {
            None => block.feed_forward.back(through, &mlp_normed, by_out, breath)?,
            Some(norm) => {
                let fed = block.feed_forward.forward(through, &mlp_normed, breath)?;
                let by_fed = norm.back(&fed, by_out);
                block.feed_forward.back(through, &mlp_normed, &by_fed, breath)?
            }
        };
        drop(mlp_normed);
        add(&mut gradient, &back_by(block.mlp_norm.as_ref(), &x1, by_normed));
        drop(x1);
        breath()?;

        let by_attended = back_by(block.attention_post_norm.as_ref(), &attended, gradient.clone());
        drop(attended);
        let by_attention = through.back(Target::Output, &block.output, &by_attended, breath)?;
        let by_normed = attention.back(&by_attention, breath)?;
        add(&mut gradient, &block.attention_norm.back(x, &by_normed));
        Ok(gradient)
    }

    /// `out = x + attention(norm(x)) + feed_forward(norm(x))`, with one norm or two.
    fn parallel(&self, x: &[f32], by_out: &[f32], breath: &mut Breath<'_>) -> Result<Vec<f32>, ComputeError> {
        let (block, through) = (self.block, self.through);
        let normed = block.attention_norm.apply(x);
        let mut gradient = by_out.to_vec();
        let by_attention = through.back(Target::Output, &block.output, by_out, breath)?;
        let mut by_normed = Attention::new(self, &normed, breath)?.back(&by_attention, breath)?;
        match &block.mlp_norm {
            None => add(
                &mut by_normed,
                &block.feed_forward.back(through, &normed, by_out, breath)?,
            ),
            Some(norm) => {
                let by_fed = block.feed_forward.back(through, &norm.apply(x), by_out, breath)?;
                add(&mut gradient, &norm.back(x, &by_fed));
            }
        }
        add(&mut gradient, &block.attention_norm.back(x, &by_normed));
        Ok(gradient)
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
