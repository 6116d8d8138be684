//! Two hosts: one serves a call by its name, the other one dials it, calls, and is told when it is refused.
//!
//! ```text
//! $ cargo run --release --example p2p_node
//! listening /ip4/127.0.0.1/tcp/…/p2p/12D3KooW…
//! Ada is told: "Hello Ada, I am 12D3KooW…"
//! nobody is told: the peer answered with an error: whom shall I greet?
//! ```
//!
//! On two machines: `p2p_node --listen /ip4/0.0.0.0/tcp/31400` on the first one, until Ctrl-C, and `p2p_node --connect ADDR`
//! on the second one, with an address that the first one printed.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Parser;
use sepal::p2p::{CallError, Config, Handler, HandlerError, HandlerLimits, Multiaddr, P2p, PeerId, Router};
use sepal::task::Tasks;

/// What the call is named on the wire. Peers agree on names, and on nothing else.
const NAME: &str = "Greeting.rpc_hello";

#[derive(Parser)]
struct Args {
    /// Address to wait for calls on.
    #[arg(long, conflicts_with = "connect")]
    listen: Option<Multiaddr>,
    /// Address of a node that waits, with /p2p/PEER_ID.
    #[arg(long)]
    connect: Option<Multiaddr>,
}

/// A host that answers.
async fn answering(listen: Option<Multiaddr>, tasks: &Tasks) -> anyhow::Result<P2p> {
    let mut config = Config::default();
    config.listen = listen.map_or(config.listen, |addr| vec![addr]);
    let p2p = P2p::bind(config, tasks).await?;
    let me = p2p.peer_id();
    let hello = Handler::unary(NAME, HandlerLimits::default(), move |_, request| greet(me, request));
    Router::new(p2p.clone()).serve(vec![hello]).spawn(tasks);
    for addr in p2p.addrs() {
        println!("listening {addr}");
    }
    Ok(p2p)
}

async fn greet(me: PeerId, request: Bytes) -> Result<Bytes, HandlerError> {
    match std::str::from_utf8(&request) {
        Ok("") | Err(_) => Err(HandlerError("whom shall I greet?".to_owned())),
        Ok(name) => Ok(format!("Hello {name}, I am {me}").into()),
    }
}

async fn call(p2p: &P2p, peer: PeerId, name: &'static str) -> Result<String, CallError> {
    let answer = p2p.call_unary(peer, NAME, name.into(), Duration::from_secs(5)).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (args, tasks) = (Args::parse(), Tasks::new());
    let there = match args.connect {
        Some(addr) => addr,
        None => {
            let waits = args.listen.is_some();
            let p2p = answering(args.listen, &tasks).await?;
            if waits {
                tokio::signal::ctrl_c().await?;
                tasks.shutdown().await;
                return Ok(());
            }
            p2p.addrs().into_iter().next().context("it listens nowhere")?
        }
    };
    let p2p = P2p::bind(Config::client(Vec::new()), &tasks).await?;
    let peer = p2p.connect(there).await?;
    println!("Ada is told: {:?}", call(&p2p, peer, "Ada").await?);
    match call(&p2p, peer, "").await {
        Ok(answer) => println!("nobody is told: {answer:?}"),
        Err(error) => println!("nobody is told: {error}"),
    }
    tasks.shutdown().await;
    Ok(())
}
