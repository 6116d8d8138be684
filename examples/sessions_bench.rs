//! Many sessions at once on one server: what all of them get together, how long a step takes, and how evenly.
//!
//! ```text
//! $ cargo run --release --example sessions_bench -- MODEL [STEPS [ADDR PREFIX]]
//! sessions   tokens/s    p50 ms    p99 ms  slowest/fastest  tokens/batch
//!        1     2345.6      0.42      0.61             1.00          1.00
//!       16    12345.6      1.21      1.82             1.03         15.21
//! ```
//!
//! MODEL is a folder, a repository or `demo`. With ADDR (a node of the swarm, ending in /p2p/PEER_ID) the servers are
//! whoever serves PREFIX there; otherwise this program starts one of its own, on loopback.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;
use sepal::client::{self, Client};
use sepal::dht::{self, Dht};
use sepal::model::{Hidden, HubOptions, ModelSource};
use sepal::p2p::{Config, Handler, Identity, Multiaddr, P2p, Router};
use sepal::server::{self, BlockChoice, LimitChoice, Server, Throughput};
use sepal::swarm::signature;
use sepal::task::Tasks;

const PROMPT_TOKENS: usize = 8;
const N_SESSIONS: [usize; 3] = [1, 4, 16];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().context("which MODEL?")?;
    let source = ModelSource::resolve(&model, &HubOptions::from_variables(|name| std::env::var(name).ok()))?;
    let steps: usize = args.next().map_or(Ok(200), |steps| steps.parse())?;
    let (own, entry, prefix) = match (args.next(), args.next()) {
        (Some(addr), Some(prefix)) => (None, vec![addr.parse()?], prefix),
        _ => {
            let (server, addrs) = serve(&source).await?;
            (Some(server), addrs, "bench".to_owned())
        }
    };
    let tasks = Tasks::new();
    let (p2p, dht) = node(&entry, Vec::new(), &tasks).await?;
    dht.bootstrap().await?;
    let client = Client::connect(client::Config::new(prefix), &source, (p2p, dht), &tasks).await?;
    let width = source.config().hidden_size;
    println!("sessions   tokens/s    p50 ms    p99 ms  slowest/fastest  tokens/batch");
    for n_sessions in N_SESSIONS {
        let before = own.as_ref().map(Server::stats);
        let started = Instant::now();
        let sessions = (0..n_sessions).map(|seed| run(&client, width, steps, seed));
        let times: Vec<Vec<Duration>> = try_join_all(sessions).await?;
        let rate = (n_sessions * (steps + PROMPT_TOKENS)) as f64 / started.elapsed().as_secs_f64();
        let mut sums: Vec<Duration> = times.iter().map(|times| times.iter().sum()).collect();
        sums.sort_unstable();
        let fairness = sums[n_sessions - 1].as_secs_f64() / sums[0].as_secs_f64();
        let mut all: Vec<Duration> = times.concat();
        all.sort_unstable();
        let at = |per_cent: usize| all[(all.len() - 1) * per_cent / 100].as_secs_f64() * 1e3;
        let batch = own.as_ref().zip(before).map_or(f64::NAN, |(server, before)| {
            let now = server.stats();
            (now.block_tokens - before.block_tokens) as f64 / (now.block_runs - before.block_runs) as f64
        });
        println!(
            "{n_sessions:8} {rate:10.1} {:9.2} {:9.2} {fairness:16.2} {batch:13.2}",
            at(50),
            at(99)
        );
    }
    if let Some(server) = own {
        println!("on the compute thread: {:?}", server.stats());
        server.shutdown().await;
    }
    tasks.shutdown().await;
    Ok(())
}

/// One session: a short prompt, then one token after the other. Returns how long each of those took.
async fn run(client: &Client, width: usize, steps: usize, seed: usize) -> anyhow::Result<Vec<Duration>> {
    let x = |tokens: usize| {
        let noise = (0..tokens * width).map(|i| ((i + 31 * seed) * 7919 % 2003) as f32 / 1001.5 - 1.0);
        Hidden::new(noise.collect(), 1, tokens, width)
    };
    let mut session = client.session(PROMPT_TOKENS + steps);
    session.step(x(PROMPT_TOKENS)?).await?;
    let mut times = Vec::with_capacity(steps);
    for _ in 0..steps {
        let started = Instant::now();
        session.step(x(1)?).await?;
        times.push(started.elapsed());
    }
    session.close().await;
    Ok(times)
}

async fn node(entry: &[Multiaddr], handlers: Vec<Handler>, tasks: &Tasks) -> anyhow::Result<(P2p, Dht)> {
    let identity = Identity::ephemeral();
    let config = Config {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse()?],
        identity: identity.clone(),
        known_peers: entry.to_vec(),
        ..Config::default()
    };
    let p2p = P2p::bind(config, tasks).await?;
    let config = dht::Config {
        initial_peers: entry.to_vec(),
        validators: signature::validators(identity),
        ..dht::Config::default()
    };
    let dht = Dht::spawn(p2p.clone(), config, tasks);
    let router = Router::new(p2p.clone()).serve(dht.handlers());
    router.serve(handlers).spawn(tasks);
    Ok((p2p, dht))
}

/// A server of the whole model, alone in its swarm, and where it is.
async fn serve(source: &ModelSource) -> anyhow::Result<(Server, Vec<Multiaddr>)> {
    let tasks = Tasks::new();
    let (p2p, dht) = node(&[], Vec::new(), &tasks).await?;
    let n_blocks = source.config().n_blocks;
    let config = server::Config {
        throughput: Throughput::Fixed(1.0),
        ..server::Config::new(
            "bench".to_owned(),
            BlockChoice::Fixed(0..n_blocks),
            LimitChoice::default(),
        )
    };
    let server = Server::new(config, source.clone(), (p2p.clone(), dht), &tasks);
    Router::new(p2p.clone()).serve(server.handlers()).spawn(&tasks);
    server.bring_up().await?;
    Ok((server, p2p.addrs()))
}
