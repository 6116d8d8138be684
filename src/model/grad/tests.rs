//! Gradients of every part of every family against what the kernels change by; and the outputs of the kernels against the
//! forward passes in here, which know no cache, no pages and no batches.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{super::testing::whole, *};
use crate::model::{
    Blocks, WeightDType,
    attention::Alibi,
    config::parts::{Activation, AlibiKind, ExpertsConfig, Residual, Routing},
    feed_forward::{Experts, FeedForward, Mlp},
    linear::Linear,
    lora::f32_linear,
    testing::{assert_close, assert_same_bits, engine, random, random_blocks, random_hidden, rng},
};

/// A part of some family, put into a block of Llama.
type Part = (&'static str, fn(&mut Block));

const WIDTH: usize = 24;
const HEAD_DIM: usize = 6;

fn norm(seed: u64, width: usize, centred: bool) -> Norm {
    let mut rng = rng(seed);
    Norm {
        weight: random(&mut rng, width).iter().map(|x| 1.0 + 0.4 * x).collect(),
        bias: centred.then(|| random(&mut rng, width)),
        eps: 1e-3,
    }
}

fn linear(seed: u64, rows: usize, cols: usize) -> Linear {
    let scale = 1.7 / (cols as f32).sqrt();
    let numbers = random(&mut rng(seed), rows * cols);
    let numbers: Vec<f32> = numbers.iter().map(|x| x * scale).collect();
    f32_linear([rows, cols], &numbers, &engine())
}

fn mlp(seed: u64, activation: Activation, gated: bool) -> Mlp {
    let inner = 20;
    Mlp {
        activation,
        gate: gated.then(|| linear(seed, inner, WIDTH)),
        up: linear(seed + 1, inner, WIDTH),
        down: linear(seed + 2, WIDTH, inner),
    }
}

fn experts(routing: Routing) -> FeedForward {
    let n_experts = 4;
    FeedForward::Experts(Experts {
        config: ExpertsConfig {
            n_experts,
            experts_per_token: 2,
            routing,
            router_bias: false,
        },
        router: linear(31, n_experts, WIDTH),
        experts: (0..4)
            .map(|expert| mlp(40 + 3 * expert, Activation::Silu, true))
            .collect(),
    })
}

const PARTS: [Part; 15] = [
    ("Llama", |_| {}),
    ("layer norms", |block| {
        block.attention_norm = norm(1, WIDTH, true);
        block.mlp_norm = Some(norm(2, WIDTH, true));
    }),
    ("norms after both parts", |block| {
        block.residual = Residual::SequentialPostNorm;
        block.attention_post_norm = Some(norm(3, WIDTH, false));
        block.mlp_post_norm = Some(norm(4, WIDTH, false));
    }),
    ("both parts of one norm", |block| {
        block.residual = Residual::Parallel;
        block.mlp_norm = None;
    }),
    ("both parts of two norms", |block| {
        block.residual = Residual::ParallelTwoNorms
    }),
    ("normed queries and keys", |block| {
        block.qk_norm = Some([norm(5, HEAD_DIM, false), norm(6, HEAD_DIM, false)]);
    }),
    ("capped scores", |block| block.scoring.softcap = Some(0.7)),
    ("a window", |block| block.scoring.window = Some(3)),
    ("alibi", |block| {
        block.rope = None;
        block.scoring.alibi = Some(Alibi::new(4, AlibiKind::Exact, block.scoring.scale));
    }),
    ("sinks", |block| block.scoring.sinks = Some(vec![0.5, -1.0, 2.0, 0.0])),
    ("GELU without a gate", |block| {
        block.feed_forward = FeedForward::Dense(mlp(7, Activation::Gelu, false))
    }),
    ("gated tanh GELU", |block| {
        block.feed_forward = FeedForward::Dense(mlp(8, Activation::GeluTanh, true))
    }),
    ("clamped SwiGLU", |block| {
        // Few numbers are near the limit, where a difference is no derivative.
        block.feed_forward = FeedForward::Dense(mlp(9, Activation::ClampedSwiglu { limit: 2.5 }, true));
    }),
    ("a share of each of all experts", |block| {
        block.feed_forward = experts(Routing::SoftmaxAll)
    }),
    ("shares of the chosen experts", |block| {
        block.feed_forward = experts(Routing::SoftmaxChosen)
    }),
];

fn blocks_with(part: fn(&mut Block), config: Value, seed: u64) -> Blocks {
    let mut blocks = random_blocks(config, seed, WeightDType::F32);
    part(Arc::get_mut(&mut blocks.blocks[1]).unwrap().host_mut());
    blocks
}

fn pass<'a>(blocks: &'a Blocks, x: &Hidden) -> Pass<'a> {
    Pass {
        block: blocks.blocks[1].host(),
        through: Through {
            engine: &blocks.shared.heads.engine,
            adapter: None,
        },
        config: &blocks.config,
        batch: x.batch,
        tokens: x.tokens,
    }
}

/// What is differentiated.
fn forward(pass: &Pass<'_>, x: &[f32]) -> Vec<f32> {
    let block = pass.block;
    let normed = block.attention_norm.apply(x);
    let breath: &mut Breath<'_> = &mut || Ok(());
    let attended = Attention::new(pass, &normed, breath).unwrap().output(breath).unwrap();
    let attended = pass
        .through
        .apply(Target::Output, &block.output, &attended, breath)
        .unwrap();
    let mut out = normed_by(block.attention_post_norm.as_ref(), &attended);
    add(&mut out, x);
    let fed = match (&block.mlp_norm, block.residual.is_parallel()) {
        (None, _) => normed,
        (Some(norm), true) => norm.apply(x),
        (Some(norm), false) => norm.apply(&out),
    };
    let fed = block.feed_forward.forward(pass.through, &fed, breath).unwrap();
    add(&mut out, &normed_by(block.mlp_post_norm.as_ref(), &fed));
    out
}

#[test]
fn every_part_gives_the_same_with_a_cache_and_without() {
    for (name, part) in PARTS {
        let blocks = blocks_with(part, json!({}), 10);
        for (batch, tokens) in [(1, 1), (3, 5), (2, 70)] {
            let x = random_hidden(&mut rng(11), batch, tokens, WIDTH);
            println!("{name}, {batch} sequences of {tokens} tokens");
            assert_close(&whole(&blocks, 1, &x).data, &forward(&pass(&blocks, &x), &x.data), 2e-5);
        }
    }
}

#[test]
fn every_shape_of_block_gives_the_same_with_a_cache_and_without() {
    let shapes = [
        json!({"num_key_value_heads": 1}),
        json!({"num_key_value_heads": 4, "attention_bias": true}),
        json!({"mlp_bias": true, "head_dim": 10}),
        json!({"attention_bias": true, "mlp_bias": true, "head_dim": 64, "rope_theta": 500_000.0}),
        json!({"hidden_size": 33, "intermediate_size": 17, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 2}),
        json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16}),
    ];
    for (seed, shape) in (10..).zip(shapes) {
        let blocks = random_blocks(shape, seed, WeightDType::F32);
        for (batch, tokens) in [(1, 1), (3, 5), (2, 70)] {
            let x = random_hidden(&mut rng(seed), batch, tokens, blocks.config().hidden_size);
            assert_close(&whole(&blocks, 1, &x).data, &forward(&pass(&blocks, &x), &x.data), 2e-5);
        }
    }
}

#[test]
fn the_gradient_of_every_part_is_what_the_kernels_change_by() {
    for (name, part) in PARTS {
        for config in [
            json!({}),
            json!({"attention_bias": true, "mlp_bias": true, "num_key_value_heads": 1}),
        ] {
            let blocks = blocks_with(part, config, 20);
            let mut rng = rng(21);
            let (x, by_out) = (
                random_hidden(&mut rng, 2, 7, WIDTH),
                random_hidden(&mut rng, 2, 7, WIDTH),
            );
            let gradient = blocks.backward(1, None, &x, &by_out).unwrap();
            assert_eq!((gradient.batch, gradient.tokens, gradient.width), (2, 7, WIDTH));
            for _ in 0..4 {
                let direction = random(&mut rng, x.data.len());
                let moved = |by: f32| {
                    let mut x = x.clone();
                    x.data.iter_mut().zip(&direction).for_each(|(x, d)| *x += by * d);
                    dot(&whole(&blocks, 1, &x).data, &by_out.data)
                };
                let slope = (moved(2e-3) - moved(-2e-3)) / 4e-3;
                let found = dot(&gradient.data, &direction);
                let difference = (slope - found).abs();
                assert!(
                    difference < 1e-2 * (1.0 + slope.abs()),
                    "{name}: {found} instead of {slope}"
                );
            }
        }
    }
}

#[test]
fn long_sequences_are_differentiated_in_parts_with_the_same_result() {
    let blocks = blocks_with(|block| block.scoring.window = Some(40), json!({}), 22);
    let mut rng = rng(23);
    let (x, mut by_out) = (
        random_hidden(&mut rng, 1, 150, WIDTH),
        random_hidden(&mut rng, 1, 150, WIDTH),
    );
    // What comes after a token has no part in it.
    by_out.data[70 * WIDTH..].fill(0.0);
    let whole = blocks.backward(1, None, &x, &by_out).unwrap();
    let cut = |x: &Hidden| Hidden::new(x.data[..70 * WIDTH].to_vec(), 1, 70, WIDTH).unwrap();
    let start = blocks.backward(1, None, &cut(&x), &cut(&by_out)).unwrap();
    assert_close(&whole.data[..70 * WIDTH], &start.data, 1e-5);
    assert!(whole.data[70 * WIDTH..].iter().all(|number| *number == 0.0));
}

#[test]
fn a_block_is_differentiated_in_many_pieces_and_ends_where_nobody_wants_it_any_more() {
    let blocks = blocks_with(|_| {}, json!({}), 26);
    let x = random_hidden(&mut rng(27), 3, 200, WIDTH);
    let expected = blocks.backward(1, None, &x, &x).unwrap();
    let run = |most: usize| {
        let mut n_breaths = 0;
        let gradient = blocks.backward_with(1, None, [&x, &x], &mut || {
            n_breaths += 1;
            if n_breaths > most {
                Err(ComputeError::Stopped)
            } else {
                Ok(())
            }
        });
        (gradient, n_breaths)
    };
    let (gradient, n_breaths) = run(usize::MAX);
    assert_same_bits(&gradient.unwrap().data, &expected.data);
    assert!(n_breaths > 15, "{n_breaths} breaths only");
    let (stopped, n_breaths) = run(7);
    assert!(matches!(stopped, Err(ComputeError::Stopped)));
    assert_eq!(n_breaths, 8);
}

#[test]
fn weights_of_any_type_are_differentiated() {
    let x = random_hidden(&mut rng(24), 1, 5, WIDTH);
    let expected = random_blocks(json!({}), 25, WeightDType::F32)
        .backward(1, None, &x, &x)
        .unwrap();
    for dtype in [WeightDType::Bf16, WeightDType::F16] {
        let blocks = random_blocks(json!({}), 25, dtype);
        assert_close(&blocks.backward(1, None, &x, &x).unwrap().data, &expected.data, 0.1);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
