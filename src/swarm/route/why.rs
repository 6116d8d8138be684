//! Why a route is what it is: every server that could have been taken, the chain that was, the next best ones, and what
//! each is expected to take. Pure; it chooses nothing.

use std::{collections::HashSet, ops::Range};

use sepal_protocol::record::ServerState;

use super::{Hop, Known, MissingBlocks, Route, search::Search, search::inference_rps, shortest, usable};
use crate::{
    p2p::PeerId,
    swarm::{Snapshot, Span},
};

/// Chains that are told besides the best one.
const ALTERNATIVES: usize = 3;

/// Everything about one choice.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// All servers of the model, in the order of their first blocks.
    pub candidates: Vec<Candidate>,
    /// The best chain, and others from the next best on; or why there is none.
    pub chains: Result<Vec<Chain>, MissingBlocks>,
}

/// A chain and what one token is expected to take.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// Its hops in order.
    pub parts: Vec<Part>,
    /// Seconds back from the last server.
    pub back: f64,
    /// Seconds altogether.
    pub seconds: f64,
}

/// What one hop is expected to take. All times are seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Who runs which blocks.
    pub hop: Hop,
    /// The way there.
    pub way: f64,
    /// The server's own time.
    pub own: f64,
    /// Added because there seems to be no room for the session.
    pub penalty: f64,
    /// Whether this comes from steps of this client rather than from pings and records.
    pub measured: bool,
}

/// A server that serves, or says something about, some blocks of the model.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who.
    pub peer: PeerId,
    /// Which blocks.
    pub blocks: Range<u32>,
    /// What it says it is doing.
    pub state: ServerState,
    /// Round trip in seconds; infinite if it does not answer, `None` if it was not asked.
    pub rtt: Option<f64>,
    /// Seconds it announces for a token through one block.
    pub announced: Option<f64>,
    /// Seconds that a block took steps of this client.
    pub measured: Option<f64>,
    /// Tokens that still fit into its cache, for sessions through all of its blocks.
    pub cache_left: Option<u64>,
    /// Item type of its activations.
    pub dtype: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
}

/// Whether a server is taken, and if not, why.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is this hop of the chain, counted from 0.
    Taken(usize),
    /// It does not serve now.
    NotOnline,
    /// It failed a short while ago.
    Banned,
    /// The best chain through it takes that long.
    Slower {
        /// Seconds for a token.
        seconds: f64,
        /// Its hops.
        n_hops: usize,
        /// Whether it is only the lack of room in its cache.
        is_full: bool,
    },
    /// No chain leads through it: nobody ends where it could be entered, or the blocks are not all served.
    NoWay,
}

impl Explanation {
    /// Takes over what a later explanation of the same knows to have been measured.
    pub fn take_measured(&mut self, later: &Self) {
        for candidate in &mut self.candidates {
            let same = later.candidates.iter().find(|other| other.peer == candidate.peer);
            candidate.measured = same.and_then(|other| other.measured).or(candidate.measured);
        }
    }
}

/// Explains the chain that `shortest` finds without the `banned`, or with them if there is none without.
pub fn explain(
    snapshot: &Snapshot,
    blocks: &Range<u32>,
    known: &Known,
    max_length: Option<u64>,
    banned: &HashSet<PeerId>,
) -> Explanation {
    let nobody = HashSet::new();
    let search = |excluded: &HashSet<PeerId>| shortest(snapshot, blocks.clone(), known, max_length, excluded);
    let (best, avoided) = match search(banned) {
        Ok(best) => (Ok(best), banned),
        Err(missing) => (search(&nobody).map_err(|_| missing), &nobody),
    };
    let judge = Judge {
        snapshot,
        blocks,
        known,
        max_length,
        avoided,
        banned,
    };
    let spans = snapshot.spans(ServerState::Offline);
    let mut candidates: Vec<_> = spans
        .iter()
        .map(|span| judge.candidate(span, best.as_ref().ok()))
        .collect();
    candidates.sort_by_key(|candidate| (candidate.blocks.start, candidate.blocks.end));
    let chains = best.map(|best| {
        let mut routes = judge.alternatives(&best);
        routes.insert(0, best);
        routes.iter().map(|route| judge.chain(route)).collect()
    });
    Explanation { candidates, chains }
}

struct Judge<'a> {
    snapshot: &'a Snapshot,
    blocks: &'a Range<u32>,
    known: &'a Known,
    max_length: Option<u64>,
    avoided: &'a HashSet<PeerId>,
    banned: &'a HashSet<PeerId>,
}

impl Judge<'_> {
    fn search(&self) -> Search<'_> {
        Search::new(self.blocks.clone(), self.known, self.max_length)
    }

    fn candidate(&self, span: &Span, best: Option<&Route>) -> Candidate {
        let (info, known) = (&span.info, self.known);
        let measured = known.times.per_block(&span.peer, known.now);
        Candidate {
            peer: span.peer,
            blocks: span.blocks.clone(),
            state: info.state,
            rtt: known.rtts.get(&span.peer).copied(),
            announced: info.inference_rps.map(|_| 1.0 / inference_rps(span)),
            measured: measured.map(|time| time.seconds),
            cache_left: info
                .cache_tokens_left
                .map(|left| left / (2 * u64::from(span.n_blocks())).max(1)),
            dtype: info.torch_dtype.clone(),
            verdict: self.verdict(span, best),
        }
    }

    fn verdict(&self, span: &Span, best: Option<&Route>) -> Verdict {
        let hop = best.and_then(|best| best.hops.iter().position(|hop| hop.peer == span.peer));
        if let Some(hop) = hop {
            return Verdict::Taken(hop);
        }
        if span.info.state != ServerState::Online {
            return Verdict::NotOnline;
        }
        if self.banned.contains(&span.peer) {
            return Verdict::Banned;
        }
        let Ok(spans) = usable(self.snapshot, self.blocks, self.avoided) else {
            return Verdict::NoWay;
        };
        let route = self.search().through(span.peer).run(&spans);
        if !route.hops.iter().any(|hop| hop.peer == span.peer) {
            return Verdict::NoWay;
        }
        let chain = self.chain(&route);
        let is_full = chain
            .parts
            .iter()
            .any(|part| part.hop.peer == span.peer && part.penalty > 0.0);
        Verdict::Slower {
            seconds: chain.seconds,
            n_hops: route.hops.len(),
            is_full,
        }
    }

    /// What would be taken without one server of the best chain or another, the best first.
    fn alternatives(&self, best: &Route) -> Vec<Route> {
        let mut routes: Vec<Route> = Vec::new();
        for hop in &best.hops {
            let without = self.avoided.iter().copied().chain([hop.peer]).collect();
            let route = shortest(
                self.snapshot,
                self.blocks.clone(),
                self.known,
                self.max_length,
                &without,
            );
            routes.extend(route.ok().filter(|route| !routes.contains(route)));
        }
        routes.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        routes.truncate(ALTERNATIVES);
        routes
    }

    fn chain(&self, route: &Route) -> Chain {
        let search = self.search();
        let span = |peer: PeerId| self.snapshot.spans.iter().find(|span| span.peer == peer);
        let mut from = None;
        let mut parts = Vec::new();
        for hop in &route.hops {
            let Some(span) = span(hop.peer) else { continue };
            let cost = search.cost(from, span, hop);
            parts.push(Part {
                hop: hop.clone(),
                way: cost.way,
                own: cost.own,
                penalty: cost.penalty,
                measured: cost.measured,
            });
            from = Some(span);
        }
        let back = from.map_or(0.0, |last| search.way_back(&last.peer));
        let seconds = back + parts.iter().map(|part| part.way + part.own + part.penalty).sum::<f64>();
        Chain { parts, back, seconds }
    }
}
