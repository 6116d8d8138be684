//! `sepal route`: which chain of servers a session would take, why that one, and what a token takes, as it is expected to
//! be and as it turns out. It needs nothing of the model but its configuration.

mod table;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args as ClapArgs;

use super::{
    caller::CallerArgs,
    model::{Model, ModelArgs},
    node, output, signals,
    swarm::SwarmArgs,
};
use crate::{
    client::{Avoided, HopReport, Scout},
    model::Hidden,
    swarm::route::Explanation,
};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Exits with 0 when there is a chain through all blocks.")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    swarm: SwarmArgs,
    /// Also show every server with what is known of it and why it is not taken, and the next best chains; and measure.
    #[arg(long)]
    why: bool,
    /// Send so many tokens through the chain, one after another, and show what they took [default: 8 with --why, else 0].
    #[arg(long, value_name = "N")]
    measure: Option<usize>,
    /// Tokens that the session is to have room for.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_length: usize,
    /// Print everything as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    caller: CallerArgs,
}

/// Tokens that --why measures with. They are noise; what they take does not depend on what they mean.
const MEASURED_TOKENS: usize = 8;

/// What tokens took on the way through a chain.
#[derive(Clone, Debug)]
struct Measurement {
    /// Tokens after the first, which also makes the servers reserve memory.
    tokens: usize,
    /// Mean time of one of them.
    per_token: Duration,
    /// The servers that they went through.
    hops: Vec<HopReport>,
}

/// All that is told.
#[derive(Debug)]
struct Report {
    prefix: String,
    n_blocks: u32,
    max_length: usize,
    explanation: Explanation,
    measurement: Option<Measurement>,
    /// Servers that failed while this was measured.
    avoided: Vec<Avoided>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let model = args.model.resolve().await?;
    let node = node::client(&args.swarm.joined()?).await?;
    let outcome = tokio::select! {
        outcome = look(&args, &model, &node) => outcome,
        stopped = signals::stop_requested() => stopped.and_then(|()| bail!("interrupted")),
    };
    node.tasks.shutdown().await;
    outcome
}

async fn look(args: &Args, model: &Model, node: &node::Node) -> anyhow::Result<()> {
    let scout = args.caller.scout(model, node).await?;
    let mut explanation = scout.explain(args.max_length).await;
    let tokens = args.measure.unwrap_or(if args.why { MEASURED_TOKENS } else { 0 });
    let config = model.source.config();
    let measurement = match &explanation.chains {
        Ok(_) if tokens > 0 => Some(measure(&scout, config.hidden_size, tokens).await),
        _ => None,
    };
    // What is known is told all the same.
    let (measurement, failure) = match measurement.transpose() {
        Ok(measurement) => (measurement, None),
        Err(error) => (None, Some(error)),
    };
    if measurement.is_some() {
        // What was expected stays what it was; what was measured of servers is known now.
        explanation.take_measured(&scout.explain(args.max_length).await);
    }
    let report = Report {
        prefix: model.prefix.clone(),
        n_blocks: config.n_blocks,
        max_length: args.max_length,
        explanation,
        measurement,
        avoided: scout.avoided(),
    };
    if args.json {
        output::line(serde_json::to_string_pretty(&report.to_json(args.why))?);
    } else {
        report.rows(args.why).into_iter().for_each(output::line);
    }
    match (report.explanation.chains, failure) {
        (Err(missing), _) => Err(missing.into()),
        (Ok(_), Some(error)) => Err(error),
        (Ok(_), None) => Ok(()),
    }
}

/// Sends tokens of noise through a session.
async fn measure(scout: &Scout, width: usize, tokens: usize) -> anyhow::Result<Measurement> {
    let mut session = scout.session(tokens + 1);
    let noise = |token: usize| -> anyhow::Result<Hidden> {
        let values = (0..width).map(|i| ((i * 37 + token * 101) % 64) as f32 / 64.0 - 0.5);
        Ok(Hidden::new(values.collect(), 1, 1, width)?)
    };
    let mut started = Instant::now();
    for token in 0..=tokens {
        session.step(noise(token)?).await.context("measuring failed")?;
        if token == 0 {
            started = Instant::now();
        }
    }
    let per_token = started.elapsed().div_f64(tokens as f64);
    let hops = session.report();
    session.close().await;
    Ok(Measurement {
        tokens,
        per_token,
        hops,
    })
}
