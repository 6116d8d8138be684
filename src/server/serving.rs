//! What the request handlers share while a span is being served: blocks, compute thread, budget, sessions, limits.

use std::{ops::Range, sync::Arc, time::Duration};

use sepal_protocol::{
    compress::Compression,
    metadata::{BFLOAT16, INT8},
    proto,
    tensor::DType,
};

use super::{
    backward::BackwardTurns,
    error::RequestError,
    gathering::Undecoded,
    ledger::Ledger,
    memory::{Amount, Memory},
    pass_memory::PassMemory,
    push::Pushes,
    sessions::Sessions,
    stats::Counters,
    worker::Worker,
};
use crate::{
    model::{Blocks, Hidden, WeightDType, in_whole_pages},
    p2p::Identity,
    task::Tasks,
};

/// Limits of a server; the flags of the same names set them. Defaults are Petals' (`cli/run_server.py`).
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest session, in tokens.
    pub inference_max_length: usize,
    /// Most tokens (rows × tokens) in one request.
    pub max_batch_size: usize,
    /// Longest wait for cache memory that a client may ask for.
    pub max_alloc_timeout: Duration,
    /// Longest unary request, and longest push.
    pub request_timeout: Duration,
    /// Longest session.
    pub session_timeout: Duration,
    /// Longest silence within a session.
    pub step_timeout: Duration,
}

/// One loaded span and everything needed to answer requests for it.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) prefix: String,
    pub(crate) span: Range<u32>,
    pub(crate) blocks: Arc<Blocks>,
    /// Format of the weights, for receipts.
    pub(crate) weights: &'static str,
    pub(crate) worker: Worker,
    /// What sessions reserve.
    pub(crate) memory: Memory,
    /// What passes over whole sequences reserve.
    pub(crate) passes: PassMemory,
    /// What requests for those reserve while they come in.
    pub(crate) undecoded: Undecoded,
    pub(crate) sessions: Sessions,
    pub(crate) limits: Limits,
    pub(crate) compression: Compression,
    /// What receipts are signed with; the same in every swarm.
    pub(crate) identity: Identity,
    pub(crate) tasks: Tasks,
    pub(crate) pushes: Arc<Pushes>,
    pub(crate) backward_turns: Arc<BackwardTurns>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) ledger: Arc<Ledger>,
}

impl Drop for Serving {
    /// Nobody is left who could be answered.
    fn drop(&mut self) {
        self.worker.stop();
    }
}

impl Serving {
    /// What a session takes of the cache: K and V of every block of its chain for its whole length (Petals
    /// `server/backend.py`, `get_inference_cache_descriptors`), which each of its rows takes in whole pages. Beams that
    /// share pages take no more: whoever writes gets a copy, of which no row has more than its length. A session without
    /// any length counts as one token, because its rows take memory as well.
    pub(crate) fn session_amount(&self, n_blocks: usize, batch: usize, max_length: usize) -> Amount {
        let length = max_length.max(1) as u64;
        let bytes = |length: u64| {
            length
                .saturating_mul(batch as u64)
                .saturating_mul(n_blocks as u64)
                .saturating_mul(self.blocks.cache_bytes_per_token() as u64)
        };
        Amount {
            counted: bytes(length),
            taken: bytes(in_whole_pages(length)),
        }
    }

    /// Bytes of the host that passes were promised and that none of them has.
    pub(crate) fn promised(&self) -> u64 {
        self.passes.untaken() + self.undecoded.untaken()
    }

    /// # Errors
    /// When the activations have more tokens than `--max-batch-size`.
    pub(crate) fn check_size(&self, x: &Hidden) -> Result<(), RequestError> {
        self.check_tokens(x.batch, x.tokens)
    }

    /// # Errors
    /// When so many sequences of so many tokens are more than `--max-batch-size`.
    pub(crate) fn check_tokens(&self, batch: usize, tokens: usize) -> Result<(), RequestError> {
        let max = self.limits.max_batch_size;
        if batch.saturating_mul(tokens) > max {
            Err(RequestError::TooManyTokens { max })
        } else {
            Ok(())
        }
    }

    /// Activations as a reply carries them: in the server's dtype.
    ///
    /// # Errors
    /// When the compression is not defined for that dtype.
    pub(crate) fn to_wire(&self, x: &Hidden, compression: Compression) -> Result<proto::Tensor, RequestError> {
        Ok(x.to_wire(self.blocks.dtype().into())?.encode(compression)?)
    }

    /// Activations as an inference session wants them, or else as all replies are. Wishes that are not known are none: they
    /// may be those of a later version.
    ///
    /// # Errors
    /// When the compression is not defined for the server's dtype.
    pub(crate) fn to_wire_as(&self, x: &Hidden, wish: Option<&str>) -> Result<proto::Tensor, RequestError> {
        match wish {
            Some(BFLOAT16) if self.blocks.dtype() == WeightDType::F32 => {
                Ok(x.to_wire(DType::Bf16)?.encode(Compression::None)?)
            }
            Some(INT8) => self.to_wire(x, Compression::Blockwise8),
            _ => self.to_wire(x, self.compression),
        }
    }

    /// Free cache in the unit of the announced record: K and V and every block counted separately, grouped heads taken
    /// for full ones (spec of `cache_tokens_left`, Petals `server/server.py`).
    pub(crate) fn cache_tokens_left(&self) -> u64 {
        let config = self.blocks.config();
        let unit = config.hidden_size * self.blocks.dtype().size() / config.group_size();
        self.memory.free_bytes() / unit.max(1) as u64
    }

    /// Free cache in the unit of `rpc_info`: tokens of one block.
    pub(crate) fn cache_tokens_available(&self) -> u64 {
        self.memory.free_bytes() / self.blocks.cache_bytes_per_token().max(1) as u64
    }
}
