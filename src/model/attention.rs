//! Causal attention of new tokens over cached keys, page by page with a running softmax, so that memory does not grow
//! with the context. Keys are already rotated and cached. The unit of work is some tokens of one sequence with the
//! query heads that share a key head.

use rayon::prelude::*;

use super::{
    activation::tanh,
    config::parts::AlibiKind,
    cpu::{Kernels, Operand, exp, matmul},
    kv::{HeadPage, KvShape, Row},
    linear::WORTH_THREADS,
    number::Slice,
};

/// Queries (tokens times heads of the group) of one unit; bounds its scores to a page times this.
const MAX_QUERIES: usize = 256;

/// From here on a page is widened and multiplied by `gemm`; below, it is read once by the kernels.
const MANY_QUERIES: usize = 17;

/// The heads of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) kernels: Kernels,
    pub(crate) kv: KvShape,
    /// Query heads per key head.
    pub(crate) group: usize,
}

/// How a block scores keys, besides the product of query and key.
#[derive(Clone, Debug)]
pub(crate) struct Scoring {
    /// Multiplies query · key.
    pub(crate) scale: f32,
    /// Scaled products become `softcap · tanh(product / softcap)`.
    pub(crate) softcap: Option<f32>,
    /// A query sees itself and the `window - 1` tokens before it.
    pub(crate) window: Option<usize>,
    /// Added after that, by the position of the key.
    pub(crate) alibi: Option<Alibi>,
    /// For each query head the score of a key that is always seen and has no value.
    pub(crate) sinks: Option<Vec<f32>>,
}

/// Scores that grow with the position of the key.
#[derive(Clone, Debug)]
pub(crate) struct Alibi {
    /// For each query head, per token.
    slopes: Vec<f32>,
    kind: AlibiKind,
    /// Multiplies the sum of product and bias in one of the kinds.
    scale: f32,
}

impl Alibi {
    /// The slopes of Press et al., 2021: powers of 2, and for other numbers of heads than powers of 2 every second one of
    /// the next finer series (transformers `build_alibi_tensor`).
    pub(crate) fn new(n_heads: usize, kind: AlibiKind, scale: f32) -> Self {
        let whole = 1_usize << n_heads.max(1).ilog2();
        let base = |n: usize| (-8.0 / n as f32).exp2();
        let coarse = (1..=whole as i32).map(|i| base(whole).powi(i));
        let finer = (0..n_heads - whole).map(|i| base(2 * whole).powi(2 * i as i32 + 1));
        Self {
            slopes: coarse.chain(finer).collect(),
            kind,
            scale,
        }
    }

    /// What is added to the scaled product of a query of `head` and the key at `position`.
    pub(crate) fn bias(&self, head: usize, position: usize) -> f32 {
        let round = |x: f32| half::bf16::from_f32(x).to_f32();
        match self.kind {
            AlibiKind::Exact => self.slopes[head] * position as f32,
            AlibiKind::Bfloat16 => round(round(self.slopes[head]) * round(position as f32)) * self.scale,
        }
    }
}

/// Consecutive new tokens of one sequence, whose keys are in `row`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queries<'a> {
    pub(crate) row: &'a Row,
    /// Of the first token.
    pub(crate) position: usize,
    pub(crate) tokens: usize,
}

/// A unit of work.
struct Unit<'a> {
    row: &'a Row,
    kv_head: usize,
    position: usize,
    /// `[tokens, group, head_dim]`
    queries: &'a [f32],
    out: &'a mut [f32],
}

impl Heads {
    /// `queries` is `[tokens, n_heads, head_dim]` of all `sequences` one after the other; returns the same shape.
    pub(crate) fn attend(&self, scoring: &Scoring, sequences: &[Queries<'_>], queries: &[f32]) -> Vec<f32> {
        let by_head = self.regroup(sequences, queries, Order::ByToken);
        let mut out = vec![0.0; queries.len()];
        let mut units = self.units(sequences, &by_head, &mut out);
        let work: usize = units.iter().map(|unit| self.work(unit)).sum();
        if work < WORTH_THREADS {
            units.iter_mut().for_each(|unit| self.run(scoring, unit));
        } else {
            units.par_iter_mut().for_each(|unit| self.run(scoring, unit));
        }
        self.regroup(sequences, &out, Order::ByHead)
    }

    /// Numbers of all heads that share a key head, per token.
    fn width(&self) -> usize {
        self.group * self.kv.head_dim
    }

    /// Exchanges tokens and key heads of each sequence: `[tokens, kv_heads, width]` to `[kv_heads, tokens, width]`,
    /// or back.
    fn regroup(&self, sequences: &[Queries<'_>], data: &[f32], from: Order) -> Vec<f32> {
        let (width, n_kv_heads) = (self.width(), self.kv.n_kv_heads);
        let mut out = Vec::with_capacity(data.len());
        let mut rest = data;
        for sequence in sequences {
            let (data, after) = rest.split_at(sequence.tokens * n_kv_heads * width);
            rest = after;
            let (outer, inner) = match from {
                Order::ByToken => (n_kv_heads, sequence.tokens),
                Order::ByHead => (sequence.tokens, n_kv_heads),
            };
            for i in 0..outer {
                for j in 0..inner {
                    let at = (j * outer + i) * width;
                    out.extend_from_slice(&data[at..at + width]);
                }
            }
        }
        out
    }

    fn units<'a>(&self, sequences: &[Queries<'a>], queries: &'a [f32], out: &'a mut [f32]) -> Vec<Unit<'a>> {
        let width = self.width();
        let max_tokens = (MAX_QUERIES / self.group).max(1);
        let mut units = Vec::new();
        let (mut queries, mut out) = (queries, out);
        for sequence in sequences {
            for kv_head in 0..self.kv.n_kv_heads {
                for first in (0..sequence.tokens).step_by(max_tokens) {
                    let len = max_tokens.min(sequence.tokens - first) * width;
                    let (unit_queries, queries_left) = queries.split_at(len);
                    let (unit_out, out_left) = out.split_at_mut(len);
                    (queries, out) = (queries_left, out_left);
                    units.push(Unit {
                        row: sequence.row,
                        kv_head,
                        position: sequence.position + first,
                        queries: unit_queries,
                        out: unit_out,
                    });
                }
            }
        }
        units
    }

    fn work(&self, unit: &Unit<'_>) -> usize {
        unit.queries.len() * (unit.position + unit.queries.len() / self.width())
    }

    fn run(&self, scoring: &Scoring, unit: &mut Unit<'_>) {
        let head_dim = self.kv.head_dim;
        let tokens = unit.queries.len() / self.width();
        let mut softmax = Softmax::new(unit.queries.len() / head_dim);
        if let Some(sinks) = &scoring.sinks {
            softmax.begin_with(&sinks[unit.kv_head * self.group..][..self.group]);
        }
        let mut wide = Wide::default();
        let first_seen = scoring
            .window
            .map_or(0, |window| (unit.position + 1).saturating_sub(window));
        for page in unit.row.head(self.kv, unit.kv_head, unit.position + tokens) {
            if page.position + page.keys.len() / head_dim <= first_seen {
                continue;
            }
            self.score(page.keys, unit.queries, &mut wide, &mut softmax.scores);
            self.adjust(scoring, unit.kv_head, &page, &mut softmax);
            self.mask(scoring.window, &page, unit.position, &mut softmax);
            softmax.update(unit.out);
            self.add_values(page.values, &softmax.scores, &mut wide, unit.out);
        }
        for (out, total) in unit.out.chunks_exact_mut(head_dim).zip(&softmax.total) {
            out.iter_mut().for_each(|out| *out /= total);
        }
    }

    /// From products of queries and keys to scores.
    fn adjust(&self, scoring: &Scoring, kv_head: usize, page: &HeadPage<'_>, softmax: &mut Softmax) {
        for score in &mut softmax.scores {
            *score *= scoring.scale;
        }
        if let Some(softcap) = scoring.softcap {
            for score in &mut softmax.scores {
                *score = softcap * tanh(*score / softcap);
            }
        }
        if let Some(alibi) = &scoring.alibi {
            let n_queries = softmax.max.len();
            for (key, scores) in softmax.scores.chunks_exact_mut(n_queries).enumerate() {
                for (query, score) in scores.iter_mut().enumerate() {
                    *score += alibi.bias(kv_head * self.group + query % self.group, page.position + key);
                }
            }
        }
    }

    /// `scores[key][query] = key · query`
    fn score(&self, keys: Slice<'_>, queries: &[f32], wide: &mut Wide, scores: &mut Vec<f32>) {
        let head_dim = self.kv.head_dim;
        let (n_keys, n_queries) = (keys.len() / head_dim, queries.len() / head_dim);
        scores.resize(n_keys * n_queries, 0.0);
        if n_queries < MANY_QUERIES {
            return self.kernels.dot_rows(keys, head_dim, queries, scores);
        }
        matmul(
            Operand::new(scores.as_mut_slice(), n_keys, n_queries, n_queries),
            Operand::new(wide.of(keys), n_keys, head_dim, head_dim),
            Operand::new(queries, n_queries, head_dim, head_dim).transposed(),
            false,
            false,
        );
    }

    /// A query does not see keys behind its own position, nor those before its window.
    fn mask(&self, window: Option<usize>, page: &HeadPage<'_>, position: usize, softmax: &mut Softmax) {
        let n_queries = softmax.max.len();
        for (key, scores) in softmax.scores.chunks_exact_mut(n_queries).enumerate() {
            let unseeing = (page.position + key).saturating_sub(position) * self.group;
            scores[..unseeing.min(n_queries)].fill(f32::NEG_INFINITY);
            if let Some(window) = window {
                let seeing = (page.position + key + window).saturating_sub(position) * self.group;
                scores[seeing.min(n_queries)..].fill(f32::NEG_INFINITY);
            }
        }
    }

    /// `out[query] += Σ_key shares[key][query] · value[key]`
    fn add_values(&self, values: Slice<'_>, shares: &[f32], wide: &mut Wide, out: &mut [f32]) {
        let head_dim = self.kv.head_dim;
        let (n_keys, n_queries) = (values.len() / head_dim, out.len() / head_dim);
        if n_queries < MANY_QUERIES {
            return self.kernels.add_weighted(values, head_dim, shares, out);
        }
        matmul(
            Operand::new(out, n_queries, head_dim, head_dim),
            Operand::new(shares, n_keys, n_queries, n_queries).transposed(),
            Operand::new(wide.of(values), n_keys, head_dim, head_dim),
            true,
            false,
        );
    }
}

/// How numbers of several tokens and key heads lie in memory.
#[derive(Clone, Copy)]
enum Order {
    ByToken,
    ByHead,
}

/// A softmax over keys that arrive page by page: everything so far is relative to the largest score so far.
struct Softmax {
    /// `[keys of the page, queries]`: scores, after `update` their exponentials.
    scores: Vec<f32>,
    max: Vec<f32>,
    new_max: Vec<f32>,
    total: Vec<f32>,
}

impl Softmax {
    fn new(n_queries: usize) -> Self {
        Self {
            scores: Vec::new(),
            // Finite, so that a page in which a query sees nothing adds 0 and not NaN.
            max: vec![f32::MIN; n_queries],
            new_max: Vec::new(),
            total: vec![0.0; n_queries],
        }
    }

    /// A first key without a value, whose score depends on the query's head.
    fn begin_with(&mut self, sinks: &[f32]) {
        for (max, sink) in self.max.iter_mut().zip(sinks.iter().cycle()) {
            *max = *sink;
        }
        self.total.fill(1.0);
    }

    /// Turns the page's scores into exponentials and rescales what was summed before, `out` included.
    fn update(&mut self, out: &mut [f32]) {
        let n_queries = self.max.len();
        self.new_max.clone_from(&self.max);
        for scores in self.scores.chunks_exact(n_queries) {
            for (max, score) in self.new_max.iter_mut().zip(scores) {
                *max = if *score > *max { *score } else { *max };
            }
        }
        let width = out.len() / n_queries;
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let shrink = exp(self.max[i] - self.new_max[i]);
            if shrink != 1.0 {
                self.total[i] *= shrink;
                out.iter_mut().for_each(|out| *out *= shrink);
            }
        }
        for scores in self.scores.chunks_exact_mut(n_queries) {
            for ((score, max), total) in scores.iter_mut().zip(&self.new_max).zip(&mut self.total) {
                *score = exp(*score - max);
                *total += *score;
            }
        }
        std::mem::swap(&mut self.max, &mut self.new_max);
    }
}

/// A page as f32, widened into memory that is used again.
#[derive(Default)]
struct Wide(Vec<f32>);

impl Wide {
    fn of<'a>(&'a mut self, page: Slice<'a>) -> &'a [f32] {
        if let Slice::F32(page) = page {
            return page;
        }
        self.0.resize(page.len(), 0.0);
        page.widen_into(&mut self.0);
        &self.0
    }
}

#[cfg(test)]
mod tests;
