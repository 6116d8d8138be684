//! Whose numbers are right? Bounds for how far two honest servers may be apart, and what follows from the answers of
//! several. Pure; whom to ask, and how, is in `session/verifying`.
//!
//! Two servers that hold the same blocks hardly ever answer with the same bits: weights may be kept in other formats, keys
//! and values and the answer itself are rounded, and other processors add in another order. What a format costs is known
//! (below, and measured by the tests over all of them), so a bound follows from what both announce. A lie that is smaller
//! than that is not seen. It does no more harm either than a server that honestly keeps its weights in that format.

use std::collections::BTreeSet;

use sepal_protocol::record::ServerInfo;

use crate::{model::Hidden, p2p::PeerId};

/// How many roundings of the format the answer of a few blocks to any one token is off, relative to its size, at most. Found
/// were 5 to 13 for four blocks of random weights, where nothing averages out; in trained models it is less.
const ROUNDINGS: f64 = 20.0;
/// Blocks for which that holds; errors of more blocks add up like steps in random directions.
const FEW_BLOCKS: f64 = 4.0;
/// The largest bound. Answers that have nothing to do with each other are further apart than this: √2, and 1 from nothing.
const LARGEST_BOUND: f64 = 0.9;

/// Rounding of numbers (root mean square, relative to them) in each dtype: half of the last bit, evenly distributed. For
/// float32 it is that of long sums in another order, and of cards that multiply with fewer bits.
const DTYPES: [(&str, f64); 3] = [("float32", 5e-6), ("float16", 2e-4), ("bfloat16", 1.6e-3)];
/// The same for weights in fewer bits: a rounding is 1/√12 of a step; a step of int8 is a 127th of the largest of 32
/// weights, of q4_0 an 8th, of q4_k a 15th of their range. NF4's is that of its quantiles.
const QUANTISED: [(&str, f64); 4] = [("int8", 7e-3), ("q4_k", 0.07), ("q4_0", 0.076), ("nf4", 0.09)];
/// For formats that are not known here.
const UNKNOWN: f64 = 0.1;

/// How a server keeps and computes numbers, as it announces it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Format {
    dtype: String,
    quantised: Option<String>,
}

impl Format {
    pub(crate) fn of(info: Option<&ServerInfo>) -> Self {
        let named = |name: &Option<String>| name.clone().filter(|name| name != "none");
        Self {
            dtype: info.and_then(|info| info.torch_dtype.clone()).unwrap_or_default(),
            quantised: info.and_then(|info| named(&info.quant_type)),
        }
    }

    /// The one of these that rounds most; of none, one that is not known.
    pub(crate) fn roughest(formats: impl Iterator<Item = Self>) -> Self {
        formats
            .max_by(|a, b| a.rounding().total_cmp(&b.rounding()))
            .unwrap_or_else(|| Self::of(None))
    }

    fn rounding(&self) -> f64 {
        let find = |table: &[(&str, f64)], name: &str| {
            let entry = table.iter().find(|(known, _)| *known == name);
            entry.map_or(UNKNOWN, |(_, rounding)| *rounding)
        };
        let weights = self.quantised.as_deref().map_or(0.0, |name| find(&QUANTISED, name));
        weights.max(find(&DTYPES, &self.dtype))
    }
}

/// The largest distance of honest answers of two servers for so many blocks of a model, with experts or without.
pub(crate) fn bound(a: &Format, b: &Format, n_blocks: u32, has_experts: bool) -> f64 {
    let blocks = (f64::from(n_blocks) / FEW_BLOCKS).max(1.0).sqrt();
    let bound = ROUNDINGS * blocks * (a.rounding() + b.rounding());
    let is_exact = |format: &Format| format.quantised.is_none() && format.dtype == "float32";
    // Where a token goes through some of many experts, a rounding may send it to another one.
    if has_experts && !(is_exact(a) && is_exact(b)) {
        return LARGEST_BOUND;
    }
    bound.min(LARGEST_BOUND)
}

/// How far two answers to one step are apart: of the token where they differ most, the size of the difference relative to
/// that of the larger one. Infinite for other shapes.
pub(crate) fn distance(a: &Hidden, b: &Hidden) -> f64 {
    if (a.batch, a.tokens, a.width) != (b.batch, b.tokens, b.width) {
        return f64::INFINITY;
    }
    let size = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let tokens = a.data.chunks(a.width.max(1)).zip(b.data.chunks(b.width.max(1)));
    let distances = tokens.map(|(a, b)| {
        let sizes = [a, b].map(|x| size(&mut x.iter().map(|x| f64::from(*x))));
        let apart = size(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        apart / sizes[0].max(sizes[1]).max(f64::MIN_POSITIVE)
    });
    distances.fold(0.0, f64::max)
}

/// An answer to the step in question.
#[derive(Clone, Debug)]
pub(crate) struct Opinion {
    /// Whose it is: one server's, or that of several in a row.
    pub(crate) peers: Vec<PeerId>,
    pub(crate) format: Format,
    pub(crate) answer: Hidden,
}

/// What several opinions come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The first one is right, as far as can be told; these are not.
    Right(BTreeSet<usize>),
    /// These are wrong, the first among them.
    Wrong(BTreeSet<usize>),
    /// Too few agree.
    Open,
}

/// Who is right: those who agree with most others. Wrong is only who agrees with none of them.
pub(crate) fn judge(opinions: &[Opinion], n_blocks: u32, has_experts: bool) -> Verdict {
    let agree =
        |a: &Opinion, b: &Opinion| distance(&a.answer, &b.answer) <= bound(&a.format, &b.format, n_blocks, has_experts);
    let friends: Vec<BTreeSet<usize>> = opinions
        .iter()
        .enumerate()
        .map(|(i, a)| {
            (0..opinions.len())
                .filter(|j| *j == i || agree(a, &opinions[*j]))
                .collect()
        })
        .collect();
    let most = friends.iter().map(BTreeSet::len).max().unwrap_or(0);
    let mut largest = friends.iter().filter(|group| group.len() == most);
    let Some(group) = largest.next().filter(|_| most >= 2) else {
        return Verdict::Open;
    };
    if largest.any(|other| other.is_disjoint(group)) {
        return Verdict::Open;
    }
    let wrong = |i: &usize| friends[*i].is_disjoint(group);
    let wrong: BTreeSet<usize> = (0..opinions.len()).filter(wrong).collect();
    match wrong.contains(&0) {
        true => Verdict::Wrong(wrong),
        false => Verdict::Right(wrong),
    }
}

#[cfg(test)]
mod tests;
