//! The routing table: which nodes this one knows, in buckets that are finer near its own id. Pure, no calls.
//!
//! The rules are those of hivemind, `dht/routing.py`, so that tables of both fill alike. Two are stricter, because a
//! node id is only a claim while a peer id is proven by the connection: one peer holds one entry (a restarted node
//! replaces its old id), and an id that one peer holds is not handed to another until the first one fails to answer.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    ops::Range,
};

use sepal_protocol::dht_id::{DhtId, Distance};

use crate::p2p::PeerId;

/// What names a peer. [`PeerId`] wherever there is a network; the simulation numbers its peers, which takes a twentieth of
/// the memory.
pub(crate) trait Peer: Copy + Eq + Hash {}

impl<P: Copy + Eq + Hash> Peer for P {}

/// A node of the DHT and the peer that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Contact<P = PeerId> {
    pub(crate) id: DhtId,
    pub(crate) peer: P,
}

/// The nodes this node knows. Bounded by its shape: far buckets hold `bucket_size` nodes and stop splitting.
#[derive(Debug)]
pub(crate) struct RoutingTable<P = PeerId> {
    own: DhtId,
    bucket_size: usize,
    depth_modulo: usize,
    /// In the order of their ranges, which cover the whole id space without overlap.
    buckets: Vec<Bucket<P>>,
    /// Every contact of the table, replacements included.
    peer_of: HashMap<DhtId, P>,
    id_of: HashMap<P, DhtId>,
}

impl<P: Peer> RoutingTable<P> {
    pub(crate) fn new(own: DhtId, bucket_size: usize, depth_modulo: usize) -> Self {
        let everything = Bucket::new(DhtId::from_bytes([0; DhtId::LEN]), 0);
        Self {
            own,
            bucket_size,
            depth_modulo,
            buckets: vec![everything],
            peer_of: HashMap::new(),
            id_of: HashMap::new(),
        }
    }

    /// Whether the node is in a bucket or waits as a replacement.
    pub(crate) fn contains(&self, id: &DhtId) -> bool {
        self.peer_of.contains_key(id)
    }

    /// The node that a peer runs, as far as known.
    pub(crate) fn id_of(&self, peer: &P) -> Option<DhtId> {
        self.id_of.get(peer).copied()
    }

    /// Number of nodes in buckets; replacements are not counted.
    pub(crate) fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.nodes.len()).sum()
    }

    /// The peers of the nodes in buckets, in no order that means anything.
    pub(crate) fn peers(&self) -> impl Iterator<Item = P> {
        let nodes = self.buckets.iter().flat_map(|bucket| &bucket.nodes);
        nodes.map(|node| node.peer)
    }

    /// Notes that a node was heard of just now. If its bucket is full, it becomes a replacement, and the result is the
    /// member to ping: either it answers (and is noted again) or it has to be [removed](Self::remove).
    pub(crate) fn add(&mut self, contact: Contact<P>) -> Option<Contact<P>> {
        if contact.id == self.own || self.peer_of.get(&contact.id).is_some_and(|peer| *peer != contact.peer) {
            return None;
        }
        if let Some(old) = self.id_of(&contact.peer).filter(|old| *old != contact.id) {
            self.remove(&old);
        }
        loop {
            let idx = self.bucket_idx(&contact.id);
            let bucket = &mut self.buckets[idx];
            let stored = bucket.add(contact, self.bucket_size);
            if !stored && (bucket.covers(&self.own) || !bucket.depth.is_multiple_of(self.depth_modulo)) {
                let (lower, upper) = bucket.split(self.bucket_size);
                self.buckets[idx] = lower;
                self.buckets.insert(idx + 1, upper);
                continue;
            }
            let (dropped, ping) = if stored {
                (None, None)
            } else {
                (bucket.trim_replacements(self.bucket_size), bucket.next_to_ping())
            };
            self.peer_of.insert(contact.id, contact.peer);
            self.id_of.insert(contact.peer, contact.id);
            if let Some(dropped) = dropped {
                self.forget(&dropped);
            }
            return ping;
        }
    }

    /// Removes a node that does not answer; the newest replacement takes its place.
    pub(crate) fn remove(&mut self, id: &DhtId) {
        let Some(peer) = self.peer_of.get(id).copied() else {
            return;
        };
        let idx = self.bucket_idx(id);
        self.buckets[idx].remove(id);
        self.forget(&Contact { id: *id, peer });
    }

    /// Takes back a ping that [`RoutingTable::add`] asked for and that was not sent, so that it can be asked for again.
    pub(crate) fn ping_not_sent(&mut self, id: &DhtId) {
        let idx = self.bucket_idx(id);
        self.buckets[idx].pinged.remove(id);
    }

    /// Up to `limit` nodes nearest to `target`, nearest first, without `exclude` and without replacements.
    pub(crate) fn nearest(&self, target: &DhtId, limit: usize, exclude: Option<&DhtId>) -> Vec<Contact<P>> {
        // Ranges of buckets share a prefix each, so all nodes of one are nearer than all nodes of the next one.
        let mut nearest = Vec::with_capacity(limit);
        self.walk(target, &mut |bucket| {
            let nodes = bucket.nodes.iter().filter(|node| Some(&node.id) != exclude);
            let mut nodes: Vec<_> = nodes.map(|node| (node.id.distance(target), node)).collect();
            nodes.sort_unstable_by_key(|(distance, _)| *distance);
            nearest.extend(nodes.into_iter().map(|(_, node)| *node).take(limit - nearest.len()));
            nearest.len() < limit
        });
        nearest
    }

    /// Whether at least `n_nodes` are nearer to `target` than `distance`. Replacements do not count.
    pub(crate) fn has_nearer(&self, n_nodes: usize, target: &DhtId, distance: Distance) -> bool {
        let mut nearer = 0;
        self.walk(target, &mut |bucket| {
            if bucket.nearest_possible(target) >= distance {
                return false;
            }
            nearer += bucket
                .nodes
                .iter()
                .filter(|node| node.id.distance(target) < distance)
                .count();
            nearer < n_nodes
        });
        nearer >= n_nodes
    }

    /// Shows the buckets to `visit` until it returns false: all nodes of one are nearer to `target` than all of the next.
    fn walk<'a>(&'a self, target: &DhtId, visit: &mut impl FnMut(&'a Bucket<P>) -> bool) {
        self.walk_part(0..self.buckets.len(), 0, target, visit);
    }

    /// The same for buckets that cover all ids with some common first `bits`. Returns false if `visit` did.
    fn walk_part<'a>(
        &'a self,
        part: Range<usize>,
        bits: usize,
        target: &DhtId,
        visit: &mut impl FnMut(&'a Bucket<P>) -> bool,
    ) -> bool {
        if part.len() <= 1 {
            return self.buckets[part].iter().all(visit);
        }
        let middle = part.start + self.buckets[part.clone()].partition_point(|bucket| !bucket.lower.bit(bits));
        let (lower, upper) = (part.start..middle, middle..part.end);
        let (near, far) = if target.bit(bits) {
            (upper, lower)
        } else {
            (lower, upper)
        };
        self.walk_part(near, bits + 1, target, visit) && self.walk_part(far, bits + 1, target, visit)
    }

    fn bucket_idx(&self, id: &DhtId) -> usize {
        self.buckets.partition_point(|bucket| bucket.lower <= *id) - 1
    }

    fn forget(&mut self, contact: &Contact<P>) {
        self.peer_of.remove(&contact.id);
        self.id_of.remove(&contact.peer);
    }
}

/// The nodes whose ids share the first `depth` bits of `lower`.
#[derive(Debug)]
struct Bucket<P> {
    lower: DhtId,
    depth: usize,
    /// Least recently heard of first.
    nodes: Vec<Contact<P>>,
    /// Nodes that found the bucket full, newest last.
    replacements: Vec<Contact<P>>,
    /// Members that were asked to prove that they are alive and did not answer yet.
    pinged: HashSet<DhtId>,
}

impl<P: Peer> Bucket<P> {
    fn new(lower: DhtId, depth: usize) -> Self {
        Self {
            lower,
            depth,
            nodes: Vec::new(),
            replacements: Vec::new(),
            pinged: HashSet::new(),
        }
    }

    fn covers(&self, id: &DhtId) -> bool {
        self.lower.distance(id).leading_zeros() >= self.depth
    }

    /// Whether the node got a place; if not, it is a replacement now.
    fn add(&mut self, contact: Contact<P>, size: usize) -> bool {
        self.pinged.remove(&contact.id);
        let known = self.nodes.iter().position(|node| node.id == contact.id);
        if let Some(at) = known {
            self.nodes.remove(at);
        }
        if self.nodes.len() < size {
            self.nodes.push(contact);
            return true;
        }
        self.replacements.retain(|node| node.id != contact.id);
        self.replacements.push(contact);
        false
    }

    fn remove(&mut self, id: &DhtId) {
        self.pinged.remove(id);
        self.replacements.retain(|node| node.id != *id);
        if let Some(at) = self.nodes.iter().position(|node| node.id == *id) {
            self.nodes.remove(at);
            self.nodes.extend(self.replacements.pop());
        }
    }

    /// Keeps as many replacements as members (Python keeps all); the oldest one goes.
    fn trim_replacements(&mut self, size: usize) -> Option<Contact<P>> {
        (self.replacements.len() > size).then(|| self.replacements.remove(0))
    }

    fn next_to_ping(&mut self) -> Option<Contact<P>> {
        let node = *self.nodes.iter().find(|node| !self.pinged.contains(&node.id))?;
        self.pinged.insert(node.id);
        Some(node)
    }

    fn split(&self, size: usize) -> (Self, Self) {
        let mut halves = (
            Self::new(self.lower, self.depth + 1),
            Self::new(self.lower.with_bit(self.depth, true), self.depth + 1),
        );
        for node in self.nodes.iter().chain(&self.replacements) {
            let half = if node.id.bit(self.depth) {
                &mut halves.1
            } else {
                &mut halves.0
            };
            half.add(*node, size);
        }
        halves
    }

    /// The distance to `target` that no node of this bucket can be below.
    fn nearest_possible(&self, target: &DhtId) -> Distance {
        self.lower.distance(target).prefix(self.depth)
    }
}

#[cfg(test)]
mod tests;
