//! What a node answers to calls, well-formed and not.

use std::sync::Arc;

use bytes::Bytes;
use sepal_protocol::{
    Message, names,
    proto::{FindRequest, FindResponse, NodeInfo, PingRequest, PingResponse, ResultType, StoreRequest, StoreResponse},
    value::Dictionary,
};

use super::{NOON, number};
use crate::{
    dht::{
        Clock, Config,
        node::Node,
        rpc::StoreRecord,
        testing::{Lan, contact, id},
    },
    p2p::HandlerError,
    task::Tasks,
};

fn config() -> Config {
    Config {
        clock: Clock::manual(NOON),
        ..Config::default()
    }
}

fn alone() -> Arc<Node> {
    Arc::new(Lan::default()).node(0, config(), &Tasks::new())
}

async fn serve<M: Message + Default>(
    node: &Arc<Node>,
    name: &'static str,
    request: impl Message,
) -> Result<M, HandlerError> {
    let request = Bytes::from(request.encode_to_vec());
    let answer = node.clone().serve(name, contact(99).peer, request).await?;
    Ok(M::decode(answer).unwrap())
}

fn store_request(tag: &[u8], value: Vec<u8>, expiration: f64) -> StoreRequest {
    StoreRequest {
        auth: None,
        keys: vec![id(1).as_bytes().to_vec()],
        subkeys: vec![tag.to_vec()],
        values: vec![value],
        expiration_time: vec![expiration],
        in_cache: vec![false],
        peer: None,
    }
}

fn find_request(n_keys: u64) -> FindRequest {
    FindRequest {
        auth: None,
        keys: (1..=n_keys).map(|key| id(key).as_bytes().to_vec()).collect(),
        peer: None,
    }
}

#[tokio::test]
async fn a_ping_tells_id_and_time_and_makes_the_caller_known() {
    let node = alone();
    let from = |node_id: Vec<u8>| PingRequest {
        auth: None,
        peer: Some(NodeInfo { node_id }),
        validate: false,
    };
    let pong: PingResponse = serve(&node, names::DHT_PING, from(Vec::new())).await.unwrap();
    assert_eq!(pong.peer.unwrap().node_id, node.id.as_bytes());
    assert_eq!((pong.dht_time, pong.available), (NOON, false));
    assert_eq!(node.state().table.len(), 0, "a client is not to be known");
    let _: PingResponse = serve(&node, names::DHT_PING, from(vec![1; 19])).await.unwrap();
    assert_eq!(node.state().table.len(), 0, "this is no id");
    let _: PingResponse = serve(&node, names::DHT_PING, from(vec![1; 20])).await.unwrap();
    assert_eq!(node.state().table.len(), 1);
}

#[tokio::test]
async fn validation_calls_back_and_compares_the_id() {
    let lan = Arc::new(Lan::default());
    let tasks = Tasks::new();
    let (node, caller) = (lan.node(0, config(), &tasks), lan.node(1, config(), &tasks));
    let validated = |claimed: u64| {
        let request = PingRequest {
            auth: None,
            peer: Some(NodeInfo {
                node_id: id(claimed).as_bytes().to_vec(),
            }),
            validate: true,
        };
        let answer = node
            .clone()
            .serve(names::DHT_PING, contact(1).peer, request.encode_to_vec().into());
        async move { PingResponse::decode(answer.await.unwrap()).unwrap().available }
    };
    assert!(!validated(7).await, "its id is another one");
    assert!(!node.state().table.contains(&id(7)));
    assert!(validated(1).await);
    assert!(node.state().table.contains(&caller.id));
    lan.unplug(1);
    assert!(!validated(1).await, "it does not answer");
}

#[tokio::test]
async fn stores_are_checked_one_by_one() {
    let node = alone();
    let later = NOON + 60.0;
    let stored = |tag: &'static [u8], value: Vec<u8>, expiration: f64| {
        let node = node.clone();
        async move {
            let response: StoreResponse = serve(&node, names::DHT_STORE, store_request(tag, value, expiration))
                .await
                .unwrap();
            response.store_ok
        }
    };
    assert_eq!(stored(b"\xc0", number(1), later).await, [true]);
    assert_eq!(stored(b"\xc0", number(2), later).await, [false], "not newer");
    assert_eq!(stored(b"\xc0", number(2), NOON - 1.0).await, [false], "expired");
    assert_eq!(stored(b"\xc0", number(2), f64::NAN).await, [false]);
    assert_eq!(stored(b"\xc1", number(2), later + 1.0).await, [false], "no subkey");
    assert_eq!(
        stored(b"", b"\xc1".to_vec(), later + 1.0).await,
        [false],
        "no dictionary"
    );
    assert_eq!(stored(b"", Dictionary::default().encode(), later + 1.0).await, [true]);
    assert_eq!(
        stored(b"\xc0", b"\xc1\xc1".to_vec(), later + 1.0).await,
        [true],
        "values are not parsed"
    );
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_with_an_error() {
    let node = alone();
    let good = store_request(b"\xc0", number(1), NOON + 60.0);
    let bad_stores = [
        StoreRequest {
            values: Vec::new(),
            ..good.clone()
        },
        StoreRequest {
            in_cache: vec![false; 2],
            ..good.clone()
        },
        StoreRequest {
            expiration_time: Vec::new(),
            ..good.clone()
        },
        StoreRequest {
            subkeys: Vec::new(),
            ..good.clone()
        },
        StoreRequest {
            keys: vec![vec![1; 21]],
            ..good.clone()
        },
    ];
    for bad in bad_stores {
        let answer: Result<StoreResponse, _> = serve(&node, names::DHT_STORE, bad).await;
        assert!(answer.is_err());
    }
    let short_key = FindRequest {
        keys: vec![vec![1; 19]],
        ..find_request(1)
    };
    for bad in [short_key, find_request(257)] {
        let answer: Result<FindResponse, _> = serve(&node, names::DHT_FIND, bad).await;
        assert!(answer.is_err());
    }
    for name in [names::DHT_PING, names::DHT_STORE, names::DHT_FIND] {
        let answer = node
            .clone()
            .serve(name, contact(99).peer, Bytes::from_static(&[0xff; 40]))
            .await;
        assert!(answer.is_err(), "{name}");
    }
    let answer: StoreResponse = serve(&node, names::DHT_STORE, good).await.unwrap();
    assert_eq!(answer.store_ok, [true], "the node goes on");
}

#[tokio::test]
async fn an_answer_fits_a_frame_whatever_is_asked_for() {
    let node = alone();
    for key in 1..=4 {
        let record = StoreRecord {
            key: id(key),
            tag: vec![0xc0],
            value: vec![0; (2 << 20) - 1].into(),
            expiration: NOON + 60.0,
        };
        assert!(node.store_here(&record, false));
    }
    for other in 10..40 {
        node.heard_from(contact(other));
    }
    let found: FindResponse = serve(&node, names::DHT_FIND, find_request(256)).await.unwrap();
    assert!(found.encoded_len() < 4 << 20);
    assert_eq!(found.results.len(), 256);
    assert!(found.results.iter().all(|result| result.nearest_node_ids.len() == 20));
    let values = found
        .results
        .iter()
        .filter(|result| result.r#type() == ResultType::FoundRegular)
        .count();
    assert_eq!(values, 1, "the others can be asked for alone");
}

#[tokio::test]
async fn the_asker_is_not_among_the_nodes_it_is_told_of() {
    let node = alone();
    for other in [10, 11, 99] {
        node.heard_from(contact(other));
    }
    let request = FindRequest {
        peer: Some(NodeInfo {
            node_id: id(99).as_bytes().to_vec(),
        }),
        ..find_request(1)
    };
    let found: FindResponse = serve(&node, names::DHT_FIND, request).await.unwrap();
    let result = &found.results[0];
    assert_eq!(result.r#type(), ResultType::NotFound);
    assert_eq!((result.nearest_node_ids.len(), result.nearest_peer_ids.len()), (2, 2));
    assert!(!result.nearest_node_ids.contains(&id(99).as_bytes().to_vec()));
}

#[tokio::test]
async fn many_records_are_offered_in_requests_that_fit_a_frame() {
    let lan = Arc::new(Lan::default());
    let tasks = Tasks::new();
    let (giver, taker) = (lan.node(0, config(), &tasks), lan.node(1, config(), &tasks));
    let records: Vec<StoreRecord> = (10..20)
        .map(|key| StoreRecord {
            key: id(key),
            tag: vec![0xc0],
            value: vec![0; 1 << 20].into(),
            expiration: NOON + 60.0,
        })
        .collect();
    let stored = giver.call_store(contact(1).peer, &records, false).await.unwrap();
    assert_eq!(stored, [true; 10]);
    assert_eq!(taker.state().storage.len(), 10);
    assert_eq!(lan.calls(names::DHT_STORE), 5);
}
