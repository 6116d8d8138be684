//! The attention of some queries over one split of the keys, and how splits are joined.

use std::cell::RefCell;

use super::{Call, Unit};
use crate::model::{
    attention::Heads,
    cpu::{Disjoint, KEY_BLOCK, LANES, Rows, RowsMut, Sums, View},
    kv::{HeadPage, KvShape, PAGE_TOKENS},
    number::Slice,
};

/// Keys whose softmax is computed on its own. They start at multiples of it.
pub(super) const SPLIT_KEYS: usize = 8 * KEY_BLOCK;

const PAGES_PER_BLOCK: usize = KEY_BLOCK / PAGE_TOKENS;

/// Panels of values that are multiplied at a time.
const VALUE_PANELS: usize = 8;

/// From so many queries on keys and values are widened to f32 once for all of them, and the values of several pages put
/// behind each other. The sums are the same, in the same order.
const MANY_QUERIES: usize = 24;

/// Panels of values that are put together at a time: they stay in a first-level cache.
const WIDE_PANELS: usize = 4;

/// What a split gives for one query: `width` weighted sums, the largest score and the sum of exponentials.
pub(super) struct Part;

impl Part {
    pub(super) fn len(shape: KvShape) -> usize {
        shape.padded_dim() + 2
    }
}

/// Softmaxes of several queries, unfinished.
#[derive(Debug, Default)]
struct Running {
    max: Vec<f32>,
    total: Vec<f32>,
    /// `[queries, width]`
    out: Vec<f32>,
}

/// Memory of a thread that computes units.
#[derive(Debug, Default)]
pub(super) struct Local {
    n_rows: usize,
    width: usize,
    /// `[queries, head_dim]`, scaled.
    queries: Vec<f32>,
    /// `[queries, KEY_BLOCK]`
    scores: Vec<f32>,
    /// Scales of keys and of values of a block.
    scales: [Vec<f32>; 2],
    /// Panels of f32.
    wide: Vec<f32>,
    /// The split that is computed, and those before it.
    split: Running,
    whole: Running,
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::default();
}

/// The tokens of a unit that a page concerns.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Concerned {
    from: usize,
    to: usize,
}

impl Running {
    fn reset(&mut self, n_rows: usize, width: usize) {
        self.max.clear();
        self.max.resize(n_rows, f32::NEG_INFINITY);
        self.total.clear();
        self.total.resize(n_rows, 0.0);
        self.out.clear();
        self.out.resize(n_rows * width, 0.0);
    }

    fn merge(&mut self, row: usize, (max, total, out): (f32, f32, &[f32])) {
        // Nothing of the split is seen, or nothing that counts.
        if max == f32::NEG_INFINITY && total == 0.0 {
            return;
        }
        let old = self.max[row];
        let new = if max > old { max } else { old };
        let base = if new == f32::NEG_INFINITY { 0.0 } else { new };
        let (keep, take) = ((old - base).exp(), (max - base).exp());
        self.max[row] = new;
        self.total[row] = self.total[row] * keep + total * take;
        let width = out.len();
        for (sum, out) in self.out[row * width..(row + 1) * width].iter_mut().zip(out) {
            *sum = *sum * keep + out * take;
        }
    }
}

impl Local {
    pub(super) fn with(task: impl FnOnce(&mut Self)) {
        LOCAL.with(|local| task(&mut local.borrow_mut()));
    }

    /// Takes the queries of `unit` out of those of all segments.
    pub(super) fn gather(&mut self, call: Call<'_, '_>, unit: &Unit) {
        let heads = call.heads;
        let len = heads.group * heads.kv.head_dim;
        (self.n_rows, self.width) = (unit.tokens * heads.group, heads.kv.padded_dim());
        self.queries.clear();
        for token in unit.first_token..unit.first_token + unit.tokens {
            let at = (token * heads.kv.n_kv_heads + unit.kv_head) * len;
            let gathered = self.queries.len();
            self.queries.extend_from_slice(&call.queries[at..at + len]);
            for head in self.queries[gathered..].chunks_exact_mut(heads.kv.head_dim) {
                (call.turn)(token, head);
                head.iter_mut().for_each(|number| *number *= call.scoring.scale);
            }
        }
        self.scores.resize(self.n_rows * KEY_BLOCK, 0.0);
    }

    /// Begins the join of splits.
    pub(super) fn begin(&mut self, call: Call<'_, '_>, unit: &Unit) {
        let heads = call.heads;
        (self.n_rows, self.width) = (unit.tokens * heads.group, heads.kv.padded_dim());
        self.whole.reset(self.n_rows, self.width);
        if let Some(sinks) = &call.scoring.sinks {
            let sinks = &sinks[unit.kv_head * heads.group..][..heads.group];
            for (max, sink) in self.whole.max.iter_mut().zip(sinks.iter().cycle()) {
                *max = *sink;
            }
            self.whole.total.fill(1.0);
        }
    }

    /// Computes `self.split` for a split of the keys in `row`.
    pub(super) fn attend_split(&mut self, call: Call<'_, '_>, unit: &Unit, split: usize) {
        let (heads, row) = (call.heads, &*call.segments[unit.segment].row);
        self.split.reset(self.n_rows, self.width);
        let first_key = (unit.position + 1).saturating_sub(call.scoring.window());
        let start = (split * SPLIT_KEYS).max(first_key / KEY_BLOCK * KEY_BLOCK);
        let end = ((split + 1) * SPLIT_KEYS).min(unit.position + unit.tokens);
        for first_key in (start..end).step_by(KEY_BLOCK) {
            let n_pages = (end - first_key).div_ceil(PAGE_TOKENS).min(PAGES_PER_BLOCK);
            let page = |i: usize| row.head(heads.kv, unit.kv_head, first_key / PAGE_TOKENS + i.min(n_pages - 1));
            let pages: [HeadPage<'_>; PAGES_PER_BLOCK] = std::array::from_fn(page);
            self.block(call, unit, (first_key, &pages[..n_pages]));
        }
    }

    fn block(&mut self, call: Call<'_, '_>, unit: &Unit, (first_key, pages): (usize, &[HeadPage<'_>])) {
        let (heads, window) = (call.heads, call.scoring.window());
        let concerned = |i: usize| unit.concerned(first_key + i * PAGE_TOKENS, window);
        self.score(heads, pages, concerned);
        let [key_scales, value_scales] = &mut self.scales;
        for scales in [&mut *key_scales, &mut *value_scales] {
            scales.clear();
            scales.reserve(KEY_BLOCK);
        }
        for page in pages {
            key_scales.extend_from_slice(page.key_scales);
            value_scales.extend_from_slice(page.value_scales);
        }
        let alibi = call.scoring.alibi.as_ref();
        let view = View {
            first_key,
            position: unit.position,
            group: heads.group,
            window,
            key_scales: &self.scales[0],
            value_scales: &self.scales[1],
            softcap: call.scoring.softcap,
            slopes: alibi.map_or(&[], |alibi| &alibi.slopes[unit.kv_head * heads.group..][..heads.group]),
        };
        let sums = Sums {
            max: &mut self.split.max,
            total: &mut self.split.total,
            out: &mut self.split.out,
        };
        heads.engine.kernels.softmax_block(&view, &mut self.scores, sums);
        let mut i = 0;
        while i < pages.len() {
            let (first, page, tokens) = (i, &pages[i], concerned(i));
            let same = |i: &usize| pages[*i].finite && concerned(*i) == tokens;
            i += (i..pages.len()).take_while(same).count().max(1);
            if page.finite {
                self.add_pages(heads, (&pages[first..i], first * PAGE_TOKENS), tokens);
                continue;
            }
            let i = first;
            // What a query does not see may be no number, and must not even be multiplied with nothing.
            for token in tokens.from..tokens.to {
                let keys = unit.keys(token, first_key + i * PAGE_TOKENS, window);
                let one = Concerned {
                    from: token,
                    to: token + 1,
                };
                self.add_values(heads, page.values, (i * PAGE_TOKENS, keys), one);
            }
        }
    }

    /// `scores[query][key] = key · query`, for queries that see something of a page.
    fn score(&mut self, heads: &Heads, pages: &[HeadPage<'_>], concerned: impl Fn(usize) -> Concerned) {
        let head_dim = heads.kv.head_dim;
        let mut i = 0;
        while i < pages.len() {
            let tokens = concerned(i);
            let n = (i..pages.len()).take_while(|i| concerned(*i) == tokens).count();
            let panels: [Slice<'_>; PAGES_PER_BLOCK] =
                std::array::from_fn(|j| pages[(i + j).min(pages.len() - 1)].keys);
            let (from, to) = (tokens.from * heads.group, tokens.to * heads.group);
            if from < to {
                let panels = match to - from {
                    MANY_QUERIES.. => widened(heads, &panels[..n], &mut self.wide),
                    _ => panels,
                };
                heads.engine.kernels.multiply_panels(
                    &panels[..n],
                    Rows {
                        data: &self.queries[from * head_dim..],
                        stride: head_dim,
                    },
                    RowsMut {
                        data: &mut self.scores[from * KEY_BLOCK + i * PAGE_TOKENS..],
                        stride: KEY_BLOCK,
                    },
                    to - from,
                    false,
                );
            }
            i += n;
        }
    }

    /// `out[query] += Σ_key share[query][key] · value[key]` over pages that all are finite and concern the same tokens;
    /// their scores start at `at`.
    fn add_pages(&mut self, heads: &Heads, (pages, at): (&[HeadPage<'_>], usize), tokens: Concerned) {
        let (from, to) = (tokens.from * heads.group, tokens.to * heads.group);
        if to < from + MANY_QUERIES {
            for (i, page) in pages.iter().enumerate() {
                let keys = (at + i * PAGE_TOKENS, 0..PAGE_TOKENS);
                self.add_values(heads, page.values, keys, tokens);
            }
            return;
        }
        let panel_len = PAGE_TOKENS * LANES;
        let n_panels = pages[0].values.len() / panel_len;
        self.wide
            .resize(self.wide.len().max(WIDE_PANELS * KEY_BLOCK * LANES), 0.0);
        for first in (0..n_panels).step_by(WIDE_PANELS) {
            let n = WIDE_PANELS.min(n_panels - first);
            let wide_len = pages.len() * panel_len;
            for (panel, wide) in (first..first + n).zip(self.wide.chunks_exact_mut(wide_len)) {
                for (page, wide) in pages.iter().zip(wide.chunks_exact_mut(panel_len)) {
                    let values = page.values.range(panel * panel_len..(panel + 1) * panel_len);
                    match values {
                        Slice::F32(values) => wide.copy_from_slice(values),
                        _ => drop(heads.engine.kernels.widen(values, wide)),
                    }
                }
            }
            let panels: [Slice<'_>; WIDE_PANELS] = std::array::from_fn(|i| {
                let i = i.min(n - 1);
                Slice::F32(&self.wide[i * wide_len..(i + 1) * wide_len])
            });
            heads.engine.kernels.multiply_panels(
                &panels[..n],
                Rows {
                    data: &self.scores[from * KEY_BLOCK + at..],
                    stride: KEY_BLOCK,
                },
                RowsMut {
                    data: &mut self.split.out[from * self.width + first * LANES..],
                    stride: self.width,
                },
                to - from,
                true,
            );
        }
    }

    /// `out[query] += Σ_key share[query][key] · value[key]` over some keys of a page, whose scores start at `at`.
    fn add_values(
        &mut self,
        heads: &Heads,
        values: Slice<'_>,
        (at, keys): (usize, std::ops::Range<usize>),
        tokens: Concerned,
    ) {
        let (from, to) = (tokens.from * heads.group, tokens.to * heads.group);
        if from >= to || keys.is_empty() {
            return;
        }
        let panel_len = PAGE_TOKENS * LANES;
        let n_panels = values.len() / panel_len;
        for first in (0..n_panels).step_by(VALUE_PANELS) {
            let panels: [Slice<'_>; VALUE_PANELS] = std::array::from_fn(|i| {
                let panel = (first + i).min(n_panels - 1) * panel_len;
                values.range(panel + keys.start * LANES..panel + keys.end * LANES)
            });
            heads.engine.kernels.multiply_panels(
                &panels[..VALUE_PANELS.min(n_panels - first)],
                Rows {
                    data: &self.scores[from * KEY_BLOCK + at + keys.start..],
                    stride: KEY_BLOCK,
                },
                RowsMut {
                    data: &mut self.split.out[from * self.width + first * LANES..],
                    stride: self.width,
                },
                to - from,
                true,
            );
        }
    }

    /// Stores `self.split`, a part per query.
    pub(super) fn store<'a>(&self, place: impl Fn(usize) -> &'a mut [f32]) {
        for row in 0..self.n_rows {
            let part = place(row);
            part[..self.width].copy_from_slice(&self.split.out[row * self.width..(row + 1) * self.width]);
            part[self.width] = self.split.max[row];
            part[self.width + 1] = self.split.total[row];
        }
    }

    /// Joins `self.split` to the splits before it.
    pub(super) fn merge_own(&mut self) {
        for row in 0..self.n_rows {
            let out = &self.split.out[row * self.width..(row + 1) * self.width];
            self.whole.merge(row, (self.split.max[row], self.split.total[row], out));
        }
    }

    /// Joins a part that was stored.
    pub(super) fn merge_stored(&mut self, row: usize, part: &[f32]) {
        let (out, rest) = part.split_at(self.width);
        self.whole.merge(row, (rest[0], rest[1], out));
    }

    /// Writes the outputs of all queries of `unit`.
    pub(super) fn finish(&mut self, call: Call<'_, '_>, unit: &Unit, out: &Disjoint<'_>) {
        let heads = call.heads;
        let head_dim = heads.kv.head_dim;
        for token in 0..unit.tokens {
            let part = out.take((unit.first_token + token) * heads.kv.n_kv_heads + unit.kv_head);
            for (i, part) in part.chunks_exact_mut(head_dim).enumerate() {
                let row = token * heads.group + i;
                let sums = &self.whole.out[row * self.width..][..head_dim];
                for (part, sum) in part.iter_mut().zip(sums) {
                    // Adding nothing makes one zero of the two, which differ by what was not seen.
                    *part = sum / self.whole.total[row] + 0.0;
                }
            }
        }
    }
}

/// The keys of some pages as f32.
fn widened<'a>(heads: &Heads, panels: &[Slice<'a>], wide: &'a mut Vec<f32>) -> [Slice<'a>; PAGES_PER_BLOCK] {
    let len = heads.kv.head_dim * PAGE_TOKENS;
    wide.resize(wide.len().max(PAGES_PER_BLOCK * len), 0.0);
    let mut out = [Slice::F32(&[]); PAGES_PER_BLOCK];
    for ((panel, wide), out) in panels.iter().zip(wide.chunks_exact_mut(len)).zip(&mut out) {
        *out = Slice::F32(heads.engine.kernels.widen(*panel, wide));
    }
    out
}

impl Unit {
    /// The tokens that see something of the page whose first key is at `key`.
    fn concerned(&self, key: usize, window: usize) -> Concerned {
        let last = (key + PAGE_TOKENS - 1).saturating_add(window);
        let to = last.saturating_sub(self.position).min(self.tokens);
        let from = key.saturating_sub(self.position).min(to);
        Concerned { from, to }
    }

    /// The keys that `token` sees of the page whose first key is at `key`.
    fn keys(&self, token: usize, key: usize, window: usize) -> std::ops::Range<usize> {
        let end = self.position + token + 1;
        let start = end.saturating_sub(window).saturating_sub(key).min(PAGE_TOKENS);
        start..end.saturating_sub(key).min(PAGE_TOKENS)
    }
}
