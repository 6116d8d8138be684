//! The receipt of one step of an inference session: what it says, how a server makes one, how a client checks it.
//!
//! The receipts of a session are a chain: each names the hash of the one before, so that none can be left out or put in
//! later without its showing. Roll-backs are seen in `position`, which may go back and never leaves anything out.

use std::ops::Range;

use sepal_protocol::proto;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    digest::Digest,
    signed::{Signed, SignedError},
};
use crate::p2p::{Identity, PeerId};

/// The purpose that is signed for.
pub(super) const WHAT: &str = "step receipt";

/// Of [`StepReceipt`]; others are not understood.
const VERSION: u32 = 1;

/// What a server says that it did (`protocol/schemas/step_receipt.json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepReceipt {
    /// 1.
    pub version: u32,
    /// Peer id of the server, the signer.
    pub server: String,
    /// DHT prefix of the model.
    pub model: String,
    /// Format of the weights.
    pub weights: String,
    /// Id of the session on this server.
    pub session: String,
    /// Receipts of the session before this one.
    pub number: u64,
    /// Hash of the body of the one before; none for the first.
    pub previous: Option<Digest>,
    /// First block, and the one after the last.
    pub blocks: [u32; 2],
    /// Tokens of each sequence before those of the step.
    pub position: u64,
    /// Tokens of each sequence in the step.
    pub tokens: u64,
    /// Sequences.
    pub batch: u64,
    /// The activations that came in.
    pub input: TensorDigest,
    /// Those that were answered.
    pub output: TensorDigest,
    /// Milliseconds since 1970 by the server's clock. Nothing is decided by it.
    pub time_ms: u64,
}

/// Names a tensor as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorDigest {
    /// Type of the items before compression.
    pub dtype: String,
    /// Number of the encoding, 0 for none.
    pub compression: i32,
    /// Over dtype, compression, shape and bytes.
    pub blake3: Digest,
}

impl TensorDigest {
    /// Hashes a tensor where it lies.
    pub fn of(tensor: &proto::Tensor) -> Self {
        let shape: Vec<u8> = tensor.size.iter().flat_map(|n| n.to_le_bytes()).collect();
        let compression = tensor.compression.to_le_bytes();
        let blake3 = Digest::of_parts([tensor.dtype.as_bytes(), &compression, &shape, &tensor.buffer]);
        Self {
            dtype: tensor.dtype.clone(),
            compression: tensor.compression,
            blake3,
        }
    }

    /// Whether the two are of one form, so that the same numbers have the same hash.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.compression == other.compression
    }
}

/// The receipts that a server gave in one session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    number: u64,
    previous: Option<Digest>,
}

/// A step as a server has done it.
#[derive(Debug)]
pub(crate) struct Computed<'a> {
    pub(crate) model: &'a str,
    pub(crate) weights: &'static str,
    pub(crate) session: &'a str,
    pub(crate) blocks: Range<u32>,
    pub(crate) position: usize,
    /// Sequences, and new tokens of each.
    pub(crate) size: (usize, usize),
    pub(crate) input: &'a proto::Tensor,
    pub(crate) output: &'a proto::Tensor,
    pub(crate) time_ms: u64,
}

impl Chain {
    /// Signs the next receipt of the session. `None` if the key cannot sign.
    pub(crate) fn next(&mut self, step: &Computed<'_>, identity: &Identity) -> Option<String> {
        let receipt = StepReceipt {
            version: VERSION,
            server: identity.peer_id().to_string(),
            model: step.model.to_owned(),
            weights: step.weights.to_owned(),
            session: step.session.to_owned(),
            number: self.number,
            previous: self.previous,
            blocks: [step.blocks.start, step.blocks.end],
            position: step.position as u64,
            tokens: step.size.1 as u64,
            batch: step.size.0 as u64,
            input: TensorDigest::of(step.input),
            output: TensorDigest::of(step.output),
            time_ms: step.time_ms,
        };
        let signed = Signed::new(WHAT, &receipt, identity)?;
        self.number += 1;
        self.previous = Some(signed.digest());
        signed.to_line()
    }
}

/// Why a receipt is not that of what was asked and answered.
#[derive(Debug, Error)]
pub enum FalseReceipt {
    /// It is not signed as it should be.
    #[error(transparent)]
    Signature(#[from] SignedError),
    /// Its body is in several lines, which none of ours is.
    #[error("the receipt is not one line")]
    NotOneLine,
    /// It was given by somebody else.
    #[error("the receipt is that of {0}")]
    OtherServer(PeerId),
    /// It says something that is not so.
    #[error("the receipt gives a wrong {0}")]
    Wrong(&'static str),
    /// It is that of another step: one with another position, number of tokens or input.
    #[error("the receipt is that of a step with another {0}")]
    OtherStep(&'static str),
    /// Steps before came with receipts.
    #[error("the receipt is missing")]
    Missing,
}

/// What the receipts of one session have to say, by the one who asked for them.
#[derive(Debug)]
pub(crate) struct Expectation {
    server: PeerId,
    model: String,
    session: String,
    blocks: [u32; 2],
    number: u64,
    previous: Option<Digest>,
}

/// A step as it was asked for and answered.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) position: usize,
    /// Sequences, and new tokens of each.
    pub(crate) size: (usize, usize),
    /// What was sent.
    pub(crate) input: TensorDigest,
    /// What the server before answered, and may have pushed.
    pub(crate) pushed: Option<&'a TensorDigest>,
    pub(crate) output: &'a TensorDigest,
}

impl FalseReceipt {
    /// Whether it would look the same if somebody else had sent the server another step in the place of the one that was
    /// asked for.
    pub(crate) fn may_come_of_another_step(&self) -> bool {
        matches!(self, Self::OtherStep(_) | Self::Missing)
    }
}

impl Expectation {
    pub(crate) fn new(server: PeerId, model: &str, session: &str, blocks: &Range<u32>) -> Self {
        Self {
            server,
            model: model.to_owned(),
            session: session.to_owned(),
            blocks: [blocks.start, blocks.end],
            number: 0,
            previous: None,
        }
    }

    /// Whether none has come yet.
    pub(crate) fn is_first(&self) -> bool {
        self.number == 0
    }

    /// Checks the receipt that came with an answer, and returns it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&mut self, text: &str, asked: &Asked<'_>) -> Result<Signed, FalseReceipt> {
        let signed = Signed::parse(text.as_bytes())?;
        let (signer, receipt) = signed.open::<StepReceipt>(WHAT)?;
        if signer != self.server {
            return Err(FalseReceipt::OtherServer(signer));
        }
        receipt.check_signer(&signer)?;
        let (batch, tokens) = (asked.size.0 as u64, asked.size.1 as u64);
        let input_fits = receipt.input == asked.input || asked.pushed == Some(&receipt.input);
        for (fits, what) in [
            (receipt.model == self.model, "model"),
            (receipt.session == self.session, "session"),
            (receipt.blocks == self.blocks, "range of blocks"),
            (receipt.number == self.number, "number"),
            (receipt.previous == self.previous, "predecessor"),
            (receipt.output == *asked.output, "output"),
        ] {
            if !fits {
                return Err(FalseReceipt::Wrong(what));
            }
        }
        for (fits, what) in [
            (receipt.position == asked.position as u64, "position"),
            ((receipt.batch, receipt.tokens) == (batch, tokens), "number of tokens"),
            (input_fits, "input"),
        ] {
            if !fits {
                return Err(FalseReceipt::OtherStep(what));
            }
        }
        if signed.to_line().is_none() {
            return Err(FalseReceipt::NotOneLine);
        }
        self.number += 1;
        self.previous = Some(signed.digest());
        Ok(signed)
    }
}

impl StepReceipt {
    /// What every receipt has to have, whatever it is about.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check_signer(&self, signer: &PeerId) -> Result<(), FalseReceipt> {
        if self.version != VERSION {
            return Err(FalseReceipt::Wrong("version"));
        }
        if self.server != signer.to_string() {
            return Err(FalseReceipt::Wrong("server"));
        }
        Ok(())
    }
}
