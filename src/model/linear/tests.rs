//! Packed matrices of every type against sums in f64, and that a token's outputs are its own bits.

use rand::Rng;

use super::*;
use crate::model::testing::{engine, random, rng};

const DTYPES: [WeightDType; 3] = [WeightDType::F32, WeightDType::Bf16, WeightDType::F16];

fn linear(dtype: WeightDType, [rows, cols]: [usize; 2], seed: u64, engine: &Engine) -> Linear {
    let mut rng = rng(seed);
    let weights = random(&mut rng, rows * cols);
    let source =
        |rows: Range<usize>, out: &mut [f32]| out.copy_from_slice(&weights[rows.start * cols..rows.end * cols]);
    Linear {
        weight: Matrix::pack(dtype, [rows, cols], &source, engine).unwrap(),
        bias: seed.is_multiple_of(2).then(|| random(&mut rng, rows)),
    }
}

/// What `linear` gives for one token, and how large errors may be.
fn exact(linear: &Linear, x: &[f32]) -> Vec<(f64, f64)> {
    let weights = linear.weight.to_f32();
    let rows = weights.chunks_exact(linear.weight.cols()).enumerate();
    rows.map(|(row, weights)| {
        let bias = linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
        let products = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
        products.fold((bias, bias.abs()), |(sum, size), product| {
            (sum + product, size + product.abs())
        })
    })
    .collect()
}

#[test]
fn outputs_of_any_shape_and_type_are_right() {
    let engine = engine();
    let mut rng = rng(1);
    for case in 0..36 {
        let (rows, cols) = (rng.random_range(1..150), rng.random_range(1..230));
        let tokens = [1, 2, 7, 16, 17, 29][case % 6];
        let linear = linear(DTYPES[case % 3], [rows, cols], case as u64, &engine);
        let x = random(&mut rng, tokens * cols);
        let mut out = vec![f32::NAN; 5];
        linear.apply(&engine, &x, &mut out);
        assert_eq!(out.len(), tokens * rows);
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact(rows)) {
            for (out, (expected, size)) in out.iter().zip(exact(&linear, x)) {
                let error = (f64::from(*out) - expected).abs();
                assert!(
                    error <= 4e-6 * size,
                    "{rows} x {cols}, {tokens} tokens: {out} not {expected}"
                );
            }
        }
    }
}

#[test]
fn a_packed_matrix_is_the_matrix_rounded() {
    let engine = engine();
    let numbers = random(&mut rng(2), 37 * 19);
    let source = |rows: Range<usize>, out: &mut [f32]| out.copy_from_slice(&numbers[rows.start * 19..rows.end * 19]);
    for dtype in DTYPES {
        let matrix = Matrix::pack(dtype, [37, 19], &source, &engine).unwrap();
        let rounded: Vec<f32> = numbers.iter().map(|x| dtype.round(*x)).collect();
        assert_eq!(matrix.to_f32(), rounded);
    }
}

/// Alone, among a few, among many; by one thread or several.
#[test]
fn a_token_has_the_same_bits_in_every_batch() {
    let (many, one) = (engine(), Engine::new(std::num::NonZeroUsize::new(1)).unwrap());
    let mut rng = rng(3);
    let (rows, cols) = (330, 400);
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let linear = linear(dtype, [rows, cols], i as u64, &many);
        let x = random(&mut rng, 410 * cols);
        let apply = |engine: &Engine, tokens: Range<usize>| {
            let mut out = Vec::new();
            linear.apply(engine, &x[tokens.start * cols..tokens.end * cols], &mut out);
            out
        };
        let all = apply(&many, 0..410);
        for tokens in [0..1, 100..101, 409..410, 3..5, 60..76, 60..77, 200..237, 7..395] {
            for engine in [&one, &many] {
                let expected = &all[tokens.start * rows..tokens.end * rows];
                assert!(apply(engine, tokens.clone()) == expected, "{dtype:?} {tokens:?}");
            }
        }
    }
}

#[test]
fn regions_of_several_matrices_give_what_each_gives_alone() {
    let engine = engine();
    let linears: Vec<Linear> = [100, 33, 16]
        .iter()
        .map(|rows| linear(WeightDType::Bf16, [*rows, 70], 4 + *rows as u64, &engine))
        .collect();
    let other = linear(WeightDType::F16, [100, 70], 8, &engine);
    for tokens in [1, 5, 40] {
        let x = random(&mut rng(tokens as u64), tokens * 70);
        let alone = |linear: &Linear| {
            let mut out = Vec::new();
            linear.apply(&engine, &x, &mut out);
            out
        };
        let mut outs = [const { Vec::new() }; 3];
        apply_each(
            &engine,
            [&linears[0], &linears[1], &linears[2]],
            Source::Ready(&x),
            outs.each_mut(),
        );
        assert_eq!(outs.as_slice(), linears.iter().map(alone).collect::<Vec<_>>());

        let mut out = Vec::new();
        apply_gated(
            &engine,
            [&linears[0], &other],
            Source::Ready(&x),
            &mut out,
            &|gate, up| {
                gate.iter_mut().zip(up).for_each(|(gate, up)| *gate -= up);
            },
        );
        let both = alone(&linears[0]).into_iter().zip(alone(&other));
        assert_eq!(out, both.map(|(gate, up)| gate - up).collect::<Vec<f32>>());

        linears[1].apply_then(&engine, Source::Ready(&x), &mut out, &|x| {
            x.iter_mut().for_each(|x| *x = -*x)
        });
        assert_eq!(out, alone(&linears[1]).into_iter().map(|x| -x).collect::<Vec<f32>>());
    }
}

#[test]
fn tokens_that_are_made_on_the_way_and_sums_that_are_added_to_are_the_same_numbers() {
    let engine = engine();
    let (mut rng, cols) = (rng(5), 420);
    let weights = [WeightFormat::Bf16, WeightFormat::Q8_0, WeightFormat::Nf4];
    for (format, tokens) in weights
        .into_iter()
        .flat_map(|format| [3, 50, 400].map(|tokens| (format, tokens)))
    {
        let numbers = random(&mut rng, 33 * cols);
        let source = |rows: Range<usize>, out: &mut [f32]| {
            out.copy_from_slice(&numbers[rows.start * cols..rows.end * cols]);
        };
        let linear = Linear {
            weight: Matrix::pack(format, [33, cols], &source, &engine).unwrap(),
            bias: Some(random(&mut rng, 33)),
        };
        let x = random(&mut rng, tokens * cols);
        let expected = linear.applied(&engine, &x);

        let make = |first: usize, out: &mut [f32]| out.copy_from_slice(&x[first * cols..][..out.len()]);
        let (mut made, mut out) = (vec![f32::NAN; x.len()], Vec::new());
        let made_source = Source::Made {
            make: &make,
            first: 0,
            out: &mut made,
        };
        apply_each(&engine, [&linear], made_source, [&mut out]);
        assert_eq!((&made, &out), (&x, &expected));

        let mut sums = random(&mut rng, out.len());
        let added: Vec<f32> = sums.iter().zip(&expected).map(|(sum, out)| sum + out).collect();
        linear.add_to(&engine, &x, &mut sums);
        assert_eq!(sums, added);
    }
}

#[test]
fn no_tokens_give_no_outputs() {
    let engine = engine();
    let linear = linear(WeightDType::F32, [20, 7], 0, &engine);
    let mut out = vec![1.0];
    linear.apply(&engine, &[], &mut out);
    assert_eq!(out, [0.0; 0]);
}
