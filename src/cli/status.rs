//! `sepal status`, `sepal peers` and `sepal sessions`: how a running node is, as lines for people or as JSON.

pub(super) mod lines;

use anyhow::bail;
use clap::Args as ClapArgs;
use serde::Serialize;

use super::{output, plain::plain, swarms, target::TargetArgs};
use crate::control::protocol::{Answer, Request};

/// Flags of a question to a running node.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: TargetArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// Asks one thing and shows the answer.
///
/// # Errors
/// There is no node to ask, or it does not answer.
pub(super) async fn ask(args: &Args, request: Request) -> anyhow::Result<()> {
    show(args.target.connect().await?.ask(&request).await?, args.json)
}

/// Shows an answer.
///
/// # Errors
/// It is none that was asked for.
pub(super) fn show(answer: Answer, json: bool) -> anyhow::Result<()> {
    let lines = match &answer {
        Answer::Status(status) => lines::of_status(status),
        Answer::Peers { peers } => lines::of_peers(peers),
        Answer::Sessions { sessions } => lines::of_sessions(sessions),
        Answer::State(change) => lines::of_change(change),
        Answer::Log { before, now } => lines::of_log(before, now),
        Answer::Swarms { swarms } => swarms::orders::lines(swarms),
        Answer::Swarm(swarm) => swarms::orders::lines(std::slice::from_ref(&**swarm)),
        Answer::Node(_) | Answer::Picture(_) | Answer::Failed { .. } => bail!("the node answers something else"),
    };
    match &answer {
        // What an answer is called says nothing to those who asked for it.
        Answer::Status(status) if json => object(status),
        Answer::Swarm(swarm) if json => object(swarm),
        _ if json => object(&answer),
        _ => {
            lines.iter().for_each(|line| output::line(plain(line)));
            Ok(())
        }
    }
}

fn object(value: &impl Serialize) -> anyhow::Result<()> {
    output::line(serde_json::to_string_pretty(value)?);
    Ok(())
}
