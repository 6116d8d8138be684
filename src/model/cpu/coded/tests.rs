//! Weights in codes against the same weights in 16 bits, at every level this CPU has: bit for bit where a row has no exceptions,
//! and elsewhere against sums in f64.

use rand::{Rng, rngs::StdRng};

use super::*;
use crate::model::{
    WeightDType,
    cpu::{Dense, feed::Feed, panels::MAX_TOKEN_GROUP},
    testing::{engine, random, rng},
};

/// Of 16 bits each, row after row.
struct Weights {
    shape: [usize; 2],
    bits: Vec<u16>,
}

impl Weights {
    fn new(shape: [usize; 2], seed: u64, mut bits: impl FnMut(&mut StdRng) -> u16) -> Self {
        let mut rng = rng(seed);
        let bits = (0..shape[0] * shape[1]).map(|_| bits(&mut rng)).collect();
        Self { shape, bits }
    }

    fn dense(&self, engine: &Engine) -> Dense {
        let source = |rows: Range<usize>, out: &mut [f32]| {
            let weights = &self.bits[rows.start * self.shape[1]..rows.end * self.shape[1]];
            for (out, bits) in out.iter_mut().zip(weights) {
                *out = bf16::from_bits(*bits).to_f32();
            }
        };
        Dense::pack(WeightDType::Bf16, self.shape, &source, engine).unwrap()
    }

    fn coded(&self, engine: &Engine) -> Option<Coded> {
        Coded::pack(self.shape, &|rows| self.rows(rows), engine).unwrap()
    }

    /// However many exceptions there are.
    fn coded_anyhow(&self, engine: &Engine) -> Coded {
        let most = self.bits.len();
        let coded = Coded::pack_with(most, self.shape, &|rows| self.rows(rows), engine);
        coded.unwrap().expect("weights like these")
    }

    fn rows(&self, rows: Range<usize>) -> Cow<'_, [bf16]> {
        let bits = &self.bits[rows.start * self.shape[1]..rows.end * self.shape[1]];
        Cow::Owned(bits.iter().copied().map(bf16::from_bits).collect())
    }

    /// The product of a row with `x`, and that of their amounts.
    fn product(&self, row: usize, x: &[f32]) -> [f64; 2] {
        let products = self.rows(row..row + 1).into_owned().into_iter().zip(x);
        products.fold([0.0, 0.0], |[sum, amount], (weight, x)| {
            let product = weight.to_f64() * f64::from(*x);
            [sum + product, amount + product.abs()]
        })
    }
}

/// As trained weights are.
fn normal(rng: &mut StdRng) -> u16 {
    let (radius, angle): (f32, f32) = (rng.random(), rng.random());
    let normal = (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f32::consts::TAU * angle).cos();
    bf16::from_f32(0.02 * normal).to_bits()
}

/// Normal ones, and now and then something that nobody expects, `strange`.
fn mixed(strange: impl Fn(&mut StdRng) -> u16) -> impl FnMut(&mut StdRng) -> u16 {
    move |rng| match rng.random_range(0..400) {
        0 => strange(rng),
        _ => normal(rng),
    }
}

/// Of any size at which sums are numbers.
fn any_number(rng: &mut StdRng) -> u16 {
    rng.random_range(0..0x6000) | (rng.random::<u16>() & 0x8000)
}

/// Makes the bits of one weight.
type Draw = Box<dyn FnMut(&mut StdRng) -> u16>;

/// All kinds of weights that codes are for.
fn kinds() -> Vec<(&'static str, Draw)> {
    let zero_or_normal = |rng: &mut StdRng| if rng.random() { normal(rng) } else { 0 };
    let two = |rng: &mut StdRng| if rng.random() { 0x3f80 } else { 0x8000 };
    vec![
        ("normal", Box::new(normal)),
        ("half zeros", Box::new(zero_or_normal)),
        ("zeros", Box::new(|_| 0)),
        ("one number", Box::new(|_| 0x3e12)),
        ("two numbers", Box::new(two)),
        ("denormals", Box::new(|rng| rng.random_range(0..0x80))),
        ("any number", Box::new(mixed(any_number))),
        (
            "infinities",
            Box::new(mixed(|rng| 0x7f80 | (rng.random::<u16>() & 0x8000))),
        ),
        ("very small ones", Box::new(mixed(|rng| rng.random_range(0..0x2000)))),
    ]
}

/// Products of some panels in all ways, with so many tokens; in pairs too where there are such.
fn check(weights: &Weights, engine: &Engine, panels: Range<usize>, tokens: usize) {
    let (kernels, cols) = (engine.kernels, weights.shape[1]);
    let (mut dense, mut coded) = (weights.dense(engine), weights.coded_anyhow(engine));
    let x = random(&mut rng(5), tokens * cols);
    check_products(weights, engine, (&dense, &coded), (panels.clone(), tokens), (&x, &x));
    dense.pair(kernels);
    coded.pair(kernels);
    assert_eq!(
        [dense.in_pairs(), coded.in_pairs()],
        [kernels.has_pairs() && cols.is_multiple_of(2); 2]
    );
    if coded.in_pairs() {
        let mut words = vec![f32::NAN; x.len() / 2];
        kernels.round_to_pairs(&x, &mut words);
        let rounded: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        check_products(weights, engine, (&dense, &coded), (panels, tokens), (&words, &rounded));
    }
}

/// Of `x` as the matrices take it, and as numbers.
fn check_products(
    weights: &Weights,
    engine: &Engine,
    (dense, coded): (&Dense, &Coded),
    (panels, tokens): (Range<usize>, usize),
    (x, numbers): (&[f32], &[f32]),
) {
    let (kernels, [n_rows, cols]) = (engine.kernels, weights.shape);
    let (width, words) = (panels.len() * LANES, x.len() / tokens);
    let mut outs = [const { Vec::new() }; 4];
    for out in &mut outs {
        out.resize(tokens * width, f32::NAN);
    }
    let [plain, batch, alone, many] = &mut outs;
    let what = format!("{kernels:?} {:?} {panels:?} {tokens} x {words}", weights.shape);
    dense.multiply(kernels, panels.clone(), x, plain);
    coded.multiply(kernels, panels.clone(), x, batch);
    for (x, out) in x.chunks_exact(words).zip(alone.chunks_exact_mut(width)) {
        coded.multiply(kernels, panels.clone(), x, out);
    }
    // Nobody asks what comes of lanes that are no rows.
    let rows = panels.start * LANES..n_rows.min(panels.end * LANES);
    for (m, x) in numbers.chunks_exact(cols).enumerate() {
        for row in rows.clone() {
            let i = m * width + row - rows.start;
            assert_eq!(bits(batch[i]), bits(alone[i]), "in company: {what}");
            let mut exceptions = coded.exceptions(row / LANES).iter();
            let is_plain = exceptions.all(|exception| exception.at as usize % LANES != row % LANES);
            if is_plain || !plain[i].is_finite() {
                assert_eq!(bits(batch[i]), bits(plain[i]), "{what}");
            }
            let [sum, amount] = weights.product(row, x);
            if sum.is_finite() && amount < f64::from(f32::MAX) {
                let error = (f64::from(batch[i]) - sum).abs();
                let allowed = amount * cols as f64 * f64::from(f32::EPSILON);
                // What is smaller than the smallest normal number is none to some instructions.
                let denormal = cols as f64 * f64::from(f32::MIN_POSITIVE);
                assert!(error <= allowed + denormal, "{error}: {what}");
            }
        }
    }
    if tokens >= MAX_TOKEN_GROUP && panels.len() <= 8 {
        let mut interleaved = Interleaved::default();
        interleaved.resize(tokens, words);
        for (i, x) in x.chunks(MAX_TOKEN_GROUP * words).enumerate() {
            // SAFETY: the parts are whole groups, of the tokens that room was made for.
            unsafe { interleaved.writer().write(engine, i * MAX_TOKEN_GROUP, x) };
        }
        coded.multiply_many(kernels, panels, &interleaved, (&mut Buffer::default(), many));
        let of_rows = |out: &[f32]| {
            let rows = out.chunks_exact(width).flat_map(|out| &out[..rows.len()]);
            rows.map(|number| bits(*number)).collect::<Vec<_>>()
        };
        assert!(of_rows(batch) == of_rows(many), "few and many: {what}");
    }
}

/// Which of two that are no numbers comes out is up to the instruction.
fn bits(number: f32) -> u32 {
    if number.is_nan() {
        f32::NAN.to_bits()
    } else {
        number.to_bits()
    }
}

#[test]
fn products_are_those_of_16_bits_whatever_the_weights() {
    for kernels in Kernels::available() {
        let engine = Engine { kernels, ..engine() };
        for (i, (_, mut bits)) in kinds().into_iter().enumerate() {
            for cols in [403, 406] {
                let weights = Weights::new([48, cols], i as u64, &mut bits);
                for tokens in [1, 13] {
                    check(&weights, &engine, 0..3, tokens);
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_16_bits_whatever_the_shape() {
    for kernels in Kernels::available() {
        let engine = Engine { kernels, ..engine() };
        for (shape, panels) in [
            ([1, 512], 0..1),
            ([17, 64], 0..2),
            ([70, 33], 0..5),
            ([130, 800], 1..8),
            ([33, 90], 0..3),
            ([140, 1205], 0..8),
            ([40, 2310], 0..3),
        ] {
            let weights = Weights::new(shape, 7, mixed(any_number));
            // More than two take panels in one way; how far ahead these are asked for is nothing that is computed.
            let all = [1, 2, 3, 5, 8, 11, 12, 26, 39];
            for tokens in all
                .into_iter()
                .filter(|tokens| *tokens <= 2 || kernels.feed == Feed::Panels)
            {
                check(&weights, &engine, panels.clone(), tokens);
            }
        }
    }
}

#[test]
fn no_bit_of_an_exception_is_rounded_off() {
    let small = bf16::from_bits(0x3000);
    let mut table = [0x30; TABLE];
    let split = |table, weight| Encoder::new(table).split(weight);
    // 1 less such a small number is 1 in f32.
    assert_eq!(split(table, bf16::ONE), None);
    assert_eq!(split(table, bf16::INFINITY), Some((small, f32::INFINITY)));
    assert_eq!(split(table, bf16::NEG_INFINITY), Some((small, f32::NEG_INFINITY)));
    assert_eq!(split(table, bf16::NAN), None);
    // And such a small number less 0.5 is -0.5.
    assert_eq!(split([0x3f; TABLE], small), None);
    table[3] = 0x3e;
    assert_eq!(split(table, bf16::ONE), Some((bf16::from_f32(0.125), 0.875)));
    table[5] = 0;
    for bits in 0..=u16::MAX {
        let weight = bf16::from_bits(bits);
        let wide = weight.to_f32();
        assert_eq!(split(table, weight).is_none(), weight.is_nan(), "{weight}");
        let splits = [[0x30; TABLE], [0x3f; TABLE], [0x7f; TABLE], table].map(|table| split(table, weight));
        for (base, rest) in splits.into_iter().flatten().filter(|_| wide.is_finite()) {
            // Of a rest that was rounded, f64 has one of these without rounding.
            assert_eq!(f64::from(wide) - f64::from(rest), base.to_f64(), "{weight}");
            assert_eq!(base.to_f64() + f64::from(rest), f64::from(wide), "{weight}");
        }
    }
}

#[test]
fn columns_are_the_weights() {
    let engine = engine();
    for (name, bits) in kinds() {
        let weights = Weights::new([37, 290], 9, bits);
        let coded = weights.coded_anyhow(&engine);
        for column in 0..290 {
            let mut out = [f32::NAN; 37];
            coded.widen_column(column, &mut out);
            let expected = weights.bits.iter().skip(column).step_by(290);
            // Two zeros are one number.
            let expected = expected.map(|bits| bf16::from_bits(*bits).to_f32());
            assert!(out.into_iter().eq(expected), "{name}, column {column}");
        }
    }
}

#[test]
fn weights_that_codes_are_not_for_are_left_in_16_bits() {
    let engine = engine();
    let coded = |bits: Draw| Weights::new([64, 256], 1, bits).coded(&engine);
    assert!(coded(Box::new(|rng| rng.random_range(0..0x7f80))).is_none());
    let bits = 8.0 * coded(Box::new(normal)).unwrap().bytes() as f64 / (64.0 * 256.0);
    assert!((12.0..12.5).contains(&bits), "{bits}");
}
