//! Is a result that of the job? Pure.
//!
//! What is found: results of other jobs, other settings or prompts, texts and tokens that are not those of the receipt,
//! receipts of others. What is not: a worker that computes something else and signs that. Whoever wants to know submits
//! the job once more; with the same weights and seed it gives the same text.

use thiserror::Error;

use super::{
    message::{JobReceipt, Message},
    order::Order,
};
use crate::{p2p::PeerId, receipt::Digest};

/// A result as it was delivered and found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Who did it.
    pub worker: PeerId,
    /// The new text.
    pub text: String,
    /// The new tokens.
    pub token_ids: Vec<u32>,
    /// What the worker signed.
    pub receipt: JobReceipt,
    /// The same with the signature.
    pub signed: String,
    /// How often it was given to a worker, this time included.
    pub attempts: u32,
}

/// Why a result is not that of the job.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FalseDelivery {
    /// No receipt, or not signed by the worker.
    #[error("the receipt is not signed by the worker")]
    Signature,
    /// The receipt says something that is not so.
    #[error("the receipt gives a wrong {0}")]
    Wrong(&'static str),
}

/// Checks what `worker` delivered for `order`, which `submitter` gave it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(
    order: &Order,
    (submitter, worker): (&PeerId, PeerId),
    (text, token_ids): (String, Vec<u32>),
    signed: String,
) -> Result<Delivery, FalseDelivery> {
    let receipt = match Message::parse(signed.as_bytes()) {
        Ok((signer, Message::Receipt(receipt))) if signer == worker => receipt,
        _ => return Err(FalseDelivery::Signature),
    };
    for (fits, what) in [
        (receipt.submitter == submitter.to_string(), "submitter"),
        (receipt.job == order.job, "job"),
        (receipt.attempt == order.attempt, "attempt"),
        (receipt.model == order.model, "model"),
        (receipt.settings == order.settings, "setting"),
        (receipt.prompt == Digest::of(order.prompt.as_bytes()), "prompt"),
        (receipt.new_tokens as usize == token_ids.len(), "number of tokens"),
        (receipt.new_tokens <= order.settings.max_new_tokens, "number of tokens"),
        (receipt.tokens == tokens_digest(&token_ids), "hash of the tokens"),
        (receipt.text == Digest::of(text.as_bytes()), "hash of the text"),
    ] {
        if !fits {
            return Err(FalseDelivery::Wrong(what));
        }
    }
    Ok(Delivery {
        worker,
        text,
        token_ids,
        receipt,
        signed,
        attempts: order.attempt + 1,
    })
}

pub(super) fn tokens_digest(token_ids: &[u32]) -> Digest {
    let bytes: Vec<u8> = token_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Digest::of(&bytes)
}
