//! Attention over pages against attention written down plainly, and against itself cut otherwise, bit for bit.

use std::sync::Arc;

use rand::Rng;

use super::*;
use crate::model::{
    config::parts::AlibiKind,
    cpu::{Kernels, Pool, Slope},
    kv::{Arena, KvDType, Row},
    testing::{assert_close, assert_same_bits, engine, random, rng},
};

/// One sequence whose keys and values are known.
struct Sequence {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    tokens: usize,
}

fn shape(dtype: KvDType, head_dim: usize) -> KvShape {
    KvShape {
        dtype,
        n_kv_heads: 2,
        head_dim,
    }
}

fn plainly() -> Scoring {
    Scoring {
        scale: 0.4,
        softcap: None,
        window: None,
        alibi: None,
        sinks: None,
    }
}

impl Sequence {
    fn random(seed: u64, heads: &Heads, tokens: usize) -> Self {
        let mut rng = rng(seed);
        let width = heads.kv.n_kv_heads * heads.kv.head_dim;
        Self {
            keys: random(&mut rng, tokens * width),
            values: random(&mut rng, tokens * width),
            queries: random(&mut rng, tokens * width * heads.group),
            tokens,
        }
    }

    /// Caches the tokens before `end`, in pieces.
    fn cached(&self, arena: &Arc<Arena>, end: usize, piece: usize) -> Row {
        let mut row = Row::new(arena, self.tokens);
        for start in (0..end).step_by(piece) {
            self.extend(&mut row, start..(start + piece).min(end));
        }
        row
    }

    fn extend(&self, row: &mut Row, tokens: std::ops::Range<usize>) {
        let width = self.keys.len() / self.tokens;
        let range = tokens.start * width..tokens.end * width;
        let (keys, values) = (&self.keys[range.clone()], &self.values[range]);
        row.write(&one_thread(), tokens.start, (keys, values, &|_, _| ()));
    }

    fn queries(&self, tokens: std::ops::Range<usize>) -> &[f32] {
        let width = self.queries.len() / self.tokens;
        &self.queries[tokens.start * width..tokens.end * width]
    }

    /// Outputs for the tokens from `first_token` on.
    fn plain(&self, heads: &Heads, scoring: &Scoring, first_token: usize) -> Vec<f32> {
        let (head_dim, n_heads) = (heads.kv.head_dim, heads.kv.n_kv_heads * heads.group);
        let rows = |data: &[f32], head: usize, token: usize, n: usize| -> Vec<f64> {
            let at = (token * n + head) * head_dim;
            data[at..at + head_dim]
                .iter()
                .map(|number| f64::from(*number))
                .collect()
        };
        let mut out = Vec::new();
        for (token, head) in (first_token..self.tokens).flat_map(|token| (0..n_heads).map(move |head| (token, head))) {
            let query = rows(&self.queries, head, token, n_heads);
            let first = scoring.window.map_or(0, |window| (token + 1).saturating_sub(window));
            let score = |key: usize| {
                let numbers = rows(&self.keys, head / heads.group, key, heads.kv.n_kv_heads);
                let mut score: f64 = query.iter().zip(&numbers).map(|(q, k)| q * k).sum();
                score *= f64::from(scoring.scale);
                if let Some(cap) = scoring.softcap.map(f64::from) {
                    score = cap * (score / cap).tanh();
                }
                let bias =
                    |alibi: &Alibi| f64::from(alibi.slopes[head].per_token * alibi.slopes[head].scale) * key as f64;
                score + scoring.alibi.as_ref().map_or(0.0, bias)
            };
            let shares: Vec<f64> = (first..=token).map(|key| score(key).exp()).collect();
            let sink = scoring.sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
            let total = shares.iter().sum::<f64>() + sink;
            let mut sum = vec![0.0; head_dim];
            for (share, key) in shares.iter().zip(first..) {
                let value = rows(&self.values, head / heads.group, key, heads.kv.n_kv_heads);
                sum.iter_mut()
                    .zip(value)
                    .for_each(|(sum, value)| *sum += share / total * value);
            }
            out.extend(sum.iter().map(|sum| *sum as f32));
        }
        out
    }
}

fn one_thread() -> Arc<Pool> {
    Pool::new(1).unwrap()
}

fn attend(heads: &Heads, scoring: &Scoring, parts: &mut [(Row, usize, &[f32])]) -> Vec<f32> {
    let width = heads.kv.n_kv_heads * heads.group * heads.kv.head_dim;
    let queries: Vec<f32> = parts.iter().flat_map(|(_, _, queries)| queries.to_vec()).collect();
    let segments: Vec<Segment<'_>> = parts
        .iter_mut()
        .map(|(row, position, queries)| Segment {
            row,
            position: *position,
            tokens: queries.len() / width,
            sequence_len: *position + queries.len() / width,
            adapter: None,
        })
        .collect();
    let mut out = Vec::new();
    heads.attend(
        scoring,
        (&segments, &queries, &|_, _| ()),
        &mut Scratch::default(),
        &mut out,
    );
    out
}

fn heads(kernels: Kernels, dtype: KvDType, (group, head_dim): (usize, usize)) -> Heads {
    Heads {
        engine: Engine { kernels, ..engine() },
        kv: shape(dtype, head_dim),
        group,
    }
}

/// All scorings there are, for `n` query heads.
fn scorings(n: usize) -> Vec<Scoring> {
    let slope = |head: usize| Slope {
        per_token: -0.02 * (head + 1) as f32,
        scale: 0.5,
        rounded: false,
    };
    vec![
        plainly(),
        Scoring {
            softcap: Some(0.7),
            ..plainly()
        },
        Scoring {
            window: Some(1),
            ..plainly()
        },
        Scoring {
            window: Some(37),
            ..plainly()
        },
        Scoring {
            alibi: Some(Alibi {
                slopes: (0..n).map(slope).collect(),
            }),
            ..plainly()
        },
        Scoring {
            sinks: Some((0..n).map(|head| head as f32 - 1.5).collect()),
            ..plainly()
        },
        Scoring {
            window: Some(600),
            sinks: Some(vec![0.3; n]),
            softcap: Some(5.0),
            ..plainly()
        },
    ]
}

#[test]
fn every_way_of_scoring_gives_plain_attention_with_every_instruction_set() {
    for (i, (group, head_dim, tokens)) in [(1, 6, 70), (4, 16, 33), (3, 20, 150), (8, 32, 17)]
        .into_iter()
        .enumerate()
    {
        let any = heads(Kernels::detect(), KvDType::F32, (group, head_dim));
        let sequence = Sequence::random(i as u64, &any, tokens);
        let row = sequence.cached(&Arena::empty(any.kv), tokens, 64);
        for scoring in scorings(2 * group) {
            let expected = sequence.plain(&any, &scoring, 0);
            for kernels in Kernels::available() {
                let heads = heads(kernels, KvDType::F32, (group, head_dim));
                let out = attend(&heads, &scoring, &mut [(row.clone(), 0, &sequence.queries)]);
                assert_close(&out, &expected, 1e-5);
            }
        }
    }
}

#[test]
fn long_contexts_are_split_and_joined() {
    let heads = heads(Kernels::detect(), KvDType::F32, (2, 16));
    let tokens = 1030;
    let sequence = Sequence::random(7, &heads, tokens);
    let row = sequence.cached(&Arena::empty(heads.kv), tokens, 100);
    for scoring in scorings(4) {
        let expected = sequence.plain(&heads, &scoring, 1015);
        for first in [1015, 1023, 1024, 1029] {
            let out = attend(
                &heads,
                &scoring,
                &mut [(row.clone(), first, sequence.queries(first..tokens))],
            );
            assert_close(&out, &expected[(first - 1015) * 64..], 1e-5);
        }
    }
}

#[test]
fn a_query_gets_the_same_bits_however_its_sequence_is_cut_and_whatever_is_beside_it() {
    for dtype in [KvDType::F32, KvDType::Bf16, KvDType::F16, KvDType::Int8] {
        for kernels in Kernels::available() {
            let heads = heads(kernels, dtype, (3, 20));
            let arena = Arena::empty(heads.kv);
            // Longer than a split, once.
            let is_best = kernels.name() == Kernels::detect().name();
            let long = if dtype == KvDType::Int8 && is_best { 530 } else { 70 };
            let sequences = [(1, 20), (2, 33), (3, long)].map(|(seed, tokens)| Sequence::random(seed, &heads, tokens));
            for scoring in [plainly(), scorings(6).remove(3), scorings(6).remove(6)] {
                let whole = sequences.each_ref().map(|sequence| {
                    let row = sequence.cached(&arena, sequence.tokens, sequence.tokens);
                    attend(&heads, &scoring, &mut [(row, 0, &sequence.queries)])
                });
                let mut rng = rng(40);
                let mut rows = sequences
                    .each_ref()
                    .map(|sequence| (Row::new(&arena, sequence.tokens), 0));
                let mut out = [Vec::new(), Vec::new(), Vec::new()];
                while (0..3).any(|i| rows[i].1 < sequences[i].tokens) {
                    let mut parts = Vec::new();
                    let mut who = Vec::new();
                    for (i, (row, done)) in rows.iter_mut().enumerate() {
                        let longest = if rng.random_bool(0.5) { 100 } else { 3 };
                        let n = rng.random_range(0..longest).min(sequences[i].tokens - *done);
                        if n > 0 {
                            sequences[i].extend(row, *done..*done + n);
                            parts.push((row.clone(), *done, sequences[i].queries(*done..*done + n)));
                            who.push((i, n));
                            *done += n;
                        }
                    }
                    let all = attend(&heads, &scoring, &mut parts);
                    let mut rest = all.as_slice();
                    for (i, n) in who {
                        let (own, after) = rest.split_at(n * 120);
                        out[i].extend_from_slice(own);
                        rest = after;
                    }
                }
                for (whole, out) in whole.iter().zip(&out) {
                    assert_same_bits(out, whole);
                }
            }
        }
    }
}

#[test]
fn keys_nobody_sees_count_for_nothing_whatever_they_are() {
    for dtype in [KvDType::F32, KvDType::Bf16, KvDType::F16, KvDType::Int8] {
        let heads = heads(Kernels::detect(), dtype, (2, 20));
        let arena = Arena::empty(heads.kv);
        let sequence = Sequence::random(9, &heads, 75);
        let mut broken = Sequence::random(9, &heads, 75);
        for token in [70, 73] {
            broken.values[token * 40 + 3] = f32::NAN;
            broken.keys[token * 40 + 25] = f32::INFINITY;
        }
        for scoring in scorings(4) {
            let run = |sequence: &Sequence| {
                let row = sequence.cached(&arena, 75, 75);
                attend(&heads, &scoring, &mut [(row, 0, &sequence.queries)])
            };
            let (expected, found) = (run(&sequence), run(&broken));
            assert_eq!(found[..70 * 80], expected[..70 * 80], "{dtype:?}");
            assert!(found[70 * 80..].iter().any(|number| number.is_nan()));
        }
    }
}

#[test]
fn smaller_types_of_cache_cost_no_more_than_their_rounding() {
    // Values are below 1: what is read is off by half a unit of the last place of the type, or of 1/127, and scores,
    // sums of 20 products times 0.4, by as much each.
    for (dtype, tolerance) in [(KvDType::F16, 1e-3), (KvDType::Bf16, 8e-3), (KvDType::Int8, 8e-3)] {
        let heads = heads(Kernels::detect(), dtype, (2, 20));
        let sequence = Sequence::random(11, &heads, 120);
        let row = sequence.cached(&Arena::empty(heads.kv), 120, 7);
        let out = attend(&heads, &plainly(), &mut [(row, 0, &sequence.queries)]);
        assert_close(&out, &sequence.plain(&heads, &plainly(), 0), tolerance);
    }
}

#[test]
fn scores_too_large_for_an_exponential_are_no_problem() {
    let heads = Heads {
        engine: engine(),
        kv: KvShape {
            dtype: KvDType::F32,
            n_kv_heads: 1,
            head_dim: 2,
        },
        group: 1,
    };
    let mut row = Row::new(&Arena::empty(heads.kv), 2);
    let keys = [-1000.0, 0.0, 1000.0, 0.0];
    row.write(&heads.engine.pool, 0, (&keys, &[1.0, 2.0, 3.0, 4.0], &|_, _| ()));
    let out = attend(&heads, &plainly(), &mut [(row, 1, &[1000.0, 0.0])]);
    assert_eq!(out, [3.0, 4.0]);
}

#[test]
fn slopes_are_those_of_bloom_for_any_number_of_heads() {
    let slopes = |n: usize| -> Vec<f32> {
        let alibi = Alibi::new(n, AlibiKind::Exact, 1.0);
        alibi.slopes.iter().map(|slope| slope.per_token).collect()
    };
    assert_eq!(slopes(4), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
    assert_close(&slopes(6), &[0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125], 1e-7);
}
