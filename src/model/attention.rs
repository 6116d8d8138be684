//! Causal attention of new tokens over cached pages, a block of keys at a time with a running softmax, so that memory
//! does not grow with the context. Keys are already rotated and cached.
//!
//! A query's result depends on nothing but the query and the pages it sees: blocks and splits of keys start at fixed
//! positions, sums run over keys in ascending order, and keys that are not seen count for nothing. So its bits are the
//! same whatever else is computed beside it and however its sequence was cut into steps.

mod plan;
mod scoring;
mod split;

use super::{
    block::Segment,
    cpu::{Disjoint, Engine, WORTH_THREADS},
    kv::KvShape,
};
pub(crate) use plan::Scratch;
use plan::Unit;
pub(crate) use scoring::{Alibi, Scoring};
use split::{Local, Part};

/// The heads of a model.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    pub(crate) engine: Engine,
    pub(crate) kv: KvShape,
    /// Query heads per key head.
    pub(crate) group: usize,
}

/// Changes a head of a token, whose number among those of all segments it is given, just before it is used: it norms
/// and rotates, say.
pub(crate) type Turn<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// One attention: the queries of some segments, `[tokens, n_heads, head_dim]` of all one after the other.
#[derive(Clone, Copy)]
struct Call<'a, 's> {
    heads: &'a Heads,
    scoring: &'a Scoring,
    segments: &'a [Segment<'s>],
    queries: &'a [f32],
    turn: Turn<'a>,
}

impl Heads {
    fn for_each(&self, units: &[Unit], task: &(dyn Fn(&Unit) + Sync)) {
        let work: usize = units.iter().map(|unit| unit.work).sum();
        if work < WORTH_THREADS {
            units.iter().for_each(task);
        } else {
            self.engine.pool.run(units.len(), &|i| task(&units[i]));
        }
    }

    /// `queries` is `[tokens, n_heads, head_dim]` of all `segments` one after the other, whose keys are cached; so is
    /// `out` afterwards.
    pub(crate) fn attend(
        &self,
        scoring: &Scoring,
        (segments, queries, turn): (&[Segment<'_>], &[f32], Turn<'_>),
        scratch: &mut Scratch,
        out: &mut Vec<f32>,
    ) {
        let call = Call {
            heads: self,
            scoring,
            segments,
            queries,
            turn,
        };
        out.resize(queries.len(), 0.0);
        scratch.plan(call);
        let Scratch {
            units,
            merges,
            partials,
            taken: (taken_out, taken_partials),
        } = scratch;
        let width = self.group * self.kv.head_dim;
        {
            let out = Disjoint::new(out, width, taken_out);
            let partials = Disjoint::new(partials, Part::len(self.kv), taken_partials);
            self.for_each(units, &|unit| {
                Local::with(|local| call.run(unit, (&out, &partials), local))
            });
        }
        if !merges.is_empty() {
            let out = Disjoint::new(out, width, taken_out);
            self.for_each(merges, &|unit| {
                Local::with(|local| call.merge(unit, (&out, partials), local))
            });
        }
    }
}

impl Call<'_, '_> {
    /// Computes a unit: the outputs of its queries, or the parts of them that belong to its splits.
    fn run(self, unit: &Unit, (out, partials): (&Disjoint<'_>, &Disjoint<'_>), local: &mut Local) {
        local.gather(self, unit);
        if let Some(first) = unit.partial {
            for split in unit.splits.clone() {
                local.attend_split(self, unit, split);
                let first = first + (split - unit.splits.start) * unit.tokens * self.heads.group;
                local.store(|i| partials.take(first + i));
            }
            return;
        }
        local.begin(self, unit);
        for split in unit.splits.clone() {
            local.attend_split(self, unit, split);
            local.merge_own();
        }
        local.finish(self, unit, out);
    }

    /// Joins the parts of the splits of a unit, in order, as [`Call::run`] does for those that were not split.
    fn merge(self, unit: &Unit, (out, partials): (&Disjoint<'_>, &[f32]), local: &mut Local) {
        let n_rows = unit.tokens * self.heads.group;
        local.begin(self, unit);
        let parts = partials.chunks_exact(Part::len(self.heads.kv));
        let parts = parts.skip(unit.partial.unwrap_or(0)).take(unit.splits.len() * n_rows);
        for (i, part) in parts.enumerate() {
            local.merge_stored(i % n_rows, part);
        }
        local.finish(self, unit, out);
    }
}

#[cfg(test)]
mod tests;
