//! Two machines exchange tensors the way servers of a swarm do: libp2p streams, Hivemind framing, every compression.
//!
//! ```text
//! $ cargo run --release --example tensor_exchange
//! listening /ip4/127.0.0.1/tcp/…/p2p/12D3KooW…
//! float32  NONE             4.19 MB … MB/s … ms  hash ok
//! …
//! float16  BLOCKWISE_8BIT   1.05 MB … MB/s … ms  hash ok
//! ```
//!
//! On two machines: `tensor_exchange --listen /ip4/0.0.0.0/tcp/31400` on the first one, until Ctrl-C, and
//! `tensor_exchange --connect ADDR --send` on the second one, with an address that the first one printed.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use sepal::p2p::{Config, Handler, HandlerError, HandlerLimits, Multiaddr, P2p};
use sepal::p2p::{PeerId, Router, StreamReceiver, StreamSender};
use sepal::task::Tasks;
use sepal_protocol::tensor::{DEFAULT_PART_BYTES, DType, Joiner, WireTensor, split};
use sepal_protocol::{Message, compress::Compression, message::decode, proto};
use sha2::{Digest, Sha256};

const NAME: &str = "TensorExchange.rpc_hash";

#[derive(Parser)]
struct Args {
    /// Address to wait for tensors on.
    #[arg(long, conflicts_with = "connect")]
    listen: Option<Multiaddr>,
    /// Address of the other machine, with /p2p/PEER_ID.
    #[arg(long, requires = "send")]
    connect: Option<Multiaddr>,
    /// Send one tensor of every dtype and compression to it.
    #[arg(long, requires = "connect")]
    send: bool,
}

/// Receives one tensor in parts and answers with the SHA-256 of what it decodes to.
async fn answer(mut parts: StreamReceiver, mut reply: StreamSender) -> anyhow::Result<()> {
    let mut joiner = Joiner::new(64 << 20, 1);
    while let Some(part) = parts.recv().await? {
        joiner.push(decode("Tensor", part)?)?;
    }
    let hash = hash(&joiner.finish()?.context("no tensor came")?)?;
    Ok(reply.send(hash.into()).await?)
}

fn hash(tensor: &proto::Tensor) -> anyhow::Result<Vec<u8>> {
    Ok(Sha256::digest(&WireTensor::decode(tensor)?.data).to_vec())
}

async fn send(p2p: &P2p, peer: PeerId, dtype: DType, how: Compression) -> anyhow::Result<()> {
    let values: Vec<f32> = (0..512 * 2048).map(|i| (i as f32 * 0.37).sin()).collect();
    let tensor = WireTensor::from_f32(&values, [1, 512, 2048], dtype)?.encode(how)?;
    let (expected, megabytes) = (hash(&tensor)?, tensor.encoded_len() as f64 / 1e6);
    let start = Instant::now();
    let (mut parts, mut reply) = p2p.open_stream(peer, NAME, Duration::from_secs(5)).await?;
    for part in split(tensor, DEFAULT_PART_BYTES) {
        parts.send(part.encode_to_vec().into()).await?;
    }
    parts.finish().await?;
    let got = reply.recv().await?.context("there is no answer")?;
    let (seconds, dtype, how) = (start.elapsed().as_secs_f64(), dtype.as_str(), how.as_str());
    ensure!(got == expected, "{dtype} {how}: another tensor arrived");
    let (rate, ms) = (megabytes / seconds, seconds * 1e3);
    println!("{dtype:<9}{how:<15}{megabytes:>6.2} MB {rate:>8.1} MB/s {ms:>7.1} ms  hash ok");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (args, tasks) = (Args::parse(), Tasks::new());
    let mut config = Config::default();
    config.listen = args.listen.clone().map_or(config.listen, |addr| vec![addr]);
    let p2p = P2p::bind(config, &tasks).await?;
    if args.connect.is_none() {
        let handler = Handler::stream(NAME, HandlerLimits::default(), |_, parts, reply| async move {
            let done = answer(parts, reply).await;
            done.map_err(|error| HandlerError(format!("{error:#}")))
        });
        Router::new(p2p.clone()).serve(vec![handler]).spawn(&tasks);
        p2p.addrs().iter().for_each(|addr| println!("listening {addr}"));
    }
    if args.listen.is_some() {
        return Ok(tokio::signal::ctrl_c().await?);
    }
    let sender = P2p::bind(Config::client(Vec::new()), &tasks).await?;
    let there = args.connect.unwrap_or_else(|| p2p.addrs().remove(0));
    let peer = sender.connect(there).await?;
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for how in Compression::ALL {
            send(&sender, peer, dtype, how).await?;
        }
    }
    Ok(())
}
