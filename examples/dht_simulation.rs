//! Simulates swarms of thousands of nodes that come and go, and prints how well records are found and what it costs.
//!
//! ```text
//! $ cargo run --release --example dht_simulation                            # 1 000 nodes, ten minutes of virtual time
//! $ cargo run --release --example dht_simulation -- --nodes 100,300,1000 --plot growth.svg
//! $ cargo run --release --example dht_simulation -- --nodes 10000 --minutes 10 --rules hivemind
//! ```
//!
//! Prints a table with one line for each size of swarm, and after two or more of them what growth they show.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it does")]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use sepal::dht::simulation::{Growth, Rules, Scenario};

const USAGE: &str = "options: --nodes N[,N…]  --minutes N  --rules sepal|hivemind  --period SECONDS  --ping-period SECONDS  --churn SHARE-PER-HOUR  --loss SHARE  --seed N  --plot FILE.svg";

fn main() -> anyhow::Result<()> {
    let mut sizes = vec![1000];
    let mut scenario = Scenario::default();
    let mut plot: Option<PathBuf> = None;
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().context(USAGE)?;
        match flag.as_str() {
            "--nodes" => sizes = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--minutes" => scenario.measured = Duration::from_secs(60 * value.parse::<u64>()?),
            "--rules" if value == "sepal" => scenario.rules = Rules::SEPAL,
            "--rules" if value == "hivemind" => scenario.rules = Rules::HIVEMIND,
            "--period" => scenario.announce_period = Duration::from_secs(value.parse()?),
            "--ping-period" => scenario.rules.ping_period_s = value.parse()?,
            "--churn" => scenario.churn_per_hour = value.parse()?,
            "--loss" => scenario.loss = value.parse()?,
            "--seed" => scenario.seed = value.parse()?,
            "--plot" => plot = Some(value.into()),
            _ => bail!(USAGE),
        }
    }
    let mut growth = Growth { reports: Vec::new() };
    for nodes in sizes {
        let started = Instant::now();
        let report = Scenario {
            nodes,
            ..scenario.clone()
        }
        .run();
        eprintln!(
            "{nodes} nodes: simulated in {:.1} s; {} vanished, {} joined, {} were refused for their clocks; under {:.3} % of the keys was anything",
            started.elapsed().as_secs_f64(),
            report.vanished,
            report.joined,
            report.refused,
            100.0 * report.found_key,
        );
        growth.reports.push(report);
    }
    print!("{}", growth.table());
    if growth.reports.len() > 1 {
        println!("\n{}", growth.extrapolation());
        if let Some(path) = plot {
            fs::write(&path, growth.svg()).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
