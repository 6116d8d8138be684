//! `rpc_store`, both sides: keep these records.

use std::sync::Arc;

use bytes::Bytes;
use sepal_protocol::{
    Message,
    dht_id::DhtId,
    msgpack::Value,
    names,
    proto::{StoreRequest, StoreResponse},
    value::{Dictionary, Subkey},
};

use super::{MAX_RECORD_BYTES, parse_keys};
use crate::{
    dht::{
        node::Node,
        record::{Entries, Entry, Record},
        state::Offer,
        validate::Verdict,
    },
    p2p::{CallError, HandlerError, PeerId},
};

/// Most records of one store request. A node that is met gets all its records in one request from a Python node.
const MAX_STORE_RECORDS: usize = 8192;

/// One record of a store request.
#[derive(Clone, Debug)]
pub(crate) struct StoreRecord {
    pub(crate) key: DhtId,
    /// The subkey tag: nil for a regular value, empty for a whole dictionary, else a subkey.
    pub(crate) tag: Vec<u8>,
    pub(crate) value: Bytes,
    pub(crate) expiration: f64,
}

impl StoreRecord {
    /// A record as it is handed on.
    pub(crate) fn of(key: DhtId, record: &Record) -> Self {
        let (tag, value) = match record {
            Record::Regular { value, .. } => (Subkey::None, value.clone()),
            Record::Dictionary(entries) => (Subkey::WholeDictionary, entries.to_wire().encode().into()),
        };
        Self {
            key,
            tag: tag.to_wire(),
            value,
            expiration: record.expiration(),
        }
    }

    fn size(&self) -> usize {
        self.key.as_bytes().len() + self.tag.len() + self.value.len()
    }
}

impl Node {
    /// Offers records to a peer, in as many requests as their size demands. Returns which ones it took.
    pub(crate) async fn call_store(
        self: &Arc<Self>,
        peer: PeerId,
        records: &[StoreRecord],
        in_cache: bool,
    ) -> Result<Vec<bool>, CallError> {
        let mut stored = Vec::with_capacity(records.len());
        for part in parts(records) {
            let request = StoreRequest {
                auth: None,
                keys: part.iter().map(|record| record.key.as_bytes().to_vec()).collect(),
                subkeys: part.iter().map(|record| record.tag.clone()).collect(),
                values: part.iter().map(|record| record.value.to_vec()).collect(),
                expiration_time: part.iter().map(|record| record.expiration).collect(),
                in_cache: vec![in_cache; part.len()],
                peer: Some(self.node_info()),
            };
            let request = request.encode_to_vec().into();
            let answer = self
                .network
                .call(peer, names::DHT_STORE, request, self.config.call_timeout);
            let response: StoreResponse = self.outcome(peer, answer.await, "StoreResponse")?;
            self.note_answer(peer, response.peer.as_ref());
            stored.extend(
                response
                    .store_ok
                    .into_iter()
                    .chain(std::iter::repeat(false))
                    .take(part.len()),
            );
        }
        Ok(stored)
    }

    pub(super) fn on_store(
        self: Arc<Self>,
        peer: PeerId,
        request: StoreRequest,
    ) -> Result<StoreResponse, HandlerError> {
        let n_records = request.keys.len();
        let lengths = [
            request.subkeys.len(),
            request.values.len(),
            request.expiration_time.len(),
            request.in_cache.len(),
        ];
        if lengths.iter().any(|len| *len != n_records) {
            return Err(HandlerError::new(
                "ValueError('the lists of a store request differ in length')",
            ));
        }
        if n_records > MAX_STORE_RECORDS {
            return Err(HandlerError::new("ValueError('too many records in one request')"));
        }
        let keys = parse_keys("StoreRequest", &request.keys)?;
        let rest = request
            .subkeys
            .into_iter()
            .zip(request.values)
            .zip(request.expiration_time);
        let mut store_ok = Vec::with_capacity(n_records);
        for ((key, ((tag, value), expiration)), in_cache) in keys.into_iter().zip(rest).zip(request.in_cache) {
            let record = StoreRecord {
                key,
                tag,
                value: value.into(),
                expiration,
            };
            store_ok.push(self.store_here(&record, in_cache));
        }
        self.note_caller(peer, request.peer.as_ref());
        Ok(StoreResponse {
            auth: None,
            store_ok,
            peer: Some(self.node_info()),
        })
    }

    /// Stores a record in this node if it is valid and newer than what is there.
    pub(crate) fn store_here(&self, record: &StoreRecord, in_cache: bool) -> bool {
        let StoreRecord {
            key,
            tag,
            value,
            expiration,
        } = record;
        match Subkey::from_wire(tag) {
            Ok(Subkey::WholeDictionary) => self.store_dictionary_here(*key, value, in_cache),
            Ok(subkey) => {
                let verdict = self.judge(key, tag, value, *expiration);
                let (value, expiration) = (value.clone(), *expiration);
                let offer = match subkey {
                    Subkey::Key(subkey) => Offer::Entry(Entry {
                        subkey,
                        value,
                        expiration,
                        proven: verdict == Verdict::Proven,
                    }),
                    _ => Offer::Regular { value, expiration },
                };
                verdict > Verdict::Refused && self.state().store(*key, offer, in_cache, self.now())
            }
            Err(_) => false,
        }
    }

    /// Stores every valid entry of a dictionary. (Python stops at the first one that it has already.)
    fn store_dictionary_here(&self, key: DhtId, bytes: &[u8], in_cache: bool) -> bool {
        let Ok(dictionary) = Dictionary::decode(bytes) else {
            return false;
        };
        let offered = dictionary.entries.len();
        let mut entries = Entries::from_wire(dictionary);
        entries.retain(|entry| self.is_valid_entry(&key, entry));
        let all_valid = entries.len() == offered;
        self.state()
            .store(key, Offer::Dictionary(entries), in_cache, self.now())
            && all_valid
    }

    /// Whether an entry may be stored; notes whether it is proven.
    fn is_valid_entry(&self, key: &DhtId, entry: &mut Entry) -> bool {
        let tag = Subkey::Key(entry.subkey.clone()).to_wire();
        let verdict = self.judge(key, &tag, &entry.value, entry.expiration);
        entry.proven = verdict == Verdict::Proven;
        !matches!(entry.subkey, Value::Nil) && verdict > Verdict::Refused
    }
}

/// Cuts a list of records into requests that peers accept.
fn parts(records: &[StoreRecord]) -> Vec<&[StoreRecord]> {
    let mut parts = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (at, record) in records.iter().enumerate() {
        if at > start && (size + record.size() > MAX_RECORD_BYTES || at - start >= MAX_STORE_RECORDS) {
            parts.push(&records[start..at]);
            (start, size) = (at, 0);
        }
        size += record.size();
    }
    if start < records.len() {
        parts.push(&records[start..]);
    }
    parts
}
