//! Attention of whole sequences, forward and backward, without a cache. The unit of work is one sequence and the query
//! heads that share a key head; of its scores, only those of some queries exist at a time.

use std::ops::Range;

use super::{Breath, Pass, add, through};
use crate::model::{
    ComputeError,
    attention::Scoring,
    cpu::{Disjoint, exp},
    lora::Target,
    rope::{Angles, Rope},
};

/// Queries of one head whose scores exist at a time.
const QUERIES_AT_A_TIME: usize = 64;

/// Multiply-adds of a thread without a breath, roughly.
const PIECE: usize = 1 << 26;

/// What the way back needs of the way there. Numbers are by head: `[batch, heads, tokens, head_dim]`.
pub(super) struct Attention<'a> {
    pass: &'a Pass<'a>,
    /// Queries and keys before they are normed, if they are.
    unnormed: Option<[Vec<f32>; 2]>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    angles: Option<Angles>,
}

/// One sequence and one key head: `[group, tokens, head_dim]` of queries, `[tokens, head_dim]` of keys and values.
struct Unit<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    first_head: usize,
    tokens: usize,
    head_dim: usize,
}

/// Softmax over the keys that some queries see, `[queries, keys]`.
struct Shares {
    data: Vec<f32>,
    /// How much the scores grow with the products of queries and keys.
    slopes: Vec<f32>,
    n_keys: usize,
}

impl<'a> Attention<'a> {
    /// Queries, keys and values of `normed`, `[batch · tokens, hidden]`.
    ///
    /// # Errors
    /// Those of `breath`.
    pub(super) fn new(pass: &'a Pass<'a>, normed: &[f32], breath: &mut Breath<'_>) -> Result<Self, ComputeError> {
        let block = pass.block;
        let mut project = |target, linear| {
            let projected = pass.through.apply(target, linear, normed, breath)?;
            Ok(pass.by_head(&projected))
        };
        let mut queries = project(Target::Query, &block.query)?;
        let mut keys = project(Target::Key, &block.key)?;
        let values = project(Target::Value, &block.value)?;
        let unnormed = block.qk_norm.as_ref().map(|[query_norm, key_norm]| {
            let (normed_queries, normed_keys) = (query_norm.apply(&queries), key_norm.apply(&keys));
            [
                std::mem::replace(&mut queries, normed_queries),
                std::mem::replace(&mut keys, normed_keys),
            ]
        });
        let angles = block.rope.as_ref().map(|rope| angles(rope, pass));
        if let Some(angles) = &angles {
            for heads in [&mut queries, &mut keys] {
                pass.each_token(heads, |token, head| angles.rotate(token, head));
            }
        }
        breath()?;
        Ok(Self {
            pass,
            unnormed,
            queries,
            keys,
            values,
            angles,
        })
    }

    /// What the output projection gets, `[batch · tokens, heads · head_dim]`.
    ///
    /// # Errors
    /// Those of `breath`.
    pub(super) fn output(&self, breath: &mut Breath<'_>) -> Result<Vec<f32>, ComputeError> {
        let mut out = vec![0.0; self.queries.len()];
        let scoring = &self.pass.block.scoring;
        let (mut taken, len) = (Vec::new(), self.group_len());
        for (units, pieces) in self.rounds() {
            let parts = Disjoint::new(&mut out[units.start * len..units.end * len], len, &mut taken);
            self.pass.through.engine.pool.run(units.len(), &|i| {
                let unit = self.unit(units.start + i);
                unit.forward(scoring, pieces.clone(), parts.take(i));
            });
            breath()?;
        }
        Ok(self.pass.by_token(&out))
    }

    /// The gradient by the normed activations, from that by [`Attention::output`].
    ///
    /// # Errors
    /// Those of `breath`.
    pub(super) fn back(&self, by_output: &[f32], breath: &mut Breath<'_>) -> Result<Vec<f32>, ComputeError> {
        let (pass, block) = (self.pass, self.pass.block);
        let by_output = pass.by_head(by_output);
        let (mut by_queries, mut by_keys, mut by_values) = (
            vec![0.0; self.queries.len()],
            vec![0.0; self.keys.len()],
            vec![0.0; self.values.len()],
        );
        let (len, group_len) = (pass.tokens * pass.config.head_dim, self.group_len());
        let mut taken = [const { Vec::new() }; 3];
        for (units, pieces) in self.rounds() {
            let [a, b, c] = taken.each_mut();
            let of = |len: usize| units.start * len..units.end * len;
            let query_parts = Disjoint::new(&mut by_queries[of(group_len)], group_len, a);
            let key_parts = Disjoint::new(&mut by_keys[of(len)], len, b);
            let value_parts = Disjoint::new(&mut by_values[of(len)], len, c);
            pass.through.engine.pool.run(units.len(), &|i| {
                let unit_idx = units.start + i;
                let by_output = &by_output[unit_idx * group_len..][..group_len];
                let gradients = [&query_parts, &key_parts, &value_parts].map(|parts| parts.take(i));
                let unit = self.unit(unit_idx);
                unit.back(&block.scoring, pieces.clone(), by_output, gradients);
            });
            breath()?;
        }
        drop(by_output);
        if let Some(angles) = &self.angles {
            for heads in [&mut by_queries, &mut by_keys] {
                pass.each_token(heads, |token, head| rotate_back(angles, token, head));
            }
        }
        if let (Some([query_norm, key_norm]), Some([queries, keys])) = (&block.qk_norm, &self.unnormed) {
            by_queries = query_norm.back(queries, &by_queries);
            by_keys = key_norm.back(keys, &by_keys);
        }
        let mut back = |target, linear, by: Vec<f32>| {
            let by = pass.by_token(&by);
            pass.through.back(target, linear, &by, breath)
        };
        let mut by_normed = back(Target::Query, &block.query, by_queries)?;
        add(&mut by_normed, &back(Target::Key, &block.key, by_keys)?);
        add(&mut by_normed, &back(Target::Value, &block.value, by_values)?);
        Ok(by_normed)
    }

    /// Units and pieces of them, of which those of a unit come in order: what goes without a breath.
    fn rounds(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let (config, tokens) = (self.pass.config, self.pass.tokens);
        let n_units = self.queries.len() / self.group_len();
        let n_pieces = config.group_size() * tokens.div_ceil(QUERIES_AT_A_TIME);
        let piece = QUERIES_AT_A_TIME.min(tokens) * tokens * config.head_dim;
        let pieces_at_a_time = (PIECE / piece.max(1)).clamp(1, n_pieces.max(1));
        let n_threads = self.pass.through.engine.pool.threads();
        let units_at_a_time = (PIECE / (piece * pieces_at_a_time).max(1)).max(1) * n_threads;
        let starts = (0..n_units).step_by(units_at_a_time);
        starts.flat_map(move |first_unit| {
            let units = first_unit..n_units.min(first_unit + units_at_a_time);
            let starts = (0..n_pieces).step_by(pieces_at_a_time);
            starts.map(move |first| (units.clone(), first..n_pieces.min(first + pieces_at_a_time)))
        })
    }

    /// Numbers of the query heads that share a key head, of one sequence.
    fn group_len(&self) -> usize {
        let config = self.pass.config;
        config.group_size() * self.pass.tokens * config.head_dim
    }

    fn unit(&self, unit_idx: usize) -> Unit<'_> {
        let (config, tokens) = (self.pass.config, self.pass.tokens);
        let len = tokens * config.head_dim;
        Unit {
            queries: &self.queries[unit_idx * self.group_len()..][..self.group_len()],
            keys: &self.keys[unit_idx * len..][..len],
            values: &self.values[unit_idx * len..][..len],
            first_head: unit_idx % config.n_kv_heads * config.group_size(),
            tokens,
            head_dim: config.head_dim,
        }
    }
}

impl Unit<'_> {
    /// Adds the output of every query of some pieces to `out`, which is like `queries`.
    fn forward(&self, scoring: &Scoring, pieces: Range<usize>, out: &mut [f32]) {
        let keys = transposed(self.keys, self.head_dim);
        for (head, range) in pieces.map(|piece| self.piece(piece)) {
            let shares = self.shares(scoring, &keys, head, &range);
            let out = &mut out[self.range(head, &range)];
            add_product(out, &shares.data, self.values, [shares.n_keys, self.head_dim]);
        }
    }

    /// Adds the gradients by queries, keys and values that come from some pieces.
    fn back(
        &self,
        scoring: &Scoring,
        pieces: Range<usize>,
        by_output: &[f32],
        [by_queries, by_keys, by_values]: [&mut [f32]; 3],
    ) {
        let (keys, values) = (
            transposed(self.keys, self.head_dim),
            transposed(self.values, self.head_dim),
        );
        for (head, range) in pieces.map(|piece| self.piece(piece)) {
            let at = self.range(head, &range);
            let Shares { data, slopes, n_keys } = self.shares(scoring, &keys, head, &range);
            let by_output = &by_output[at.clone()];
            add_outer(by_values, &data, by_output, [n_keys, self.head_dim]);
            let mut by_scores = vec![0.0; data.len()];
            multiply(&mut by_scores, by_output, &values, [self.tokens, n_keys]);
            let rows = data.chunks_exact(n_keys).zip(slopes.chunks_exact(n_keys));
            for (by_scores, (shares, slopes)) in by_scores.chunks_exact_mut(n_keys).zip(rows) {
                let mean: f32 = by_scores.iter().zip(shares).map(|(by, share)| by * share).sum();
                for ((by, share), slope) in by_scores.iter_mut().zip(shares).zip(slopes) {
                    *by = share * (*by - mean) * slope;
                }
            }
            add_product(
                &mut by_queries[at.clone()],
                &by_scores,
                self.keys,
                [n_keys, self.head_dim],
            );
            add_outer(by_keys, &by_scores, &self.queries[at], [n_keys, self.head_dim]);
        }
    }

    /// A head, counted in the group, and some of its queries.
    fn piece(&self, piece: usize) -> (usize, Range<usize>) {
        let of_a_head = self.tokens.div_ceil(QUERIES_AT_A_TIME);
        let (head, start) = (piece / of_a_head, piece % of_a_head * QUERIES_AT_A_TIME);
        (head, start..self.tokens.min(start + QUERIES_AT_A_TIME))
    }

    fn range(&self, head: usize, queries: &Range<usize>) -> Range<usize> {
        let first = head * self.tokens + queries.start;
        first * self.head_dim..(first + queries.len()) * self.head_dim
    }

    /// `keys` are transposed.
    fn shares(&self, scoring: &Scoring, keys: &[f32], head: usize, queries: &Range<usize>) -> Shares {
        let n_keys = queries.end;
        let mut data = vec![0.0; queries.len() * n_keys];
        let mut slopes = vec![scoring.scale; data.len()];
        multiply(
            &mut data,
            &self.queries[self.range(head, queries)],
            keys,
            [self.tokens, n_keys],
        );
        let rows = data.chunks_exact_mut(n_keys).zip(slopes.chunks_exact_mut(n_keys));
        for (position, (scores, slopes)) in queries.clone().zip(rows) {
            let first_seen = scoring.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let seen = first_seen..position + 1;
            scores[..first_seen].fill(0.0);
            scores[position + 1..].fill(0.0);
            for (score, slope) in scores[seen.clone()].iter_mut().zip(&mut slopes[seen.clone()]) {
                *score *= scoring.scale;
                if let Some(softcap) = scoring.softcap {
                    let tanh = (*score / softcap).tanh();
                    (*score, *slope) = (softcap * tanh, *slope * (1.0 - tanh * tanh));
                }
            }
            let head = self.first_head + head;
            if let Some(alibi) = &scoring.alibi {
                for (key, score) in seen.clone().zip(&mut scores[seen.clone()]) {
                    *score += alibi.bias(head, key);
                }
            }
            softmax(&mut scores[seen], scoring.sinks.as_ref().map(|sinks| sinks[head]));
        }
        Shares { data, slopes, n_keys }
    }
}

impl Pass<'_> {
    /// `[batch · tokens, heads · head_dim]` to `[batch, heads, tokens, head_dim]`.
    fn by_head(&self, by_token: &[f32]) -> Vec<f32> {
        self.reordered(by_token, false)
    }

    /// The inverse of [`Pass::by_head`].
    fn by_token(&self, by_head: &[f32]) -> Vec<f32> {
        self.reordered(by_head, true)
    }

    fn reordered(&self, numbers: &[f32], to_tokens: bool) -> Vec<f32> {
        let (tokens, head_dim) = (self.tokens, self.config.head_dim);
        let n_heads = numbers.len() / (self.batch * tokens * head_dim);
        let mut out = vec![0.0; numbers.len()];
        for sequence in 0..self.batch {
            for (head, token) in (0..n_heads).flat_map(|head| (0..tokens).map(move |token| (head, token))) {
                let by_token = ((sequence * tokens + token) * n_heads + head) * head_dim;
                let by_head = ((sequence * n_heads + head) * tokens + token) * head_dim;
                let (from, to) = if to_tokens {
                    (by_head, by_token)
                } else {
                    (by_token, by_head)
                };
                out[to..to + head_dim].copy_from_slice(&numbers[from..from + head_dim]);
            }
        }
        out
    }

    /// Calls `f` with each head of each token, and which token of its sequence that is.
    fn each_token(&self, by_head: &mut [f32], f: impl Fn(usize, &mut [f32])) {
        let heads = by_head.chunks_exact_mut(self.config.head_dim).enumerate();
        heads.for_each(|(i, head)| f(i % self.tokens, head));
    }
}

fn angles(rope: &Rope, pass: &Pass<'_>) -> Angles {
    let mut angles = Angles::new(rope);
    angles.push(rope, 0..pass.tokens, pass.tokens, &pass.through.engine.pool);
    angles
}

/// The gradient by a head, from that by the rotated head, in place.
fn rotate_back(angles: &Angles, token: usize, head: &mut [f32]) {
    let (cos, sin) = angles.of(token);
    let (first, second) = head[..2 * cos.len()].split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
    }
}

/// Shares of e to the `scores`; `sink` is the score of one more key, whose share nobody gets.
fn softmax(scores: &mut [f32], sink: Option<f32>) {
    let highest = scores.iter().copied().fold(sink.unwrap_or(f32::MIN), f32::max);
    let mut total = sink.map_or(0.0, |sink| exp(sink - highest));
    for score in scores.iter_mut() {
        *score = exp(*score - highest);
        total += *score;
    }
    scores.iter_mut().for_each(|score| *score /= total);
}

/// `[rows, cols]` to `[cols, rows]`.
fn transposed(numbers: &[f32], cols: usize) -> Vec<f32> {
    let rows = numbers.len() / cols;
    through::transposed(numbers, rows, cols)
}

/// `out[i] = Σ_k a[i][k] · b[k]` for the first `n` numbers of each row of `b`, which has `width`.
fn multiply(out: &mut [f32], a: &[f32], b: &[f32], [width, n]: [usize; 2]) {
    let depth = b.len() / width;
    for (out, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(depth)) {
        for (a, b) in a.iter().zip(b.chunks_exact(width)) {
            add_scaled(out, *a, &b[..n]);
        }
    }
}

/// `out[i] += Σ_k a[i][k] · b[k]` with rows of `depth` and `width` numbers; zeros of `a` are skipped.
fn add_product(out: &mut [f32], a: &[f32], b: &[f32], [depth, width]: [usize; 2]) {
    for (out, a) in out.chunks_exact_mut(width).zip(a.chunks_exact(depth)) {
        for (a, b) in a.iter().zip(b.chunks_exact(width)).filter(|(a, _)| **a != 0.0) {
            add_scaled(out, *a, b);
        }
    }
}

/// `out[k] += Σ_i a[i][k] · b[i]` with rows of `depth` and `width` numbers; zeros of `a` are skipped.
fn add_outer(out: &mut [f32], a: &[f32], b: &[f32], [depth, width]: [usize; 2]) {
    for (a, b) in a.chunks_exact(depth).zip(b.chunks_exact(width)) {
        for (a, out) in a.iter().zip(out.chunks_exact_mut(width)).filter(|(a, _)| **a != 0.0) {
            add_scaled(out, *a, b);
        }
    }
}

fn add_scaled(out: &mut [f32], factor: f32, numbers: &[f32]) {
    for (out, number) in out.iter_mut().zip(numbers) {
        *out += factor * number;
    }
}
