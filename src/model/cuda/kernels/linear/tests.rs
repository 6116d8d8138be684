//! Products on a card against a plain f64 loop over the same weights, and against themselves in other batches.

use std::ops::Range;

use super::*;
use crate::model::{
    cuda::{
        kernels::testing::{card, downloaded},
        steps::{Steps, few_tokens},
        testing::is_on_card,
    },
    linear::Matrix,
    testing::{assert_same_bits, engine, random, rng},
};

const SHAPES: [[usize; 2]; 6] = [[1, 8], [3, 32], [37, 70], [64, 256], [50, 523], [130, 1100]];

fn matrix(format: WeightFormat, [rows, cols]: [usize; 2], weights: &[f32]) -> Matrix {
    let source = |range: Range<usize>, out: &mut [f32]| {
        out.copy_from_slice(&weights[range.start * cols..range.end * cols]);
    };
    Matrix::pack(format, [rows, cols], &source, &engine()).unwrap()
}

fn linear(format: WeightFormat, shape: [usize; 2], seed: u64) -> Linear {
    let mut rng = rng(seed);
    let weights = random(&mut rng, shape[0] * shape[1]);
    Linear {
        weight: matrix(format, shape, &weights),
        bias: seed.is_multiple_of(2).then(|| random(&mut rng, shape[0])),
    }
}

fn quantised() -> impl Iterator<Item = WeightFormat> {
    WeightFormat::ALL.into_iter().filter(|format| format.dtype().is_none())
}

/// In f64, with x as the card sees it; and what the sizes of all terms add up to.
fn exact(linear: &Linear, x: &[f32]) -> Vec<(f64, f64)> {
    let (weights, cols) = (linear.weight.to_f32(), linear.weight.cols());
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for (row, weights) in weights.chunks_exact(cols).enumerate() {
            let terms = || weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let bias = linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
            out.push((
                terms().sum::<f64>() + bias,
                terms().map(f64::abs).sum::<f64>() + bias.abs(),
            ));
        }
    }
    out
}

/// As tokens are rounded for integer formats: to 8 bit, each block of 32 with its own scale.
fn in_8_bit(x: &[f32], cols: usize) -> Vec<f32> {
    let mut out = x.to_vec();
    for block in out.chunks_mut(cols).flat_map(|token| token.chunks_mut(32)) {
        let largest = block.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let round = |x: f32| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0);
        block.iter_mut().for_each(|x| *x = round(*x));
    }
    out
}

#[track_caller]
fn assert_exact(found: &[f32], expected: &[(f64, f64)], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, (expected, size))) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(*found) - expected).abs();
        assert!(
            difference <= tolerance * size + 1e-9,
            "{i}: {found} is not {expected} (of {size})"
        );
    }
}

/// Steps of so many tokens.
fn steps(lengths: &[usize]) -> Steps {
    let mut steps = Steps::default();
    lengths.iter().for_each(|length| steps.push(*length, *length));
    steps
}

/// `x` as one step.
fn applied(linear: &CardLinear, x: &[f32], add_to: Option<&[f32]>) -> Vec<f32> {
    applied_to(linear, &steps(&[x.len() / linear.weight.cols()]), x, add_to)
}

fn applied_to(linear: &CardLinear, steps: &Steps, x: &[f32], add_to: Option<&[f32]>) -> Vec<f32> {
    let (device, tokens) = (linear.weight.device(), steps.all());
    let x = Buffer::from_slice(device, x).unwrap();
    match add_to {
        Some(y) => {
            let mut y = Buffer::from_slice(device, y).unwrap();
            linear.add(x.all(), tokens, y.all_mut()).unwrap();
            downloaded(&y)
        }
        None => {
            let mut y = Buffer::temporary(device, tokens.len() * linear.weight.rows()).unwrap();
            linear.apply(x.all(), tokens, y.all_mut()).unwrap();
            downloaded(&y)
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn weights_on_a_card_are_those_of_the_cpu_in_every_format() {
    let device = card();
    for format in WeightFormat::ALL {
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            let linear = linear(format, shape, seed as u64);
            let on_card = CardMatrix::of(&linear.weight, &engine(), &device).unwrap();
            assert_same_bits(&on_card.to_f32().unwrap(), &linear.weight.to_f32());
        }
    }
}

/// The bits of a number in 16; the largest if there is none.
fn rounded(to: WeightDType, number: f32) -> u16 {
    match to {
        WeightDType::F16 => half::f16::from_f32(number.clamp(-65504.0, 65504.0)).to_bits(),
        _ => half::bf16::from_f32(number).to_bits(),
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn any_run_of_rows_is_widened_to_what_its_numbers_round_to() {
    let device = card();
    for (format, to) in quantised().flat_map(|format| [WeightDType::Bf16, WeightDType::F16].map(|to| (format, to))) {
        // Rows that begin anywhere in what a warp takes, and fill the last one or do not; and numbers beyond all of f16, which
        // scales of NF4 cannot say.
        for (shape, size) in [([5, 8], 1.0), ([37, 70], 2e5), ([50, 523], 1e-5), ([33, 1100], 1.0)] {
            let size = if format == WeightFormat::Nf4 {
                1.0_f32.min(size)
            } else {
                size
            };
            let weights: Vec<f32> = random(&mut rng(3), shape[0] * shape[1])
                .iter()
                .map(|x| x * size)
                .collect();
            let weights = matrix(format, shape, &weights);
            let on_card = CardMatrix::of(&weights, &engine(), &device).unwrap();
            let (stride, numbers) = (on_card.layout.stride, weights.to_f32());
            for (first, rows) in [(0, shape[0]), (1, 1), (3, shape[0] - 3)] {
                let wide = Buffer::<u16>::temporary(&device, rows * stride).unwrap();
                on_card.widen(to, (first, rows), (&wide).into()).unwrap();
                let expected = numbers[first * shape[1]..][..rows * shape[1]].chunks_exact(shape[1]);
                for (found, expected) in downloaded(&wide).chunks_exact(stride).zip(expected) {
                    let expected: Vec<u16> = expected.iter().map(|number| rounded(to, *number)).collect();
                    assert_eq!(
                        found[..shape[1]],
                        expected,
                        "{format:?} to {to:?}, {shape:?} from row {first}"
                    );
                }
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn products_with_few_tokens_are_exact_in_every_format() {
    let device = card();
    for format in WeightFormat::ALL {
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            let linear = linear(format, shape, seed as u64);
            let on_card = CardLinear::of(&linear, &engine(), &device).unwrap();
            let tokens = [1, 2, 5, 8, 13, few_tokens(format)][seed];
            let x = random(&mut rng(7), tokens * shape[1]);
            let seen = match format {
                WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4K => in_8_bit(&x, shape[1]),
                _ => x.clone(),
            };
            let expected = exact(&linear, &seen);
            let found = applied(&on_card, &x, None);
            assert_exact(&found, &expected, 2e-6);
            let y = random(&mut rng(8), found.len());
            let added: Vec<(f64, f64)> = expected
                .iter()
                .zip(&y)
                .map(|((e, size), y)| (e + f64::from(*y), size + 1.0))
                .collect();
            assert_exact(&applied(&on_card, &x, Some(&y)), &added, 2e-6);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_token_alone_and_among_others_gives_the_same_bits() {
    let device = card();
    for format in WeightFormat::ALL {
        // Rows that several warps share, and some that none do.
        for shape in [[37, 70], [10, 1100], [8196, 8]] {
            let on_card = CardLinear::of(&linear(format, shape, 2), &engine(), &device).unwrap();
            let x = random(&mut rng(9), 19 * shape[1]);
            let alone: Vec<f32> = x
                .chunks_exact(shape[1])
                .take(3)
                .flat_map(|x| applied(&on_card, x, None))
                .collect();
            for tokens in [3, 19] {
                let together = applied_to(&on_card, &steps(&vec![1; tokens]), &x[..tokens * shape[1]], None);
                let n = together.len().min(alone.len());
                assert_same_bits(&together[..n], &alone[..n]);
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn long_and_short_steps_together_are_what_each_is_alone() {
    let device = card();
    for format in [WeightFormat::Bf16, WeightFormat::Q4_0] {
        let on_card = CardLinear::of(&linear(format, [37, 70], 2), &engine(), &device).unwrap();
        let lengths = [
            2,
            few_tokens(format) + 1,
            1,
            3,
            few_tokens(format),
            few_tokens(format) + 7,
        ];
        let x = random(&mut rng(15), lengths.iter().sum::<usize>() * 70);
        let y = random(&mut rng(16), x.len() / 70 * 37);
        for add_to in [None, Some(&y[..])] {
            let together = applied_to(&on_card, &steps(&lengths), &x, add_to);
            let mut first = 0;
            for length in lengths {
                let tokens = first..first + length;
                first = tokens.end;
                let part =
                    |numbers: &'_ [f32], width: usize| numbers[tokens.start * width..tokens.end * width].to_vec();
                let own = add_to.map(|y| part(y, 37));
                let alone = applied(&on_card, &part(&x, 70), own.as_deref());
                assert_same_bits(&part(&together, 37), &alone);
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn matrices_with_the_same_x_give_together_what_each_gives() {
    let device = card();
    for formats in [
        [WeightFormat::Q4_0; 3],
        [WeightFormat::Bf16; 3],
        [WeightFormat::F32, WeightFormat::F16, WeightFormat::F32],
    ] {
        let linears: Vec<CardLinear> = formats
            .into_iter()
            .zip([(5, 4), (130, 1), (64, 6)])
            .map(|(format, (rows, seed))| {
                CardLinear::of(&linear(format, [rows, 520], seed), &engine(), &device).unwrap()
            })
            .collect();
        let numbers = random(&mut rng(10), 3 * 520);
        let x = Buffer::from_slice(&device, &numbers).unwrap();
        let mut ys: [Buffer<f32>; 3] =
            std::array::from_fn(|i| Buffer::zeros(&device, 3 * linears[i].weight.rows()).unwrap());
        let views = ys.each_mut().map(Buffer::all_mut);
        CardLinear::apply_each(
            [&linears[0], &linears[1], &linears[2]],
            x.all(),
            steps(&[3]).all(),
            views,
        )
        .unwrap();
        for (linear, y) in linears.iter().zip(&ys) {
            assert_same_bits(&downloaded(y), &applied(linear, &numbers, None));
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn products_with_many_tokens_are_as_exact_as_16_bits() {
    let device = card();
    for format in WeightFormat::ALL {
        for (seed, shape) in [(1, [37, 70]), (2, [130, 523])] {
            let linear = linear(format, shape, seed);
            let on_card = CardLinear::of(&linear, &engine(), &device).unwrap();
            let tokens = few_tokens(format) + 3;
            let x = random(&mut rng(11), tokens * shape[1]);
            let expected = exact(&linear, &x);
            let tolerance = if format == WeightFormat::F32 { 2e-6 } else { 6e-3 };
            let found = applied(&on_card, &x, None);
            assert_exact(&found, &expected, tolerance);
            let y = random(&mut rng(8), found.len());
            let added: Vec<(f64, f64)> = expected
                .iter()
                .zip(&y)
                .map(|((e, size), y)| (e + f64::from(*y), size + 1.0))
                .collect();
            assert_exact(&applied(&on_card, &x, Some(&y)), &added, tolerance);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn quantised_weights_with_many_tokens_are_more_exact_as_f16_than_as_bf16() {
    let (device, shape) = (card(), [130, 523]);
    for format in quantised() {
        let linear = linear(format, shape, 2);
        let on_card = CardLinear::of(&linear, &engine(), &device).unwrap();
        let tokens = few_tokens(format) + 3;
        let numbers = random(&mut rng(11), tokens * shape[1]);
        let expected = exact(&linear, &numbers);
        let x = Buffer::from_slice(&device, &numbers).unwrap();
        for (wide, tolerance) in [(WeightDType::Bf16, 6e-3), (WeightDType::F16, 8e-4)] {
            let mut y = Buffer::temporary(&device, expected.len()).unwrap();
            on_card.many(wide, (x.all(), tokens), &mut y.all_mut(), false).unwrap();
            assert_exact(&downloaded(&y), &expected, tolerance);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn our_own_product_equals_that_of_cublas() {
    let device = card();
    assert!(device.has_blas(), "there is no cuBLAS to compare with");
    for dtype in [WeightDType::F32, WeightDType::Bf16, WeightDType::F16] {
        let (rows, cols, tokens, y_stride) = (70, 72, 67, 90);
        let narrow = |numbers: Vec<f32>| -> Vec<u8> {
            let number = |x: f32| match dtype {
                WeightDType::F32 => x.to_le_bytes().to_vec(),
                WeightDType::Bf16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
                WeightDType::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
            };
            numbers.into_iter().flat_map(number).collect()
        };
        let weights = Buffer::from_slice(&device, &narrow(random(&mut rng(12), rows * cols))).unwrap();
        let x = Buffer::from_slice(&device, &narrow(random(&mut rng(13), tokens * cols))).unwrap();
        for add in [false, true] {
            let before = random(&mut rng(14), tokens * y_stride);
            let ys = [(); 2].map(|()| Buffer::from_slice(&device, &before).unwrap());
            let gemm = |y: &Buffer<f32>| Gemm {
                dtype,
                weights: weights.all().address(),
                x: x.all().address(),
                y: y.all().address(),
                rows,
                cols,
                tokens,
                y_stride,
                add,
            };
            assert!(device.multiply(gemm(&ys[0])).unwrap());
            own_product(&device, gemm(&ys[1])).unwrap();
            crate::model::testing::assert_close(&downloaded(&ys[1]), &downloaded(&ys[0]), 3e-5);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn products_with_many_tokens_are_as_exact_on_a_card_that_is_slow_with_bf16() {
    if is_on_card(
        &[("EMULATED_CAPABILITY", "75")],
        products_with_many_tokens_are_as_exact_on_a_card_that_is_slow_with_bf16,
    ) {
        products_with_many_tokens_are_as_exact_as_16_bits();
    }
}

#[test]
fn cards_that_are_slow_with_bf16_take_quantised_weights_as_f16() {
    assert_eq!([70, 75].map(wide), [WeightDType::F16; 2]);
    assert_eq!([80, 89, 120].map(wide), [WeightDType::Bf16; 3]);
}

#[test]
fn what_comes_out_of_widened_rows_begins_where_cublas_is_fast() {
    for stride in (64..40_000).step_by(64) {
        let rows = widened_rows(2 * stride);
        assert!(
            (WIDENED_ROWS..=MAX_ROWS).contains(&rows),
            "{rows} rows of {stride} columns"
        );
        assert_eq!(rows * size_of::<f32>() % 16, 0, "{rows} rows of {stride} columns");
        assert!(rows * 2 * stride <= WIDENED_BYTES, "{rows} rows of {stride} columns");
    }
    assert_eq!(widened_rows(1 << 30), WIDENED_ROWS);
}

#[test]
fn rows_are_shared_by_several_warps_only_where_there_are_few_rows_and_many_columns() {
    assert_eq!(splits(7168, 1024), 1);
    assert_eq!(splits(1024, 1024), 2);
    assert_eq!(splits(2, 1024), 8);
    assert_eq!(splits(2, 20), 1);
}
