//! A swarm to test in: nodes, servers, the model, and what transformers computes with it.

use std::{fs, future::Future, ops::Range, time::Duration};

use serde_json::Value;

use crate::{
    dht::{self, Dht},
    model::{Hidden, HubOptions, ModelSource, WeightDType},
    p2p::{self, Identity, Multiaddr, P2p, PeerId, Router},
    server::{BlockChoice, Config, LimitChoice, Server, Throughput},
    swarm::reachability,
    task::Tasks,
};

pub(super) use crate::model::testing::{assert_close, assert_same_bits, engine};

/// The prefix under which the recorded servers announced the model.
pub(super) const PREFIX: &str = "tiny-llama-hf";
pub(super) const N_BLOCKS: u32 = 4;
pub(super) const WIDTH: usize = 64;
/// For what must happen sooner or later; long because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what must happen.
#[track_caller]
pub(super) fn soon<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{what}: nothing within {PATIENCE:?}, waited for at {caller}"),
        }
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(super) fn until(what: &str, condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    soon(what, async move {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

pub(super) fn model() -> ModelSource {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/petals/tiny-llama");
    ModelSource::resolve(folder, &HubOptions::from_variables(|_| None)).unwrap()
}

/// A file of vectors recorded from Petals.
pub(super) fn vectors(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/petals");
    serde_json::from_str(&fs::read_to_string(format!("{folder}/{name}")).unwrap()).unwrap()
}

/// A folder of recorded vectors.
pub(super) fn vectors_folder(name: &str) -> String {
    format!(concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/{}"), name)
}

/// What transformers computes for one prompt, in float32.
pub(super) struct Reference {
    pub(super) prompt: Vec<u32>,
    pub(super) embeddings: Hidden,
    /// After each block.
    pub(super) blocks: Vec<Hidden>,
    /// Greedy tokens after the prompt.
    pub(super) greedy: Vec<u32>,
}

pub(super) fn reference() -> Reference {
    let file = vectors("tiny-llama/reference.json");
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let hidden = |value: &Value| {
        let bytes = hex::decode(value["hex_le"].as_str().unwrap()).unwrap();
        let shape: Vec<usize> = serde_json::from_value(value["shape"].clone()).unwrap();
        let data = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        Hidden::new(data, shape[0], shape[1], shape[2]).unwrap()
    };
    let numbers = &file["float32"];
    Reference {
        prompt: ids(&file["input_ids"]),
        embeddings: hidden(&numbers["embeddings"]),
        blocks: numbers["blocks"].as_array().unwrap().iter().map(hidden).collect(),
        greedy: ids(&numbers["greedy_continuation_16"]),
    }
}

/// The tokens `range` of one sequence.
pub(super) fn tokens(x: &Hidden, range: Range<usize>) -> Hidden {
    assert_eq!(x.batch, 1);
    let data = x.data[range.start * x.width..range.end * x.width].to_vec();
    Hidden::new(data, 1, range.len(), x.width).unwrap()
}

/// A DHT node with a host and background tasks of its own.
pub(super) struct Node {
    pub(super) p2p: P2p,
    pub(super) dht: Dht,
    pub(super) tasks: Tasks,
}

impl Node {
    async fn start(initial_peers: Vec<Multiaddr>) -> Self {
        Self::start_as(p2p::Config::default(), initial_peers).await
    }

    async fn start_as(host: p2p::Config, initial_peers: Vec<Multiaddr>) -> Self {
        let tasks = Tasks::new();
        let host = p2p::Config {
            known_peers: initial_peers.clone(),
            ..host
        };
        let p2p = P2p::bind(host, &tasks).await.unwrap();
        let config = dht::Config {
            initial_peers,
            ..dht::Config::default()
        };
        let dht = Dht::spawn(p2p.clone(), config, &tasks);
        Self { p2p, dht, tasks }
    }

    pub(super) fn peer(&self) -> PeerId {
        self.p2p.peer_id()
    }

    /// Serves the DHT and `handlers`, and joins.
    pub(super) async fn join(&self, handlers: Vec<p2p::Handler>) {
        Router::new(self.p2p.clone())
            .serve(self.dht.handlers())
            .serve(handlers)
            .spawn(&self.tasks);
        soon("joining", self.dht.bootstrap()).await.unwrap();
    }
}

/// A server and its node.
pub(super) struct TestServer {
    pub(super) node: Node,
    pub(super) server: Server,
}

impl TestServer {
    /// Breaks off everything at once, without a word to anybody: what a crash looks like from outside.
    pub(super) fn kill(&self) {
        self.node.tasks.token().cancel();
    }

    pub(super) async fn idle(&self) {
        until("the server has nothing to do", || self.server.is_idle()).await;
    }
}

/// A bootstrap node, and what servers of the swarm are made of.
pub(super) struct Swarm {
    pub(super) bootstrap: Node,
    pub(super) source: ModelSource,
}

impl Swarm {
    pub(super) async fn start() -> Self {
        let bootstrap = Node::start(Vec::new()).await;
        bootstrap.join(Vec::new()).await;
        Self {
            bootstrap,
            source: model(),
        }
    }

    /// A node that has not joined yet.
    pub(super) async fn node(&self) -> Node {
        Node::start(self.bootstrap.p2p.addrs()).await
    }

    /// A node that nobody can dial, and that has not joined yet.
    pub(super) async fn hidden_node(&self) -> Node {
        let host = p2p::Config {
            listen: Vec::new(),
            ..p2p::Config::default()
        };
        Node::start_as(host, self.bootstrap.p2p.addrs()).await
    }

    /// A node with this identity that has not joined yet.
    pub(super) async fn node_as(&self, identity: &Identity) -> Node {
        let host = p2p::Config {
            identity: identity.clone(),
            ..p2p::Config::default()
        };
        Node::start_as(host, self.bootstrap.p2p.addrs()).await
    }

    /// A node that calls others and is called by none.
    pub(super) async fn caller(&self) -> Node {
        let node = self.node().await;
        node.join(Vec::new()).await;
        node
    }

    /// A float32 server of `blocks`, online.
    pub(super) async fn serve(&self, blocks: Range<u32>) -> TestServer {
        self.serve_with(config(blocks)).await
    }

    /// A server, online.
    pub(super) async fn serve_with(&self, config: Config) -> TestServer {
        self.serve_on(self.node().await, config).await
    }

    /// A float32 server of `blocks` with this identity, online.
    pub(super) async fn serve_as(&self, identity: &Identity, blocks: Range<u32>) -> TestServer {
        self.serve_on(self.node_as(identity).await, config(blocks)).await
    }

    /// A server on a host of this kind, online.
    pub(super) async fn serve_at(&self, host: p2p::Config, config: Config) -> TestServer {
        let node = Node::start_as(host, self.bootstrap.p2p.addrs()).await;
        self.serve_on(node, config).await
    }

    async fn serve_on(&self, node: Node, config: Config) -> TestServer {
        let server = Server::new(
            config,
            self.source.clone(),
            (node.p2p.clone(), node.dht.clone()),
            &node.tasks,
        );
        let mut handlers = server.handlers();
        handlers.extend(reachability::handlers(node.p2p.clone(), node.tasks.clone()));
        node.join(handlers).await;
        soon("online", server.bring_up()).await.unwrap();
        TestServer { node, server }
    }

    /// Several servers, one after another.
    pub(super) async fn serve_all(&self, spans: &[Range<u32>]) -> Vec<TestServer> {
        let mut servers = Vec::new();
        for span in spans {
            servers.push(self.serve(span.clone()).await);
        }
        servers
    }
}

/// A float32 server of `blocks` with the cache that the recorded ones had.
pub(super) fn config(blocks: Range<u32>) -> Config {
    let limits = LimitChoice {
        attn_cache_tokens: Some(1024),
        ..LimitChoice::default()
    };
    Config {
        dtype: Some(WeightDType::F32),
        throughput: Throughput::Fixed(100.0),
        choose_after: Duration::ZERO,
        ..Config::new(PREFIX.to_owned(), BlockChoice::Fixed(blocks), limits, engine())
    }
}
