//! Attention over pages against attention written down plainly, whichever product is used.

use super::*;
use crate::model::{
    WeightDType,
    kv::Cache,
    testing::{assert_close, random, rng},
};

/// Attention of one query head: `q` at `position` over keys and values `[tokens, head_dim]`.
fn plain(q: &[f32], position: usize, keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(q * k)).sum::<f64>() / (q.len() as f64).sqrt();
    let weights: Vec<f64> = keys[..=position].iter().map(|key| dot(key).exp()).collect();
    let total: f64 = weights.iter().sum();
    let column = |c: usize| {
        weights
            .iter()
            .zip(values)
            .map(|(w, v)| w * f64::from(v[c]))
            .sum::<f64>()
            / total
    };
    (0..q.len()).map(|c| column(c) as f32).collect()
}

#[test]
fn every_split_of_queries_over_pages_gives_plain_attention() {
    for (group, tokens, position) in [(1, 1, 0), (4, 1, 129), (2, 30, 50), (3, 100, 60), (16, 20, 0)] {
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
                expected.extend(plain(&queries[at..at + 6], position + token, &keys, &values));
            }
        }
        for kernels in Kernels::available() {
            let heads = Heads { kernels, kv, group };
            let out = heads.attend(&[Queries { row, position, tokens }], &queries);
            assert_close(&out, &expected, 1e-5);
        }
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
        &[Queries {
            row,
            position: 1,
            tokens: 1,
        }],
        &[1000.0, 0.0],
    );
    assert_eq!(out, [3.0, 4.0]);
}
