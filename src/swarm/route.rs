//! Chooses a chain of servers: the quickest one for inference, a random one for forward and backward passes. Pure.
//!
//! The costs are those of `petals/client/routing/sequence_manager.py` (`_build_inference_graph`), so that our clients and
//! Python's spread over a swarm alike. A peer that just failed is in `excluded` and is not used; Petals goes on using it
//! until its next periodic update.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt, iter,
    ops::Range,
};

use rand::{Rng, seq::IndexedRandom};
use thiserror::Error;

use crate::{
    p2p::PeerId,
    swarm::{Snapshot, Span, ping::RttMap},
};

/// Seconds that a hop costs besides network and compute (serialization, scheduling), as Petals assumes.
const HOP_OVERHEAD_S: f64 = 0.018;

/// One-way delay in seconds to a peer whose round trip is not known.
const DEFAULT_DELAY_S: f64 = 0.15;

/// Longest one-way delay in seconds that is believed; unreachable peers (an infinite round trip) cost this much.
const MAX_DELAY_S: f64 = 5.0;

/// Seconds added for a server that seems to have no room for the session: it may have to wait for others to leave.
const NO_CACHE_PENALTY_S: f64 = 10.0;

/// Steps per second through one block assumed of a server that does not tell.
const DEFAULT_INFERENCE_RPS: f64 = 300.0;

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
        f.write_str("blocks ")?;
        for (i, range) in self.missing.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{}:{}", range.start, range.end)?;
        }
        write!(f, " of {} are served by nobody; known servers: ", self.prefix)?;
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
/// of servers per block. `rtts` are round trips in seconds from here, infinite for peers that do not answer.
/// `max_length` is the number of tokens the session will reserve on each server. Of equally quick chains the one with
/// fewer hops is taken, then the one that starts with the smaller peer id.
///
/// # Errors
///
/// [`MissingBlocks`] if a block is served by nobody.
pub fn shortest(
    snapshot: &Snapshot,
    blocks: Range<u32>,
    rtts: &RttMap,
    max_length: Option<u64>,
    excluded: &HashSet<PeerId>,
) -> Result<Route, MissingBlocks> {
    let spans = usable(snapshot, &blocks, excluded)?;
    let search = Search {
        blocks: &blocks,
        rtts,
        max_length,
    };
    let mut tails: HashMap<u32, Vec<Tail<'_>>> = HashMap::new();
    for entry in entries(&spans, &blocks).into_iter().rev() {
        let here = spans.iter().filter(|span| span.blocks.contains(&entry));
        let here = here.map(|span| search.tail(span, entry, &tails)).collect();
        tails.insert(entry, here);
    }
    let first = search.best(tails.get(&blocks.start), |peer| rtts.get(peer).copied());
    let seconds = first.map_or(0.0, |step| step.seconds);
    let mut hops = Vec::new();
    let mut at = first.map(|step| (blocks.start, step.tail));
    while let Some(tail) = at.and_then(|(block, i)| tails.get(&block)?.get(i)) {
        hops.push(tail.hop.clone());
        at = tail.next.map(|i| (tail.hop.blocks.end, i));
    }
    Ok(Route { hops, seconds })
}

/// A chain drawn at random for forward and backward passes, which hold no cache: at each block a server that has it,
/// the more likely the longer its span, used to the end of its span. Throughput plays no part, as in Petals.
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
    }
}

/// The blocks at which a chain can enter a server: the first one, and wherever another server's span ends.
fn entries(spans: &[&Span], blocks: &Range<u32>) -> BTreeSet<u32> {
    let ends = spans.iter().map(|span| span.blocks.end);
    let mut entries: BTreeSet<u32> = ends.filter(|end| blocks.contains(end)).collect();
    if !blocks.is_empty() {
        entries.insert(blocks.start);
    }
    entries
}

/// What `span` runs of `blocks` when it is entered at `entry`.
fn hop(span: &Span, entry: u32, blocks: &Range<u32>) -> Hop {
    Hop {
        peer: span.peer,
        blocks: entry..span.blocks.end.min(blocks.end),
    }
}

/// The quickest way from inside a server to the end of the chain and back to the client.
struct Tail<'a> {
    span: &'a Span,
    hop: Hop,
    /// Index among the tails that start where `hop` ends; none for the last hop.
    next: Option<usize>,
    n_hops: usize,
    seconds: f64,
}

/// A way into one of several tails: its index, and what it costs including the way.
#[derive(Clone, Copy)]
struct Step {
    tail: usize,
    n_hops: usize,
    seconds: f64,
}

/// What does not change while a route is searched for.
struct Search<'a> {
    blocks: &'a Range<u32>,
    rtts: &'a RttMap,
    max_length: Option<u64>,
}

impl Search<'_> {
    /// The quickest way on for whoever enters `span` at `entry`. `tails` holds those of all later entries.
    fn tail<'a>(&self, span: &'a Span, entry: u32, tails: &HashMap<u32, Vec<Tail<'a>>>) -> Tail<'a> {
        let hop = hop(span, entry, self.blocks);
        let compute = f64::from(hop.blocks.end - entry) / inference_rps(span);
        let pings = next_pings(span);
        let next = self.best(tails.get(&hop.blocks.end), |peer| pings.get(peer).copied());
        let way_on = match next {
            Some(step) => step.seconds,
            None => delay(self.rtts.get(&span.peer).copied()),
        };
        Tail {
            span,
            hop,
            next: next.map(|step| step.tail),
            n_hops: 1 + next.map_or(0, |step| step.n_hops),
            seconds: compute + way_on,
        }
    }

    /// The best of `tails` for a sender whose round trips to their servers `rtt` tells.
    fn best(&self, tails: Option<&Vec<Tail<'_>>>, rtt: impl Fn(&PeerId) -> Option<f64>) -> Option<Step> {
        let steps = tails?.iter().enumerate().map(|(i, tail)| {
            let penalty = if self.has_cache(tail.span) {
                0.0
            } else {
                NO_CACHE_PENALTY_S
            };
            Step {
                tail: i,
                n_hops: tail.n_hops,
                seconds: delay(rtt(&tail.span.peer)) + HOP_OVERHEAD_S + penalty + tail.seconds,
            }
        });
        steps.min_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.n_hops.cmp(&b.n_hops)))
    }

    /// Whether the server's announced free cache is enough for this session. Announced tokens count keys, values and
    /// every block separately; the whole span is assumed to be used.
    fn has_cache(&self, span: &Span) -> bool {
        match (self.max_length, span.info.cache_tokens_left) {
            (Some(max_length), Some(left)) => max_length.saturating_mul(2 * u64::from(span.n_blocks())) <= left,
            _ => true,
        }
    }
}

/// Seconds one way, given a round trip in seconds.
fn delay(rtt: Option<f64>) -> f64 {
    rtt.map_or(DEFAULT_DELAY_S, |rtt| (rtt / 2.0).min(MAX_DELAY_S))
}

/// Steps per second through one block. A server that announces none, or zero, did not measure it.
fn inference_rps(span: &Span) -> f64 {
    span.info
        .inference_rps
        .filter(|rps| *rps > 0.0)
        .unwrap_or(DEFAULT_INFERENCE_RPS)
}

/// The round trips in seconds that a server measured to those who may come after it.
fn next_pings(span: &Span) -> RttMap {
    let pings = span.info.next_pings.iter().flatten();
    pings
        .filter_map(|(peer, rtt)| Some((peer.parse().ok()?, *rtt)))
        .collect()
}

#[cfg(test)]
mod tests;
