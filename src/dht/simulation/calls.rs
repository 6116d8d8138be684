//! Requests and answers on their way, lost ones, time-outs, and what a node does with them: what `rpc/` does for real.

use rand::Rng;
use sepal_protocol::dht_id::DhtId;

use super::{
    nodes::{Contact, Peer},
    sizes,
    world::{Event, World, millis},
};
use crate::dht::{
    inquiry::{self, Question},
    node::MAX_BACKGROUND,
    record::Record,
    rpc::Pong,
    state::{Met, Offer},
};

pub(super) type Knowledge = inquiry::Knowledge<Peer>;

/// How long a message is on its way, milliseconds.
const TRAVEL_MS: std::ops::Range<u64> = 10..100;

/// What is asked of a node.
pub(super) enum Request {
    Ping {
        validate: bool,
    },
    Find(Question<Peer>),
    Store {
        records: Vec<(DhtId, Offer)>,
        in_cache: bool,
    },
}

/// What it answers.
pub(super) enum Answer {
    Pong(Pong),
    Knowledge(Vec<Knowledge>),
    Stored(Vec<bool>),
}

/// Who waits for an answer.
#[derive(Clone, Copy)]
pub(super) enum Waiting {
    /// An errand: a node that joins, a search.
    Errand(u64),
    /// An errand, for a replica of a key.
    Replica(u64, DhtId),
    /// A node that was asked to prove that it can call back.
    PingBack(u64),
    Nobody,
}

/// A call under way.
pub(super) struct Exchange {
    from: Peer,
    to: Contact,
    sent_ms: u64,
    request: Request,
    answer: Option<Answer>,
    waiting: Waiting,
}

impl World {
    pub(super) fn call(&mut self, from: Peer, to: Contact, request: Request, waiting: Waiting) {
        self.tally.sent(sizes::request(&request));
        let number = self.number();
        let exchange = Exchange {
            from,
            to,
            sent_ms: self.now_ms,
            request,
            answer: None,
            waiting,
        };
        self.exchanges.insert(number, exchange);
        self.travel(number, Event::Arrive(number));
    }

    /// Puts a message of an exchange on its way; if it gets lost, the caller's time will be up.
    fn travel(&mut self, number: u64, event: Event) {
        if self.rng.random_bool(self.scenario.loss) {
            self.give_up(number);
        } else {
            let at = self.now_ms + self.rng.random_range(TRAVEL_MS);
            self.at(at, event);
        }
    }

    fn give_up(&mut self, number: u64) {
        if let Some(exchange) = self.exchanges.get(&number) {
            let limit = exchange.sent_ms + millis(self.config.call_timeout);
            self.at(limit.max(self.now_ms), Event::TimeOut(number));
        }
    }

    /// A request reaches its callee, if there still is one.
    pub(super) fn arrive(&mut self, number: u64) {
        let Some(exchange) = self.exchanges.remove(&number) else {
            return;
        };
        let (from, to) = (exchange.from, exchange.to);
        if self.node(to.peer).is_none() {
            self.exchanges.insert(number, exchange);
            return self.give_up(number);
        }
        let answer = match &exchange.request {
            Request::Ping { validate: true } => None,
            Request::Ping { validate: false } => Some(self.pong(to.peer, false)),
            Request::Find(question) => Some(self.find(to.peer, from, &question.call.queries)),
            Request::Store { records, in_cache } => Some(self.store(to.peer, records, *in_cache)),
        };
        self.exchanges.insert(number, exchange);
        match answer {
            // Answered when it is known whether the caller can be called.
            None => self.call_back(to.peer, from, number),
            Some(answer) => {
                self.heard_from(to.peer, from);
                self.send_answer(number, answer);
            }
        }
    }

    fn call_back(&mut self, callee: Peer, caller: Peer, number: u64) {
        if let Some(contact) = self.node(caller).map(|node| node.contact) {
            self.call(
                callee,
                contact,
                Request::Ping { validate: false },
                Waiting::PingBack(number),
            );
        }
    }

    fn send_answer(&mut self, number: u64, answer: Answer) {
        self.tally.sent(sizes::answer(&answer));
        if let Some(exchange) = self.exchanges.get_mut(&number) {
            exchange.answer = Some(answer);
            self.travel(number, Event::Answer(number));
        }
    }

    fn pong(&self, peer: Peer, available: bool) -> Answer {
        let node = self.nodes[peer as usize].as_deref();
        Answer::Pong(Pong {
            node: node.map(|node| node.contact.id),
            time: node.map(|node| self.clock(node)),
            available,
        })
    }

    fn find(&mut self, callee: Peer, caller: Peer, keys: &[DhtId]) -> Answer {
        let now_ms = self.now_ms;
        let asker = self.node(caller).map(|node| node.contact.id);
        let Some(node) = self.node(callee) else {
            return Answer::Knowledge(Vec::new());
        };
        let now = now_ms as f64 / 1000.0 + node.clock_s;
        let know = |key: &DhtId| Knowledge {
            record: node.state.record(key, now),
            nearest: node.state.neighbors(key, asker.as_ref()),
        };
        Answer::Knowledge(keys.iter().map(know).collect())
    }

    fn store(&mut self, callee: Peer, records: &[(DhtId, Offer)], in_cache: bool) -> Answer {
        let stored = records
            .iter()
            .map(|(key, offer)| self.store_at(callee, *key, offer.clone(), in_cache));
        Answer::Stored(stored.collect())
    }

    pub(super) fn store_at(&mut self, peer: Peer, key: DhtId, offer: Offer, in_cache: bool) -> bool {
        let now_ms = self.now_ms;
        self.node(peer).is_some_and(|node| {
            let now = now_ms as f64 / 1000.0 + node.clock_s;
            node.state.store(key, offer, in_cache, now)
        })
    }

    /// An answer reaches its caller, if that is still there.
    pub(super) fn answer_arrives(&mut self, number: u64) {
        let Some(exchange) = self.exchanges.remove(&number) else {
            return;
        };
        if self.node(exchange.from).is_none() || !self.is_awaited(&exchange) {
            return;
        }
        let is_find = matches!(exchange.request, Request::Find(_));
        if let Some(node) = self.node(exchange.from).filter(|_| is_find) {
            node.blacklist.answered(&exchange.to.peer);
        }
        self.heard_from(exchange.from, exchange.to.peer);
        self.ended(exchange);
    }

    /// A caller has waited long enough.
    pub(super) fn time_out(&mut self, number: u64) {
        let Some(mut exchange) = self.exchanges.remove(&number) else {
            return;
        };
        exchange.answer = None;
        if self.node(exchange.from).is_none() || !self.is_awaited(&exchange) {
            return;
        }
        self.tally.timed_out += 1;
        self.lost(exchange.from, exchange.to.peer);
        let is_find = matches!(exchange.request, Request::Find(_));
        let now_ms = self.now_ms;
        if let Some(node) = self.node(exchange.from).filter(|_| is_find) {
            let now = now_ms as f64 / 1000.0 + node.clock_s;
            node.blacklist.failed(exchange.to.peer, now);
        }
        self.ended(exchange);
    }

    /// Whether a call was not cancelled since: a search that is over drops its questions.
    fn is_awaited(&self, exchange: &Exchange) -> bool {
        match exchange.waiting {
            Waiting::Errand(errand) | Waiting::Replica(errand, _) => self.errands.contains_key(&errand),
            Waiting::PingBack(_) | Waiting::Nobody => true,
        }
    }

    /// Tells whoever waits what came of a call.
    fn ended(&mut self, exchange: Exchange) {
        let Exchange { from, to, .. } = exchange;
        match (exchange.waiting, exchange.request, exchange.answer) {
            (Waiting::Nobody, ..) => {
                if let Some(node) = self.node(from) {
                    node.background -= 1;
                }
            }
            (Waiting::PingBack(first), _, answer) => {
                let caller_is = |pong: &Pong| pong.node == Some(to.id);
                let available = matches!(&answer, Some(Answer::Pong(pong)) if caller_is(pong));
                let pong = self.pong(from, available);
                self.send_answer(first, pong);
            }
            (Waiting::Errand(errand), Request::Find(question), Some(Answer::Knowledge(known))) => {
                self.found(errand, &question, Some(known));
            }
            (Waiting::Errand(errand), Request::Find(question), _) => self.found(errand, &question, None),
            (Waiting::Errand(errand), _, Some(Answer::Pong(pong))) => {
                self.ponged(errand, Some((pong, exchange.sent_ms)))
            }
            (Waiting::Errand(errand), ..) => self.ponged(errand, None),
            (Waiting::Replica(errand, key), _, Some(Answer::Stored(stored))) => {
                self.placed(errand, key, Some(stored.contains(&true)));
            }
            (Waiting::Replica(errand, key), ..) => self.placed(errand, key, None),
        }
    }

    /// One node called another one, or answered it; with all that follows.
    fn heard_from(&mut self, hearer: Peer, heard: Peer) {
        let now_ms = self.now_ms;
        let Some(contact) = self.nodes[heard as usize].as_ref().map(|node| node.contact) else {
            return;
        };
        let Some(node) = self.node(hearer) else { return };
        let now = now_ms as f64 / 1000.0 + node.clock_s;
        let Met { hand_over, ping } = node.state.met(contact, now);
        if !hand_over.is_empty() {
            self.offer_in_background(hearer, contact, hand_over, false);
        }
        let Some(old) = ping else { return };
        if !self.in_background(hearer, old, Request::Ping { validate: false })
            && let Some(node) = self.node(hearer)
        {
            node.state.table.ping_not_sent(&old.id);
        }
    }

    fn lost(&mut self, caller: Peer, callee: Peer) {
        if let Some(node) = self.node(caller)
            && let Some(id) = node.state.table.id_of(&callee)
        {
            node.state.table.remove(&id);
        }
    }

    pub(super) fn offer_in_background(
        &mut self,
        from: Peer,
        to: Contact,
        records: Vec<(DhtId, Record)>,
        in_cache: bool,
    ) {
        let records = records.into_iter().map(|(key, record)| (key, record.into())).collect();
        self.in_background(from, to, Request::Store { records, in_cache });
    }

    fn in_background(&mut self, from: Peer, to: Contact, request: Request) -> bool {
        let has_room = self.node(from).is_some_and(|node| {
            let has_room = node.background < MAX_BACKGROUND;
            node.background += usize::from(has_room);
            has_room
        });
        if has_room {
            self.call(from, to, request, Waiting::Nobody);
        }
        has_room
    }
}
