//! `sepal info`: what this machine is, what blocks are computed with on it, and what it can do at best. It measures for a
//! second, serves nothing and uses no network.

mod machine;
mod profile;
mod table;

use anyhow::Context;
use clap::Args as ClapArgs;

pub(super) use self::machine::Limits;
pub(super) use self::profile::{Measured, measured, path as profile_path};
use self::{machine::Machine, profile::save};
use super::{compute::ComputeArgs, output};
use crate::model;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    compute: ComputeArgs,
    /// Leave out what has to be measured: memory bandwidth and arithmetic.
    #[arg(long)]
    no_measure: bool,
    /// Remember it all in a file of the cache folder, so that `sepal eligible` need not measure.
    #[arg(long, conflicts_with = "no_measure")]
    save: bool,
    /// Print one JSON object; sizes are bytes.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When the system gives no threads, or no memory to measure with, or the file cannot be written.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let engine = args.compute.start()?;
    let limits = match args.no_measure {
        true => None,
        false => Some(model::measure_limits(&engine).context("cannot measure; --no-measure leaves it out")?),
    };
    let machine = Machine::look(&engine, limits);
    if args.json {
        output::line(serde_json::to_string(&machine)?);
    } else {
        table::lines(&machine).iter().for_each(output::line);
    }
    if args.save {
        let file = profile_path();
        save(&machine, &file).with_context(|| format!("cannot write {}", file.display()))?;
        if !args.json {
            output::line(format_args!("saved as {}", file.display()));
        }
    }
    Ok(())
}
