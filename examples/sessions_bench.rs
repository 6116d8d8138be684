//! Many sessions at once on one server: what all of them get together, how long a step takes, and how evenly.
//!
//! ```text
//! $ cargo run --release --example sessions_bench -- MODEL [STEPS [SESSIONS [ADDR PREFIX]]]
//! sessions   tokens/s    p50 ms    p99 ms  slowest/fastest  tokens/batch
//!        1     2345.6      0.42      0.61             1.00          1.00
//!       16    12345.6      1.21      1.82             1.03         15.21
//! one session: 0.420 ms a step (p99 0.610), its blocks alone 0.250 ms (p99 0.260), all else 0.170 ms (p99 0.350)
//! ```
//!
//! MODEL is a folder, a GGUF file, a repository or `demo`; SESSIONS says how many there are at a time, such as `1,4,16`. With
//! ADDR (a node of the swarm, ending in /p2p/PEER_ID) the servers are whoever serves PREFIX there; otherwise this program
//! starts one of its own, on loopback, and the last line shows what is not arithmetic of blocks, of client and server together.
//! All sessions have sent a short prompt before the time is taken.
//!
//! With a time such as `600s` instead of STEPS, sessions come and go at random for so long, SESSIONS at a time:
//! `python3 scripts/soak sessions` watches the server meanwhile.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]
#![expect(clippy::disallowed_methods, reason = "an example reads its environment itself")]

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::{
    FutureExt,
    future::{try_join, try_join_all},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sepal::client::{self, Client, Session};
use sepal::model::{Blocks, Engine, Hidden, HubOptions, ModelSource, Part, Scratch};
use sepal::p2p::{Config, Multiaddr};
use sepal::server::{self, BlockChoice, LimitChoice, Server, Throughput};
use sepal::swarm::Node;

const PROMPT_TOKENS: usize = 8;
/// Sessions of so many steps are compared.
const LONG: usize = 32;
/// Prompts that sessions which come and go share.
const N_KNOWN: u64 = 8;
/// How often it is reported how even sessions are that come and go.
const REPORT: Duration = Duration::from_secs(60);

/// A session that came and went: its steps of one token, and how long they took together.
struct Done {
    steps: usize,
    time: Duration,
}

/// Whoever asks, and how wide the model is.
struct Bench {
    client: Client,
    width: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // A task runs where connections do; the main thread would have to be woken for each step.
    tokio::spawn(run(std::env::args().skip(1).collect())).await?
}

async fn run(args: Vec<String>) -> anyhow::Result<()> {
    let mut args = args.into_iter();
    let model = args.next().context("which MODEL?")?;
    let source = ModelSource::resolve(&model, &HubOptions::from_variables(|name| std::env::var(name).ok()))?;
    let how_long = args.next().unwrap_or_else(|| "200".to_owned());
    let n_sessions = args.next().unwrap_or_else(|| "1,4,16".to_owned());
    let n_sessions: Vec<usize> = n_sessions.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let engine = Engine::new(None)?;
    let (own, entry, prefix) = match (args.next(), args.next()) {
        (Some(addr), Some(prefix)) => (None, vec![addr.parse()?], prefix),
        (Some(addr), None) => bail!("which PREFIX is to be asked at {addr}?"),
        (None, _) => {
            let (server, addrs) = serve(&source, &engine).await?;
            (Some(server), addrs, "bench".to_owned())
        }
    };
    let node = Node::join(Config::on_loopback(entry)).await?;
    let config = client::Config::new(prefix);
    let bench = Bench {
        client: Client::connect(config, &source, node.network(), &node.tasks).await?,
        width: source.config().hidden_size,
    };
    match how_long.strip_suffix('s') {
        Some(seconds) => {
            let how_long = Duration::from_secs(seconds.parse()?);
            bench.churn(how_long, n_sessions.into_iter().sum()).await?;
        }
        None => {
            let steps = how_long.parse()?;
            let one = bench.table(steps, &n_sessions, own.as_ref()).await?;
            if own.is_some() && !one.is_empty() {
                let alone = bench.alone(&source, &engine, steps)?;
                let [(whole, whole_99), (blocks, blocks_99)] = [one, alone].map(quantiles);
                let (rest, rest_99) = (whole - blocks, whole_99 - blocks_99);
                println!(
                    "one session: {whole:.3} ms a step (p99 {whole_99:.3}), its blocks alone {blocks:.3} ms (p99 \
                     {blocks_99:.3}), all else {rest:.3} ms (p99 {rest_99:.3})"
                );
            }
        }
    }
    if let Some(server) = own {
        println!("on the compute thread: {:?}", server.stats());
        server.shutdown().await;
    }
    node.stop().await;
    Ok(())
}

impl Bench {
    /// The same number of steps for every number of sessions. Returns how long those of one session alone took.
    async fn table(
        &self,
        steps: usize,
        n_sessions: &[usize],
        server: Option<&Server>,
    ) -> anyhow::Result<Vec<Duration>> {
        let mut of_one = Vec::new();
        println!("sessions   tokens/s    p50 ms    p99 ms  slowest/fastest  tokens/batch");
        for &n_sessions in n_sessions {
            let sessions = try_join_all((0..n_sessions).map(|_| self.open(steps))).await?;
            let (before, started) = (server.map(Server::stats), Instant::now());
            let times = try_join_all(sessions.into_iter().map(|opened| self.run(opened, steps))).await?;
            let rate = (n_sessions * steps) as f64 / started.elapsed().as_secs_f64();
            let evenness = slowest_to_fastest(times.iter().map(|times| times.iter().sum()));
            let all: Vec<Duration> = times.concat();
            if n_sessions == 1 {
                of_one.clone_from(&all);
            }
            let batch = server.zip(before).map_or(f64::NAN, |(server, before)| {
                let now = server.stats();
                (now.block_tokens - before.block_tokens) as f64 / (now.block_runs - before.block_runs) as f64
            });
            let (p50, p99) = quantiles(all);
            println!("{n_sessions:8} {rate:10.1} {p50:9.3} {p99:9.3} {evenness:16.2} {batch:13.2}");
        }
        Ok(of_one)
    }

    /// How long the steps of one session take where there is nothing but its blocks.
    fn alone(&self, source: &ModelSource, engine: &Engine, steps: usize) -> anyhow::Result<Vec<Duration>> {
        let (span, mut noise) = (0..source.config().n_blocks, StdRng::from_rng(&mut rand::rng()));
        let files = source.files_for_span(span.clone())?;
        let blocks = Blocks::load(&files, span.clone(), source.config().auto_dtype(), engine)?;
        let chain: Vec<u32> = span.clone().collect();
        let mut cache = blocks.new_cache(span.len(), 1, PROMPT_TOKENS + steps);
        let (mut scratch, mut times) = (Scratch::default(), Vec::with_capacity(steps));
        for step in 0..=steps {
            let (position, tokens) = match step {
                0 => (0, PROMPT_TOKENS),
                _ => (PROMPT_TOKENS + step - 1, 1),
            };
            let mut x = self.tokens(tokens, &mut noise)?;
            let started = Instant::now();
            let part = Part {
                cache: &mut cache,
                chain_idx: 0,
                rows: 0..x.batch,
                x: &mut x,
                position,
                tokens: 0..tokens,
            };
            blocks.run_batch(&chain, &mut [part], &mut scratch)?;
            if step > 0 {
                times.push(started.elapsed());
            }
        }
        Ok(times)
    }

    /// A session that has sent a short prompt, and what its next tokens are made of: those of no other session, because a
    /// server computes nothing twice.
    async fn open(&self, steps: usize) -> anyhow::Result<(Session, StdRng)> {
        let mut noise = StdRng::from_rng(&mut rand::rng());
        let mut session = self.client.session(PROMPT_TOKENS + steps);
        session.step(self.tokens(PROMPT_TOKENS, &mut noise)?).await?;
        Ok((session, noise))
    }

    /// One token after the other. Returns how long each of them took.
    async fn run(&self, opened: (Session, StdRng), steps: usize) -> anyhow::Result<Vec<Duration>> {
        let (mut session, mut noise) = opened;
        let mut times = Vec::with_capacity(steps);
        for _ in 0..steps {
            let token = self.tokens(1, &mut noise)?;
            let started = Instant::now();
            session.step(token).await?;
            times.push(started.elapsed());
        }
        session.close().await;
        Ok(times)
    }

    /// Sessions of random lengths, of which some say goodbye, some disappear, and some disappear within a step.
    async fn churn(&self, how_long: Duration, n_sessions: usize) -> anyhow::Result<()> {
        let (done, end) = (Mutex::new(Vec::new()), Instant::now() + how_long);
        println!("sessions      steps  slowest/fastest");
        let report = async {
            while Instant::now() < end {
                tokio::time::sleep(REPORT.min(end - Instant::now())).await;
                let done: Vec<Done> = std::mem::take(&mut done.lock().unwrap_or_else(PoisonError::into_inner));
                let steps: usize = done.iter().map(|session| session.steps).sum();
                let long = done.iter().filter(|session| session.steps >= LONG);
                let evenness = slowest_to_fastest(long.map(|session| session.time / session.steps as u32));
                println!("{:8} {steps:10} {evenness:16.2}", done.len());
            }
            Ok(())
        };
        let slots = (0..n_sessions).map(|_| self.come_and_go(&done, end));
        try_join(try_join_all(slots), report).await?;
        Ok(())
    }

    /// One session after the other, some of which begin as others did.
    async fn come_and_go(&self, done: &Mutex<Vec<Done>>, end: Instant) -> anyhow::Result<()> {
        let mut rng = StdRng::from_rng(&mut rand::rng());
        while Instant::now() < end {
            let (prompt, steps) = (rng.random_range(1..64), rng.random_range(1..128));
            let known = rng.random::<bool>().then(|| rng.random_range(0..N_KNOWN));
            let mut noise = StdRng::seed_from_u64(known.unwrap_or_else(|| rng.random()));
            let mut session = self.client.session(prompt + steps + 1);
            session.step(self.tokens(prompt, &mut noise)?).await?;
            let mut noise = StdRng::from_rng(&mut rng);
            let started = Instant::now();
            for _ in 0..steps {
                session.step(self.tokens(1, &mut noise)?).await?;
            }
            let time = started.elapsed();
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Done { steps, time });
            match rng.random_range(0..3) {
                0 => session.close().await,
                1 => drop(session),
                _ => drop(session.step(self.tokens(1, &mut noise)?).now_or_never()),
            }
        }
        Ok(())
    }

    fn tokens(&self, tokens: usize, noise: &mut StdRng) -> anyhow::Result<Hidden> {
        let data = (0..tokens * self.width)
            .map(|_| noise.random_range(-1.0..1.0))
            .collect();
        Ok(Hidden::new(data, 1, tokens, self.width)?)
    }
}

/// Milliseconds that half of `times` are below, and that one in a hundred is above.
fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |per_cent: usize| times[(times.len() - 1) * per_cent / 100].as_secs_f64() * 1e3;
    (at(50), at(99))
}

fn slowest_to_fastest(times: impl Iterator<Item = Duration> + Clone) -> f64 {
    let (slowest, fastest) = (times.clone().max(), times.min());
    slowest.unwrap_or_default().as_secs_f64() / fastest.unwrap_or_default().as_secs_f64()
}

/// A server of the whole model, alone in its swarm, and where it is.
async fn serve(source: &ModelSource, engine: &Engine) -> anyhow::Result<(Server, Vec<Multiaddr>)> {
    let node = Node::join(Config::default()).await?;
    let n_blocks = source.config().n_blocks;
    let config = server::Config {
        throughput: Throughput::Fixed(1.0),
        ..server::Config::new(
            "bench".to_owned(),
            BlockChoice::Fixed(0..n_blocks),
            LimitChoice::default(),
            engine.clone(),
        )
    };
    let server = Server::start(config, source.clone(), &node).await?;
    Ok((server, node.p2p.addrs()))
}
