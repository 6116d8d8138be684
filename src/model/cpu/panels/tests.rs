//! The panel kernel of every level this CPU has, against sums in f64; and that a token's bits are its own.

use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::model::{
    number::Number,
    testing::{random, rng},
};

/// Panels of one type, and what their numbers are worth.
struct Panels<E> {
    items: Vec<Vec<E>>,
    depth: usize,
}

impl<E: Number> Panels<E> {
    fn random(seed: u64, n: usize, depth: usize, scale: f32) -> Self {
        let mut rng = rng(seed);
        let panel = |_| {
            let numbers = random(&mut rng, depth * LANES);
            numbers.into_iter().map(|x| E::from_f32(x * scale)).collect()
        };
        let items = (0..n).map(panel).collect();
        Self { items, depth }
    }

    /// `Σ_k panel[k][lane] · x[k]` in f64, and the same of the absolute values, which errors are in proportion to.
    fn exact(&self, row: usize, x: &[f32]) -> (f64, f64) {
        let products = (0..self.depth).map(|k| {
            let weight = self.items[row / LANES][k * LANES + row % LANES].to_f32();
            f64::from(weight) * f64::from(x[k])
        });
        products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
    }
}

fn slices<E>(panels: &Panels<E>, slice: for<'a> fn(&'a [E]) -> Slice<'a>) -> Vec<Slice<'_>> {
    panels.items.iter().map(|panel| slice(panel)).collect()
}

/// The shape of a case: panels, k, tokens, and numbers between the rows of x and of out.
#[derive(Clone, Copy, Debug)]
struct Shape {
    panels: usize,
    depth: usize,
    tokens: usize,
    gap: usize,
    add: bool,
}

fn shapes() -> impl Strategy<Value = Shape> {
    (0..7_usize, 0..70_usize, 0..28_usize, 0..5_usize, any::<bool>()).prop_map(|(panels, depth, tokens, gap, add)| {
        Shape {
            panels,
            depth,
            tokens,
            gap,
            add,
        }
    })
}

fn check<E: Number>(shape: Shape, scale: f32, slice: for<'a> fn(&'a [E]) -> Slice<'a>) {
    let Shape {
        panels: n,
        depth,
        tokens,
        gap,
        add,
    } = shape;
    let panels = Panels::<E>::random(n as u64, n, depth, scale);
    let (x_stride, out_stride) = (depth + gap, n * LANES + gap);
    let mut rng = rng(7);
    let x = random(&mut rng, tokens * x_stride);
    let start = random(&mut rng, tokens * out_stride);
    for kernels in Kernels::available() {
        let mut out = start.clone();
        let rows = Rows {
            data: &x,
            stride: x_stride,
        };
        let rows_out = RowsMut {
            data: &mut out,
            stride: out_stride,
        };
        kernels.multiply_panels(&slices(&panels, slice), rows, rows_out, tokens, add);
        for token in 0..tokens {
            for row in 0..n * LANES {
                let at = token * out_stride + row;
                let (mut expected, mut size) = panels.exact(row, &x[token * x_stride..]);
                if add {
                    expected += f64::from(start[at]);
                    size += f64::from(start[at]).abs();
                }
                let error = (f64::from(out[at]) - expected).abs();
                assert!(
                    error <= 4e-6 * size,
                    "{shape:?} {kernels:?}: {} not {expected}",
                    out[at]
                );
            }
            let between = token * out_stride + n * LANES..(token + 1) * out_stride;
            assert_eq!(
                out[between.clone()],
                start[between],
                "numbers between the rows are left alone"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_of_any_shape_and_type_are_right_at_every_level(shape in shapes()) {
        check::<f32>(shape, 1.0, |items| Slice::F32(items));
        check::<bf16>(shape, 1.0, |items| Slice::Bf16(items));
        check::<f16>(shape, 1.0, |items| Slice::F16(items));
        check::<i8>(shape, 127.0, |items| Slice::I8(items));
    }
}

/// Whatever it is multiplied with, in whatever tile.
#[test]
fn a_token_has_the_same_bits_in_every_company() {
    let depth = 133;
    let panels = Panels::<bf16>::random(3, 9, depth, 1.0);
    let slices = slices(&panels, |items| Slice::Bf16(items));
    let mut rng = rng(4);
    let x = random(&mut rng, 40 * depth);
    let product = |kernels: Kernels, panels: &[Slice<'_>], tokens: std::ops::Range<usize>| {
        let stride = panels.len() * LANES;
        let mut out = vec![0.0; tokens.len() * stride];
        let rows = Rows {
            data: &x[tokens.start * depth..],
            stride: depth,
        };
        let rows_out = RowsMut { data: &mut out, stride };
        kernels.multiply_panels(panels, rows, rows_out, tokens.len(), false);
        out
    };
    for kernels in Kernels::available() {
        let alone: Vec<Vec<f32>> = (0..40)
            .map(|token| {
                let panel = |panel: &Slice<'_>| product(kernels, &[*panel], token..token + 1);
                slices.iter().flat_map(panel).collect()
            })
            .collect();
        for _ in 0..60 {
            let tokens = rng.random_range(0..20)..rng.random_range(20..40);
            let chosen = rng.random_range(0..4)..rng.random_range(4..10);
            let out = product(kernels, &slices[chosen.clone()], tokens.clone());
            for (token, out) in tokens.zip(out.chunks_exact(chosen.len() * LANES)) {
                assert_eq!(
                    out,
                    &alone[token][chosen.start * LANES..chosen.end * LANES],
                    "{kernels:?}"
                );
            }
        }
    }
}

/// And however k is cut, when the sums go on from where they were.
#[test]
fn sums_that_are_continued_have_the_same_bits() {
    let panels = Panels::<f32>::random(5, 3, 90, 1.0);
    let x = random(&mut rng(6), 5 * 90);
    for kernels in Kernels::available() {
        let product = |cuts: &[usize]| {
            let mut out = vec![0.0; 5 * 48];
            let mut from = 0;
            for &to in cuts {
                let part: Vec<Slice<'_>> = panels
                    .items
                    .iter()
                    .map(|panel| Slice::F32(&panel[from * LANES..to * LANES]))
                    .collect();
                let rows = Rows {
                    data: &x[from..],
                    stride: 90,
                };
                let rows_out = RowsMut {
                    data: &mut out,
                    stride: 48,
                };
                kernels.multiply_panels(&part, rows, rows_out, 5, from > 0);
                from = to;
            }
            out
        };
        assert_eq!(product(&[90]), product(&[1, 32, 90]));
    }
}

/// To the nearest, ties to even, as bf16 is rounded everywhere; numbers too small to be normal apart.
#[test]
fn numbers_are_rounded_to_pairs() {
    let mut rng = rng(8);
    let mut x: Vec<f32> = (0..4000)
        .map(|_| f32::from_bits(rng.random()))
        .filter(|x| x.is_nan() || x.abs() >= f32::MIN_POSITIVE)
        .collect();
    x.extend([0.0, -0.0, f32::INFINITY, f32::NAN, f32::MAX]);
    // Ties.
    x.extend([0x3f80_8000, 0x3f81_8000].map(f32::from_bits));
    for kernels in Kernels::available().into_iter().filter(|kernels| kernels.has_pairs()) {
        for len in [0, 2, 14, 16, 34, x.len() / 2 * 2] {
            let mut words = vec![0.0; len / 2];
            kernels.round_to_pairs(&x[..len], &mut words);
            for (i, word) in words.iter().enumerate() {
                for (half, x) in [word.to_bits() << 16, word.to_bits() & 0xffff_0000]
                    .into_iter()
                    .zip(&x[2 * i..])
                {
                    let (found, expected) = (f32::from_bits(half), bf16::from_f32(*x).to_f32());
                    assert!(found == expected || found.is_nan() && expected.is_nan(), "{x}: {found}");
                }
            }
        }
    }
}
