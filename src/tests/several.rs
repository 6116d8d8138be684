//! Several models on one node: one identity, one set of handlers, and each request finds its model.

use std::{fs, sync::Arc};

use sepal_protocol::{
    Message, msgpack, names, proto,
    record::{BlockUid, ServerState},
};
use serde_json::{Map, Value};

use super::{
    caller::{Session, Step, call},
    setup::{N_BLOCKS, Node, PREFIX, Swarm, assert_close, config, reference, soon, tokens},
};
use crate::{
    model::KvDType,
    p2p::PeerId,
    server::{self, BlockChoice, Config, LimitChoice, Server, StartError, Throughput},
    swarm::Directory,
};

const OTHER: &str = "another-model";

/// The same weights under another name.
fn other(blocks: std::ops::Range<u32>) -> Config {
    Config {
        prefix: OTHER.to_owned(),
        ..config(blocks)
    }
}

async fn free_tokens(caller: &Node, server: PeerId, uid: &str) -> Result<u64, String> {
    let request = proto::ExpertUid { uid: uid.to_owned() };
    let answer = call(caller, server, names::INFO, request.encode_to_vec()).await?;
    let info = proto::ExpertInfo::decode(answer).unwrap().serialized_info;
    let fields = msgpack::decode(&info).unwrap();
    let fields = fields.as_map().unwrap();
    let free = fields
        .iter()
        .find(|(key, _)| key.as_str() == Some("cache_tokens_available"));
    Ok(free.unwrap().1.as_u64().unwrap())
}

#[tokio::test]
async fn a_node_serves_two_models_and_a_request_finds_its_own() {
    let swarm = Swarm::start().await;
    let node = swarm.node().await;
    let network = (node.p2p.clone(), node.dht.clone());
    let first = Server::new(config(0..2), swarm.source.clone(), network, &node.tasks);
    let second = first.beside(other(1..4), swarm.source.clone());
    node.join(first.handlers()).await;
    assert_eq!(soon("online", first.bring_up()).await.unwrap(), 0..2);
    assert_eq!(soon("online", second.bring_up()).await.unwrap(), 1..4);
    let (caller, me) = (swarm.caller().await, node.peer());
    let reference = reference();
    let spans = [(PREFIX, 0..2), (OTHER, 1..4)];
    for (prefix, blocks) in spans.clone() {
        let directory = Directory::new(caller.dht.clone(), prefix, N_BLOCKS);
        let snapshot = directory.refresh().await;
        assert_eq!(snapshot.spans.len(), 1);
        assert_eq!(
            (snapshot.spans[0].peer, snapshot.spans[0].blocks.clone()),
            (me, blocks.clone())
        );
        assert_eq!(snapshot.spans[0].info.state, ServerState::Online);

        let input = match blocks.start {
            0 => &reference.embeddings,
            start => &reference.blocks[start as usize - 1],
        };
        let step = Step {
            uid: BlockUid::format_chain(prefix, blocks.clone()),
            ..Step::first(&tokens(input, 0..5), 8)
        };
        let mut session = Session::open(&caller, me).await;
        let output = session.step(&step).await.output().to_f32_vec();
        let expected = tokens(&reference.blocks[blocks.end as usize - 1], 0..5);
        assert_close(&output, &expected.data, 1e-4);
    }
    let step = Step {
        uid: BlockUid::format_chain(OTHER, 0..2),
        ..Step::first(&tokens(&reference.embeddings, 0..5), 8)
    };
    let refusal = Session::open(&caller, me).await.step(&step).await.error();
    assert_eq!(refusal, "Remote peer does not serve another-model.0");

    // Without a block the answer is about the node.
    let [whole, one, two] = ["", "tiny-llama-hf.0", "another-model.3"].map(|uid| free_tokens(&caller, me, uid));
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    assert_eq!(whole.await.unwrap(), one + two);
    assert_eq!((one, two), (2 * 1024, 3 * 1024));
    let unknown = free_tokens(&caller, me, "another-model.0").await.unwrap_err();
    assert_eq!(unknown, "KeyError('another-model.0')");
    assert_eq!(first.stats(), second.stats());
    assert_eq!(first.stats().steps, 2);

    // One that stops leaves the other alone.
    soon("stopping", first.shutdown()).await;
    let mut session = Session::open(&caller, me).await;
    let step = Step {
        uid: BlockUid::format_chain(OTHER, 1..4),
        ..Step::first(&tokens(&reference.blocks[0], 0..5), 8)
    };
    session.step(&step).await.output();
    soon("stopping", second.shutdown()).await;
}

#[tokio::test]
async fn more_than_fits_is_refused_before_anything_is_loaded() {
    let swarm = Swarm::start().await;
    let node = swarm.node().await;
    let network = (node.p2p.clone(), node.dht.clone());
    let mut greedy = config(0..4);
    greedy.limits.attn_cache_tokens = Some(1 << 50);
    let small = Server::new(config(0..4), swarm.source.clone(), network, &node.tasks);
    let greedy = small.beside(greedy, swarm.source.clone());
    let servers = [Arc::new(small), Arc::new(greedy)];
    server::plan(&servers[..1]).unwrap();
    let error = server::plan(&servers).unwrap_err();
    assert_eq!(error.n_blocks, 4);
    assert!(error.remedy.contains("--attn-cache-tokens"), "{error}");

    let mut alone = other(0..4);
    alone.blocks = BlockChoice::AsManyAsFit;
    alone.limits.attn_cache_tokens = Some(1 << 50);
    let alone = servers[0].beside(alone, swarm.source.clone());
    let error = alone.bring_up().await.unwrap_err();
    assert!(matches!(error, StartError::DoesNotFit(_)), "{error}");
}

#[tokio::test]
async fn what_is_measured_while_another_model_is_served_is_not_remembered() {
    let (swarm, folder) = (Swarm::start().await, tempfile::tempdir().unwrap());
    let node = swarm.node().await;
    let network = (node.p2p.clone(), node.dht.clone());
    let file = folder.path().join("throughput.json");
    let measuring = |config: Config, kv_dtype| Config {
        throughput: Throughput::Auto,
        throughput_cache: Some(file.clone()),
        limits: LimitChoice {
            kv_dtype: Some(kv_dtype),
            ..config.limits
        },
        ..config
    };
    let first = measuring(config(0..1), KvDType::F32);
    let first = Server::new(first, swarm.source.clone(), network, &node.tasks);
    let second = first.beside(measuring(other(0..1), KvDType::Int8), swarm.source.clone());
    node.join(first.handlers()).await;
    for server in [&first, &second] {
        soon("online", server.bring_up()).await.unwrap();
        assert!(server.overview().throughput > 0.0);
    }
    let remembered: Map<String, Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let keys: Vec<&String> = remembered.keys().collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(keys[0].contains("cache F32"), "{keys:?}");
}
