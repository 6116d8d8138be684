//! Every kernel of every level this CPU has, against sums in f64.

use half::{bf16, f16};
use rand::Rng;

use super::*;
use crate::model::testing::{random, rng};

/// Rounds numbers to each type; returns them as f64 as well.
fn each_type(numbers: &[f32], check: impl Fn(Slice<'_>, Vec<f64>)) {
    let exact = |numbers: Vec<f32>| numbers.into_iter().map(f64::from).collect();
    check(Slice::F32(numbers), exact(numbers.to_vec()));
    let rounded: Vec<bf16> = numbers.iter().map(|x| bf16::from_f32(*x)).collect();
    check(
        Slice::Bf16(&rounded),
        exact(rounded.iter().map(|x| x.to_f32()).collect()),
    );
    let rounded: Vec<f16> = numbers.iter().map(|x| f16::from_f32(*x)).collect();
    check(
        Slice::F16(&rounded),
        exact(rounded.iter().map(|x| x.to_f32()).collect()),
    );
}

fn assert_near(found: &[f32], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() <= 2e-5 * (1.0 + expected.abs()),
            "{found} instead of {expected}"
        );
    }
}

#[test]
fn products_of_any_shape_are_right_at_every_level() {
    let mut rng = rng(1);
    for case in 0..60 {
        let (rows, cols, tokens) = (rng.random_range(1..14), rng.random_range(1..70), case % 17 + 1);
        let x = random(&mut rng, tokens * cols);
        each_type(&random(&mut rng, rows * cols), |weights, exact| {
            let expected: Vec<f64> = exact
                .chunks_exact(cols)
                .flat_map(|row| {
                    let products = |x: &[f32]| row.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum();
                    x.chunks_exact(cols).map(products).collect::<Vec<f64>>()
                })
                .collect();
            for kernels in Kernels::available() {
                let mut out = vec![f32::NAN; rows * tokens];
                kernels.dot_rows(weights, cols, &x, &mut out);
                assert_near(&out, &expected);
            }
        });
    }
}

#[test]
fn weighted_sums_of_any_shape_are_right_at_every_level() {
    let mut rng = rng(2);
    for case in 0..40 {
        let (rows, cols, sums) = (rng.random_range(1..20), rng.random_range(1..70), case % 9 + 1);
        let share = random(&mut rng, rows * sums);
        let start = random(&mut rng, sums * cols);
        each_type(&random(&mut rng, rows * cols), |values, exact| {
            let mut expected: Vec<f64> = start.iter().map(|x| f64::from(*x)).collect();
            for (row, share) in exact.chunks_exact(cols).zip(share.chunks_exact(sums)) {
                for (out, share) in expected.chunks_exact_mut(cols).zip(share) {
                    out.iter_mut()
                        .zip(row)
                        .for_each(|(out, x)| *out += x * f64::from(*share));
                }
            }
            for kernels in Kernels::available() {
                let mut out = start.clone();
                kernels.add_weighted(values, cols, &share, &mut out);
                assert_near(&out, &expected);
            }
        });
    }
}

#[test]
fn nothing_times_anything_is_nothing() {
    for kernels in Kernels::available() {
        kernels.dot_rows(Slice::F32(&[]), 3, &[1.0; 6], &mut []);
        kernels.add_weighted(Slice::F32(&[]), 3, &[], &mut [1.0; 3]);
    }
}

#[test]
fn exp_is_exact_to_a_few_units_in_the_last_place() {
    for i in -8700..8870 {
        let x = i as f32 * 0.01;
        let expected = f64::from(x).exp();
        assert!(
            (f64::from(exp(x)) - expected).abs() <= 3e-7 * expected,
            "exp({x}) is {} not {expected}",
            exp(x)
        );
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(
        (exp(f32::NEG_INFINITY), exp(-1e30), exp(f32::INFINITY)),
        (0.0, 0.0, f32::INFINITY)
    );
    assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
}

#[test]
fn silu_is_right_at_both_ends() {
    let mut gate = [-f32::INFINITY, -200.0, -1.0, 0.0, 1.0, 200.0];
    silu_times(&mut gate, &[2.0; 6]);
    assert_eq!((gate[1].abs(), gate[3], gate[5]), (0.0, 0.0, 400.0));
    assert!((gate[2] + 0.537_882_8).abs() < 1e-6 && (gate[4] - 1.462_117_2).abs() < 1e-6);
}
