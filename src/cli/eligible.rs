//! `sepal eligible`: which models this machine could serve, how many blocks of each, and what that adds to a swarm. It needs
//! configurations and no weights, and without `--initial-peers` no network for the models that it knows.

mod row;
mod swarm;
mod table;

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use serde::Serialize;

use self::{
    row::{Place, Row},
    swarm::InSwarm,
};
use super::{
    compute::{ComputeArgs, DeviceArgs},
    info::{self, Measured},
    model::{HubArgs, ModelArgs},
    node, output,
    quant::Quant,
    signals,
    swarm::SwarmArgs,
};
use crate::{
    model::{KnownModel, ModelConfig, known_models},
    server,
    swarm::{
        directory::{Directory, read_registry},
        models,
    },
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Folders, GGUF files, or Hugging Face repositories, of which only the configuration is fetched [default: common models
    /// from 360 million to 405 thousand million weights, which this program knows].
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// Weights in this format instead of the most precise one that the whole model fits in.
    #[arg(
        long,
        value_name = "none|int8|q4_0|q4_k|nf4",
        value_enum,
        hide_possible_values = true
    )]
    quant: Option<Quant>,
    /// Also ask the swarm which blocks it lacks, of MODEL or of those common ones that it has.
    #[command(flatten)]
    swarm: SwarmArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
    /// Print one JSON object; sizes are bytes.
    #[arg(long)]
    json: bool,
}

/// A model that is looked at.
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) prefix: String,
    pub(super) config: Arc<ModelConfig>,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    /// Bytes that servers would plan with: of the memory, or of each card.
    room: &'a [u64],
    on_cards: bool,
    read_bytes_per_second: Option<f64>,
    models: &'a [Row],
}

/// # Errors
/// A model that cannot be found, or a swarm that cannot be joined.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let engine = args.compute.start()?;
    let machine = args.device.machine(&engine, &[])?;
    let on_cards = machine.has_cards();
    let measured = info::measured(&info::profile_path(), &engine).filter(|_| !on_cards);
    let place = Place {
        room: server::room(&machine),
        read_rate: measured.map(|measured| measured.limits.read_bytes_per_second),
    };
    let candidates = args.candidates().await?;
    let mut rows: Vec<Row> = Vec::new();
    for candidate in &candidates {
        let chosen = args.quant.and_then(|quant| quant.format(candidate.config.auto_dtype()));
        rows.push(Row::new(&candidate.name, &candidate.config, &place, chosen));
    }
    if args.swarm.is_named() {
        tokio::select! {
            outcome = args.ask_swarm(&candidates, &mut rows) => outcome?,
            stopped = signals::stop_requested() => return stopped.and_then(|()| bail!("interrupted")),
        }
    }
    args.print(&place, (on_cards, measured), &rows)
}

/// The model `name`: what is here, or in the table, or on the hub, in this order.
///
/// # Errors
/// It is nowhere, or its configuration cannot be used.
pub(super) async fn candidate(name: &str, hub: &HubArgs) -> anyhow::Result<Candidate> {
    let known = KnownModel::find(name).context("the table of models")?;
    if let Some(known) = known.filter(|_| !Path::new(name).exists()) {
        return Ok(known.into());
    }
    let mut args = ModelArgs::named(name);
    args.hub = hub.clone();
    let model = args.resolve().await?;
    Ok(Candidate {
        name: name.to_owned(),
        prefix: model.prefix,
        config: Arc::new(model.source.config().clone()),
    })
}

impl Args {
    async fn candidates(&self) -> anyhow::Result<Vec<Candidate>> {
        if self.models.is_empty() {
            let known = known_models().context("the table of models")?;
            return Ok(known.into_iter().map(Candidate::from).collect());
        }
        let mut candidates = Vec::new();
        for name in &self.models {
            candidates.push(candidate(name, &self.hub).await?);
        }
        Ok(candidates)
    }

    /// Notes what the swarm lacks; models of the table that it never heard of are left out of the question.
    async fn ask_swarm(&self, candidates: &[Candidate], rows: &mut [Row]) -> anyhow::Result<()> {
        let node = node::client(&self.swarm.joined()?).await?;
        let outcome = async {
            node.join().await?;
            let registry = read_registry(&node.dht).await;
            for (candidate, row) in candidates.iter().zip(rows) {
                if self.models.is_empty() && !registry.contains_key(&candidate.prefix) {
                    continue;
                }
                let n_blocks = candidate.config.n_blocks;
                let directory = Directory::new(node.dht.clone(), candidate.prefix.clone(), n_blocks);
                row.swarm = Some(InSwarm::of(&*directory.refresh().await, row.best().fit));
            }
            Ok(())
        };
        let outcome: anyhow::Result<()> = outcome.await;
        node.tasks.shutdown().await;
        outcome
    }

    fn print(&self, place: &Place, (on_cards, measured): (bool, Option<Measured>), rows: &[Row]) -> anyhow::Result<()> {
        if self.json {
            let report = Report {
                room: &place.room,
                on_cards,
                read_bytes_per_second: place.read_rate,
                models: rows,
            };
            output::line(serde_json::to_string(&report)?);
            return Ok(());
        }
        table::place(place, on_cards, measured).iter().for_each(output::line);
        output::line("");
        table::rows(rows).iter().for_each(output::line);
        Ok(())
    }
}

impl From<KnownModel> for Candidate {
    fn from(known: KnownModel) -> Self {
        Self {
            prefix: models::dht_prefix(&known.model_type, &known.name),
            name: known.name,
            config: known.config,
        }
    }
}
