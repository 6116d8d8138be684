//! Searching the nodes nearest to some keys, as a state machine: says whom to ask next and is told the answers. Pure.
//!
//! The algorithm is hivemind's, `dht/traverse.py`: per key a beam of the nearest nodes seen so far, always expanding the
//! nearest node that was not asked yet, several keys per question. One thing differs: a node that does not answer
//! leaves the beam, so that the nearest nodes found are nodes that live.

use std::collections::{BTreeMap, HashSet};

use sepal_protocol::dht_id::{DhtId, Distance};

/// Most nodes taken from one answer. Hivemind nodes send up to 20; one that sends more is cut off.
const MAX_NEIGHBORS: usize = 32;

/// Most nodes asked about one key. A search among thousands of nodes needs some dozens; without a limit, nodes that
/// invent ever nearer ones could keep it going for ever.
const MAX_VISITS: usize = 256;

/// The shape of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// How many nearest nodes are looked for.
    pub(crate) beam: usize,
    /// Most questions under way at once.
    pub(crate) workers: usize,
    /// Most keys in one question.
    pub(crate) queries_per_call: usize,
}

/// A question to ask: what does `node` know about these keys?
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) node: DhtId,
    pub(crate) queries: Vec<DhtId>,
}

/// What a node said about one key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) neighbors: Vec<DhtId>,
    /// The search for this key need not go on.
    pub(crate) enough: bool,
}

/// The end of the search for one key.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) query: DhtId,
    /// Up to `beam` nodes, nearest first. Nodes nearer than the last one asked all answered, unless there was `enough`.
    pub(crate) nearest: Vec<DhtId>,
    /// Number of nodes that were asked about this key.
    pub(crate) visits: usize,
}

/// A search for several keys at once.
#[derive(Debug)]
pub(crate) struct Search {
    shape: Shape,
    own: DhtId,
    unfinished: Vec<Query>,
    finished: Vec<Finished>,
    calls_under_way: usize,
    failed: HashSet<DhtId>,
}

impl Search {
    /// A search that starts from `initial` nodes. `own` is never asked and never part of a result.
    pub(crate) fn new(shape: Shape, own: DhtId, queries: &[DhtId], initial: &[DhtId]) -> Self {
        let mut search = Self {
            shape,
            own,
            unfinished: Vec::with_capacity(queries.len()),
            finished: Vec::new(),
            calls_under_way: 0,
            failed: HashSet::new(),
        };
        for target in queries {
            let mut query = Query::new(*target);
            for node in initial {
                query.learn(node, &own, &search.failed);
            }
            search.unfinished.push(query);
        }
        search
    }

    /// The next question, or `None` if there is none to ask now: because enough are under way, because the next one
    /// depends on answers that are, or because the search is over.
    pub(crate) fn next_call(&mut self) -> Option<Call> {
        while self.calls_under_way < self.shape.workers {
            let Some(chosen) = self.choose() else {
                if self.calls_under_way == 0 {
                    self.finish_all();
                }
                return None;
            };
            let query = &self.unfinished[chosen];
            if query.is_exhausted(self.shape.beam) {
                self.finish(chosen);
                continue;
            }
            let (_, node) = self.unfinished[chosen].take_candidate()?;
            return Some(self.ask(chosen, node));
        }
        None
    }

    /// Takes the answers to a question, in the order of its keys.
    pub(crate) fn answered(&mut self, call: &Call, answers: &[Answer]) {
        self.ended(call);
        for (target, answer) in call.queries.iter().zip(answers) {
            let Some(at) = self.unfinished.iter().position(|query| query.target == *target) else {
                continue;
            };
            if answer.enough {
                self.finish(at);
                continue;
            }
            for neighbor in answer.neighbors.iter().take(MAX_NEIGHBORS) {
                self.unfinished[at].learn(neighbor, &self.own, &self.failed);
            }
        }
    }

    /// Notes that there was no answer: the node is left out of everything that follows.
    pub(crate) fn failed(&mut self, call: &Call) {
        self.ended(call);
        self.failed.insert(call.node);
        for query in &mut self.unfinished {
            query.forget(&call.node);
        }
    }

    /// The searches that came to an end since the last call of this.
    pub(crate) fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    /// Whether nothing is left to search for. Answers still under way are of no interest then.
    pub(crate) fn is_over(&self) -> bool {
        self.unfinished.is_empty()
    }

    fn ended(&mut self, call: &Call) {
        self.calls_under_way = self.calls_under_way.saturating_sub(1);
        for query in &mut self.unfinished {
            if call.queries.contains(&query.target) {
                query.workers = query.workers.saturating_sub(1);
            }
        }
    }

    /// The search to go on with: the one with the fewest questions under way, then the one with the nearest candidate.
    /// One whose candidates are too far waits for its questions before it may end.
    fn choose(&self) -> Option<usize> {
        self.unfinished
            .iter()
            .enumerate()
            .filter(|(_, query)| query.workers == 0 || !query.is_exhausted(self.shape.beam))
            .filter_map(|(at, query)| Some(((query.workers, *query.candidates.first_key_value()?.0), at)))
            .min()
            .map(|(_, at)| at)
    }

    fn ask(&mut self, chosen: usize, node: DhtId) -> Call {
        let mut others: Vec<(Distance, usize)> = self
            .unfinished
            .iter()
            .enumerate()
            .filter(|(at, query)| *at != chosen && !query.visited.contains(&node))
            .map(|(at, query)| (node.distance(&query.target), at))
            .collect();
        others.sort_unstable();
        let also = others
            .into_iter()
            .map(|(_, at)| at)
            .take(self.shape.queries_per_call.saturating_sub(1));
        let mut queries = Vec::with_capacity(self.shape.queries_per_call);
        for at in std::iter::once(chosen).chain(also) {
            let query = &mut self.unfinished[at];
            query.workers += 1;
            query.visit(&node);
            queries.push(query.target);
        }
        self.calls_under_way += 1;
        Call { node, queries }
    }

    fn finish(&mut self, at: usize) {
        let query = self.unfinished.remove(at);
        self.finished.push(Finished {
            query: query.target,
            nearest: query.nearest.into_values().take(self.shape.beam).collect(),
            visits: query.visited.len(),
        });
    }

    fn finish_all(&mut self) {
        while !self.unfinished.is_empty() {
            self.finish(0);
        }
    }
}

/// The search for one key.
#[derive(Debug)]
struct Query {
    target: DhtId,
    /// Known nodes that did not fail, by distance. The first `beam` of them are the beam.
    nearest: BTreeMap<Distance, DhtId>,
    /// Those of `nearest` that were not asked yet.
    candidates: BTreeMap<Distance, DhtId>,
    visited: HashSet<DhtId>,
    /// Questions about this key that are under way.
    workers: usize,
}

impl Query {
    fn new(target: DhtId) -> Self {
        Self {
            target,
            nearest: BTreeMap::new(),
            candidates: BTreeMap::new(),
            visited: HashSet::new(),
            workers: 0,
        }
    }

    fn learn(&mut self, node: &DhtId, own: &DhtId, failed: &HashSet<DhtId>) {
        if node == own || failed.contains(node) {
            return;
        }
        let distance = self.target.distance(node);
        if self.nearest.insert(distance, *node).is_none() && !self.visited.contains(node) {
            self.candidates.insert(distance, *node);
        }
    }

    fn visit(&mut self, node: &DhtId) {
        self.visited.insert(*node);
        self.candidates.remove(&self.target.distance(node));
    }

    fn forget(&mut self, node: &DhtId) {
        let distance = self.target.distance(node);
        self.nearest.remove(&distance);
        self.candidates.remove(&distance);
    }

    fn take_candidate(&mut self) -> Option<(Distance, DhtId)> {
        self.candidates.pop_first()
    }

    /// Whether no candidate would get into the beam.
    fn is_exhausted(&self, beam: usize) -> bool {
        let Some((nearest, _)) = self.candidates.first_key_value() else {
            return true;
        };
        let farthest = beam.checked_sub(1).and_then(|last| self.nearest.keys().nth(last));
        self.visited.len() >= MAX_VISITS || farthest.is_some_and(|farthest| nearest > farthest)
    }
}

#[cfg(test)]
mod tests;
