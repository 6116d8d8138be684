//! `rpc_find`, both sides: what is known about these keys, and who is near them?

use std::sync::Arc;

use bytes::Bytes;
use sepal_protocol::{
    Message, WireError,
    dht_id::DhtId,
    names,
    proto::{FindRequest, FindResponse, FindResult, ResultType},
    value::Dictionary,
};
use tracing::debug;

use super::{MAX_RECORD_BYTES, node_id, parse_keys};
use crate::{
    dht::{
        inquiry::Knowledge,
        node::Node,
        record::{Entries, Record},
        routing::Contact,
    },
    p2p::{CallError, HandlerError, PeerId},
};

/// Most keys of one find request. Hivemind asks for at most 16, or √n when it stores n.
pub(crate) const MAX_FIND_KEYS: usize = 256;

impl Node {
    /// Asks a peer for records and nearest nodes. The answer is in the order of the keys.
    pub(crate) async fn call_find(self: &Arc<Self>, peer: PeerId, keys: &[DhtId]) -> Result<Vec<Knowledge>, CallError> {
        let request = FindRequest {
            auth: None,
            keys: keys.iter().map(|key| key.as_bytes().to_vec()).collect(),
            peer: Some(self.node_info()),
        };
        let request = request.encode_to_vec().into();
        let answer = self
            .network
            .call(peer, names::DHT_FIND, request, self.config.call_timeout);
        let response: FindResponse = self.outcome(peer, answer.await, "FindResponse")?;
        if response.results.len() != keys.len() {
            self.lost(&peer);
            return Err(CallError::Malformed(WireError::OutOfRange {
                what: "FindResponse",
                field: "results",
                expected: "one for each key",
            }));
        }
        self.note_answer(peer, response.peer.as_ref());
        Ok(keys
            .iter()
            .zip(response.results)
            .map(|(key, result)| self.knowledge(key, result))
            .collect())
    }

    fn knowledge(&self, key: &DhtId, result: FindResult) -> Knowledge {
        let record = match result.r#type() {
            ResultType::NotFound => None,
            ResultType::FoundRegular => Some(Record::Regular {
                expiration: result.expiration_time,
                value: result.value.into(),
            }),
            ResultType::FoundDictionary => Dictionary::decode(&result.value)
                .inspect_err(|error| debug!(%key, %error, "skipped a dictionary"))
                .ok()
                .map(|dictionary| Record::Dictionary(Entries::from_wire(dictionary))),
        };
        let ids = result.nearest_node_ids.iter().map(|id| DhtId::from_slice(id));
        let peers = result.nearest_peer_ids.iter().map(|peer| PeerId::from_bytes(peer).ok());
        let contact = |(id, peer): (Option<DhtId>, Option<PeerId>)| Some(Contact { id: id?, peer: peer? });
        Knowledge {
            record: record.and_then(|record| self.readable(key, record)),
            nearest: ids.zip(peers).filter_map(contact).collect(),
        }
    }

    pub(super) fn on_find(self: Arc<Self>, peer: PeerId, request: FindRequest) -> Result<FindResponse, HandlerError> {
        if request.keys.len() > MAX_FIND_KEYS {
            return Err(HandlerError::new("ValueError('too many keys in one request')"));
        }
        let asker = node_id(request.peer.as_ref());
        let keys = parse_keys("FindRequest", &request.keys)?;
        let mut room = MAX_RECORD_BYTES;
        let results = keys
            .iter()
            .map(|key| self.find_here(key, asker.as_ref(), &mut room))
            .collect();
        self.note_caller(peer, request.peer.as_ref());
        Ok(FindResponse {
            auth: None,
            results,
            peer: Some(self.node_info()),
        })
    }

    /// A record that does not fit into `room` any more is passed over: the asker can still ask for it alone.
    fn find_here(&self, key: &DhtId, asker: Option<&DhtId>, room: &mut usize) -> FindResult {
        let (record, nearest) = {
            let mut state = self.state();
            (state.record(key, self.now()), state.neighbors(key, asker))
        };
        let (kind, value) = match &record {
            None => (ResultType::NotFound, Bytes::new()),
            Some(Record::Regular { value, .. }) => (ResultType::FoundRegular, value.clone()),
            Some(Record::Dictionary(entries)) => (ResultType::FoundDictionary, entries.to_wire().encode().into()),
        };
        let found = record.filter(|_| value.len() <= *room);
        *room -= if found.is_some() { value.len() } else { 0 };
        FindResult {
            r#type: found.as_ref().map_or(ResultType::NotFound, |_| kind).into(),
            expiration_time: found.as_ref().map_or(0.0, Record::expiration),
            value: if found.is_some() { value.to_vec() } else { Vec::new() },
            nearest_node_ids: nearest.iter().map(|node| node.id.as_bytes().to_vec()).collect(),
            nearest_peer_ids: nearest.iter().map(|node| node.peer.to_bytes()).collect(),
        }
    }
}
