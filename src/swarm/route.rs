//! Chooses a chain of servers: the quickest one for inference, a random one for forward and backward passes. Pure.
//!
//! The costs are those of `petals/client/routing/sequence_manager.py` (`_build_inference_graph`), so that our clients and
//! Python's spread over a swarm alike, until a client has measured what servers take for its own steps (`route/known.rs`):
//! a hop that was not measured counts 18 ms besides network and compute, so that fewer hops win unless measured otherwise.
//! A peer that just failed is in `excluded` and is not used; Petals goes on using it until its next periodic update.

mod known;
mod search;
mod why;

use std::{collections::HashSet, fmt, iter, ops::Range};

use rand::{Rng, seq::IndexedRandom};
use thiserror::Error;

use self::search::Search;
pub(crate) use self::{
    known::DEFAULT_DELAY_S,
    search::{DEFAULT_INFERENCE_RPS, HOP_OVERHEAD_S},
};
pub use self::{
    known::{Known, Measured, Times},
    why::{Candidate, Chain, Explanation, Part, Verdict, explain},
};
use crate::{
    p2p::PeerId,
    swarm::{AdapterGap, Snapshot, Span, ping::RttMap},
};

/// Weight of an unreachable server in a random walk, against its number of blocks: only taken if there is no other.
const UNREACHABLE_WEIGHT: f64 = 1e-6;

/// Blocks that one peer of a chain runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Who runs them.
    pub peer: PeerId,
    /// Which blocks; never empty, inside the peer's span.
    pub blocks: Range<u32>,
}

/// A chain of hops that covers the wanted blocks without gap or overlap.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The hops in the order of their blocks.
    pub hops: Vec<Hop>,
    /// Estimated seconds for one token to go through.
    pub seconds: f64,
}

/// No chain exists: some blocks are served by nobody (who is ONLINE and not excluded).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct MissingBlocks {
    /// The model's name in the DHT.
    pub prefix: String,
    /// The blocks that nobody serves, as ranges in ascending order.
    pub missing: Vec<Range<u32>>,
    /// The servers that are there.
    pub known: Vec<KnownServer>,
    /// Set if there are more servers, which lack the adapter that is wanted.
    pub adapter: Option<Box<AdapterGap>>,
}

/// A server named by [`MissingBlocks`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownServer {
    /// Which server.
    pub peer: PeerId,
    /// What it says it serves.
    pub blocks: Range<u32>,
    /// Whether the caller asked to leave it out, because it failed before.
    pub excluded: bool,
}

impl fmt::Display for MissingBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.adapter {
            Some(gap) if self.known.is_empty() => {
                write!(f, "no server of {} has the adapter {}; ", self.prefix, gap.wanted)?;
                return match gap.there.is_empty() {
                    true => f.write_str("none has any"),
                    false => write!(f, "there are: {}", gap.there.join(", ")),
                };
            }
            _ => f.write_str("blocks ")?,
        }
        for (i, range) in self.missing.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{}:{}", range.start, range.end)?;
        }
        write!(f, " of {} are served by nobody", self.prefix)?;
        if let Some(gap) = &self.adapter {
            write!(f, " with the adapter {}", gap.wanted)?;
        }
        f.write_str("; known servers: ")?;
        if self.known.is_empty() {
            return f.write_str("none");
        }
        for (i, server) in self.known.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(
                f,
                "{comma}{} {}:{}",
                server.peer, server.blocks.start, server.blocks.end
            )?;
            if server.excluded {
                f.write_str(" (failed)")?;
            }
        }
        Ok(())
    }
}

/// The chain through which one token passes quickest.
///
/// A server is always used to the end of its span or of `blocks`, so that the number of edges stays linear in the number
/// of servers. `max_length` is the number of tokens the session will reserve on each server. Of equally quick chains the
/// one with fewer hops is taken, then the one that starts with the smaller peer id.
///
/// # Errors
///
/// [`MissingBlocks`] if a block is served by nobody.
pub fn shortest(
    snapshot: &Snapshot,
    blocks: Range<u32>,
    known: &Known,
    max_length: Option<u64>,
    excluded: &HashSet<PeerId>,
) -> Result<Route, MissingBlocks> {
    let spans = usable(snapshot, &blocks, excluded)?;
    Ok(Search::new(blocks, known, max_length).run(&spans))
}

/// A chain drawn at random, which nobody can foresee: at each block a server that has it, the more likely the longer its
/// span, used to the end of its span. Throughput plays no part, as in Petals' chains for forward and backward passes.
///
/// # Errors
///
/// [`MissingBlocks`] if a block is served by nobody.
pub fn random_walk(
    snapshot: &Snapshot,
    blocks: Range<u32>,
    rtts: &RttMap,
    excluded: &HashSet<PeerId>,
    rng: &mut impl Rng,
) -> Result<Vec<Hop>, MissingBlocks> {
    let spans = usable(snapshot, &blocks, excluded)?;
    let weight = |span: &&Span| match rtts.get(&span.peer) {
        Some(rtt) if rtt.is_infinite() => UNREACHABLE_WEIGHT,
        _ => f64::from(span.n_blocks()),
    };
    let mut hops = Vec::new();
    let mut block = blocks.start;
    while block < blocks.end {
        let candidates: Vec<&Span> = spans
            .iter()
            .copied()
            .filter(|span| span.blocks.contains(&block))
            .collect();
        let Ok(span) = candidates.choose_weighted(rng, weight) else {
            return Err(missing_blocks(
                snapshot,
                iter::once(block..block + 1).collect(),
                excluded,
            ));
        };
        let hop = hop(span, block, &blocks);
        block = hop.blocks.end;
        hops.push(hop);
    }
    Ok(hops)
}

/// The spans that may be used, once it is clear that they cover `blocks`.
fn usable<'a>(
    snapshot: &'a Snapshot,
    blocks: &Range<u32>,
    excluded: &HashSet<PeerId>,
) -> Result<Vec<&'a Span>, MissingBlocks> {
    let spans: Vec<&Span> = snapshot
        .spans
        .iter()
        .filter(|span| !excluded.contains(&span.peer))
        .collect();
    let missing = Snapshot::missing(spans.iter().copied(), blocks.clone());
    if missing.is_empty() {
        Ok(spans)
    } else {
        Err(missing_blocks(snapshot, missing, excluded))
    }
}

fn missing_blocks(snapshot: &Snapshot, missing: Vec<Range<u32>>, excluded: &HashSet<PeerId>) -> MissingBlocks {
    let known = snapshot.spans.iter().map(|span| KnownServer {
        peer: span.peer,
        blocks: span.blocks.clone(),
        excluded: excluded.contains(&span.peer),
    });
    MissingBlocks {
        prefix: snapshot.prefix.clone(),
        missing,
        known: known.collect(),
        adapter: snapshot.adapter.clone(),
    }
}

/// What `span` runs of `blocks` when it is entered at `entry`.
fn hop(span: &Span, entry: u32, blocks: &Range<u32>) -> Hop {
    Hop {
        peer: span.peer,
        blocks: entry..span.blocks.end.min(blocks.end),
    }
}

#[cfg(test)]
mod tests;
