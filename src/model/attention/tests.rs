//! Attention over pages against attention written down plainly, whichever product is used.

use super::*;
use crate::model::{
    WeightDType,
    kv::Cache,
    testing::{assert_close, random, rng},
};

fn scoring(head_dim: usize) -> Scoring {
    Scoring {
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        window: None,
        alibi: None,
        sinks: None,
    }
}

/// Attention of a query of head `head` at `position` over keys and values `[tokens, head_dim]`.
fn plain(scoring: &Scoring, head: usize, q: &[f32], position: usize, [keys, values]: [&[Vec<f32>]; 2]) -> Vec<f32> {
    let first = scoring.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let score = |at: usize| {
        let dot: f64 = q.iter().zip(&keys[at]).map(|(q, k)| f64::from(q * k)).sum();
        let scaled = dot * f64::from(scoring.scale);
        let capped = scoring
            .softcap
            .map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh());
        capped
            + scoring
                .alibi
                .as_ref()
                .map_or(0.0, |alibi| f64::from(alibi.bias(head, at)))
    };
    let weights: Vec<f64> = (first..=position).map(|at| score(at).exp()).collect();
    let sink = scoring.sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
    let total = weights.iter().sum::<f64>() + sink;
    let column = |c: usize| {
        let products = weights.iter().zip(&values[first..]).map(|(w, v)| w * f64::from(v[c]));
        products.sum::<f64>() / total
    };
    (0..q.len()).map(|c| column(c) as f32).collect()
}

#[test]
fn every_split_of_queries_over_pages_gives_plain_attention() {
    for (group, tokens, position) in [(1, 1, 0), (4, 1, 129), (2, 30, 50), (3, 100, 60), (16, 20, 0)] {
        assert_plain(&scoring(6), group, tokens, position);
    }
}

#[test]
fn caps_windows_slopes_and_sinks_change_scores_as_written_down_plainly() {
    let parts = [
        Scoring {
            softcap: Some(1.5),
            ..scoring(6)
        },
        Scoring {
            window: Some(1),
            ..scoring(6)
        },
        Scoring {
            window: Some(40),
            ..scoring(6)
        },
        Scoring {
            alibi: Some(Alibi::new(6, AlibiKind::Exact, 0.5)),
            ..scoring(6)
        },
        Scoring {
            alibi: Some(Alibi::new(6, AlibiKind::Bfloat16, 0.5)),
            scale: 0.5,
            ..scoring(6)
        },
        Scoring {
            sinks: Some(vec![0.0, 3.0, -9.0, 9.0, 1.0, 2.0]),
            window: Some(70),
            ..scoring(6)
        },
    ];
    for scoring in parts {
        for (tokens, position) in [(1, 0), (1, 129), (100, 60)] {
            assert_plain(&scoring, 3, tokens, position);
        }
    }
}

#[test]
fn slopes_are_those_of_bloom_for_any_number_of_heads() {
    let slopes = |n_heads| Alibi::new(n_heads, AlibiKind::Exact, 1.0).slopes;
    assert_close(&slopes(4), &[0.25, 0.0625, 0.015_625, 0.003_906_25], 1e-8);
    assert_close(&slopes(3), &[0.0625, 0.003_906_25, 0.25], 1e-8);
    assert_eq!(slopes(1), [1.0 / 256.0]);
}

fn assert_plain(scoring: &Scoring, group: usize, tokens: usize, position: usize) {
    let kv = KvShape {
        dtype: WeightDType::F32,
        n_kv_heads: 2,
        head_dim: 6,
    };
    let context = position + tokens;
    let mut rng = rng(context as u64);
    let (keys, values) = (random(&mut rng, context * 12), random(&mut rng, context * 12));
    let queries = random(&mut rng, tokens * 12 * group);
    let mut cache = Cache::new(kv, 1, 1, context);
    let row = &mut cache.rows_for_step(0, 1, 0, context).unwrap()[0];
    row.write(kv, 0, &keys, &values);
    let head_of = |data: &[f32], head: usize| -> Vec<Vec<f32>> {
        data.chunks_exact(12)
            .map(|token| token[head * 6..(head + 1) * 6].to_vec())
            .collect()
    };
    let mut expected = Vec::new();
    for token in 0..tokens {
        for head in 0..2 * group {
            let at = (token * 2 * group + head) * 6;
            let (keys, values) = (head_of(&keys, head / group), head_of(&values, head / group));
            let query = &queries[at..at + 6];
            expected.extend(plain(scoring, head, query, position + token, [&keys, &values]));
        }
    }
    for kernels in Kernels::available() {
        let heads = Heads { kernels, kv, group };
        let out = heads.attend(scoring, &[Queries { row, position, tokens }], &queries);
        assert_close(&out, &expected, 1e-5);
    }
}

#[test]
fn scores_too_large_for_an_exponential_are_no_problem() {
    let kv = KvShape {
        dtype: WeightDType::F32,
        n_kv_heads: 1,
        head_dim: 2,
    };
    let mut cache = Cache::new(kv, 1, 1, 2);
    let row = &mut cache.rows_for_step(0, 1, 0, 2).unwrap()[0];
    row.write(kv, 0, &[-1000.0, 0.0, 1000.0, 0.0], &[1.0, 2.0, 3.0, 4.0]);
    let heads = Heads {
        kernels: Kernels::detect(),
        kv,
        group: 1,
    };
    let out = heads.attend(
        &scoring(2),
        &[Queries {
            row,
            position: 1,
            tokens: 1,
        }],
        &[1000.0, 0.0],
    );
    assert_eq!(out, [3.0, 4.0]);
}
