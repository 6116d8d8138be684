//! What nodes want: to join, to announce themselves, to read, to keep their tables fresh. Searches, and what they are for.

use std::collections::HashMap;

use rand::Rng;
use sepal_protocol::dht_id::DhtId;

use super::{
    calls::{Knowledge, Request, Waiting},
    nodes::{Contact, Peer},
    tally::Trip,
    world::{Event, World, millis},
};
use crate::dht::{
    Freshness, Unusable,
    bootstrap::{REJOIN_PERIOD, judge},
    findings::{Finding, Findings},
    inquiry::{self, Guide, Question},
    record::{Entry, Record},
    replicas::{self, Holder},
    rpc::Pong,
    state::{MAX_KEYS_PER_CALL, Offer},
    traverse::Shape,
};

type Inquiry = inquiry::Inquiry<Peer>;
type Replicas = replicas::Replicas<Peer>;

/// Initial peers of a node that joins.
const INITIAL_PEERS: usize = 3;

/// Bytes that a server says of itself under each of its blocks, a signature included.
const RECORD_BYTES: usize = 400;

/// Something a node is about.
pub(super) struct Errand {
    who: Peer,
    started_ms: u64,
    kind: Kind,
}

enum Kind {
    /// Waits for initial peers.
    Join {
        pings: usize,
        usable: usize,
        skewed: usize,
    },
    Search {
        inquiry: Box<Inquiry>,
        goal: Goal,
    },
}

enum Goal {
    /// Being known.
    Nothing,
    /// Reading cached keys again.
    Refresh(Findings),
    Read {
        findings: Findings,
        announcer: Peer,
        asked: usize,
    },
    Announce {
        expiration: f64,
        placing: HashMap<DhtId, Replicas>,
    },
}

/// What a search tells while it goes on.
struct Listener<'a> {
    findings: Option<&'a mut Findings>,
    ended: Vec<(DhtId, Vec<Contact>)>,
}

impl Guide<Peer> for Listener<'_> {
    fn answered(&mut self, key: &DhtId, from: Contact, record: Option<Record>) -> bool {
        match &mut self.findings {
            Some(findings) => findings.answered(key, from.id, record),
            None => false,
        }
    }

    fn ended(&mut self, key: &DhtId, nearest: Vec<Contact>) {
        self.ended.push((*key, nearest));
    }
}

impl World {
    /// A node pings its initial peers.
    pub(super) fn join(&mut self, who: Peer) {
        if self.node(who).is_none() {
            return;
        }
        let errand = self.number();
        let kind = Kind::Join {
            pings: INITIAL_PEERS,
            usable: 0,
            skewed: 0,
        };
        let started_ms = self.now_ms;
        self.errands.insert(errand, Errand { who, started_ms, kind });
        for _ in 0..INITIAL_PEERS {
            let initial = self.any_bootstrap();
            match self.nodes[initial as usize].as_ref().map(|node| node.contact) {
                Some(contact) if initial != who => {
                    self.call(who, contact, Request::Ping { validate: true }, Waiting::Errand(errand));
                }
                _ => self.ponged(errand, None),
            }
        }
    }

    /// An initial peer answered, or did not.
    pub(super) fn ponged(&mut self, errand: u64, pong: Option<(Pong, u64)>) {
        let Some(Errand { who, kind, .. }) = self.errands.get_mut(&errand) else {
            return;
        };
        let Kind::Join { pings, usable, skewed } = kind else {
            return;
        };
        let who = *who;
        *pings -= 1;
        if let (Some((pong, sent_ms)), Some(node)) = (pong, self.nodes[who as usize].as_deref_mut()) {
            let (sent, received) = (sent_ms as f64 / 1000.0, self.now_ms as f64 / 1000.0);
            let offset_s = pong.offset_s(sent + node.clock_s, received + node.clock_s);
            match judge(&pong, offset_s, false) {
                Ok(()) => *usable += 1,
                Err(reason) => {
                    *skewed += usize::from(matches!(reason, Unusable::ClockSkew { .. }));
                    if let Some(id) = pong.node {
                        node.state.table.remove(&id);
                    }
                }
            }
        }
        let (pings, usable, skewed) = (*pings, *usable, *skewed);
        if pings > 0 {
            return;
        }
        self.errands.remove(&errand);
        let is_bootstrap = self.node(who).is_some_and(|node| node.is_bootstrap);
        match usable {
            0 if skewed > 0 => self.refuse(who),
            0 if is_bootstrap => self.at(self.now_ms + 1000, Event::Join(who)),
            0 => self.at(self.now_ms + REJOIN_PERIOD.as_millis() as u64, Event::Join(who)),
            _ => {
                self.tally.joined += 1;
                if let Some(own) = self.node(who).map(|node| node.contact.id) {
                    self.search(who, &[own], 1, Goal::Nothing);
                }
            }
        }
    }

    /// A node announces itself under its blocks, and will again.
    pub(super) fn announce(&mut self, who: Peer) {
        let period_ms = millis(self.scenario.announce_period);
        let now_ms = self.now_ms;
        let Some(node) = self.node(who) else { return };
        if node.state.table.len() == 0 {
            return self.at(now_ms + 1000, Event::Announce(who));
        }
        let keys: Vec<DhtId> = node.blocks.iter().map(|(key, _)| *key).collect();
        let goal = Goal::Announce {
            expiration: (now_ms + 2 * period_ms) as f64 / 1000.0 + node.clock_s,
            placing: HashMap::new(),
        };
        self.at(now_ms + period_ms, Event::Announce(who));
        self.search(who, &keys, keys.len().isqrt(), goal);
    }

    pub(super) fn heartbeat(&mut self, who: Peer) {
        let period_ms = millis(self.scenario.heartbeat_period);
        let Some(node) = self.node(who) else { return };
        let is_alone = node.state.table.len() == 0;
        self.at(self.now_ms + period_ms, Event::Heartbeat(who));
        if is_alone {
            return self.join(who);
        }
        let key = DhtId::from_bytes(self.rng.random());
        self.search(who, &[key], 1, Goal::Nothing);
    }

    /// Some node reads a key that another one has announced itself under.
    pub(super) fn read(&mut self) {
        let (who, announcer) = (self.any_node(), self.any_node());
        let draw: usize = self.rng.random_range(0..self.scenario.blocks_per_node);
        let freshness = self.scenario.rules.reads;
        let Some(node) = self.nodes[announcer as usize].as_deref() else {
            return;
        };
        let Some((key, true)) = node.blocks.get(draw).copied() else {
            return;
        };
        let now_ms = self.now_ms;
        let lead_s = self.config.cache_refresh_before_expiry_s;
        let Some(reader) = self.node(who) else { return };
        if reader.state.table.len() == 0 {
            return;
        }
        let now = now_ms as f64 / 1000.0 + reader.clock_s;
        let own = reader.state.record(&key, now);
        if freshness == Freshness::Any && own.is_some() {
            reader.state.refresh_before_expiry(&key, lead_s, now);
            return self.note_read(announcer, own, Trip::default());
        }
        let mut findings = Findings::new(freshness);
        findings.expect(key, own);
        let goal = Goal::Read {
            findings,
            announcer,
            asked: 0,
        };
        self.search(who, &[key], 1, goal);
    }

    /// A node fetches cached keys again that are read and about to expire.
    pub(super) fn refresh_cached(&mut self, who: Peer) {
        let now_ms = self.now_ms;
        let Some(node) = self.node(who) else { return };
        let now = now_ms as f64 / 1000.0 + node.clock_s;
        let due = node.state.take_due_refreshes(MAX_KEYS_PER_CALL, now);
        if !due.is_empty() {
            let mut findings = Findings::new(Freshness::Latest);
            due.iter().for_each(|key| findings.expect(*key, None));
            let keys_per_call = node.state.keys_per_read(due.len());
            self.search(who, &due, keys_per_call, Goal::Refresh(findings));
        }
    }

    fn search(&mut self, who: Peer, keys: &[DhtId], keys_per_call: usize, goal: Goal) {
        let shape = Shape {
            beam: self.config.bucket_size,
            workers: self.config.workers,
            queries_per_call: keys_per_call.max(1),
        };
        let Some(node) = self.node(who) else { return };
        let inquiry = Box::new(Inquiry::new(shape, node.contact.id, &node.state, keys));
        let (number, started_ms) = (self.number(), self.now_ms);
        let kind = Kind::Search { inquiry, goal };
        self.errands.insert(number, Errand { who, started_ms, kind });
        self.go_on(number);
    }

    /// A question of a search was answered, or was not.
    pub(super) fn found(&mut self, number: u64, question: &Question<Peer>, known: Option<Vec<Knowledge>>) {
        let Some(errand) = self.errands.get_mut(&number) else {
            return;
        };
        let Kind::Search { inquiry, goal } = &mut errand.kind else {
            return;
        };
        match known {
            None => inquiry.failed(question),
            Some(known) => {
                let findings = match goal {
                    Goal::Refresh(findings) | Goal::Read { findings, .. } => Some(findings),
                    Goal::Nothing | Goal::Announce { .. } => None,
                };
                let ended = Vec::new();
                inquiry.answered(question, known, &mut Listener { findings, ended });
            }
        }
        self.go_on(number);
    }

    /// Asks what there is to ask, and does what is to be done at the end of a search.
    fn go_on(&mut self, number: u64) {
        let Some(mut errand) = self.errands.remove(&number) else {
            return;
        };
        let who = errand.who;
        let Kind::Search { inquiry, goal } = &mut errand.kind else {
            return;
        };
        loop {
            let Some(node) = self.nodes[who as usize].as_deref() else {
                return;
            };
            let now = self.clock(node);
            let Some(question) = inquiry.next(&node.blacklist, now) else {
                break;
            };
            if let Goal::Read { asked, .. } = goal {
                *asked += 1;
            }
            let to = question.to;
            self.call(who, to, Request::Find(question), Waiting::Errand(number));
        }
        let mut listener = Listener {
            findings: None,
            ended: Vec::new(),
        };
        inquiry.tell_ends(&mut listener);
        let ended = listener.ended;
        self.errands.insert(number, errand);
        for (key, nearest) in ended {
            self.search_ended(number, key, nearest);
        }
        self.end_if_over(number);
    }

    fn end_if_over(&mut self, number: u64) {
        let is_over = match self.errands.get(&number).map(|errand| &errand.kind) {
            Some(Kind::Search { inquiry, goal }) => {
                let is_placing = matches!(goal, Goal::Announce { placing, .. } if !placing.is_empty());
                inquiry.is_over() && !is_placing
            }
            _ => false,
        };
        if is_over {
            self.errands.remove(&number);
        }
    }

    /// The nodes nearest to a key are known.
    fn search_ended(&mut self, number: u64, key: DhtId, nearest: Vec<Contact>) {
        let replicas = self.config.replicas;
        let Some(errand) = self.errands.get_mut(&number) else {
            return;
        };
        let (who, started_ms) = (errand.who, errand.started_ms);
        let Kind::Search { inquiry, goal } = &mut errand.kind else {
            return;
        };
        match goal {
            Goal::Nothing => {}
            Goal::Refresh(findings) => {
                if let Some(finding) = findings.take(&key) {
                    self.keep(who, key, &finding, &nearest);
                }
            }
            Goal::Read {
                findings,
                announcer,
                asked,
            } => {
                let Some(finding) = findings.take(&key) else { return };
                let trip = Trip {
                    hops: finding.from.map_or(0, |from| inquiry.hops(&from)),
                    calls: *asked,
                    took_ms: self.now_ms - started_ms,
                    ..Trip::default()
                };
                let announcer = *announcer;
                self.keep(who, key, &finding, &nearest);
                self.note_read(announcer, finding.best, trip);
            }
            Goal::Announce { placing, .. } => {
                let Some(own) = self.nodes[who as usize].as_ref().map(|node| node.contact.id) else {
                    return;
                };
                placing.insert(key, Replicas::new(replicas, &key, nearest, Some(own)));
                self.place(number, key);
            }
        }
    }

    fn keep(&mut self, who: Peer, key: DhtId, finding: &Finding, nearest: &[Contact]) {
        let (now_ms, n_copies) = (self.now_ms, self.config.cache_nearest);
        let Some(node) = self.node(who) else { return };
        let now = now_ms as f64 / 1000.0 + node.clock_s;
        let others = finding.keep(key, nearest, n_copies, (&mut node.state, now));
        let Some(record) = &finding.best else { return };
        for contact in others {
            self.offer_in_background(who, contact, vec![(key, record.clone())], true);
        }
    }

    /// Offers a record to as many nodes as it takes.
    fn place(&mut self, number: u64, key: DhtId) {
        loop {
            let Some(errand) = self.errands.get_mut(&number) else {
                return;
            };
            let who = errand.who;
            let Kind::Search { goal, .. } = &mut errand.kind else {
                return;
            };
            let Goal::Announce { expiration, placing } = goal else {
                return;
            };
            let expiration = *expiration;
            let Some(replicas) = placing.get_mut(&key) else { return };
            let Some(holder) = replicas.next() else {
                if replicas.under_way() == 0 {
                    placing.remove(&key);
                    self.end_if_over(number);
                }
                return;
            };
            let Some(offer) = self.offer_of(who, expiration) else {
                return;
            };
            match holder {
                Holder::Here => {
                    let stored = self.store_at(who, key, offer, false);
                    self.placed(number, key, Some(stored));
                }
                Holder::There(contact) => {
                    let request = Request::Store {
                        records: vec![(key, offer)],
                        in_cache: false,
                    };
                    self.call(who, contact, request, Waiting::Replica(number, key));
                }
            }
        }
    }

    fn offer_of(&self, who: Peer, expiration: f64) -> Option<Offer> {
        let node = self.nodes[who as usize].as_ref()?;
        Some(Offer::Entry(Entry {
            subkey: node.name.clone(),
            value: bytes::Bytes::from_static(&[0xc0; RECORD_BYTES]),
            expiration,
            proven: false,
        }))
    }

    /// A node took a record, or refused it, or did not answer.
    pub(super) fn placed(&mut self, number: u64, key: DhtId, verdict: Option<bool>) {
        let Some(Errand { who, kind, .. }) = self.errands.get_mut(&number) else {
            return;
        };
        let Kind::Search {
            goal: Goal::Announce { placing, .. },
            ..
        } = kind
        else {
            return;
        };
        let who = *who;
        let Some(replicas) = placing.get_mut(&key) else { return };
        match verdict {
            Some(_) => replicas.answered(),
            None => replicas.failed(),
        }
        if verdict == Some(true)
            && let Some(node) = self.node(who)
        {
            let blocks = node.blocks.iter_mut();
            blocks.filter(|(own, _)| *own == key).for_each(|(_, done)| *done = true);
        }
        self.place(number, key);
    }

    /// Counts a read, unless the node that was looked for has vanished meanwhile.
    fn note_read(&mut self, announcer: Peer, found: Option<Record>, trip: Trip) {
        let Some(announcer) = self.nodes[announcer as usize].as_ref() else {
            return;
        };
        let (found_key, found_entry) = match found {
            Some(Record::Dictionary(entries)) => (true, entries.get(&announcer.name).is_some()),
            Some(Record::Regular { .. }) => (true, false),
            None => (false, false),
        };
        self.tally.trips.push(Trip {
            found_key,
            found_entry,
            ..trip
        });
    }
}
