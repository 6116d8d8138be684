//! Products with many tokens against those with few, at every level this CPU has.

use super::*;
use crate::model::testing::{engine, random, rng};

/// One k part and several, panels that are no pairs, and every size of a group of tokens.
#[test]
fn many_tokens_have_the_bits_of_few_at_every_level() {
    let mut rng = rng(11);
    for (rows, cols, panels, tokens) in [(70, 33, 0..5, 12), (130, 800, 1..8, 39), (128, 1200, 0..8, 26)] {
        let weights = random(&mut rng, rows * cols);
        let source =
            |rows: Range<usize>, out: &mut [f32]| out.copy_from_slice(&weights[rows.start * cols..rows.end * cols]);
        let x = random(&mut rng, tokens * cols);
        for (kernels, dtype) in Kernels::available()
            .into_iter()
            .flat_map(|kernels| [WeightDType::F32, WeightDType::Bf16, WeightDType::F16].map(|dtype| (kernels, dtype)))
        {
            let engine = Engine { kernels, ..engine() };
            let dense = Dense::pack(dtype, [rows, cols], &source, &engine).unwrap();
            let mut few = vec![f32::NAN; tokens * panels.len() * LANES];
            dense.multiply(kernels, panels.clone(), &x, &mut few);

            let mut interleaved = Interleaved::default();
            interleaved.resize(tokens, cols);
            for (i, x) in x.chunks(MAX_TOKEN_GROUP * cols).enumerate() {
                // SAFETY: the parts are whole groups, of the tokens that room was made for.
                unsafe { interleaved.writer().write(&engine, i * MAX_TOKEN_GROUP, x) };
            }
            let mut many = vec![f32::NAN; few.len()];
            dense.multiply_many(
                kernels,
                panels.clone(),
                &interleaved,
                (&mut Buffer::default(), &mut many),
            );
            assert!(few == many, "{kernels:?} {dtype:?} {rows} x {cols}, {tokens} tokens");
        }
    }
}
