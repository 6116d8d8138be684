//! Checks a file of receipts: every signature, every session's chain, and along each step that what went into a server is
//! what came out of the one before. Pure; it is given lines and knows no files.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::Deserialize;
use thiserror::Error;

use super::{
    digest::Digest,
    signed::{Signed, SignedError},
    step::{FalseReceipt, StepReceipt, WHAT},
};

/// Steps whose receipts may still come: those of one step stand near each other, those of parallel sessions between them.
const OPEN_STEPS: usize = 4096;

/// What was found so far.
#[derive(Debug, Default)]
pub struct Audit {
    lines: usize,
    peers: BTreeMap<String, PeerSummary>,
    /// By server and session.
    sessions: HashMap<(String, String), Tip>,
    steps: HashMap<String, Vec<(usize, StepReceipt)>>,
    /// The names of `steps`, oldest first.
    order: VecDeque<String>,
    links: usize,
}

/// What one server gave receipts for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSummary {
    /// Sessions.
    pub sessions: usize,
    /// Steps.
    pub steps: u64,
    /// Tokens of all sequences.
    pub tokens: u64,
    /// Models and ranges of blocks.
    pub blocks: BTreeSet<(String, u32, u32)>,
}

/// The end of a session's chain.
#[derive(Debug)]
struct Tip {
    number: u64,
    digest: Digest,
    /// Tokens of each sequence after the step.
    reached: u64,
    model: String,
    blocks: [u32; 2],
    line: usize,
}

/// The first line that is wrong, and why.
#[derive(Debug, Error)]
#[error("line {line}: {why}")]
pub struct WrongLine {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    step: String,
    receipt: Signed,
}

impl Audit {
    /// Takes in the next line of the file.
    ///
    /// # Errors
    /// What is wrong with it; what follows cannot be judged then.
    pub fn line(&mut self, text: &str) -> Result<(), WrongLine> {
        self.lines += 1;
        self.check(text).map_err(|why| WrongLine { line: self.lines, why })
    }

    /// Lines so far.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// How often what went into a server was found to be what came out of the one before.
    pub fn links(&self) -> usize {
        self.links
    }

    /// What each server gave receipts for, by peer id.
    pub fn peers(&self) -> &BTreeMap<String, PeerSummary> {
        &self.peers
    }

    fn check(&mut self, text: &str) -> Result<(), String> {
        let line: Line = serde_json::from_str(text).map_err(|error| format!("not a receipt: {error}"))?;
        let opened: Result<_, SignedError> = line.receipt.open::<StepReceipt>(WHAT);
        let (signer, receipt) = opened.map_err(|error| full(&error))?;
        receipt
            .check_signer(&signer)
            .map_err(|error: FalseReceipt| error.to_string())?;
        self.check_chain(&receipt, line.receipt.digest())?;
        self.check_route(line.step, &receipt)?;
        let summary = self.peers.entry(receipt.server).or_default();
        summary.sessions += usize::from(receipt.number == 0);
        summary.steps += 1;
        summary.tokens = summary
            .tokens
            .saturating_add(receipt.tokens.saturating_mul(receipt.batch));
        let [start, end] = receipt.blocks;
        summary.blocks.insert((receipt.model, start, end));
        Ok(())
    }

    fn check_chain(&mut self, receipt: &StepReceipt, digest: Digest) -> Result<(), String> {
        let session = (receipt.server.clone(), receipt.session.clone());
        let before = self.sessions.get(&session);
        let next = before.map_or(0, |tip| tip.number + 1);
        let name = &receipt.session;
        if receipt.number < next {
            return Err(format!("receipt {} of session {name} is there twice", receipt.number));
        }
        if receipt.number > next {
            return Err(format!(
                "receipt {} of session {name} where {next} should be: some are missing",
                receipt.number
            ));
        }
        if receipt.previous != before.map(|tip| tip.digest) {
            return Err(format!(
                "the receipt before this one of session {name} is not the one that it names"
            ));
        }
        let reached = before.map_or(0, |tip| tip.reached);
        if receipt.position > reached {
            return Err(format!(
                "session {name} goes on at {}, and only {reached} tokens came before",
                receipt.position
            ));
        }
        if let Some(tip) = before
            && (tip.model != receipt.model || tip.blocks != receipt.blocks)
        {
            return Err(format!(
                "session {name} changes its model or blocks; line {} has others",
                tip.line
            ));
        }
        let tip = Tip {
            number: receipt.number,
            digest,
            reached: receipt.position.saturating_add(receipt.tokens),
            model: receipt.model.clone(),
            blocks: receipt.blocks,
            line: self.lines,
        };
        self.sessions.insert(session, tip);
        Ok(())
    }

    /// Compares with the receipts of the same step for the blocks before and behind. Activations that the client took from
    /// one form into another in between cannot be compared.
    fn check_route(&mut self, step: String, receipt: &StepReceipt) -> Result<(), String> {
        if !self.steps.contains_key(&step) {
            self.order.push_back(step.clone());
            if self.order.len() > OPEN_STEPS
                && let Some(oldest) = self.order.pop_front()
            {
                self.steps.remove(&oldest);
            }
        }
        let others = self.steps.entry(step).or_default();
        // Another one in the place of a server that was given up.
        others.retain(|(_, other)| other.blocks != receipt.blocks);
        for (line, other) in &*others {
            let (from, to) = match (other.blocks, receipt.blocks) {
                ([_, end], [start, _]) if end == start => (other, receipt),
                ([start, _], [_, end]) if end == start => (receipt, other),
                _ => continue,
            };
            if !from.output.is_like(&to.input) {
                continue;
            }
            if from.output != to.input {
                return Err(format!(
                    "what went into blocks {}:{} is not what came out of {}:{} (line {line})",
                    to.blocks[0], to.blocks[1], from.blocks[0], from.blocks[1]
                ));
            }
            self.links += 1;
        }
        others.push((self.lines, receipt.clone()));
        Ok(())
    }
}

fn full(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", full(cause)),
        None => error.to_string(),
    }
}
