//! Bounds that are known, verdicts over made-up opinions, and honest blocks in every format, none of which is accused.

use sepal_protocol::record::ServerState;

use super::*;
use crate::model::{Blocks, Ends, HubOptions, ModelSource, Precision, WeightDType, WeightFormat, testing::engine};

fn format(dtype: &str, quantised: &str) -> Format {
    let info = ServerInfo {
        torch_dtype: Some(dtype.to_owned()),
        quant_type: Some(quantised.to_owned()),
        ..ServerInfo::new(ServerState::Online, 1.0)
    };
    Format::of(Some(&info))
}

fn exact() -> Format {
    format("float32", "none")
}

fn opinion(numbers: &[f32]) -> Opinion {
    Opinion {
        peers: vec![PeerId::random()],
        format: exact(),
        answer: Hidden::new(numbers.to_vec(), 1, 1, numbers.len()).unwrap(),
    }
}

#[test]
fn coarser_formats_and_more_blocks_have_larger_bounds() {
    let formats = [
        exact(),
        format("float16", "none"),
        format("bfloat16", "none"),
        format("bfloat16", "int8"),
        format("bfloat16", "q4_k"),
    ];
    let bounds = formats.clone().map(|format| bound(&format, &exact(), 4, false));
    assert!(
        bounds.is_sorted() && bounds[0] < 3e-4 && bounds[4] <= LARGEST_BOUND,
        "{bounds:?}"
    );
    assert_eq!(bound(&formats[2], &exact(), 16, false), 2.0 * bounds[2]);
    assert_eq!(bound(&formats[2], &exact(), 16, true), LARGEST_BOUND);
    assert_eq!(bound(&exact(), &exact(), 4, true), bounds[0]);
    let unknown = Format::of(None);
    assert_eq!(bound(&unknown, &unknown, 4, false), LARGEST_BOUND);
}

#[test]
fn the_distance_is_that_of_the_worst_token() {
    let [a, b] = [[3.0, 4.0, 1.0, 0.0], [3.0, 4.0, 0.0, 0.0]];
    let hidden = |numbers: [f32; 4]| Hidden::new(numbers.to_vec(), 1, 2, 2).unwrap();
    assert_eq!(distance(&hidden(a), &hidden(b)), 1.0);
    assert_eq!(distance(&hidden(a), &hidden(a)), 0.0);
    assert_eq!(distance(&hidden([0.0; 4]), &hidden([0.0; 4])), 0.0);
    assert_eq!(distance(&hidden(a), &opinion(&[1.0]).answer), f64::INFINITY);
}

#[test]
fn who_agrees_with_nobody_is_wrong_once_two_others_agree() {
    let (right, wrong, other) = (opinion(&[1.0, 2.0]), opinion(&[1.0, 2.1]), opinion(&[1.5, 2.0]));
    let judge = |opinions: &[&Opinion]| {
        let opinions: Vec<Opinion> = opinions.iter().map(|opinion| (*opinion).clone()).collect();
        judge(&opinions, 4, false)
    };
    assert_eq!(judge(&[&right]), Verdict::Open);
    assert_eq!(judge(&[&right, &right]), Verdict::Right(BTreeSet::new()));
    assert_eq!(judge(&[&right, &wrong]), Verdict::Open);
    assert_eq!(judge(&[&wrong, &right, &right]), Verdict::Wrong(BTreeSet::from([0])));
    assert_eq!(judge(&[&right, &wrong, &right]), Verdict::Right(BTreeSet::from([1])));
    assert_eq!(judge(&[&right, &wrong, &other]), Verdict::Open);
    assert_eq!(
        judge(&[&wrong, &other, &right, &right]),
        Verdict::Wrong(BTreeSet::from([0, 1]))
    );
    assert_eq!(judge(&[&wrong, &right, &right, &wrong]), Verdict::Open);
}

#[test]
fn who_is_near_enough_to_some_of_the_majority_is_not_accused() {
    let tolerance = bound(&exact(), &exact(), 4, false) as f32;
    let at = |steps: f32| opinion(&[1.0, steps * 0.7 * tolerance]);
    assert_eq!(
        judge(&[at(0.0), at(2.0), at(1.0)], 4, false),
        Verdict::Right(BTreeSet::new())
    );
}

/// How a server with these weights announces itself.
fn announced(weights: WeightFormat, dtype: WeightDType) -> Format {
    format(dtype.as_torch_str(), weights.quant_type())
}

/// From the same inputs through the blocks of a model, in every format: no pair is further apart than its bound.
fn assert_none_is_accused(model: &str, formats: &[WeightFormat]) {
    let source = ModelSource::resolve(model, &HubOptions::from_variables(|_| None)).unwrap();
    let n_blocks = source.config().n_blocks;
    let has_experts = source.config().feed_forward.experts.is_some();
    let files = source.files_for_span(0..n_blocks).unwrap();
    let ends = Ends::load(&source.files_for_ends().unwrap(), WeightDType::F32, &engine()).unwrap();
    let vocabulary = source.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 11) % vocabulary).collect();
    let embeddings = ends.embed(&tokens).unwrap();
    let servers = formats.iter().map(|weights| {
        let weights = *weights;
        let dtype = match weights {
            WeightFormat::Bf16 => WeightDType::Bf16,
            WeightFormat::F16 => WeightDType::F16,
            _ => WeightDType::F32,
        };
        let blocks = Blocks::load(&files, 0..n_blocks, Precision { weights, dtype }, engine()).unwrap();
        let mut x = embeddings.clone();
        let through = (0..n_blocks).map(|block| {
            blocks.forward(block, &mut x).unwrap();
            // As it comes out of the wire.
            Hidden::from_wire(&x.to_wire(dtype.into()).unwrap()).unwrap()
        });
        let answers: Vec<Hidden> = through.collect();
        (announced(weights, dtype), answers)
    });
    let servers: Vec<_> = servers.collect();
    let mut accused: Vec<String> = Vec::new();
    for (i, (a, of_a)) in servers.iter().enumerate() {
        for (b, of_b) in &servers[..i] {
            for (n_blocks, (a_answer, b_answer)) in (1..).zip(of_a.iter().zip(of_b)) {
                let (distance, bound) = (distance(a_answer, b_answer), bound(a, b, n_blocks, has_experts));
                let what = format!("{model} {a:?} {b:?} {n_blocks}: {distance:.6} of {bound:.6}");
                println!("{what}");
                if distance > bound {
                    accused.push(what);
                }
            }
        }
    }
    assert!(accused.is_empty(), "{accused:#?}");
}

#[test]
fn no_honest_format_of_the_built_in_model_is_accused() {
    assert_none_is_accused("demo", &WeightFormat::ALL);
}

/// Random weights in four bits have little to do with what they were.
#[test]
fn no_honest_format_of_random_weights_is_accused() {
    let formats = [
        WeightFormat::F32,
        WeightFormat::Bf16,
        WeightFormat::F16,
        WeightFormat::Q8_0,
    ];
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors");
    for model in ["petals/tiny-llama", "petals/tiny-mixtral"] {
        assert_none_is_accused(&format!("{vectors}/{model}"), &formats);
    }
}
