//! `sepal receipts`: checks a file that `--receipts` filled.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, Subcommand};
use serde_json::json;

use super::output;
use crate::receipt::{Audit, PeerSummary};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check signatures, that none is missing in a session, and that what went into each server came out of the one before.
    Verify(VerifyArgs),
}

#[derive(Debug, ClapArgs)]
pub(super) struct VerifyArgs {
    /// What `--receipts` filled.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The first line that is wrong, and why, or that there is none.
pub(super) fn run(command: &Command) -> anyhow::Result<()> {
    let Command::Verify(args) = command;
    let name = args.file.display();
    let file = File::open(&args.file).with_context(|| format!("cannot read {name}"))?;
    let mut audit = Audit::default();
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("cannot read {name} after line {}", audit.lines()))?;
        if let Err(wrong) = audit.line(&line) {
            if args.json {
                output::line(json!({"valid": false, "line": wrong.line, "why": wrong.why}));
            }
            bail!("{name}, {wrong}");
        }
    }
    if audit.lines() == 0 {
        if args.json {
            output::line(json!({"valid": false, "line": null, "why": "there are no receipts in it"}));
        }
        bail!("there are no receipts in {name}: `--receipts` of generate, chat or api fills such a file");
    }
    if args.json {
        output::line(report(&audit));
        return Ok(());
    }
    for (peer, summary) in audit.peers() {
        let PeerSummary {
            sessions,
            steps,
            tokens,
            ..
        } = summary;
        let blocks = blocks(summary).join(", ");
        output::line(format_args!(
            "{peer}: {steps} steps, {tokens} tokens in {sessions} sessions; {blocks}"
        ));
    }
    output::line(format_args!(
        "valid: {} receipts; {} times what went into a server is what came out of the one before",
        audit.lines(),
        audit.links()
    ));
    Ok(())
}

/// Models and ranges of blocks.
fn blocks(summary: &PeerSummary) -> Vec<String> {
    let shown = |(model, start, end): &(String, u32, u32)| format!("{model} {start}:{end}");
    summary.blocks.iter().map(shown).collect()
}

fn report(audit: &Audit) -> serde_json::Value {
    let peer = |(peer, summary): (&String, &PeerSummary)| {
        json!({
            "peer": peer,
            "sessions": summary.sessions,
            "steps": summary.steps,
            "tokens": summary.tokens,
            "blocks": blocks(summary),
        })
    };
    let peers: Vec<_> = audit.peers().iter().map(peer).collect();
    json!({"valid": true, "receipts": audit.lines(), "links": audit.links(), "peers": peers})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_receipts_is_not_called_valid() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("receipts");
        std::fs::write(&file, "").unwrap();
        let error = run(&Command::Verify(VerifyArgs { file, json: false })).unwrap_err();
        assert!(error.to_string().starts_with("there are no receipts in "), "{error}");
    }
}
