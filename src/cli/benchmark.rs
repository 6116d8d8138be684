//! `sepal benchmark`: what this machine computes, what its memory and its line carry, and what a server here would announce
//! for it. It measures with a block of the model's shape whose weights are noise, so that nothing has to be downloaded.

mod blocks;
mod network;
mod table;

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use serde::Serialize;

use self::{blocks::Format, network::Network};
use super::{
    compute::{ComputeArgs, DeviceArgs},
    eligible::{Candidate, candidate},
    info::Limits,
    model::HubArgs,
    output,
    quant::Quant,
    signals,
    swarm::SwarmArgs,
};
use crate::model::{Engine, Machine, ModelConfig, ModelFiles, WeightFormat, measure_gemm, measure_limits};

/// A model of ordinary shape whose block is larger than caches in every format.
const DEFAULT_MODEL: &str = "meta-llama/Llama-3.1-8B";

/// Tokens of the product that arithmetic is measured with.
const PROMPT: usize = 512;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Whose blocks to measure with: one of the models of `sepal eligible`, a folder, a GGUF file, a Hugging Face repository, or
    /// `demo`. Only its configuration is read.
    #[arg(value_name = "MODEL", default_value = DEFAULT_MODEL)]
    model: String,
    /// Only weights in this format [default: as published, int8 and q4_0].
    #[arg(
        long,
        value_name = "none|int8|q4_0|q4_k|nf4",
        value_enum,
        hide_possible_values = true
    )]
    quant: Option<Quant>,
    /// Blocks of the span whose throughput is explained [default: as many as fit].
    #[arg(long, value_name = "N", alias = "num_blocks")]
    num_blocks: Option<u32>,
    #[command(flatten)]
    swarm: SwarmArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
    /// Print one JSON object; sizes are bytes, times seconds.
    #[arg(long)]
    json: bool,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    kernels: String,
    threads: usize,
    /// Of the processor.
    limits: Limits,
    /// Operations per second in products of many tokens, of the processor.
    products: Vec<(&'static str, f64)>,
    formats: Vec<Format>,
    network: Option<Network>,
    /// What would be announced in each format, in the order of `formats`, and why.
    announced: Vec<Announced>,
}

/// What a server would announce.
#[derive(Debug, Serialize)]
struct Announced {
    format: &'static str,
    blocks: u32,
    throughput: f64,
    relayed_throughput: f64,
    inference_rps: Option<f64>,
    forward_rps: Option<f64>,
    network_rps: Option<f64>,
    explained: Vec<String>,
}

/// # Errors
/// A model that cannot be found, no memory to measure in, or a swarm that cannot be joined.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    tokio::select! {
        outcome = measure(args) => outcome,
        stopped = signals::stop_requested() => stopped.and_then(|()| bail!("interrupted")),
    }
}

async fn measure(args: Args) -> anyhow::Result<()> {
    let engine = args.compute.start()?;
    let machine = args.device.machine(&engine, &[])?;
    let candidate = candidate(&args.model, &args.hub).await?;
    args.check(&candidate.config)?;
    let network = match args.swarm.is_named() {
        true => Some(network::measure(&args.swarm, &candidate).await?),
        false => None,
    };
    let (wanted, model, on) = (args.formats(&candidate.config), candidate, machine);
    let measuring = tokio::task::spawn_blocking(move || compute(model, &wanted, (&engine, &on)));
    let mut report = measuring.await.context("interrupted")??;
    report.network = network;
    report.announced = args.announced(&report);
    if args.json {
        output::line(serde_json::to_string(&report)?);
    } else {
        table::lines(&report).iter().for_each(output::line);
    }
    Ok(())
}

/// Everything that needs no network.
fn compute(candidate: Candidate, wanted: &[WeightFormat], on: (&Engine, &Machine)) -> anyhow::Result<Report> {
    let (engine, machine) = on;
    let config: &Arc<ModelConfig> = &candidate.config;
    let limits = measure_limits(engine).context("cannot measure the memory")?;
    let shape = [config.intermediate_size, config.hidden_size];
    let products = [WeightFormat::F32, WeightFormat::Bf16]
        .into_iter()
        .map(|format| Ok((format.as_str(), measure_gemm(format, shape, PROMPT, engine)?)));
    let products = products.collect::<anyhow::Result<_>>()?;
    let files = ModelFiles::of_noise(config)?;
    let limits = Limits::from(limits);
    let formats = wanted
        .iter()
        .map(|format| blocks::measure(&files, *format, machine, limits));
    Ok(Report {
        kernels: machine.kernels(),
        threads: engine.threads(),
        limits,
        products,
        formats: formats.collect::<anyhow::Result<_>>()?,
        model: candidate.name,
        network: None,
        announced: Vec::new(),
    })
}

impl Args {
    fn formats(&self, config: &ModelConfig) -> Vec<WeightFormat> {
        let published = config.auto_dtype();
        match self.quant.and_then(|quant| quant.format(published)) {
            Some(format) => vec![format],
            None => vec![published.into(), WeightFormat::Q8_0, WeightFormat::Q4_0],
        }
    }

    /// # Errors
    /// When there are no such blocks.
    fn check(&self, config: &ModelConfig) -> anyhow::Result<()> {
        match self.num_blocks {
            Some(n_blocks) if n_blocks == 0 || n_blocks > config.n_blocks => bail!(
                "--num-blocks {n_blocks} is not between 1 and {}, the blocks of {}",
                config.n_blocks,
                self.model
            ),
            _ => Ok(()),
        }
    }

    fn announced(&self, report: &Report) -> Vec<Announced> {
        let line = report.network.as_ref().and_then(|network| network.line);
        // Where not one block fits, nobody would announce anything; one may be measured all the same.
        let announce = |format: &Format| format.announced(self.num_blocks.unwrap_or(format.fit.max(1)), line);
        report.formats.iter().map(announce).collect()
    }
}
