//! The command line: flags become configurations, and the layers are wired together. Nothing else may read the
//! environment or print.
//!
//! Results go to stdout as stable lines that scripts may read, logs go to stderr.

mod access;
mod api;
mod benchmark;
mod bootstrap;
mod caller;
mod chat;
mod completions;
mod compute;
mod config;
mod control;
mod conversation;
mod demo;
mod doctor;
mod eligible;
mod environment;
mod form;
mod generate;
mod gpus;
mod health;
mod info;
mod logging;
mod map;
mod model;
mod models;
mod node;
mod orders;
mod output;
mod plain;
mod progress;
mod quant;
mod receipts;
mod route;
mod sampling;
mod screen;
mod serve;
mod signals;
mod standing;
mod status;
mod swarm;
mod target;
mod top;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::info;

use crate::control::protocol::Request;

/// Run large models on many machines: serve transformer blocks to a Petals swarm, or generate text through one.
#[derive(Debug, Parser)]
#[command(name = "sepal", version, propagate_version = true, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log more: -v for debug, -vv for trace. RUST_LOG takes precedence.
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = "Logging")]
    verbose: u8,
    /// Log only warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Logging")]
    quiet: bool,
    /// File with options, by the names of their flags; `sepal init` writes one. Variables such as SEPAL_PORT or
    /// SEPAL_SERVE_PORT count more than it, flags more than both [default: SEPAL_CONFIG, or the first of sepal.toml,
    /// ~/.config/sepal/sepal.toml and /etc/sepal/sepal.toml].
    #[arg(long, value_name = "FILE", global = true, help_heading = "Configuration")]
    config: Option<PathBuf>,
}

/// The definition of the command line.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a whole swarm on this machine and ask its built-in model a question.
    Demo(demo::Args),
    /// Check this machine and its network, and say what keeps a node from working well.
    Doctor(Box<doctor::Args>),
    /// Show what this machine is, what blocks are computed with on it, and what it can do at best.
    Info(info::Args),
    /// Write a file with all options, to set them there instead of by flags.
    Init(config::init::Args),
    /// Show what is set in the file, in the environment and by flags, and where.
    Config(config::show::Args),
    /// Show which models this machine could serve, and what that would add to a swarm.
    Eligible(Box<eligible::Args>),
    /// Measure what this machine computes, and explain what a server on it would announce.
    Benchmark(Box<benchmark::Args>),
    /// Run a DHT node that others join the swarm through.
    Bootstrap(bootstrap::Args),
    /// Serve transformer blocks of a model to a swarm.
    Serve(Box<serve::Args>),
    /// Make the key of a private swarm.
    SwarmKey(swarm::KeyArgs),
    /// Generate text through the servers of a swarm.
    Generate(Box<generate::Args>),
    /// Talk to a model through the servers of a swarm.
    Chat(Box<chat::Args>),
    /// Serve models of a swarm as an API that software for OpenAI's can use.
    Api(Box<api::Args>),
    /// Show the chain of servers that a session would take, why, and how long a token takes.
    Route(Box<route::Args>),
    /// Check what servers said under their signature that they computed.
    #[command(subcommand)]
    Receipts(receipts::Command),
    /// Show how a swarm is: models, servers, missing blocks.
    Health(health::Args),
    /// Print what makes a shell complete this command line.
    Completions(completions::Args),
    /// Print the manual page, or write those of all commands to a folder.
    Man(completions::ManArgs),
    /// Show how a running node of yours is.
    Status(status::Args),
    /// Show who is connected to a running node of yours.
    Peers(status::Args),
    /// Show the sessions that are open on a running node of yours.
    Sessions(status::Args),
    /// Show all of that live, filling the terminal; q ends it.
    Top(top::Args),
    /// Let a running node of yours take no new sessions; those that are open go on.
    Pause(status::Args),
    /// Let it take new sessions again.
    Resume(status::Args),
    /// Let it take no new sessions, and stop it after the last one.
    Drain(orders::DrainArgs),
    /// Stop it, as Ctrl-C does.
    Stop(status::Args),
    /// Show or change how much it logs.
    Log(orders::LogArgs),
}

/// Runs the command line `args` (the program's name first) to its end.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let around = config::Surroundings::here();
    let parsed = match config::parse(&command(), &args, &around) {
        Ok(parsed) => parsed,
        Err(stop) => return stop.report(),
    };
    let cli = match Cli::from_arg_matches(&parsed.matches) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let told = match &cli.command {
        Command::Init(args) => Some(config::init::run(&command(), args)),
        Command::Config(args) => Some(config::show::run(&command(), args, cli.config, &around)),
        _ => None,
    };
    match told {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(stop)) => stop.report(),
        None => execute(cli.command, (cli.verbose, cli.quiet), &parsed),
    }
}

/// Runs a command to its end, with as much in the log as `verbose` and `quiet` ask for.
fn execute(command: Command, (verbose, quiet): (u8, bool), parsed: &config::Parsed) -> ExitCode {
    logging::init(
        verbose,
        quiet,
        match &command {
            Command::Chat(_)
            | Command::Demo(_)
            | Command::Doctor(_)
            | Command::Info(_)
            | Command::Eligible(_)
            | Command::Benchmark(_)
            | Command::Completions(_)
            | Command::Man(_) => true,
            Command::Health(args) => args.fills_the_terminal(),
            Command::Top(_) => true,
            _ => false,
        },
    );
    for warning in &parsed.warnings {
        output::note(&format!("warning: {warning}"));
    }
    if let Some(file) = &parsed.file {
        info!(file = %file.display(), "read the configuration");
    }
    // Every connection is an open file, and the usual soft limit is 1024. If it cannot be raised, `doctor` says so.
    drop(rlimit::increase_nofile_limit(u64::MAX));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::failure(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let outcome = runtime.block_on(dispatch(command));
    // Detached lookups may still wait for peers; nobody waits for them any more.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::failure(&error),
    }
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Doctor(args) => doctor::run(*args).await,
        Command::Info(args) => info::run(&args),
        Command::Init(_) | Command::Config(_) => Ok(()),
        Command::Eligible(args) => eligible::run(*args).await,
        Command::Benchmark(args) => benchmark::run(*args).await,
        Command::Bootstrap(args) => bootstrap::run(args).await,
        Command::Serve(args) => serve::run(*args).await,
        Command::SwarmKey(args) => swarm::make_key(&args),
        Command::Generate(args) => generate::run(*args).await,
        Command::Chat(args) => chat::run(*args).await,
        Command::Api(args) => api::run(*args).await,
        Command::Route(args) => route::run(*args).await,
        Command::Receipts(command) => receipts::run(&command),
        Command::Health(args) => health::run(args).await,
        Command::Completions(args) => completions::print(&args, self::command()),
        Command::Man(args) => completions::manual(&args, &self::command()),
        Command::Status(args) => status::ask(&args, Request::Status).await,
        Command::Peers(args) => status::ask(&args, Request::Peers).await,
        Command::Sessions(args) => status::ask(&args, Request::Sessions).await,
        Command::Top(args) => top::run(&args).await,
        Command::Pause(args) => status::ask(&args, Request::Pause).await,
        Command::Resume(args) => status::ask(&args, Request::Resume).await,
        Command::Drain(args) => orders::drain(&args).await,
        Command::Stop(args) => orders::stop(&args).await,
        Command::Log(args) => orders::log(&args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn petals_spellings_are_understood() {
        let line = "sepal serve demo --initial_peers /ip4/127.0.0.1/tcp/1/p2p/12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d \
                    --block_indices 0:4 --torch_dtype float32 --host_maddrs /ip4/127.0.0.1/tcp/0 --public_name me \
                    --attn_cache_tokens 64 --inference_max_length 128 --update_period 20 --identity_path id \
                    --skip_reachability_check";
        Cli::try_parse_from(line.split_whitespace()).unwrap();
        let line = "sepal serve --converted_model_name_or_path demo --new_swarm --num_blocks 2";
        Cli::try_parse_from(line.split_whitespace()).unwrap();
    }

    #[test]
    fn flags_that_exclude_each_other_are_refused() {
        for line in [
            "sepal serve demo --new-swarm --initial-peers /ip4/127.0.0.1/tcp/1",
            "sepal serve",
            "sepal serve demo --blocks 4:2",
            "sepal serve demo --throughput fast",
            "sepal generate demo",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
