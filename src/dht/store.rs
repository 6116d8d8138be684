//! Storing records: find the nodes nearest to each key, and offer them the record until enough of them answered.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, stream::FuturesUnordered};
use sepal_protocol::{dht_id::DhtId, value::Subkey};
use tokio::sync::mpsc;

use super::{
    StoreItem,
    inquiry::Guide,
    node::Node,
    record::{Entry, Record},
    replicas::{Holder, Replicas},
    routing::Contact,
    rpc::StoreRecord,
    state::Offer,
    storage::MAX_VALUE_BYTES,
    validate::{RecordView, Verdict},
};

/// What shall be stored under one key, with the places of its items in the result.
type OfKey = Vec<(usize, StoreRecord)>;

impl Node {
    /// Stores records. Returns for each item whether at least one node took it; a node that has something newer refuses.
    /// (Python reports the verdict of the last node that answered.)
    pub(crate) async fn store_many(self: &Arc<Self>, items: Vec<StoreItem>) -> Vec<bool> {
        let mut stored = vec![false; items.len()];
        let mut by_key: BTreeMap<DhtId, OfKey> = BTreeMap::new();
        for (at, item) in items.into_iter().enumerate() {
            if let Some(record) = self.prepare(item) {
                by_key.entry(record.key).or_default().push((at, record));
            }
        }
        if by_key.is_empty() {
            return stored;
        }
        let keys: Vec<DhtId> = by_key.keys().copied().collect();
        let (ended, nearest) = mpsc::channel(keys.len());
        let search = async {
            let mut guide = Storing { ended };
            let keys_per_call = self.state().keys_per_call(keys.len());
            self.search(&keys, keys_per_call, &mut guide).await;
        };
        let ((), verdicts) = tokio::join!(search, self.place_all(nearest, by_key));
        for at in verdicts {
            stored[at] = true;
        }
        stored
    }

    /// Signs an item; `None` if no node would take it.
    fn prepare(&self, item: StoreItem) -> Option<StoreRecord> {
        let StoreItem {
            key,
            subkey,
            value,
            expiration,
        } = item;
        if value.len() > MAX_VALUE_BYTES || !expiration.is_finite() || expiration < self.now() {
            return None;
        }
        let tag = subkey.to_wire();
        let value = match subkey {
            // The entries of a whole dictionary carry their own signatures.
            Subkey::WholeDictionary => value,
            Subkey::None | Subkey::Key(_) => self.config.validators.sign(&RecordView {
                key: key.as_bytes(),
                subkey: &tag,
                value: &value,
                expiration,
            }),
        };
        Some(StoreRecord {
            key,
            tag,
            value: value.into(),
            expiration,
        })
    }

    /// Places the records of each key as soon as its nearest nodes are known. Returns the places of what was stored.
    async fn place_all(
        self: &Arc<Self>,
        mut nearest: mpsc::Receiver<(DhtId, Vec<Contact>)>,
        mut by_key: BTreeMap<DhtId, OfKey>,
    ) -> Vec<usize> {
        let mut placing = FuturesUnordered::new();
        let mut stored = Vec::new();
        loop {
            tokio::select! {
                Some((key, nodes)) = nearest.recv() => {
                    if let Some(records) = by_key.remove(&key) {
                        placing.push(self.place(key, nodes, records));
                    }
                }
                Some(places) = placing.next() => stored.extend::<Vec<usize>>(places),
                else => return stored,
            }
        }
    }

    /// Offers the records of one key to the nearest nodes. This node is one of them, unless it is a client.
    async fn place(self: &Arc<Self>, key: DhtId, nearest: Vec<Contact>, of_key: OfKey) -> Vec<usize> {
        let (places, records): (Vec<usize>, Vec<StoreRecord>) = of_key.into_iter().unzip();
        let own = (!self.is_client()).then_some(self.id);
        let mut replicas = Replicas::new(self.config.replicas, &key, nearest, own);
        let mut accepted = vec![false; records.len()];
        let mut offers = FuturesUnordered::new();
        loop {
            while let Some(holder) = replicas.next() {
                match holder {
                    Holder::There(contact) => offers.push(self.call_store(contact.peer, &records, false)),
                    Holder::Here => {
                        let verdicts = records.iter().map(|record| self.store_here(record, false));
                        merge(&mut accepted, verdicts);
                        replicas.answered();
                    }
                }
            }
            match offers.next().await {
                Some(Ok(verdicts)) => {
                    merge(&mut accepted, verdicts);
                    replicas.answered();
                }
                Some(Err(_)) => replicas.failed(),
                None => break,
            }
        }
        self.cache_stored(key, &records, &accepted);
        let stored = places.into_iter().zip(accepted);
        stored.filter(|(_, accepted)| *accepted).map(|(at, _)| at).collect()
    }

    /// Brings the own cache up to date (hivemind, `dht/node.py`, `_update_cache_on_store`): a stored value is cached; of a
    /// dictionary only its entries are known here, so they go into a cached one, which is then fetched again. A refusal
    /// means that someone has something newer: what is cached is fetched again as well.
    fn cache_stored(&self, key: DhtId, records: &[StoreRecord], accepted: &[bool]) {
        let now = self.now();
        let mut state = self.state();
        let is_cached = state.cache.get(&key, now).is_some();
        for (record, accepted) in records.iter().zip(accepted) {
            let (value, expiration) = (record.value.clone(), record.expiration);
            let proven = || self.judge(&key, &record.tag, &record.value, expiration) == Verdict::Proven;
            match Subkey::from_wire(&record.tag) {
                Ok(Subkey::None) if *accepted => {
                    state.store(key, Offer::from(Record::Regular { value, expiration }), true, now);
                }
                Ok(Subkey::Key(subkey)) if is_cached && *accepted => {
                    state.store(
                        key,
                        Offer::Entry(Entry {
                            subkey,
                            value,
                            expiration,
                            proven: proven(),
                        }),
                        true,
                        now,
                    );
                }
                _ => {}
            }
            if is_cached && (!accepted || record.tag != Subkey::None.to_wire()) {
                state.refresh_at(key, now);
            }
        }
    }
}

fn merge(accepted: &mut [bool], verdicts: impl IntoIterator<Item = bool>) {
    for (accepted, verdict) in accepted.iter_mut().zip(verdicts) {
        *accepted |= verdict;
    }
}

/// The guide of a store: it is only interested in where the searches end.
struct Storing {
    ended: mpsc::Sender<(DhtId, Vec<Contact>)>,
}

impl Guide for Storing {
    fn answered(&mut self, _key: &DhtId, _from: Contact, _record: Option<Record>) -> bool {
        false
    }

    fn ended(&mut self, key: &DhtId, nearest: Vec<Contact>) {
        // There is room for every key, and the receiver waits until this sender is gone.
        let _ = self.ended.try_send((*key, nearest));
    }
}
