//! A search with the peers behind its ids: whom to call next, whom not to because of a ban, what the answers bring. Pure.
//!
//! `search.rs` drives it over the network, the simulation in virtual time.

use std::collections::HashMap;

use sepal_protocol::dht_id::DhtId;
use tracing::trace;

use super::{
    blacklist::Blacklist,
    record::Record,
    routing::{Contact, Peer},
    state::State,
    traverse::{Answer, Call, Search, Shape},
};
use crate::p2p::PeerId;

/// What a node knows about a key.
#[derive(Clone, Debug)]
pub(crate) struct Knowledge<P = PeerId> {
    pub(crate) record: Option<Record>,
    pub(crate) nearest: Vec<Contact<P>>,
}

/// What someone wants of a search.
pub(crate) trait Guide<P = PeerId>: Send {
    /// A node gave its answer about a key. Returns whether that is enough.
    fn answered(&mut self, key: &DhtId, from: Contact<P>, record: Option<Record>) -> bool;

    /// The search for a key is over; `nearest` are up to 20 nodes that are nearest to it, nearest first.
    fn ended(&mut self, key: &DhtId, nearest: Vec<Contact<P>>);
}

/// A question, and whom to ask.
#[derive(Clone, Debug)]
pub(crate) struct Question<P = PeerId> {
    pub(crate) call: Call,
    pub(crate) to: Contact<P>,
}

/// A search under way.
#[derive(Debug)]
pub(crate) struct Inquiry<P = PeerId> {
    search: Search,
    met: HashMap<DhtId, Lead<P>>,
}

/// A node that was named during the search.
#[derive(Clone, Copy, Debug)]
struct Lead<P> {
    contact: Contact<P>,
    /// Length of the chain of answers that led here; 1 for a node that was known before.
    hops: usize,
}

impl<P: Peer> Inquiry<P> {
    /// A search for `keys` by the node `own`, from the nodes that it knows nearest to each of them.
    pub(crate) fn new(shape: Shape, own: DhtId, state: &State<P>, keys: &[DhtId]) -> Self {
        let mut met = HashMap::new();
        for key in keys {
            let leads = state.neighbors(key, None).into_iter();
            met.extend(leads.map(|contact| (contact.id, Lead { contact, hops: 1 })));
        }
        let mut initial: Vec<DhtId> = met.keys().copied().collect();
        initial.sort_unstable();
        Self {
            search: Search::new(shape, own, keys, &initial),
            met,
        }
    }

    /// The next question to ask now. Peers that did not answer lately count as not answering, without being asked.
    pub(crate) fn next(&mut self, blacklist: &Blacklist<P>, now: f64) -> Option<Question<P>> {
        while let Some(call) = self.search.next_call() {
            match self.met.get(&call.node) {
                Some(lead) if !blacklist.is_banned(&lead.contact.peer, now) => {
                    return Some(Question { call, to: lead.contact });
                }
                _ => self.search.failed(&call),
            }
        }
        None
    }

    /// Takes an answer; it is in the order of the question's keys.
    pub(crate) fn answered(&mut self, question: &Question<P>, answer: Vec<Knowledge<P>>, guide: &mut dyn Guide<P>) {
        let hops = self.hops(&question.to.id) + 1;
        let mut answers = Vec::with_capacity(answer.len());
        for (key, Knowledge { record, nearest }) in question.call.queries.iter().zip(answer) {
            answers.push(Answer {
                neighbors: nearest.iter().map(|contact| contact.id).collect(),
                enough: guide.answered(key, question.to, record),
            });
            for contact in nearest {
                self.met.entry(contact.id).or_insert(Lead { contact, hops });
            }
        }
        self.search.answered(&question.call, &answers);
    }

    /// Notes that a peer did not answer.
    pub(crate) fn failed(&mut self, question: &Question<P>) {
        self.search.failed(&question.call);
    }

    /// Tells the guide which searches came to an end. To be called after [`Self::next`] had nothing to ask.
    pub(crate) fn tell_ends(&mut self, guide: &mut dyn Guide<P>) {
        for end in self.search.take_finished() {
            trace!(key = %end.query, visits = end.visits, "search over");
            let nearest = end.nearest.iter().filter_map(|id| Some(self.met.get(id)?.contact));
            guide.ended(&end.query, nearest.collect());
        }
    }

    /// Whether nothing is left to search for. If it is not over, there are questions under way.
    pub(crate) fn is_over(&self) -> bool {
        self.search.is_over()
    }

    /// Length of the chain of answers that led to a node; 0 for one that was never named.
    pub(crate) fn hops(&self, node: &DhtId) -> usize {
        self.met.get(node).map_or(0, |lead| lead.hops)
    }
}
