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

/// How often all servers may be moved around in the search for a balance. Petals has no such limit; in practice a
/// handful of rounds is enough.
const MAX_ROUNDS: usize = 1000;

/// The best blocks for a new server that can hold `n_blocks`, given everyone who is ONLINE or about to be. Shorter than
/// that only if the model is.
pub fn choose(snapshot: &Snapshot, n_blocks: u32) -> Range<u32> {
    let spans = snapshot.spans(ServerState::Joining);
    let n_blocks = n_blocks.min(snapshot.n_blocks());
    let start = best_start(&throughputs(&spans, snapshot.n_blocks()), n_blocks);
    start..start + n_blocks
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

/// Whether the server `me` should drop its blocks and choose again, because the swarm would get faster by more than
/// `balance_quality` allows to ignore: 0 never moves, above 1 always, 0.75 is Petals' default.
///
/// Judged by what would happen if `me` moved and everyone else followed their own interest. A server whose record is
/// not in the DHT (expired, or not stored yet) stays where it is; Petals dies of a failed assertion there.
pub fn should_move(snapshot: &Snapshot, me: PeerId, balance_quality: f64, rng: &mut impl Rng) -> bool {
    if balance_quality > 1.0 {
        return true;
    }
    let spans = snapshot.spans(ServerState::Joining);
    let Some(mine) = spans.iter().position(|span| span.peer == me) else {
        return false;
    };
    let mut swarm = Simulation {
        throughputs: throughputs(&spans, snapshot.n_blocks()),
        spans,
    };
    let initial = swarm.slowest();
    let Some(new_start) = swarm.better_start(mine, initial) else {
        return false;
    };
    swarm.relocate(mine, new_start);
    swarm.settle(rng);
    let reached = swarm.slowest();
    reached >= initial && reached >= EPSILON && initial / reached < balance_quality - EPSILON
}

/// A swarm in which servers are moved around to see what comes of it.
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
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::swarm::testing::{peer, records, server, vectors};

    #[test]
    fn chosen_blocks_equal_those_of_petals() {
        let file = vectors("block_selection.json");
        let cases = file["choose_best_blocks"].as_array().unwrap();
        assert_eq!(cases.len(), 45);
        for case in cases {
            let snapshot = Snapshot::new("m", records(case, "num_blocks_total"));
            let n_blocks = u32::try_from(case["num_blocks"].as_u64().unwrap()).unwrap();
            let chosen: Vec<u64> = choose(&snapshot, n_blocks).map(u64::from).collect();
            let expected = case["chosen"]
                .as_array()
                .unwrap()
                .iter()
                .map(|block| block.as_u64().unwrap());
            assert_eq!(chosen, expected.collect::<Vec<_>>(), "{}", case["label"]);
        }
    }

    #[test]
    fn servers_move_when_those_of_petals_do() {
        let file = vectors("block_selection.json");
        let cases = file["should_choose_other_blocks"].as_array().unwrap();
        assert_eq!(cases.len(), 49);
        for case in cases {
            let snapshot = Snapshot::new("m", records(case, "num_blocks_total"));
            let me = peer(case["local_id"].as_u64().unwrap());
            let expected = case["result_over_20_shuffles"].as_array().unwrap();
            assert_eq!(expected.len(), 1, "a case without a definite answer");
            for seed in 0..20 {
                let mut rng = StdRng::seed_from_u64(seed);
                let moves = should_move(&snapshot, me, case["balance_quality"].as_f64().unwrap(), &mut rng);
                match expected[0].as_str().unwrap() {
                    "True" => assert!(moves, "{}", case["label"]),
                    // The one case that kills a Python server: its own record is missing. Ours stays.
                    _ => assert!(!moves, "{}", case["label"]),
                }
            }
        }
    }

    #[test]
    fn a_server_that_can_hold_more_than_the_model_takes_all_of_it() {
        let snapshot = Snapshot::new("m", vec![Default::default(); 4]);
        assert_eq!(choose(&snapshot, 100), 0..4);
        assert_eq!(best_start(&[], 3), 0);
        assert_eq!(best_start(&[1.0, 0.0], 0), 1);
    }

    #[test]
    fn the_search_for_a_balance_ends_whatever_the_records_say() {
        let mut rng = StdRng::seed_from_u64(3);
        for _ in 0..50 {
            let n_blocks: u32 = rng.random_range(1..20);
            let mut blocks = vec![std::collections::BTreeMap::new(); index(n_blocks)];
            for id in 1..8 {
                let start = rng.random_range(0..n_blocks);
                let mut info = server(ServerState::Online, start..rng.random_range(start..n_blocks) + 1);
                info.throughput = [0.0, 1e-300, 1.0, 1e300][rng.random_range(0..4)];
                blocks[index(start)].insert(peer(id), info);
            }
            should_move(&Snapshot::new("m", blocks), peer(1), 0.75, &mut rng);
        }
    }
}
