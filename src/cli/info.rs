//! `sepal info`: what this machine is, what blocks are computed with on it, and what it can do at best. It measures for a
//! second, serves nothing and uses no network.

mod machine;
mod table;

use anyhow::Context;
use clap::Args as ClapArgs;

use self::machine::Machine;
use super::{compute::ComputeArgs, output};
use crate::model;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    compute: ComputeArgs,
    /// Leave out what has to be measured: memory bandwidth and arithmetic.
    #[arg(long)]
    no_measure: bool,
    /// Print one JSON object; sizes are bytes.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When the system gives no threads, or no memory to measure with.
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
    Ok(())
}
