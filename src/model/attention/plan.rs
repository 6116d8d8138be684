//! Which units of work an attention consists of. How they are cut changes who computes what, never what is computed.

use std::{cmp::Reverse, ops::Range, sync::atomic::AtomicBool};

use super::{Call, Part, split::SPLIT_KEYS};

/// Queries (tokens times heads of the group) of one unit; bounds its scores to a block of keys times this.
const MAX_QUERIES: usize = 96;

/// Some tokens of one sequence, the query heads that share a key head, and a range of keys.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) segment: usize,
    pub(super) kv_head: usize,
    /// Position of the first token in its sequence.
    pub(super) position: usize,
    /// The first token's place among the tokens of all segments.
    pub(super) first_token: usize,
    pub(super) tokens: usize,
    pub(super) splits: Range<usize>,
    /// Where the results of the splits go, or come from, if they are joined by somebody else: the place of the first.
    pub(super) partial: Option<usize>,
    /// Multiplications, about.
    pub(super) work: usize,
}

/// Memory of an attention that is used again: a warm step takes none.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(super) units: Vec<Unit>,
    /// Units whose splits are computed apart, each with all its splits.
    pub(super) merges: Vec<Unit>,
    pub(super) partials: Vec<f32>,
    pub(super) taken: (Vec<AtomicBool>, Vec<AtomicBool>),
}

impl Scratch {
    /// Cuts an attention into units, the longest first.
    pub(super) fn plan(&mut self, call: Call<'_, '_>) {
        let heads = call.heads;
        self.units.clear();
        self.merges.clear();
        let max_tokens = (MAX_QUERIES / heads.group).max(1);
        let (mut first_token, mut n_partials) = (0, 0);
        for (segment_idx, segment) in call.segments.iter().enumerate() {
            // The tokens of a long prefill are units enough.
            let split = segment.tokens <= max_tokens;
            for first in (0..segment.tokens).step_by(max_tokens) {
                let (position, tokens) = (segment.position + first, max_tokens.min(segment.tokens - first));
                let splits = splits(position, tokens, call.scoring.window());
                for kv_head in 0..heads.kv.n_kv_heads {
                    let unit = Unit {
                        segment: segment_idx,
                        kv_head,
                        position,
                        first_token: first_token + first,
                        tokens,
                        splits: splits.clone(),
                        partial: None,
                        work: tokens * heads.group * heads.kv.head_dim * (position + tokens),
                    };
                    if split && splits.len() > 1 {
                        n_partials += self.split(unit, n_partials, tokens * heads.group);
                    } else {
                        self.units.push(unit);
                    }
                }
            }
            first_token += segment.tokens;
        }
        self.partials.resize(n_partials * Part::len(heads.kv), 0.0);
        self.units.sort_unstable_by_key(|unit| Reverse(unit.work));
    }

    /// One unit per split; how many places their results take.
    fn split(&mut self, unit: Unit, first: usize, n_rows: usize) -> usize {
        let n_splits = unit.splits.len();
        for (i, split) in unit.splits.clone().enumerate() {
            self.units.push(Unit {
                splits: split..split + 1,
                partial: Some(first + i * n_rows),
                work: unit.work / n_splits,
                ..unit
            });
        }
        self.merges.push(Unit {
            partial: Some(first),
            work: unit.work / SPLIT_KEYS,
            ..unit
        });
        n_splits * n_rows
    }
}

/// The splits of keys that tokens at `position` and after see something of.
fn splits(position: usize, tokens: usize, window: usize) -> Range<usize> {
    let first_key = (position + 1).saturating_sub(window);
    first_key / SPLIT_KEYS..(position + tokens).div_ceil(SPLIT_KEYS)
}
