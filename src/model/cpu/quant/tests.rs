//! Every instruction set and format against plain loops over what the weights and activations became, and one tiling
//! against another.

use super::{QuantBlock, QuantKernels, QuantTokens, blocks_per_token, testing::numbers, tokens::BLOCK};
use crate::model::{
    cpu::Engine,
    quant::{QuantMatrix, WeightFormat, encode_panel},
    testing::engine,
};

const FORMATS: [WeightFormat; 4] = [
    WeightFormat::Q8_0,
    WeightFormat::Q4_0,
    WeightFormat::Q4K,
    WeightFormat::Nf4,
];

/// Rows, columns and tokens: whole and broken panels, blocks and groups, and every tile of tokens.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (16, 32, 1),
    (17, 64, 2),
    (33, 256, 3),
    (48, 257, 4),
    (70, 100, 5),
    (64, 512, 1),
    (5, 300, 7),
    (80, 33, 8),
    (31, 640, 11),
    (96, 128, 13),
    (40, 320, 26),
];

fn with(kernels: QuantKernels) -> Engine {
    Engine {
        quant: kernels,
        ..engine()
    }
}

fn matrix(format: WeightFormat, rows: usize, cols: usize, weights: &[f32]) -> QuantMatrix {
    let mut matrix = QuantMatrix::zeros(format, rows, cols).unwrap();
    for (panel, rows) in matrix.panels_mut().zip(weights.chunks(16 * cols)) {
        encode_panel(format, rows, cols, panel);
    }
    matrix
}

fn product(kernels: QuantKernels, matrix: &QuantMatrix, x: &[f32]) -> Vec<f32> {
    let mut tokens = QuantTokens::default();
    tokens.set(&with(kernels), x, matrix.cols());
    let width = 16 * matrix.n_panels();
    let mut out = vec![f32::NAN; tokens.tokens() * width];
    kernels.multiply(matrix.panels(0..matrix.n_panels()), &tokens, &mut out);
    let rows = out.chunks_exact(width).flat_map(|out| &out[..matrix.rows()]);
    rows.copied().collect()
}

/// The activations as the kernels see them.
fn seen(kernels: QuantKernels, x: &[f32], cols: usize) -> Vec<f32> {
    let mut tokens = QuantTokens::default();
    tokens.set(&with(kernels), x, cols);
    let per_token = blocks_per_token(cols);
    let token = |blocks: &[QuantBlock]| -> Vec<f32> {
        let all = blocks
            .iter()
            .flat_map(|block| block.q.map(|q| f32::from(q) * block.scale));
        all.take(cols).collect()
    };
    tokens.blocks().chunks_exact(per_token).flat_map(token).collect()
}

#[test]
fn every_kernel_is_a_plain_loop_over_the_quantised_numbers() {
    for kernels in QuantKernels::available() {
        for format in FORMATS {
            for (seed, (rows, cols, n)) in SHAPES.into_iter().enumerate() {
                let weights = numbers(seed as u64 + 1, rows * cols);
                let x = numbers(seed as u64 + 100, n * cols);
                let matrix = matrix(format, rows, cols, &weights);
                let (weights, x_seen) = (matrix.to_f32(), seen(kernels, &x, cols));
                let found = product(kernels, &matrix, &x);
                for (token, found) in found.chunks_exact(rows).enumerate() {
                    let x = &x_seen[token * cols..][..cols];
                    for (found, weights) in found.iter().zip(weights.chunks_exact(cols)) {
                        let terms = || weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let (expected, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                        assert!(
                            (f64::from(*found) - expected).abs() <= 4e-6 * size + 1e-12,
                            "{} {format:?} [{rows}, {cols}] x {n}: {found} is not {expected}",
                            kernels.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn neither_tiles_nor_company_change_a_bit() {
    let (rows, cols) = (83, 520);
    let weights = numbers(7, rows * cols);
    let x = numbers(8, 27 * cols);
    for kernels in QuantKernels::available() {
        for format in FORMATS {
            let matrix = matrix(format, rows, cols, &weights);
            let alone: Vec<f32> = x
                .chunks_exact(cols)
                .flat_map(|x| product(kernels, &matrix, x))
                .collect();
            for n in 1..=27 {
                let together = product(kernels, &matrix, &x[..n * cols]);
                assert!(
                    together == alone[..n * rows],
                    "{} {format:?}, {n} tokens",
                    kernels.name()
                );
            }
            let mut tokens = QuantTokens::default();
            tokens.set(&with(kernels), &x, cols);
            let mut by_panel = vec![0.0; 27 * rows];
            for panel in 0..matrix.n_panels() {
                let mut out = [0.0; 27 * 16];
                kernels.multiply(matrix.panels(panel..panel + 1), &tokens, &mut out);
                let lanes = (rows - panel * 16).min(16);
                for (by_panel, out) in by_panel.chunks_exact_mut(rows).zip(out.chunks_exact(16)) {
                    by_panel[panel * 16..][..lanes].copy_from_slice(&out[..lanes]);
                }
            }
            assert!(by_panel == alone, "{} {format:?}, panel by panel", kernels.name());
        }
    }
}

#[test]
fn instruction_sets_quantise_activations_alike() {
    let x = numbers(9, 5 * 333);
    let blocks = |kernels| {
        let mut tokens = QuantTokens::default();
        tokens.set(&with(kernels), &x, 333);
        tokens.blocks().to_vec()
    };
    let all: Vec<Vec<QuantBlock>> = QuantKernels::available().into_iter().map(blocks).collect();
    assert!(all.iter().all(|blocks| *blocks == all[0]));
    for (token, blocks) in all[0].chunks_exact(blocks_per_token(333)).enumerate() {
        for (block_idx, block) in blocks.iter().enumerate() {
            let at = token * 333 + (block_idx * BLOCK).min(333);
            let x = &x[at..(token * 333 + 333).min(at + BLOCK)];
            for (x, q) in x.iter().zip(block.q) {
                assert!((x - block.scale * f32::from(q)).abs() <= block.scale * 0.501);
            }
            let sum: i32 = block.q.iter().map(|q| i32::from(*q)).sum();
            assert_eq!((block.minus_8, block.minus_128), (-8 * sum, -128 * sum));
        }
    }
}

#[test]
fn activations_that_are_no_numbers_make_results_that_are_none() {
    for kernels in QuantKernels::available() {
        for format in FORMATS {
            let matrix = matrix(format, 20, 96, &numbers(3, 20 * 96));
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = numbers(4, 2 * 96);
                x[100] = wrong;
                let out = product(kernels, &matrix, &x);
                assert!(out[..20].iter().all(|y| y.is_finite()), "{format:?}: the other token");
                assert!(out[20..].iter().all(|y| !y.is_finite()), "{format:?}: {wrong}");
            }
            let tiny = product(kernels, &matrix, &[1e-40; 96]);
            assert!(tiny.iter().all(|y| y.abs() < 1e-36));
        }
    }
}

#[test]
fn the_largest_products_do_not_overflow() {
    for kernels in QuantKernels::available() {
        for format in FORMATS {
            // All weights at the end of their range, against activations at the end of theirs, of either sign.
            for (weight, x) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
                let matrix = matrix(format, 16, 256, &[weight; 16 * 256]);
                let found = product(kernels, &matrix, &[x; 256]);
                let expected = weight * x * 256.0;
                assert!(
                    found.iter().all(|y| (y / expected - 1.0).abs() < 0.01),
                    "{format:?} {found:?}"
                );
            }
        }
    }
}
