//! `sepal doctor`: checks what a node needs and explains what it finds, one line each with the remedy. It serves nothing
//! and leaves nothing behind but a record that expires within a minute.

mod cards;
mod files;
mod finding;
mod machine;
mod network;
mod reach;

use anyhow::bail;
use clap::Args as ClapArgs;

use self::finding::{Finding, Outcome};
use super::{node::ListenArgs, output, signals, swarm::SwarmArgs};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Model whose files to look for: a folder or GGUF file, a Hugging Face repository such as org/name, org/name:FILE.gguf
    /// for a GGUF file in one, or `demo`.
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    swarm: SwarmArgs,
    /// Check for the first node of a new swarm: there are no others to ask.
    #[arg(long, alias = "new_swarm", conflicts_with = "initial_peers")]
    new_swarm: bool,
    #[command(flatten)]
    listen: ListenArgs,
}

/// # Errors
/// When something was found that would keep a node from working well; so the exit code tells.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = signals::stop_requested();
    tokio::pin!(stop);
    tokio::select! {
        outcome = examine(&args) => outcome,
        stopped = &mut stop => stopped.and_then(|()| bail!("stopped before all was checked")),
    }
}

async fn examine(args: &Args) -> anyhow::Result<()> {
    let swarm = match args.new_swarm {
        true => args.swarm.new_or_joined()?,
        false => args.swarm.joined()?,
    };
    let mut report = Report::default();
    report.add(&machine::cpu());
    report.add(&cards::look().await);
    report.add(&machine::memory());
    report.add(&machine::open_files());
    for finding in files::model(args.model.as_deref()).await {
        report.add(&finding);
    }
    report.add(&files::identity(args.listen.identity_file()));
    network::examine(&args.listen, &swarm, &mut report).await;
    report.verdict()
}

/// Prints findings as they come and counts them.
#[derive(Debug, Default)]
struct Report {
    checks: usize,
    problems: usize,
}

impl Report {
    fn add(&mut self, finding: &Finding) {
        output::line(finding);
        self.checks += 1;
        self.problems += usize::from(finding.outcome == Outcome::Problem);
    }

    fn verdict(&self) -> anyhow::Result<()> {
        match self.problems {
            0 => {
                output::line(format_args!("healthy: {} checks, no problem", self.checks));
                Ok(())
            }
            problems => bail!("not healthy: {problems} of {} checks failed", self.checks),
        }
    }
}
