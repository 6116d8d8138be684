//! The search for the quickest chain: from the last block to the first, keeping for every place where a server can be
//! entered the best way on.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use super::{
    Hop, Route, hop,
    known::{Known, delay},
};
use crate::{
    p2p::PeerId,
    swarm::{Span, ping::RttMap},
};

/// Seconds that a hop costs besides network and compute (serialization, scheduling), as Petals assumes.
pub(crate) const HOP_OVERHEAD_S: f64 = 0.018;

/// Seconds added for a server that seems to have no room for the session: it may have to wait for others to leave.
const NO_CACHE_PENALTY_S: f64 = 10.0;

/// Steps per second through one block assumed of a server that does not tell.
pub(crate) const DEFAULT_INFERENCE_RPS: f64 = 300.0;

/// Longest compute in seconds that is believed of a record.
const MAX_COMPUTE_S: f64 = 3600.0;

/// Seconds that a server gets for free through which a chain shall lead: more than any chain costs.
const DETOUR_S: f64 = 1e6;

/// What does not change while a route is searched for.
pub(super) struct Search<'a> {
    blocks: Range<u32>,
    known: &'a Known,
    max_length: Option<u64>,
    /// A server that is to be in the chain, whatever that costs.
    through: Option<PeerId>,
}

/// What a hop costs, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    /// The way to the server.
    pub(super) way: f64,
    /// The server itself: compute, serialization, scheduling.
    pub(super) own: f64,
    /// For waiting until others leave.
    pub(super) penalty: f64,
    /// Whether way and own time come from steps of this client rather than from pings and records.
    pub(super) measured: bool,
}

/// The quickest way from inside a server to the end of the chain and back to the client.
struct Tail<'a> {
    span: &'a Span,
    hop: Hop,
    /// Index among the tails that start where `hop` ends; none for the last hop.
    next: Option<usize>,
    n_hops: usize,
    /// Without what this server itself takes.
    seconds: f64,
}

/// A way into one of several tails: its index, and what it costs including the way.
#[derive(Clone, Copy)]
struct Step {
    tail: usize,
    n_hops: usize,
    seconds: f64,
}

impl<'a> Search<'a> {
    pub(super) fn new(blocks: Range<u32>, known: &'a Known, max_length: Option<u64>) -> Self {
        Self {
            blocks,
            known,
            max_length,
            through: None,
        }
    }

    /// The same, for the best chain that uses this server, if there is any.
    pub(super) fn through(self, peer: PeerId) -> Self {
        Self {
            through: Some(peer),
            ..self
        }
    }

    /// The quickest chain; `spans` cover all blocks.
    pub(super) fn run(&self, spans: &[&Span]) -> Route {
        let mut tails: HashMap<u32, Vec<Tail<'_>>> = HashMap::new();
        for entry in self.entries(spans).into_iter().rev() {
            let here = spans.iter().filter(|span| span.blocks.contains(&entry));
            let here = here.map(|span| self.tail(span, entry, &tails)).collect();
            tails.insert(entry, here);
        }
        let first = self.best(tails.get(&self.blocks.start), None);
        let mut hops = Vec::new();
        let mut at = first.map(|step| (self.blocks.start, step.tail));
        while let Some(tail) = at.and_then(|(block, i)| tails.get(&block)?.get(i)) {
            hops.push(tail.hop.clone());
            at = tail.next.map(|i| (tail.hop.blocks.end, i));
        }
        let free = hops.iter().any(|hop| Some(hop.peer) == self.through);
        let seconds = first.map_or(0.0, |step| step.seconds);
        let seconds = if free { seconds + DETOUR_S } else { seconds };
        Route { hops, seconds }
    }

    /// What a hop costs that is entered from another server, or from the client.
    pub(super) fn cost(&self, from: Option<&Span>, span: &Span, hop: &Hop) -> Cost {
        let pings = from.map(next_pings);
        self.cost_by(
            from.map(|from| from.peer),
            pings.as_ref().unwrap_or(&self.known.rtts),
            span,
            hop,
        )
    }

    /// The way back from the last server.
    pub(super) fn way_back(&self, peer: &PeerId) -> f64 {
        delay(self.known.rtts.get(peer).copied())
    }

    /// `rtts` are the round trips from `from`.
    fn cost_by(&self, from: Option<PeerId>, rtts: &RttMap, span: &Span, hop: &Hop) -> Cost {
        let n_blocks = f64::from(hop.blocks.end - hop.blocks.start);
        let (times, now) = (&self.known.times, self.known.now);
        let way = delay(rtts.get(&span.peer).copied());
        let announced = HOP_OVERHEAD_S + (n_blocks / inference_rps(span)).min(MAX_COMPUTE_S);
        let measured = times.per_block(&span.peer, now).map(|mut time| {
            time.seconds *= n_blocks;
            time
        });
        let own = measured.map_or(announced, |time| time.against(announced));
        let through = times.through(from, span.peer, &hop.blocks, now);
        let both = through.map_or(way + own, |time| time.against(way + own));
        // What was measured of both goes to the server first; the way keeps what pings say of it.
        let way = way.min(both);
        Cost {
            way,
            own: both - way,
            penalty: if self.has_cache(span) { 0.0 } else { NO_CACHE_PENALTY_S },
            measured: measured.is_some() || through.is_some(),
        }
    }

    /// The blocks at which a chain can enter a server: the first one, and wherever another server's span ends.
    fn entries(&self, spans: &[&Span]) -> BTreeSet<u32> {
        let ends = spans.iter().map(|span| span.blocks.end);
        let mut entries: BTreeSet<u32> = ends.filter(|end| self.blocks.contains(end)).collect();
        if !self.blocks.is_empty() {
            entries.insert(self.blocks.start);
        }
        entries
    }

    /// The quickest way on for whoever enters `span` at `entry`. `tails` holds those of all later entries.
    fn tail<'s>(&self, span: &'s Span, entry: u32, tails: &HashMap<u32, Vec<Tail<'s>>>) -> Tail<'s> {
        let hop = hop(span, entry, &self.blocks);
        let next = self.best(tails.get(&hop.blocks.end), Some(span));
        Tail {
            span,
            hop,
            next: next.map(|step| step.tail),
            n_hops: 1 + next.map_or(0, |step| step.n_hops),
            seconds: next.map_or_else(|| self.way_back(&span.peer), |step| step.seconds),
        }
    }

    /// The best of `tails` for what comes from `from`.
    fn best(&self, tails: Option<&Vec<Tail<'_>>>, from: Option<&Span>) -> Option<Step> {
        let pings = from.map(next_pings);
        let rtts = pings.as_ref().unwrap_or(&self.known.rtts);
        let steps = tails?.iter().enumerate().map(|(i, tail)| {
            let cost = self.cost_by(from.map(|from| from.peer), rtts, tail.span, &tail.hop);
            let free = if self.through == Some(tail.span.peer) {
                DETOUR_S
            } else {
                0.0
            };
            Step {
                tail: i,
                n_hops: tail.n_hops,
                seconds: cost.way + (cost.own + tail.seconds) + cost.penalty - free,
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

/// Steps per second through one block. A server that announces none, or zero, did not measure it.
pub(super) fn inference_rps(span: &Span) -> f64 {
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
