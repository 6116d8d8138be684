//! What the tests of this layer share: vectors recorded from Python, ids made from small numbers, a network in memory.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use sepal_protocol::dht_id::DhtId;
use serde_json::Value as Json;

use super::{Config, network::Network, node::Node, routing::Contact};
use crate::{
    p2p::{CallError, DialError, Multiaddr, OpenError, PeerId},
    task::Tasks,
};

/// A file of vectors, such as `hivemind/dhtid.json`.
pub(crate) fn vectors(name: &str) -> Json {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors"));
    serde_json::from_str(&fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

pub(crate) fn bytes(json: &Json) -> Vec<u8> {
    hex::decode(json.as_str().unwrap()).unwrap()
}

pub(crate) fn json_id(json: &Json) -> DhtId {
    DhtId::from_slice(&bytes(json)).unwrap()
}

/// The `number`th of a fixed sequence of random-looking ids.
pub(crate) fn id(number: u64) -> DhtId {
    DhtId::of_raw(&number.to_be_bytes())
}

/// The `number`th node, with an Ed25519-shaped peer id of its own.
pub(crate) fn contact(number: u64) -> Contact {
    let mut multihash = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
    multihash.extend([0; 24]);
    multihash.extend(number.to_be_bytes());
    Contact {
        id: id(number),
        peer: PeerId::from_bytes(&multihash).unwrap(),
    }
}

/// Nodes that call each other in memory. It counts the calls.
#[derive(Default)]
pub(crate) struct Lan {
    nodes: Mutex<HashMap<PeerId, Arc<Node>>>,
    calls: Mutex<HashMap<&'static str, usize>>,
    /// Calls that a node does not accept.
    withheld: Mutex<HashSet<(PeerId, &'static str)>>,
}

impl Lan {
    /// A node with the `number`th id, joined to nobody.
    pub(crate) fn node(self: &Arc<Self>, number: u64, config: Config, tasks: &Tasks) -> Arc<Node> {
        let Contact { id, peer } = contact(number);
        let port = Port {
            lan: self.clone(),
            own: peer,
        };
        let config = Config {
            node_id: Some(id),
            ..config
        };
        let node = Arc::new(Node::new(Box::new(port), config, tasks.clone()));
        self.nodes.lock().unwrap().insert(peer, node.clone());
        node
    }

    /// Nobody can reach this node any more.
    pub(crate) fn unplug(&self, number: u64) {
        self.nodes.lock().unwrap().remove(&contact(number).peer);
    }

    /// How many calls of this name there were.
    pub(crate) fn calls(&self, name: &'static str) -> usize {
        self.calls.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    /// Where the `number`th node is.
    pub(crate) fn addr(number: u64) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/1/p2p/{}", contact(number).peer)
            .parse()
            .unwrap()
    }
}

struct Port {
    lan: Arc<Lan>,
    own: PeerId,
}

impl Network for Port {
    fn connect(&self, addr: Multiaddr) -> BoxFuture<'_, Result<PeerId, DialError>> {
        let text = addr.to_string();
        let peer: PeerId = text.rsplit("/p2p/").next().unwrap().parse().unwrap();
        let found = self.lan.nodes.lock().unwrap().contains_key(&peer);
        async move { found.then_some(peer).ok_or(DialError::NotFound) }.boxed()
    }

    fn call(
        &self,
        peer: PeerId,
        name: &'static str,
        request: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        *self.lan.calls.lock().unwrap().entry(name).or_default() += 1;
        let node = self.lan.nodes.lock().unwrap().get(&peer).cloned();
        async move {
            let node = node.ok_or(CallError::Open(OpenError::Dial(DialError::NotFound)))?;
            if self.lan.withheld.lock().unwrap().contains(&(peer, name)) {
                return Err(CallError::Open(OpenError::UnknownName));
            }
            let answer = node.serve(name, self.own, request).await;
            answer.map_err(|error| CallError::Remote { text: error.0 })
        }
        .boxed()
    }

    fn withhold(&self, names: &[&'static str], withheld: bool) {
        let mut all = self.lan.withheld.lock().unwrap();
        for name in names {
            if withheld {
                all.insert((self.own, name));
            } else {
                all.remove(&(self.own, *name));
            }
        }
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), holds).await.expect(what);
}
