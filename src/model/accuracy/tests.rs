//! Distances that are known, and those of every weight format on the built-in model.

use super::*;
use crate::model::{HubOptions, ModelSource, Precision, WeightDType, WeightFormat, testing::engine};

#[test]
fn distances_are_those_of_the_definition() {
    let reference = [0.0, 0.0, 1.0, 3.0];
    let same = logit_distance(&reference, &reference, 2);
    assert_eq!((same.divergence, same.top_agreement), (0.0, 1.0));
    // Half and half against 1/4 and 3/4: ln(2/√3) nats; the second position is the same up to a constant.
    let found = logit_distance(&reference, &[0.0, 3_f32.ln(), 2.0, 4.0], 2);
    assert!((found.divergence - (2.0 / 3_f64.sqrt()).ln() / 2.0).abs() < 1e-6);
    let turned = logit_distance(&reference, &[0.0, 0.0, 3.0, 1.0], 2);
    assert_eq!(turned.top_agreement, 0.5);
    assert!((max_error(&[3.0, -4.0], &[3.0, -3.0]) - 1.0 / 12.5_f64.sqrt()).abs() < 1e-9);
}

/// Bounds of mean divergence, agreement and the largest error of the first block, for [`WeightFormat::ALL`]: twice the
/// divergence and 1.5 times the error that were found, and one more of 32 tokens that differ. The weights are bfloat16 in
/// the file, so that this loses nothing.
const BOUNDS: [(f64, f64, f64); 7] = [
    (0.0, 1.0, 0.0),
    (0.0, 1.0, 0.0),
    (1e-9, 1.0, 2e-6),
    (4e-4, 0.96, 0.075),
    (0.03, 0.93, 0.5),
    (0.13, 0.93, 0.72),
    (0.09, 0.9, 0.75),
];

/// The same of bf16 where what it is multiplied with is rounded.
const BOUNDS_OF_PAIRS: (f64, f64, f64) = (3e-5, 0.96, 0.015);

#[test]
fn every_weight_format_stays_near_float32_on_the_built_in_model() {
    let source = ModelSource::resolve("demo", &HubOptions::from_variables(|_| None)).unwrap();
    let n_blocks = source.config().n_blocks;
    let files = source.files_for_span(0..n_blocks).unwrap();
    let ends = Ends::load(&source.files_for_ends().unwrap(), WeightDType::F32, &engine()).unwrap();
    let load = |weights| {
        let dtype = WeightDType::F32;
        Blocks::load(&files, 0..n_blocks, Precision { weights, dtype }, engine()).unwrap()
    };
    let vocabulary = source.config().vocab_size;
    let tokens: Vec<u32> = (0..32).map(|i| (i * 37 + 11) % vocabulary as u32).collect();
    let first_block = |blocks: &Blocks| {
        let mut x = ends.embed(&tokens).unwrap();
        blocks.forward(0, &mut x).unwrap();
        x.data
    };
    let exact = load(WeightFormat::F32);
    let (reference, block) = (logits(&exact, &ends, &tokens).unwrap(), first_block(&exact));
    for (format, bounds) in WeightFormat::ALL.into_iter().zip(BOUNDS) {
        let rounds = format == WeightFormat::Bf16 && engine().kernels.has_pairs();
        let (divergence, agreement, error) = if rounds { BOUNDS_OF_PAIRS } else { bounds };
        let blocks = load(format);
        let found = logit_distance(&reference, &logits(&blocks, &ends, &tokens).unwrap(), vocabulary);
        let found_error = max_error(&block, &first_block(&blocks));
        println!("{}: {found:?}, block {found_error}", format.as_str());
        assert!(
            found.divergence <= divergence && found.top_agreement >= agreement && found_error <= error,
            "{}: {found:?}, block {found_error}",
            format.as_str()
        );
    }
}
