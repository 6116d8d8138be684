//! Offering a record to the nearest nodes until enough of them answered, as a state machine. Pure.

use std::collections::VecDeque;

use sepal_protocol::dht_id::DhtId;

use super::routing::Contact;
use crate::p2p::PeerId;

/// Who may hold a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder<P = PeerId> {
    /// This node itself.
    Here,
    /// Another node.
    There(Contact<P>),
}

/// The rest of the way of one record to its replicas (hivemind, `dht/node.py`, `store_many`).
#[derive(Debug)]
pub(crate) struct Replicas<P = PeerId> {
    /// Who was not offered the record yet, nearest first.
    candidates: VecDeque<Holder<P>>,
    wanted: usize,
    answered: usize,
    under_way: usize,
}

impl<P> Replicas<P> {
    /// A record that `wanted` of the nodes nearest to its key shall hold. `own` is this node if it can be one of them:
    /// what a client stores is found by nobody (Python counts it as a replica all the same).
    pub(crate) fn new(wanted: usize, key: &DhtId, nearest: Vec<Contact<P>>, own: Option<DhtId>) -> Self {
        let there = nearest.into_iter().map(|node| (node.id, Holder::There(node)));
        let mut candidates: Vec<_> = there.chain(own.map(|id| (id, Holder::Here))).collect();
        candidates.sort_by_key(|(id, _)| id.distance(key));
        Self {
            candidates: candidates.into_iter().map(|(_, holder)| holder).collect(),
            wanted,
            answered: 0,
            under_way: 0,
        }
    }

    /// Whom to offer the record next, if the ones under way would not be enough.
    pub(crate) fn next(&mut self) -> Option<Holder<P>> {
        if self.answered + self.under_way >= self.wanted {
            return None;
        }
        let holder = self.candidates.pop_front()?;
        self.under_way += 1;
        Some(holder)
    }

    /// A node answered. A refusal is an answer too: such a node has something at least as new.
    pub(crate) fn answered(&mut self) {
        self.under_way -= 1;
        self.answered += 1;
    }

    /// Number of nodes that were offered the record and have not answered yet.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// A node did not answer: the next nearest one is offered the record instead.
    pub(crate) fn failed(&mut self) {
        self.under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dht::testing::{contact, id};

    /// Nodes by their distance to a key, and a record for it.
    fn nearest(key: &DhtId, n_nodes: u64) -> Vec<Contact> {
        let mut nodes: Vec<Contact> = (0..n_nodes).map(contact).collect();
        nodes.sort_by_key(|node| node.id.distance(key));
        nodes
    }

    #[test]
    fn the_nearest_are_offered_first_and_failures_move_on_to_the_next() {
        let key = id(1000);
        let nodes = nearest(&key, 5);
        let mut replicas = Replicas::new(2, &key, nodes.clone(), None);
        assert_eq!(replicas.next(), Some(Holder::There(nodes[0])));
        assert_eq!(replicas.next(), Some(Holder::There(nodes[1])));
        assert_eq!(replicas.next(), None, "two are under way");
        replicas.failed();
        assert_eq!(replicas.next(), Some(Holder::There(nodes[2])));
        replicas.answered();
        assert_eq!(replicas.next(), None);
        replicas.failed();
        assert_eq!(replicas.next(), Some(Holder::There(nodes[3])));
        replicas.answered();
        assert_eq!(replicas.next(), None, "two answered");
    }

    #[test]
    fn this_node_is_one_of_the_nearest() {
        let key = id(1000);
        let mut nodes = nearest(&key, 5);
        let own = nodes.remove(1).id;
        let mut replicas = Replicas::new(3, &key, nodes.clone(), Some(own));
        assert_eq!(replicas.next(), Some(Holder::There(nodes[0])));
        assert_eq!(replicas.next(), Some(Holder::Here));
        assert_eq!(replicas.next(), Some(Holder::There(nodes[1])));
    }

    #[test]
    fn there_may_be_fewer_nodes_than_replicas() {
        let mut replicas = Replicas::new(5, &id(1000), vec![contact(0)], None);
        assert_eq!(replicas.next(), Some(Holder::There(contact(0))));
        replicas.failed();
        assert_eq!(replicas.next(), None);
    }
}
