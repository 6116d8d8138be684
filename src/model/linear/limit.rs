//! How fast one large matrix product is, measured: what a whole block's prefill is to be compared with. Nothing is
//! computed that anyone needs.

use std::{hint::black_box, ops::Range, time::Instant};

use super::{Linear, Matrix};
use crate::model::{Engine, LoadError, WeightFormat};

/// The best of so many; the first warms up.
const REPETITIONS: usize = 6;

/// Operations per second, a multiply-add counted as two, of a product of `tokens` vectors with a matrix `[rows, cols]`
/// in `format`.
///
/// # Errors
/// When there is no memory for the matrix.
pub fn measure_gemm(
    format: WeightFormat,
    [rows, cols]: [usize; 2],
    tokens: usize,
    engine: &Engine,
) -> Result<f64, LoadError> {
    let source = |rows: Range<usize>, out: &mut [f32]| {
        let first = rows.start * cols;
        out.iter_mut()
            .enumerate()
            .for_each(|(i, weight)| *weight = noise(first + i));
    };
    let linear = Linear {
        weight: Matrix::pack(format, [rows, cols], &source, engine)?.rounding(engine),
        bias: None,
    };
    let x: Vec<f32> = (0..tokens * cols).map(noise).collect();
    let mut out = Vec::new();
    let best = (0..REPETITIONS).map(|_| {
        let start = Instant::now();
        linear.apply(engine, &x, &mut out);
        black_box(&mut out);
        start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
    });
    let seconds = best.fold(f64::INFINITY, f64::min);
    Ok((2 * rows * cols * tokens) as f64 / seconds)
}

/// Numbers from -1 to 1 without much of a pattern.
fn noise(i: usize) -> f32 {
    (i.wrapping_mul(7919) % 2003) as f32 / 1001.5 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_measured_in_every_format() {
        let engine = Engine::new(None).unwrap();
        for format in WeightFormat::ALL {
            let speed = measure_gemm(format, [48, 256], 20, &engine).unwrap();
            assert!(speed.is_finite() && speed > 0.0, "{format:?}");
        }
    }
}
