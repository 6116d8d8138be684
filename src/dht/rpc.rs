//! The three calls of the DHT: what they have in common. Each has a file with both of its sides.
//!
//! Every answered call, and every call received, tells of a node that is there; a call without an answer removes the
//! node from the routing table (hivemind, `dht/protocol.py`).

use std::sync::Arc;

use bytes::Bytes;
use sepal_protocol::{
    Message,
    dht_id::DhtId,
    message::decode,
    names,
    proto::{FindRequest, NodeInfo, PingRequest, StoreRequest},
};
use tracing::debug;

use super::{node::Node, routing::Contact};
use crate::p2p::{CallError, Handler, HandlerError, HandlerLimits, PeerId, short_id};

mod find;
mod ping;
mod store;

pub(crate) use find::MAX_FIND_KEYS;
pub(crate) use ping::Pong;
pub(crate) use store::StoreRecord;

/// Most bytes of records in one message of ours, so that it stays under the 4 MiB of a frame with everything around it.
const MAX_RECORD_BYTES: usize = 3 << 20;

impl Node {
    /// [`Node::serve`] for each of the calls. The host withholds those that a client does not serve.
    pub(crate) fn handlers(self: &Arc<Self>) -> Vec<Handler> {
        let handler = |name: &'static str| {
            let node = self.clone();
            Handler::unary(name, HandlerLimits::default(), move |peer, request| {
                node.clone().serve(name, peer, request)
            })
        };
        [names::DHT_PING, names::DHT_STORE, names::DHT_FIND].map(handler).into()
    }

    /// Answers a call of `peer`.
    pub(crate) async fn serve(
        self: Arc<Self>,
        name: &'static str,
        peer: PeerId,
        request: Bytes,
    ) -> Result<Bytes, HandlerError> {
        let answer = match name {
            names::DHT_STORE => self
                .on_store(peer, parse::<StoreRequest>("StoreRequest", request)?)?
                .encode_to_vec(),
            names::DHT_FIND => self
                .on_find(peer, parse::<FindRequest>("FindRequest", request)?)?
                .encode_to_vec(),
            _ => self
                .on_ping(peer, parse::<PingRequest>("PingRequest", request)?)
                .await
                .encode_to_vec(),
        };
        Ok(answer.into())
    }

    /// How this node introduces itself: a client leaves its id out, which means "do not call me".
    fn node_info(&self) -> NodeInfo {
        NodeInfo {
            node_id: if self.is_client() {
                Vec::new()
            } else {
                self.id.as_bytes().to_vec()
            },
        }
    }

    fn outcome<M: Message + Default>(
        &self,
        peer: PeerId,
        answer: Result<Bytes, CallError>,
        what: &'static str,
    ) -> Result<M, CallError> {
        let parsed = answer.and_then(|bytes| decode(what, bytes).map_err(CallError::Malformed));
        parsed.inspect_err(|error| {
            debug!(peer = %short_id(&peer), what, %error, "no answer");
            self.lost(&peer);
        })
    }

    fn note_answer(self: &Arc<Self>, peer: PeerId, info: Option<&NodeInfo>) -> Option<DhtId> {
        let id = node_id(info);
        match id {
            Some(id) => self.heard_from(Contact { id, peer }),
            // It may have become a client since it was entered in the table. (Python finds out when a call fails.)
            None if info.is_some_and(|info| info.node_id.is_empty()) => self.lost(&peer),
            None => {}
        }
        id
    }

    fn note_caller(self: &Arc<Self>, peer: PeerId, info: Option<&NodeInfo>) {
        self.note_answer(peer, info);
    }
}

fn parse<M: Message + Default>(what: &'static str, bytes: Bytes) -> Result<M, HandlerError> {
    decode(what, bytes).map_err(|_| HandlerError::new("ValueError('the request cannot be parsed')"))
}

fn parse_keys(what: &'static str, keys: &[Vec<u8>]) -> Result<Vec<DhtId>, HandlerError> {
    keys.iter()
        .map(|key| DhtId::from_wire(what, "a key", key))
        .collect::<Result<_, _>>()
        .map_err(|error| HandlerError(format!("ValueError('{error}')")))
}

/// The node a message comes from; `None` for clients. An id of another length than ids have says nothing.
fn node_id(info: Option<&NodeInfo>) -> Option<DhtId> {
    info.and_then(|info| DhtId::from_slice(&info.node_id))
}
