//! `sepal pause`, `resume`, `drain`, `stop` and `log`: what a running node is told.

use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::json;

use super::{
    output, serve,
    status::{self, show},
};
use crate::control::{
    Connection,
    protocol::{Answer, Request, State},
};

/// How often a node that drains is asked how many sessions are left.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, ClapArgs)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    order: status::Args,
    /// Stop after this time even if sessions are open.
    #[arg(long, value_name = "SECONDS", value_parser = serve::parse_seconds)]
    timeout: Option<Duration>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct LogArgs {
    /// error, warn, info, debug, trace, off, or directives such as info,sepal::p2p=trace; without it, what is logged now.
    #[arg(value_name = "LEVEL")]
    level: Option<String>,
    #[command(flatten)]
    order: status::Args,
}

/// Tells a node to stop, and returns when it is gone.
///
/// # Errors
/// There is no node to tell.
pub(super) async fn stop(args: &status::Args) -> anyhow::Result<()> {
    let mut connection = args.target.connect().await?;
    let answer = connection.ask(&Request::Stop).await?;
    if !args.json {
        show(answer, false)?;
    }
    end(connection, args.json).await
}

/// Tells a node to stop after its last session, and returns when it is gone. Whoever breaks this off does not break off
/// the drain.
///
/// # Errors
/// There is no node to tell, or it was told to resume meanwhile.
pub(super) async fn drain(args: &DrainArgs) -> anyhow::Result<()> {
    let timeout_s = args.timeout.map(|timeout| timeout.as_secs_f64());
    let (order, request) = (&args.order, Request::Drain { timeout_s });
    let mut connection = order.target.connect().await?;
    let answer = connection.ask(&request).await?;
    if !order.json {
        show(answer, false)?;
    }
    let mut told = None;
    // The node hangs up when it stops.
    while let Ok(Answer::Status(status)) = connection.ask(&Request::Status).await {
        match status.state {
            State::Draining => {}
            State::Stopping => break,
            other => anyhow::bail!("the drain was given up: the node is {} again", other.as_str()),
        }
        if told != Some(status.sessions) && !order.json {
            output::line(format_args!("waiting for {} open session(s)", status.sessions));
            told = Some(status.sessions);
        }
        tokio::time::sleep(LOOK).await;
    }
    end(connection, order.json).await
}

/// Waits until the node hangs up, the last thing that it does.
async fn end(connection: Connection, json: bool) -> anyhow::Result<()> {
    connection.closed().await;
    match json {
        true => output::line(json!({"stopped": true})),
        false => output::line("stopped"),
    }
    Ok(())
}

/// Asks or sets how much a node logs.
///
/// # Errors
/// There is no node to tell, or the level is none.
pub(super) async fn log(args: &LogArgs) -> anyhow::Result<()> {
    let level = args.level.clone();
    status::ask(&args.order, Request::Log { level }).await
}
