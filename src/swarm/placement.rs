//! Which blocks should a server serve, and when is moving elsewhere worth the interruption. Pure.
//!
//! The decisions of `petals/server/block_selection.py`, case by case, so that our servers spread over a swarm together
//! with Python's. A swarm is as fast as its slowest block: everything here raises the minimum.

use std::{cmp::Ordering, ops::Range};

use rand::{Rng, seq::SliceRandom};
use sepal_protocol::record::ServerState;

use crate::{
    p2p::PeerId,
    swarm::{Snapshot, Span, spans::block_number},
};

/// A throughput per block below this is none; also the share by which a server prefers to stay where it is, so that
/// rounding errors and near ties move nobody.
const EPSILON: f64 = 1e-3;

/// Orders in which the others are let follow their interest; a move has to be worth it in all of them. What comes of one
/// depends on the order, and a server that looks every minute would sooner or later meet a lucky one. Petals tries one.
const GUESSES: usize = 5;

/// How often all servers may be moved around in the search for a balance. Petals has no such limit; in practice a
/// handful of rounds is enough.
const MAX_ROUNDS: usize = 1000;

/// The best blocks for a server that serves none and can hold `n_blocks`, given everyone else who is ONLINE or about to be.
/// Shorter than that only if the model is.
///
/// What the records say of `me` is left of a run that ended without a word. A server of Petals is somebody else at every
/// start, ours would avoid the blocks that nobody has since it crashed.
pub fn choose(snapshot: &Snapshot, me: Option<PeerId>, n_blocks: u32) -> Range<u32> {
    let mut spans = intended(snapshot);
    spans.retain(|span| Some(span.peer) != me);
    let n_blocks = n_blocks.min(snapshot.n_blocks());
    let start = best_start(&throughputs(&spans, snapshot.n_blocks()), n_blocks);
    start..start + n_blocks
}

/// The spans of all servers that are ONLINE or about to be, each where it will be: a server that moves without stopping
/// is ONLINE at its old blocks and says JOINING at its new ones. Python's readers, who go by the first and highest state,
/// see it at the old ones until it has moved.
fn intended(snapshot: &Snapshot) -> Vec<Span> {
    let mut spans = snapshot.spans(ServerState::Joining);
    for span in &mut spans {
        if let Some(next) = next_span(snapshot, span) {
            span.blocks = next;
        }
    }
    spans
}

/// Where the server of `span` is going, if it is ONLINE there and JOINING elsewhere.
fn next_span(snapshot: &Snapshot, span: &Span) -> Option<Range<u32>> {
    if span.info.state != ServerState::Online {
        return None;
    }
    let records = snapshot.blocks.iter().filter_map(|servers| servers.get(&span.peer));
    let joining = records.filter(|info| info.state == ServerState::Joining);
    let mut next = joining.filter_map(|info| Some(info.start_block?..info.end_block?.min(snapshot.n_blocks())));
    next.find(|blocks| !blocks.is_empty() && *blocks != span.blocks)
}

/// Tokens per second that `spans` can push through each of `total_blocks` blocks, summed in the order of `spans`
/// (peer order, so that every server computes the same bits).
pub fn throughputs(spans: &[Span], total_blocks: u32) -> Vec<f64> {
    let mut throughputs = vec![0.0; index(total_blocks)];
    for span in spans {
        add(&mut throughputs, &span.blocks, span.info.throughput);
    }
    throughputs
}

/// The first of `n_blocks` blocks that need help most: the window whose throughputs, sorted, come first in dictionary
/// order; the leftmost of equal ones. 0 if the model has no more blocks than that.
pub fn best_start(throughputs: &[f64], n_blocks: u32) -> u32 {
    let length = index(n_blocks).clamp(1, throughputs.len().max(1));
    let windows = throughputs.windows(length).map(|window| {
        let mut window = window.to_vec();
        window.sort_by(f64::total_cmp);
        window
    });
    let best = windows.enumerate().min_by(|(_, a), (_, b)| lexicographic(a, b));
    block_number(best.map_or(0, |(start, _)| start))
}

/// Where the server `me` should go instead of where it is, because the swarm would get faster by more than
/// `balance_quality` allows to ignore: 0 never moves, above 1 to any better place, 0.75 is Petals' default.
///
/// Judged by what would happen if `me` moved and everyone else followed their own interest. A server whose record is
/// not in the DHT (expired, or not stored yet) stays where it is; Petals dies of a failed assertion there.
pub fn better_place(snapshot: &Snapshot, me: PeerId, balance_quality: f64, rng: &mut impl Rng) -> Option<Place> {
    let spans = intended(snapshot);
    let mine = spans.iter().position(|span| span.peer == me)?;
    let mut swarm = Simulation {
        throughputs: throughputs(&spans, snapshot.n_blocks()),
        spans,
    };
    let initial = swarm.slowest();
    let start = swarm.better_start(mine, initial)?;
    swarm.relocate(mine, start);
    let place = Place {
        blocks: swarm.spans[mine].blocks.clone(),
        urgent: initial < EPSILON,
    };
    if balance_quality > 1.0 {
        return Some(place);
    }
    let mut worth = || {
        let mut guess = swarm.clone();
        guess.settle(rng);
        let reached = guess.slowest();
        reached >= initial && reached >= EPSILON && initial / reached < balance_quality - EPSILON
    };
    (0..GUESSES).all(|_| worth()).then_some(place)
}

/// Where to move, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The blocks to serve.
    pub blocks: Range<u32>,
    /// Whether some block of the model has no server at all: then there is no reason to wait.
    pub urgent: bool,
}

/// Whether `me`, who has announced that it goes from `from` to `to`, should still do it: nobody else left the same blocks
/// meanwhile, or came to the new ones first. Of several who are on their way at the same time, the one with the smaller
/// peer id goes first; whoever comes after it counts it where it goes.
pub fn still_better(snapshot: &Snapshot, me: PeerId, from: &Range<u32>, to: &Range<u32>) -> bool {
    let others = snapshot
        .spans(ServerState::Joining)
        .into_iter()
        .filter(|span| span.peer != me);
    let (mut leaving, mut arriving) = (Vec::new(), Vec::new());
    for span in others {
        let Some(next) = next_span(snapshot, &span) else {
            leaving.push(span.clone());
            arriving.push(span);
            continue;
        };
        // Whether it is there yet is not known: blocks that both leave count as left.
        let at_next = Span {
            blocks: next,
            ..span.clone()
        };
        leaving.push(at_next.clone());
        arriving.push(if span.peer < me { at_next } else { span });
    }
    let n_blocks = snapshot.n_blocks();
    let left = throughputs(&leaving, n_blocks);
    let uncovers = from
        .clone()
        .any(|block| !to.contains(&block) && left[index(block)] <= 0.0);
    let there = throughputs(&arriving, n_blocks);
    !uncovers && lexicographic(&window(&there, to), &window(&there, from)).is_lt()
}

fn window(throughputs: &[f64], blocks: &Range<u32>) -> Vec<f64> {
    let mut window = throughputs[index(blocks.start)..index(blocks.end)].to_vec();
    window.sort_by(f64::total_cmp);
    window
}

/// What keeps a server from moving again and again. Times are seconds of any clock, always the same one.
///
/// Records are minutes old and every server decides for itself: without rest, those that moved to the same gap would all
/// move away from it together, and back.
#[derive(Clone, Debug, Default)]
pub struct Habit {
    /// No move before this, unless a block has no server.
    rest_until: f64,
    /// Blocks that were left, and until when they are not gone back to.
    left: Option<(Range<u32>, f64)>,
    /// Blocks that could not be loaded, and until when they are not tried again, however urgent.
    failed: Option<(Range<u32>, f64)>,
}

/// Rest after a move, in mean times between two looks.
const REST_PERIODS: f64 = 5.0;
/// Rest after a move that was given up.
const ABANDONED_PERIODS: f64 = 2.0;
/// For how long a server does not go back to where it was.
const NO_RETURN_PERIODS: f64 = 30.0;

impl Habit {
    /// Whether a move to `place` is one to make at `now`.
    pub fn allows(&self, place: &Place, now: f64) -> bool {
        let is = |noted: &Option<(Range<u32>, f64)>| {
            let noted = noted.as_ref();
            noted.is_some_and(|(blocks, until)| now < *until && blocks.start == place.blocks.start)
        };
        !is(&self.failed) && (place.urgent || (now >= self.rest_until && !is(&self.left)))
    }

    /// Notes a move away from `from`, by a server that looks every `period` seconds on average.
    pub fn moved(&mut self, from: Range<u32>, now: f64, period: f64) {
        self.rest_until = now + REST_PERIODS * period;
        self.left = Some((from, now + NO_RETURN_PERIODS * period));
    }

    /// Notes a move that was given up before it changed anything.
    pub fn abandoned(&mut self, now: f64, period: f64) {
        self.rest_until = now + ABANDONED_PERIODS * period;
    }

    /// Notes a move that ended where it began because `blocks` could not be loaded.
    pub fn failed(&mut self, blocks: Range<u32>, now: f64, period: f64) {
        self.rest_until = now + REST_PERIODS * period;
        self.failed = Some((blocks, now + NO_RETURN_PERIODS * period));
    }
}

/// A swarm in which servers are moved around to see what comes of it.
#[derive(Clone)]
struct Simulation {
    spans: Vec<Span>,
    throughputs: Vec<f64>,
}

impl Simulation {
    fn slowest(&self) -> f64 {
        self.throughputs.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Where the server of span `i` would do more good, if anywhere and if the swarm, whose slowest block now has a
    /// throughput of `initial`, still covers all blocks without it.
    fn better_start(&mut self, i: usize, initial: f64) -> Option<u32> {
        let before = self.throughputs.clone();
        let start = self.best_start_without(i);
        let disconnects = initial > EPSILON && self.slowest() <= 0.0;
        self.throughputs = before;
        (!disconnects && start != self.spans[i].blocks.start).then_some(start)
    }

    /// Takes span `i` out, with a little more than it brought in, and says where it would go from there.
    fn best_start_without(&mut self, i: usize) -> u32 {
        let span = &self.spans[i];
        add(
            &mut self.throughputs,
            &span.blocks,
            -span.info.throughput * (1.0 + EPSILON),
        );
        best_start(&self.throughputs, span.n_blocks())
    }

    /// Moves span `i` to `start`.
    fn relocate(&mut self, i: usize, start: u32) {
        let span = &mut self.spans[i];
        let throughput = span.info.throughput;
        add(&mut self.throughputs, &span.blocks, -throughput);
        span.blocks = start..start + span.n_blocks();
        add(&mut self.throughputs, &span.blocks, throughput);
    }

    /// Lets every server move to where it does most good, in random order, until nobody wants to.
    fn settle(&mut self, rng: &mut impl Rng) {
        let mut order: Vec<usize> = (0..self.spans.len()).collect();
        for _ in 0..MAX_ROUNDS {
            order.shuffle(rng);
            let mut moved = false;
            for &i in &order {
                let before = self.throughputs.clone();
                let start = self.best_start_without(i);
                self.throughputs = before;
                if start != self.spans[i].blocks.start {
                    self.relocate(i, start);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }
}

fn add(throughputs: &mut [f64], blocks: &Range<u32>, amount: f64) {
    for throughput in &mut throughputs[index(blocks.start)..index(blocks.end)] {
        *throughput += amount;
    }
}

fn lexicographic(a: &[f64], b: &[f64]) -> Ordering {
    let differing = a.iter().zip(b).map(|(a, b)| a.total_cmp(b)).find(|order| order.is_ne());
    differing.unwrap_or(Ordering::Equal)
}

/// A block number as an index. `u32` always fits where a model does.
fn index(block: u32) -> usize {
    block as usize
}

#[cfg(test)]
mod tests;
