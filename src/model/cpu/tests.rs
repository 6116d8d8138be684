//! The functions of single numbers against those of the standard library.

use super::*;

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
