//! Receipts for the steps of one session, for clients that ask. What they say, and how they are signed, is in `receipt`.

use std::{
    ops::Range,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use sepal_protocol::{metadata::tensor_order, msgpack::Value, proto};

use super::serving::Serving;
use crate::receipt::{Chain, Computed};

/// What the receipts of a session have in common, and the end of their chain.
#[derive(Debug)]
pub(crate) struct Receipts {
    session: Arc<str>,
    /// `None` if the blocks do not follow each other: nobody asks for receipts then.
    blocks: Option<Range<u32>>,
    pub(crate) chain: Chain,
}

/// The receipt of a step whose answer is not packed yet.
pub(crate) struct Due {
    serving: Arc<Serving>,
    session: Arc<str>,
    blocks: Range<u32>,
    chain: Chain,
    position: usize,
    input: proto::Tensor,
}

impl Receipts {
    pub(crate) fn new(session: Option<String>, chain: &[u32]) -> Self {
        let follow = chain.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let blocks = match chain {
            [first, .., last] if follow => Some(*first..last + 1),
            [only] => Some(*only..only + 1),
            _ => None,
        };
        Self {
            session: session.unwrap_or_default().into(),
            blocks,
            chain: Chain::default(),
        }
    }

    /// What is known of the step in `request`, which began at `position`, before its answer is packed. The bytes of the
    /// input are shared, not copied.
    pub(crate) fn due(
        &self,
        serving: &Arc<Serving>,
        request: &proto::ExpertRequest,
        structure: Option<&Value>,
        position: usize,
    ) -> Option<Due> {
        let order = tensor_order(structure, request.tensors.len()).ok()?;
        Some(Due {
            serving: serving.clone(),
            session: self.session.clone(),
            blocks: self.blocks.clone()?,
            chain: self.chain.clone(),
            position,
            input: request.tensors.get(*order.first()?)?.clone(),
        })
    }
}

impl Due {
    /// The receipt of the step with this output, `size` sequences and tokens, and the chain after it. No receipt if the key
    /// of the node cannot sign.
    pub(crate) fn sign(mut self, output: &proto::Tensor, size: (usize, usize)) -> (Option<String>, Chain) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let step = Computed {
            model: &self.serving.prefix,
            weights: self.serving.weights,
            session: &self.session,
            blocks: self.blocks,
            position: self.position,
            size,
            input: &self.input,
            output,
            time_ms: since.as_millis().try_into().unwrap_or(u64::MAX),
        };
        let receipt = self.chain.next(&step, &self.serving.identity);
        (receipt, self.chain)
    }
}
