//! Hidden states through servers, once without a session (`rpc_forward`, as training does it) and once step by step in one
//! (`rpc_inference`), beside what the same blocks give here: the largest error, in root mean squares of what is right.
//!
//! ```text
//! $ cargo run --release --example forward_pass
//! hidden states of 11 tokens through blocks [0..4, 4..8]
//! rpc_forward: error 0
//! rpc_inference, token by token: error 0
//! ```
//!
//! That is a swarm of two servers in this process; `forward_pass ADDR…` asks servers of `demo` in the swarm of those nodes, which
//! compute in bfloat16 unless told otherwise: then the errors are some hundredths.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{ops::Range, time::Duration};

use anyhow::Context;
use sepal::client::{self, Client, TextCodec};
use sepal::model::{Blocks, Engine, Hidden, ModelSource, WeightDType, accuracy::max_error};
use sepal::p2p::{Config, Multiaddr, P2p};
use sepal::server::{self, BlockChoice, LimitChoice, Server, Throughput};
use sepal::swarm::{Node, route::Hop};
use sepal_protocol::tensor::{DType, WireTensor};
use sepal_protocol::{Message, compress::Compression, message::decode, names, proto, record::BlockUid};

type Peers = Vec<Multiaddr>;
const PREFIX: &str = "demo-hf";

/// One call, one answer: the server keeps nothing. More than about a megabyte would go over `rpc_forward_stream`.
async fn forward(p2p: &P2p, hop: &Hop, x: &Hidden) -> anyhow::Result<Hidden> {
    // In the place of the second tensor a client that trains has its prompts.
    let (x, none) = (x.to_wire(DType::F32)?, WireTensor::from_f32(&[], [0], DType::F32)?);
    let request = proto::ExpertRequest {
        uid: BlockUid::format_chain(PREFIX, hop.blocks.clone()),
        tensors: vec![x.encode(Compression::None)?, none.encode(Compression::None)?],
        ..proto::ExpertRequest::default()
    };
    let (request, timeout) = (request.encode_to_vec().into(), Duration::from_secs(30));
    let answer = p2p.call_unary(hop.peer, names::FORWARD, request, timeout).await?;
    let answer: proto::ExpertResponse = decode("ExpertResponse", answer)?;
    let output = WireTensor::decode(answer.tensors.first().context("no tensor in the answer")?)?;
    Ok(Hidden::from_wire(&output)?)
}

/// A server of these blocks, in the swarm of `peers`, and where it is.
async fn serve(source: &ModelSource, blocks: Range<u32>, peers: Peers) -> anyhow::Result<(Server, Peers)> {
    let node = Node::join(Config::on_loopback(peers)).await?;
    let (blocks, limits) = (BlockChoice::Fixed(blocks), LimitChoice::default());
    let config = server::Config {
        dtype: Some(WeightDType::F32),
        throughput: Throughput::Fixed(100.0),
        ..server::Config::new(PREFIX.to_owned(), blocks, limits, Engine::new(None)?)
    };
    Ok((Server::start(config, source.clone(), &node).await?, node.p2p.addrs()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let given: Result<Peers, _> = std::env::args().skip(1).map(|addr| addr.parse()).collect();
    let (given, source) = (given?, ModelSource::built_in()?);
    let (mut peers, mut servers) = (Vec::new(), Vec::new());
    for blocks in [0..4, 4..8].into_iter().filter(|_| given.is_empty()) {
        let (server, addrs) = serve(&source, blocks, peers).await?;
        servers.push(server);
        peers = addrs;
    }
    let node = Node::join(Config::client([given, peers].concat())).await?;
    let config = client::Config::new(PREFIX.to_owned());
    let client = Client::connect(config, &source, node.network(), &node.tasks).await?;
    let codec = TextCodec::from_json(&source.tokenizer_json()?)?;
    let x = client.ends().embed(&codec.encode("What is the capital of France?")?)?;
    let route = client.route(x.tokens).await?;
    let hops: Vec<_> = route.iter().map(|hop| hop.blocks.clone()).collect();
    println!("hidden states of {} tokens through blocks {hops:?}", x.tokens);

    let files = source.files_for_span(0..8)?;
    let blocks = Blocks::load(&files, 0..8, WeightDType::F32, Engine::new(None)?)?;
    let (mut here, mut there) = (x.clone(), x.clone());
    for block in blocks.span() {
        blocks.forward(block, &mut here)?;
    }
    for hop in &route {
        there = forward(&node.p2p, hop, &there).await?;
    }
    println!("rpc_forward: error {}", max_error(&here.data, &there.data));
    let (mut session, mut steps) = (client.session(x.tokens), Vec::new());
    for token in x.data.chunks(x.width) {
        let token = Hidden::new(token.to_vec(), 1, 1, x.width)?;
        steps.extend(session.step(token).await?.data);
    }
    println!("rpc_inference, token by token: error {}", max_error(&here.data, &steps));
    session.close().await;
    for server in servers {
        server.shutdown().await;
    }
    Ok(())
}
