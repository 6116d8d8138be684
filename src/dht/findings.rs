//! What a read has found so far: merging answers, when to stop, and who shall keep a copy of the result. Pure.

use std::collections::HashMap;

use sepal_protocol::dht_id::DhtId;

use super::{
    Freshness,
    record::Record,
    routing::{Contact, Peer},
    state::State,
};

/// What was found of the keys of one read.
#[derive(Debug)]
pub(crate) struct Findings {
    freshness: Freshness,
    keys: HashMap<DhtId, Finding>,
}

impl Findings {
    pub(crate) fn new(freshness: Freshness) -> Self {
        Self {
            freshness,
            keys: HashMap::new(),
        }
    }

    /// Adds a key, and what is known of it without a search.
    pub(crate) fn expect(&mut self, key: DhtId, own: Option<Record>) {
        self.keys.insert(key, Finding { best: own, from: None });
    }

    /// A node gave its answer about a key. Returns whether that is enough.
    pub(crate) fn answered(&mut self, key: &DhtId, from: DhtId, record: Option<Record>) -> bool {
        let (Some(finding), Some(record)) = (self.keys.get_mut(key), record) else {
            return false;
        };
        finding.add(from, record);
        self.freshness == Freshness::Any
    }

    /// Takes what was found of a key whose search is over.
    pub(crate) fn take(&mut self, key: &DhtId) -> Option<Finding> {
        self.keys.remove(key)
    }
}

/// What was found of one key.
#[derive(Debug, Default)]
pub(crate) struct Finding {
    pub(crate) best: Option<Record>,
    /// The node that has what is best; `None` while that is this node.
    pub(crate) from: Option<DhtId>,
}

impl Finding {
    fn add(&mut self, from: DhtId, record: Record) {
        let is_newer = |best: &Record| record.expiration() > best.expiration();
        if self.best.as_ref().is_none_or(is_newer) {
            self.from = Some(from);
        }
        match &mut self.best {
            Some(best) => best.merge(record),
            None => self.best = Some(record),
        }
    }

    /// Keeps a found record if there is something in it that our own copies lack. Says to whom else to give it if it is newer:
    /// to the `n_copies` nearest nodes other than the one that had it (hivemind, `dht/node.py`, `_cache_new_result`).
    ///
    /// So the cache is this reader's memory: what is proven stays known while it lives, whatever later searches find.
    pub(crate) fn keep<P: Peer>(
        &self,
        key: DhtId,
        nearest: &[Contact<P>],
        n_copies: usize,
        (state, now): (&mut State<P>, f64),
    ) -> Vec<Contact<P>> {
        let Some(record) = &self.best else {
            return Vec::new();
        };
        let own = state.record(&key, now);
        if own.as_ref() == Some(record) {
            return Vec::new();
        }
        state.store(key, record.clone().into(), true, now);
        let is_newer = own.is_none_or(|own| own.expiration() < record.expiration());
        let Some(from) = self.from.filter(|_| is_newer) else {
            return Vec::new();
        };
        let others = nearest.iter().filter(|contact| contact.id != from);
        others.take(n_copies).copied().collect()
    }
}
