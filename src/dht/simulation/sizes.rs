//! How many bytes a message has on its stream: the envelope of a unary call around the message, with its length. What
//! yamux, noise, TCP and the negotiation of the stream's name add is not counted. Computed, because encoding every message
//! would take longer than everything else; a test compares with what is really encoded.

use sepal_protocol::{dht_id::DhtId, frame, msgpack, names, unary::CALL_ID_LEN, value::Subkey};

use super::calls::{Answer, Knowledge, Request};
use crate::dht::{record::Record, state::Offer};

/// Length of a peer id made from an Ed25519 key.
pub(super) const PEER_ID_LEN: usize = 38;

/// Where the sender says which node it is.
const NODE_INFO: usize = field(field(DhtId::LEN));

/// A double, and a number below 128.
const DOUBLE: usize = 9;
const SMALL: usize = 2;

/// The size of a request.
pub(super) fn request(request: &Request) -> usize {
    let (name, message) = match request {
        Request::Ping { validate } => (names::DHT_PING, NODE_INFO + SMALL * usize::from(*validate)),
        Request::Find(question) => {
            let keys = question.call.queries.len();
            (names::DHT_FIND, NODE_INFO + keys * field(DhtId::LEN))
        }
        Request::Store { records, .. } => {
            let each = |(_, offer): &(DhtId, Offer)| {
                let (tag, value) = tag_and_value(offer);
                field(DhtId::LEN) + field(tag) + field(value)
            };
            let (expirations, in_cache) = (field(8 * records.len()), field(records.len()));
            let records: usize = records.iter().map(each).sum();
            (names::DHT_STORE, records + expirations + in_cache + NODE_INFO)
        }
    };
    framed(field(PEER_ID_LEN) + field(name.len()) + field(message))
}

/// The size of an answer.
pub(super) fn answer(answer: &Answer) -> usize {
    let message = match answer {
        Answer::Pong(pong) => NODE_INFO + DOUBLE + SMALL * usize::from(pong.available),
        Answer::Knowledge(known) => known.iter().map(|known| field(result(known))).sum::<usize>() + NODE_INFO,
        Answer::Stored(stored) => field(stored.len()) + NODE_INFO,
    };
    framed(field(message))
}

fn result(known: &Knowledge) -> usize {
    let record = match &known.record {
        None => 0,
        Some(Record::Regular { value, .. }) => SMALL + field(value.len()) + DOUBLE,
        Some(Record::Dictionary(entries)) => SMALL + field(entries.to_wire().encode().len()) + DOUBLE,
    };
    record + known.nearest.len() * (field(DhtId::LEN) + field(PEER_ID_LEN))
}

fn tag_and_value(offer: &Offer) -> (usize, usize) {
    match offer {
        Offer::Regular { value, .. } => (Subkey::None.to_wire().len(), value.len()),
        Offer::Entry(entry) => (msgpack::encode(&entry.subkey).len(), entry.value.len()),
        Offer::Dictionary(entries) => (0, entries.to_wire().encode().len()),
    }
}

/// A message of these many bytes in its envelope in its frame.
fn framed(message: usize) -> usize {
    let envelope = field(CALL_ID_LEN) + field(message);
    frame::uvarint(envelope as u64).len() + envelope
}

/// A field of these many bytes, with its tag and its length.
const fn field(len: usize) -> usize {
    let mut prefix = 2;
    let mut rest = len >> 7;
    while rest > 0 {
        prefix += 1;
        rest >>= 7;
    }
    prefix + len
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sepal_protocol::{
        Message,
        proto::{
            FindRequest, FindResponse, FindResult, NodeInfo, PingResponse, ResultType, StoreRequest, StoreResponse,
        },
        unary::{UnaryReply, UnaryRequest},
    };

    use super::*;
    use crate::dht::{
        inquiry::Question,
        record::{Entries, Entry},
        routing::Contact,
        rpc::Pong,
        testing::{contact, id},
        traverse::Call,
    };

    fn info() -> Option<NodeInfo> {
        Some(NodeInfo {
            node_id: id(0).as_bytes().to_vec(),
        })
    }

    fn sent(name: &str, message: &impl Message) -> usize {
        let request = UnaryRequest {
            call_id: [1; CALL_ID_LEN],
            peer: contact(0).peer.to_bytes(),
            proto: name.to_owned(),
            data: message.encode_to_vec().into(),
        };
        request.encode_frame().len()
    }

    fn answered(message: &impl Message) -> usize {
        let reply = UnaryReply {
            call_id: [1; CALL_ID_LEN],
            result: Ok(message.encode_to_vec().into()),
        };
        reply.encode_frame().len()
    }

    fn dictionary() -> Entries {
        let mut entries = Entries::default();
        for number in 0..3 {
            entries.put(entry(number));
        }
        entries
    }

    fn entry(number: usize) -> Entry {
        Entry {
            subkey: format!("node {number}").into(),
            value: Bytes::from(vec![0xc0; 100]),
            expiration: 7.0,
            proven: false,
        }
    }

    #[test]
    fn computed_sizes_of_questions_are_those_of_encoded_ones() {
        for n_keys in [1, 3, 16] {
            let keys: Vec<DhtId> = (0..n_keys).map(id).collect();
            let real = FindRequest {
                auth: None,
                keys: keys.iter().map(|key| key.as_bytes().to_vec()).collect(),
                peer: info(),
            };
            let question = Question {
                call: Call {
                    node: id(9),
                    queries: keys,
                },
                to: Contact { id: id(9), peer: 9 },
            };
            assert_eq!(request(&Request::Find(question)), sent(names::DHT_FIND, &real));
        }
        let nearest: Vec<Contact<u32>> = (1..21)
            .map(|peer| Contact {
                id: id(peer.into()),
                peer,
            })
            .collect();
        let peers = (1..21).map(|number| contact(number).peer.to_bytes());
        let known = |record| Knowledge {
            record,
            nearest: nearest.clone(),
        };
        let real = FindResult {
            nearest_node_ids: nearest.iter().map(|node| node.id.as_bytes().to_vec()).collect(),
            nearest_peer_ids: peers.collect(),
            ..FindResult::default()
        };
        let found = FindResult {
            r#type: ResultType::FoundDictionary.into(),
            value: dictionary().to_wire().encode(),
            expiration_time: 7.0,
            ..real.clone()
        };
        let real = FindResponse {
            auth: None,
            results: vec![real, found],
            peer: info(),
        };
        let records = [None, Some(Record::Dictionary(dictionary()))];
        let computed = answer(&Answer::Knowledge(records.map(known).into()));
        assert_eq!(computed, answered(&real));
    }

    #[test]
    fn computed_sizes_of_stores_and_pings_are_those_of_encoded_ones() {
        let offers = [Offer::Entry(entry(1)), Offer::Dictionary(dictionary())];
        let tags = [msgpack::encode(&entry(1).subkey), Vec::new()];
        let values = [entry(1).value.to_vec(), dictionary().to_wire().encode()];
        let real = StoreRequest {
            auth: None,
            keys: vec![id(1).as_bytes().to_vec(); 2],
            subkeys: tags.into(),
            values: values.into(),
            expiration_time: vec![7.0; 2],
            in_cache: vec![false; 2],
            peer: info(),
        };
        let records = offers.map(|offer| (id(1), offer)).into();
        let in_cache = false;
        let computed = request(&Request::Store { records, in_cache });
        assert_eq!(computed, sent(names::DHT_STORE, &real));
        let real = StoreResponse {
            auth: None,
            store_ok: vec![true; 2],
            peer: info(),
        };
        assert_eq!(answer(&Answer::Stored(vec![true; 2])), answered(&real));
        let real = PingResponse {
            auth: None,
            peer: info(),
            dht_time: 1.0,
            available: true,
        };
        let pong = Pong {
            node: Some(id(0)),
            time: Some(1.0),
            available: true,
        };
        assert_eq!(answer(&Answer::Pong(pong)), answered(&real));
    }
}
