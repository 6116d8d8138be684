//! Reading records: own copies first, then a search; several readers of one key share one search; results are cached.
//!
//! Hivemind's default read ends at the first live value, which may be a stale copy or a dictionary that lacks entries
//! held elsewhere ([`Freshness::Any`]). [`Freshness::Latest`] asks all of the nearest nodes and merges what they hold.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::future::join_all;
use sepal_protocol::{dht_id::DhtId, value::Subkey};
use tokio::sync::watch;

use super::{
    Found, FoundDictionary, FoundEntry, Freshness,
    findings::{Finding, Findings},
    inquiry::Guide,
    node::Node,
    record::{Entry, Record},
    routing::Contact,
    rpc::StoreRecord,
    validate::RecordView,
};

/// What a search for a key found.
type Outcome = Option<Found>;

/// Where the outcome of a search is announced.
type Announcer = Arc<watch::Sender<Option<Outcome>>>;

/// Searches under way, so that others can wait for the same result.
pub(crate) type Flights = HashMap<(DhtId, Freshness), Announcer>;

impl Node {
    /// Reads records. The result is in the order of the keys.
    ///
    /// # Cancel safety
    /// A search goes on while anyone waits for it, and no longer.
    pub(crate) async fn get_many(self: &Arc<Self>, keys: Vec<DhtId>, freshness: Freshness) -> Vec<Outcome> {
        let mut started = Vec::new();
        let mut waiting = Vec::with_capacity(keys.len());
        for key in keys {
            let here = (freshness == Freshness::Any).then(|| self.own_copy(&key)).flatten();
            match here {
                Some(record) => {
                    self.refresh_before_expiry(&key);
                    waiting.push(Err(self.found(&key, Some(record))));
                }
                None => waiting.push(Ok(self.board(key, freshness, &mut started))),
            }
        }
        if !started.is_empty() {
            self.tasks
                .spawn_until_stopped("dht get", self.clone().fly(started, freshness));
        }
        join_all(waiting.into_iter().map(|waiting| async move {
            match waiting {
                Err(found) => found,
                // The sender goes away without a word only when the node stops.
                Ok(mut arrival) => arrival.wait_for(Option::is_some).await.ok()?.clone().flatten(),
            }
        }))
        .await
    }

    /// Fetches cached records again that are read and about to expire.
    pub(crate) async fn refresh(self: &Arc<Self>, keys: Vec<DhtId>) {
        let mut reading = Reading::new(self.clone(), Freshness::Latest);
        for key in &keys {
            reading.findings.expect(*key, None);
        }
        let keys_per_call = self.state().keys_per_read(keys.len());
        self.search(&keys, keys_per_call, &mut reading).await;
    }

    /// What is stored and cached here, merged.
    fn own_copy(&self, key: &DhtId) -> Option<Record> {
        let record = self.state().record(key, self.now())?;
        self.readable(key, record)
    }

    fn refresh_before_expiry(&self, key: &DhtId) {
        let lead_s = self.config.cache_refresh_before_expiry_s;
        self.state().refresh_before_expiry(key, lead_s, self.now());
    }

    /// Joins the search for a key, or starts one.
    fn board(
        self: &Arc<Self>,
        key: DhtId,
        freshness: Freshness,
        started: &mut Vec<Flight>,
    ) -> watch::Receiver<Option<Outcome>> {
        let mut flights = self.flights();
        if let Some(sender) = flights.get(&(key, freshness)) {
            return sender.subscribe();
        }
        let (sender, arrival) = watch::channel(None);
        let sender = Arc::new(sender);
        flights.insert((key, freshness), sender.clone());
        started.push(Flight {
            node: self.clone(),
            of: (key, freshness),
            sender,
        });
        arrival
    }

    /// Searches for the keys of these flights, until all of them arrived or nobody waits for any of them.
    async fn fly(self: Arc<Self>, flights: Vec<Flight>, freshness: Freshness) {
        let senders: Vec<_> = flights
            .iter()
            .map(|flight| (flight.of, flight.sender.clone()))
            .collect();
        let mut reading = Reading::new(self.clone(), freshness);
        let keys: Vec<DhtId> = flights.iter().map(|flight| flight.of.0).collect();
        for flight in flights {
            let key = flight.of.0;
            reading.findings.expect(key, self.own_copy(&key));
            reading.flights.insert(key, flight);
        }
        let keys_per_call = self.state().keys_per_read(keys.len());
        tokio::select! {
            () = self.search(&keys, keys_per_call, &mut reading) => {}
            () = self.abandoned(senders) => {}
        }
    }

    /// Returns when nobody waits for any of these flights any more; then nobody can join them either.
    async fn abandoned(&self, senders: Vec<((DhtId, Freshness), Announcer)>) {
        loop {
            for (_, sender) in &senders {
                sender.closed().await;
            }
            let mut flights = self.flights();
            if senders.iter().all(|(_, sender)| sender.receiver_count() == 0) {
                for (of, _) in &senders {
                    flights.remove(of);
                }
                return;
            }
        }
    }

    /// A record as its reader gets it: without signatures, and with a note of what was refused.
    fn found(&self, key: &DhtId, record: Option<Record>) -> Outcome {
        let strip = |subkey: &Subkey, value: &Bytes, expiration: f64| {
            let view = RecordView {
                key: key.as_bytes(),
                subkey: &subkey.to_wire(),
                value,
                expiration,
            };
            self.config.validators.strip(&view).to_vec()
        };
        let entry = |entry: &Entry| FoundEntry {
            value: strip(&Subkey::Key(entry.subkey.clone()), &entry.value, entry.expiration),
            subkey: entry.subkey.clone(),
            expiration: entry.expiration,
            proven: entry.proven,
        };
        let refused = self.refused().of(key, self.now());
        let entries = match record {
            Some(Record::Regular { value, expiration }) => {
                let value = strip(&Subkey::None, &value, expiration);
                return Some(Found::Regular { value, expiration });
            }
            Some(Record::Dictionary(entries)) => entries.iter().map(entry).collect(),
            None if refused.is_empty() => return None,
            None => Vec::new(),
        };
        Some(Found::Dictionary(FoundDictionary { entries, refused }))
    }

    /// Keeps a found record, and gives it to others.
    fn cache_found(self: &Arc<Self>, key: DhtId, finding: &Finding, nearest: &[Contact]) {
        let now = self.now();
        let others = finding.keep(key, nearest, self.config.cache_nearest, (&mut self.state(), now));
        let Some(record) = &finding.best else { return };
        for contact in others {
            self.offer_in_background(contact.peer, vec![StoreRecord::of(key, record)], true);
        }
    }
}

/// A search under way for one key. While it lives, others can join it.
struct Flight {
    node: Arc<Node>,
    of: (DhtId, Freshness),
    sender: Announcer,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut flights = self.node.flights();
        if flights
            .get(&self.of)
            .is_some_and(|sender| Arc::ptr_eq(sender, &self.sender))
        {
            flights.remove(&self.of);
        }
    }
}

/// The guide of a read.
struct Reading {
    node: Arc<Node>,
    findings: Findings,
    /// Where outcomes are awaited.
    flights: HashMap<DhtId, Flight>,
}

impl Reading {
    fn new(node: Arc<Node>, freshness: Freshness) -> Self {
        Self {
            node,
            findings: Findings::new(freshness),
            flights: HashMap::new(),
        }
    }
}

impl Guide for Reading {
    fn answered(&mut self, key: &DhtId, from: Contact, record: Option<Record>) -> bool {
        self.findings.answered(key, from.id, record)
    }

    fn ended(&mut self, key: &DhtId, nearest: Vec<Contact>) {
        let Some(mut finding) = self.findings.take(key) else {
            return;
        };
        self.node.cache_found(*key, &finding, &nearest);
        let outcome = self.node.found(key, finding.best.take());
        if let Some(flight) = self.flights.remove(key) {
            let sender = flight.sender.clone();
            // First leave the list of searches to join, then tell those who did.
            drop(flight);
            sender.send_replace(Some(outcome));
        }
    }
}
