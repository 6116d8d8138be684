//! Drives a search over the network: asks whom the state machine names, and feeds it the answers.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, stream::FuturesUnordered};
use sepal_protocol::dht_id::DhtId;
use tracing::trace;

use super::{
    node::Node,
    record::Record,
    routing::Contact,
    rpc::{Knowledge, MAX_FIND_KEYS},
    traverse::{Answer, Call, Search, Shape},
};

/// What someone wants of a search.
pub(crate) trait Guide: Send {
    /// A node gave its answer about a key. Returns whether that is enough.
    fn answered(&mut self, key: &DhtId, from: Contact, record: Option<Record>) -> bool;

    /// The search for a key is over; `nearest` are up to 20 nodes that are nearest to it, nearest first.
    fn ended(&mut self, key: &DhtId, nearest: Vec<Contact>);
}

impl Node {
    /// Searches the nodes nearest to `keys`, with up to `keys_per_call` keys in one question.
    ///
    /// # Cancel safety
    /// Dropping the future ends the search.
    pub(crate) async fn search(self: &Arc<Self>, keys: &[DhtId], keys_per_call: usize, guide: &mut dyn Guide) {
        let shape = Shape {
            beam: self.config.bucket_size,
            workers: self.config.workers.max(1),
            queries_per_call: keys_per_call.clamp(1, MAX_FIND_KEYS),
        };
        let mut peers: HashMap<DhtId, Contact> = HashMap::new();
        {
            let state = self.state();
            for key in keys {
                peers.extend(
                    state
                        .neighbors(key, None)
                        .into_iter()
                        .map(|contact| (contact.id, contact)),
                );
            }
        }
        let mut initial: Vec<DhtId> = peers.keys().copied().collect();
        initial.sort_unstable();
        let mut search = Search::new(shape, self.id, keys, &initial);
        let mut calls = FuturesUnordered::new();
        loop {
            while let Some(call) = search.next_call() {
                let contact = peers.get(&call.node).copied();
                calls.push(self.clone().ask(call, contact));
            }
            for end in search.take_finished() {
                trace!(key = %end.query, visits = end.visits, "search over");
                let nearest = end.nearest.iter().filter_map(|id| peers.get(id).copied()).collect();
                guide.ended(&end.query, nearest);
            }
            if search.is_over() {
                return;
            }
            // A search that is not over has questions under way; if it had none, it would be over by now.
            let Some((call, from, answer)) = calls.next().await else {
                return;
            };
            let (Some(from), Some(knowledge)) = (from, answer) else {
                search.failed(&call);
                continue;
            };
            let mut answers = Vec::with_capacity(knowledge.len());
            for (key, Knowledge { record, nearest }) in call.queries.iter().zip(knowledge) {
                answers.push(Answer {
                    neighbors: nearest.iter().map(|contact| contact.id).collect(),
                    enough: guide.answered(key, from, record),
                });
                for contact in nearest {
                    peers.entry(contact.id).or_insert(contact);
                }
            }
            search.answered(&call, &answers);
        }
    }

    /// One question. Peers that did not answer lately are not asked.
    async fn ask(
        self: Arc<Self>,
        call: Call,
        contact: Option<Contact>,
    ) -> (Call, Option<Contact>, Option<Vec<Knowledge>>) {
        let Some(Contact { peer, .. }) = contact else {
            return (call, None, None);
        };
        if self.blacklist().is_banned(&peer, self.now()) {
            return (call, contact, None);
        }
        let answer = self.call_find(peer, &call.queries).await.ok();
        match &answer {
            Some(_) => self.blacklist().answered(&peer),
            None => self.blacklist().failed(peer, self.now()),
        }
        (call, contact, answer)
    }
}
