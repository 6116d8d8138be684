//! The same block as differentiable candle operations in f32: gradients for `rpc_backward`, and in tests the oracle
//! for the kernels. It has no cache and is not fast.

use candle_core::{D, Device, Error, Result, Tensor, Var};
use candle_nn::ops::softmax;

use super::{
    Activation, Hidden, ModelConfig, Residual,
    attention::Scoring,
    block::Block,
    feed_forward::FeedForward,
    linear::Linear,
    norm::Norm,
    rope::{Angles, Rope},
};

/// The gradient of `Σ block(x) · grad_out` by `x`; both are `[batch, tokens, hidden]`.
pub(crate) fn backward(block: &Block, config: &ModelConfig, x: &Hidden, grad_out: &Hidden) -> Result<Hidden> {
    let x_in = Var::from_tensor(&to_tensor(x)?)?;
    let out = forward(block, config, &x_in)?;
    let loss = (out * to_tensor(grad_out)?)?.sum_all()?;
    let grads = loss.backward()?;
    let grad = match grads.get(&x_in) {
        Some(grad) => grad.flatten_all()?.to_vec1()?,
        None => vec![0.0; x.data.len()],
    };
    Ok(Hidden {
        data: grad,
        batch: x.batch,
        tokens: x.tokens,
        width: x.width,
    })
}

/// The block's output for `x`, `[batch, tokens, hidden]`, positions from 0. Only for blocks of Llama's parts.
pub(crate) fn forward(block: &Block, config: &ModelConfig, x: &Tensor) -> Result<Tensor> {
    let (Some(rope), Some(mlp_norm), FeedForward::Dense(mlp)) = (&block.rope, &block.mlp_norm, &block.feed_forward)
    else {
        return Err(unsupported());
    };
    let (Some(gate), Activation::Silu) = (&mlp.gate, mlp.activation) else {
        return Err(unsupported());
    };
    let Scoring { softcap, window, .. } = block.scoring;
    if block.residual != Residual::Sequential || block.qk_norm.is_some() || softcap.is_some() || window.is_some() {
        return Err(unsupported());
    }
    let normed = norm(x, &block.attention_norm)?;
    let x = (x + linear(&block.output, &attend(block, rope, config, &normed)?)?)?;
    let normed = norm(&x, mlp_norm)?;
    let inner = (linear(gate, &normed)?.silu()? * linear(&mlp.up, &normed)?)?;
    x + linear(&mlp.down, &inner)?
}

fn unsupported() -> Error {
    Error::Msg("gradients of blocks of this family are not there yet".to_owned())
}

fn attend(block: &Block, rope: &Rope, config: &ModelConfig, x: &Tensor) -> Result<Tensor> {
    let (batch, tokens, _) = x.dims3()?;
    let (head_dim, group) = (config.head_dim, config.group_size());
    let heads = |data: Tensor, n: usize| {
        data.reshape((batch, tokens, n, head_dim))?
            .transpose(1, 2)?
            .contiguous()
    };
    let (cos, sin) = angles(rope, tokens)?;
    let queries = rotate(&heads(linear(&block.query, x)?, config.n_heads)?, &cos, &sin)?;
    let keys = rotate(&heads(linear(&block.key, x)?, config.n_kv_heads)?, &cos, &sin)?;
    let values = heads(linear(&block.value, x)?, config.n_kv_heads)?;
    let shared_by_group = |data: Tensor| {
        data.unsqueeze(2)?
            .broadcast_as((batch, config.n_kv_heads, group, tokens, head_dim))?
            .reshape((batch, config.n_heads, tokens, head_dim))
    };
    let keys = shared_by_group(keys)?.transpose(2, 3)?.contiguous()?;
    let values = shared_by_group(values)?.contiguous()?;
    let scores = (queries.matmul(&keys)? * f64::from(block.scoring.scale))?;
    let shares = softmax(&scores.broadcast_add(&causal_mask(tokens)?)?, D::Minus1)?;
    shares
        .matmul(&values)?
        .transpose(1, 2)?
        .reshape((batch, tokens, config.n_heads * head_dim))
}

fn to_tensor(x: &Hidden) -> Result<Tensor> {
    Tensor::from_slice(&x.data, (x.batch, x.tokens, x.width), &Device::Cpu)
}

fn vector(values: &[f32]) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), &Device::Cpu)
}

fn linear(layer: &Linear, x: &Tensor) -> Result<Tensor> {
    let (rows, cols) = (layer.weight.rows(), layer.weight.cols());
    let weight = Tensor::from_vec(layer.weight.as_slice().to_f32_vec(), (rows, cols), &Device::Cpu)?;
    let (batch, tokens, _) = x.dims3()?;
    let out = x.reshape((batch * tokens, cols))?.matmul(&weight.t()?)?;
    let out = match &layer.bias {
        Some(bias) => out.broadcast_add(&vector(bias)?)?,
        None => out,
    };
    out.reshape((batch, tokens, rows))
}

fn norm(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(norm.eps))?.sqrt()?;
    x.broadcast_div(&deviation)?.broadcast_mul(&vector(&norm.weight)?)
}

/// Cosines and sines, `[tokens, head_dim / 2]`.
fn angles(rope: &Rope, tokens: usize) -> Result<(Tensor, Tensor)> {
    let mut angles = Angles::new(rope);
    angles.push(rope, 0..tokens, tokens);
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for token in 0..tokens {
        let (token_cos, token_sin) = angles.of(token);
        cos.extend_from_slice(token_cos);
        sin.extend_from_slice(token_sin);
    }
    let shape = (tokens, rope.rotary_dim() / 2);
    Ok((
        Tensor::from_vec(cos, shape, &Device::Cpu)?,
        Tensor::from_vec(sin, shape, &Device::Cpu)?,
    ))
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let turned_first = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
    let turned_second = (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?;
    Tensor::cat(&[turned_first, turned_second], D::Minus1)
}

fn causal_mask(tokens: usize) -> Result<Tensor> {
    let mask =
        (0..tokens).flat_map(|query| (0..tokens).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 }));
    Tensor::from_iter(mask, &Device::Cpu)?.reshape((tokens, tokens))
}
