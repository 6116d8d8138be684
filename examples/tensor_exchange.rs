//! Two machines exchange tensors the way servers of a swarm do: libp2p streams, Hivemind framing, every compression.
//!
//! ```text
//! machine A$ cargo run --release --example tensor_exchange -- --listen /ip4/0.0.0.0/tcp/31400
//! listening /ip4/192.0.2.7/tcp/31400/p2p/12D3KooW…
//! machine B$ cargo run --release --example tensor_exchange -- --connect /ip4/192.0.2.7/tcp/31400/p2p/12D3KooW… --send
//! float32  NONE             4.19 MB    812.4 MB/s     5.2 ms  hash ok
//! …
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use sepal::p2p::{Config, Handler, HandlerError, HandlerLimits, Multiaddr, P2p, Router, StreamReceiver, StreamSender};
use sepal::task::Tasks;
use sepal_protocol::compress::Compression;
use sepal_protocol::tensor::{DEFAULT_PART_BYTES, DType, Joiner, WireTensor, split};
use sepal_protocol::{Message, message::decode, proto};
use sha2::{Digest, Sha256};

const NAME: &str = "TensorExchange.rpc_hash";
const LIMITS: HandlerLimits = HandlerLimits {
    max_calls: 8,
    max_message: 16 << 20,
};
const TENSOR_BYTES: usize = 64 << 20;
const SHAPE: [usize; 3] = [1, 512, 2048];
const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

#[derive(Parser)]
struct Args {
    /// Address to wait for tensors on.
    #[arg(long, conflicts_with = "connect", required_unless_present = "connect")]
    listen: Option<Multiaddr>,
    /// Address of the other machine, with /p2p/ID.
    #[arg(long, requires = "send")]
    connect: Option<Multiaddr>,
    /// Send one tensor of every dtype and compression to it.
    #[arg(long)]
    send: bool,
}

/// Receives one tensor in parts and answers with the SHA-256 of what it decodes to.
async fn answer(mut parts: StreamReceiver, mut reply: StreamSender) -> anyhow::Result<()> {
    let mut joiner = Joiner::new(TENSOR_BYTES, 1);
    while let Some(part) = parts.recv().await? {
        joiner.push(decode("Tensor", part)?)?;
    }
    let tensor = joiner.finish()?.context("no tensor came")?;
    reply.send(hash(&tensor)?.into()).await?;
    Ok(())
}

fn hash(tensor: &proto::Tensor) -> anyhow::Result<Vec<u8>> {
    Ok(Sha256::digest(&WireTensor::decode(tensor)?.data).to_vec())
}

async fn send(p2p: &P2p, to: Multiaddr, dtype: DType, compression: Compression) -> anyhow::Result<()> {
    let peer = p2p.connect(to).await?;
    let values: Vec<f32> = (0..SHAPE.iter().product::<usize>())
        .map(|i| (i as f32 * 0.37).sin())
        .collect();
    let tensor = WireTensor::from_f32(&values, SHAPE, dtype)?.encode(compression)?;
    let (expected, bytes) = (hash(&tensor)?, tensor.encoded_len());
    let start = Instant::now();
    let (mut parts, mut reply) = p2p.open_stream(peer, NAME, Duration::from_secs(5)).await?;
    for part in split(tensor, DEFAULT_PART_BYTES) {
        parts.send(part.encode_to_vec().into()).await?;
    }
    parts.finish().await?;
    let got = reply.recv().await?.context("the other side closed without an answer")?;
    let (time, size) = (start.elapsed().as_secs_f64(), bytes as f64 / 1e6);
    ensure!(
        got == expected,
        "{dtype} {compression}: the tensor that arrived is another one"
    );
    let (dtype, compression) = (dtype.as_str(), compression.as_str());
    println!(
        "{dtype:<9}{compression:<15}{size:>6.2} MB {:>8.1} MB/s {:>7.1} ms  hash ok",
        size / time,
        time * 1e3
    );
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let tasks = Tasks::new();
    let p2p = P2p::bind(
        Config {
            listen: args.listen.into_iter().collect(),
            ..Config::default()
        },
        &tasks,
    )
    .await?;
    if let (Some(to), true) = (args.connect, args.send) {
        for (dtype, compression) in DTYPES
            .into_iter()
            .flat_map(|dtype| Compression::ALL.map(|how| (dtype, how)))
        {
            send(&p2p, to.clone(), dtype, compression).await?;
        }
        tasks.shutdown().await;
        return Ok(());
    }
    let handler = Handler::stream(NAME, LIMITS, |_, parts, reply| async move {
        answer(parts, reply)
            .await
            .map_err(|error| HandlerError(format!("{error:#}")))
    });
    Router::new(p2p.clone()).serve(vec![handler]).spawn(&tasks);
    let Some(addr) = p2p.addrs().into_iter().next() else {
        bail!("no address to listen on")
    };
    println!("listening {addr}");
    tokio::signal::ctrl_c().await?;
    tasks.shutdown().await;
    Ok(())
}
