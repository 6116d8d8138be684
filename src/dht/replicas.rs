//! Offering a record to the nearest nodes until enough of them answered, as a state machine. Pure.

use std::collections::VecDeque;

use sepal_protocol::dht_id::DhtId;

/// The rest of the way of one record to its replicas (hivemind, `dht/node.py`, `store_many`).
#[derive(Debug)]
pub(crate) struct Replicas {
    /// Nodes that were not offered the record yet, nearest first.
    candidates: VecDeque<DhtId>,
    wanted: usize,
    answered: usize,
    under_way: usize,
}

impl Replicas {
    /// A record that `wanted` of `candidates` shall hold, nearest first.
    pub(crate) fn new(wanted: usize, candidates: Vec<DhtId>) -> Self {
        Self {
            candidates: candidates.into(),
            wanted,
            answered: 0,
            under_way: 0,
        }
    }

    /// The next node to offer the record to, if the ones under way would not be enough.
    pub(crate) fn next(&mut self) -> Option<DhtId> {
        if self.answered + self.under_way >= self.wanted {
            return None;
        }
        let node = self.candidates.pop_front()?;
        self.under_way += 1;
        Some(node)
    }

    /// A node answered. A refusal is an answer too: such a node has something at least as new.
    pub(crate) fn answered(&mut self) {
        self.under_way -= 1;
        self.answered += 1;
    }

    /// A node did not answer: the next nearest one is offered the record instead.
    pub(crate) fn failed(&mut self) {
        self.under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dht::testing::id;

    #[test]
    fn the_nearest_are_offered_first_and_failures_move_on_to_the_next() {
        let mut replicas = Replicas::new(2, (0..5).map(id).collect());
        assert_eq!(replicas.next(), Some(id(0)));
        assert_eq!(replicas.next(), Some(id(1)));
        assert_eq!(replicas.next(), None, "two are under way");
        replicas.failed();
        assert_eq!(replicas.next(), Some(id(2)));
        replicas.answered();
        assert_eq!(replicas.next(), None);
        replicas.failed();
        assert_eq!(replicas.next(), Some(id(3)));
        replicas.answered();
        assert_eq!(replicas.next(), None, "two answered");
    }

    #[test]
    fn there_may_be_fewer_nodes_than_replicas() {
        let mut replicas = Replicas::new(5, vec![id(0)]);
        assert_eq!(replicas.next(), Some(id(0)));
        replicas.failed();
        assert_eq!(replicas.next(), None);
    }
}
