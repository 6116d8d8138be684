//! What nobody holds, the command that would change that, and who could move there. Pure.

use std::ops::Range;

use super::{
    state::{Candidate, Hole},
    text,
};
use crate::{
    p2p::PeerId,
    swarm::{Span, placement},
};

/// Most candidates named for one hole, and most holes of one model that are looked into: a model with more is in ruins.
const MAX_CANDIDATES: usize = 8;
const MAX_HOLES: usize = 64;

/// What the command that fills a hole is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joining<'a> {
    /// What `sepal serve` is to be given; the prefix if that is not known.
    pub(crate) name: &'a str,
    /// The model's name in the DHT.
    pub(crate) prefix: &'a str,
    /// Whether `name` is a model that `sepal serve` finds.
    pub(crate) name_is_known: bool,
    /// Where to join.
    pub(crate) join: Option<&'a str>,
    /// What is needed for that besides.
    pub(crate) join_flags: &'a str,
}

/// For every block, how many of `spans` hold it.
pub(crate) fn coverage(spans: &[Span], n_blocks: u32) -> Vec<u32> {
    let mut coverage = vec![0_u32; n_blocks as usize];
    for held in spans.iter().filter_map(|span| window(&span.blocks)) {
        for count in coverage.get_mut(held).into_iter().flatten() {
            *count += 1;
        }
    }
    coverage
}

/// The blocks of which `coverage` has none, with who of `spans` could hold them.
pub(crate) fn holes(spans: &[Span], coverage: &[u32], joining: Joining<'_>) -> Vec<Hole> {
    let movable = movable(spans, coverage);
    let ranges = empty_ranges(coverage);
    let holes = ranges.into_iter().take(MAX_HOLES).map(|blocks| Hole {
        start: blocks.start,
        end: blocks.end,
        fill: fill(&joining, &blocks),
        candidates: candidates(&movable, &blocks),
    });
    holes.collect()
}

fn empty_ranges(coverage: &[u32]) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for (block, _) in (0..).zip(coverage).filter(|(_, count)| **count == 0) {
        match ranges.last_mut() {
            Some(last) if last.end == block => last.end += 1,
            _ => ranges.push(block..block + 1),
        }
    }
    ranges
}

/// A server whose blocks others hold as well.
struct Movable {
    peer: PeerId,
    blocks: Range<u32>,
    /// How many others hold the least held of its blocks; at least one.
    others: u32,
    /// Where the rule by which servers choose their blocks would put it, if it chose again.
    target: Range<u32>,
}

/// The servers that can leave without a new hole, and where they would go by the rule that all servers place themselves
/// by (`placement.rs`): the window whose slowest blocks are slowest.
fn movable(spans: &[Span], coverage: &[u32]) -> Vec<Movable> {
    if !coverage.contains(&0) {
        return Vec::new();
    }
    let n_blocks = crate::swarm::spans::block_number(coverage.len());
    let throughputs = placement::throughputs(spans, n_blocks);
    let movable = spans.iter().filter_map(|span| {
        let held = window(&span.blocks)?;
        let others = coverage.get(held.clone())?.iter().min()?.checked_sub(1)?;
        if others == 0 {
            return None;
        }
        let mut without = throughputs.clone();
        for throughput in without.get_mut(held).into_iter().flatten() {
            *throughput = (*throughput - span.info.throughput).max(0.0);
        }
        let start = placement::best_start(&without, span.n_blocks());
        Some(Movable {
            peer: span.peer,
            blocks: span.blocks.clone(),
            others,
            target: start..start + span.n_blocks(),
        })
    });
    movable.collect()
}

/// Those who can leave; the ones whom the rule would send here first, then those least needed where they are.
fn candidates(movable: &[Movable], hole: &Range<u32>) -> Vec<Candidate> {
    let overlap = |server: &Movable| {
        let end = server.target.end.min(hole.end);
        end.saturating_sub(server.target.start.max(hole.start))
    };
    let mut ordered: Vec<&Movable> = movable.iter().collect();
    ordered.sort_by_key(|server| (overlap(server) == 0, std::cmp::Reverse(server.others), server.peer));
    let named = ordered.into_iter().take(MAX_CANDIDATES).map(|server| Candidate {
        peer_id: server.peer.to_string(),
        why: why(server),
    });
    named.collect()
}

fn why(server: &Movable) -> String {
    let (blocks, others) = (&server.blocks, server.others);
    let who = if others == 1 {
        "1 other"
    } else {
        &format!("{others} others")
    };
    let verb = if others == 1 { "serves" } else { "serve" };
    format!("serves {}:{}, which {who} also {verb}", blocks.start, blocks.end)
}

/// The command for somebody with a machine to spare. What is not known, or would not be safe to paste, is left for them
/// to fill in, in capitals.
fn fill(joining: &Joining<'_>, blocks: &Range<u32>) -> String {
    let known = joining.name_is_known.then(|| text::shell_word(joining.name)).flatten();
    let usual = joining.name_is_known && text::is_usual_prefix(joining.name, joining.prefix);
    let mut command = format!("sepal serve {}", known.as_deref().unwrap_or("MODEL"));
    // The built-in model has a prefix of its own, and a word without a slash is no repository.
    if !(usual || known.is_some() && !joining.name.contains('/')) {
        let prefix = text::shell_word(joining.prefix);
        command += &format!(" --dht-prefix {}", prefix.as_deref().unwrap_or("PREFIX"));
    }
    command += &format!(" --blocks {}:{}", blocks.start, blocks.end);
    let join = joining.join.and_then(text::shell_word);
    command
        + &format!(
            " --initial-peers {}{}",
            join.as_deref().unwrap_or("ADDR"),
            joining.join_flags
        )
}

/// A range of blocks as one of indices. `u32` always fits where a model does.
fn window(blocks: &Range<u32>) -> Option<Range<usize>> {
    Some(usize::try_from(blocks.start).ok()?..usize::try_from(blocks.end).ok()?)
}
