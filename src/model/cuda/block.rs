//! The decoder block on a card: the parts of `model/block.rs` in the same order, each of which is a kernel here. It is made
//! of a block that was loaded for the CPU, so that both multiply by the same numbers.

mod adapter;
mod back;
mod feed_forward;

use std::{ops::Range, sync::Arc};

use adapter::CardAdapter;
use feed_forward::CardFeedForward;

use super::{
    Buffer, CudaError, Device, View,
    kernels::{
        attention::{CardScoring, Sequences},
        cache::CardHeads,
        elementwise,
        linear::CardLinear,
        norm::CardNorm,
    },
    steps::Steps,
};
use crate::model::{
    attention::Scoring,
    block::Block,
    config::parts::Residual,
    cpu::Engine,
    lora::{BlockAdapter, Target},
    norm::Norm,
    rope::Rope,
};

/// The weights of one block, on a card.
#[derive(Debug)]
pub(crate) struct CardBlock {
    device: Arc<Device>,
    residual: Residual,
    attention_norm: BothNorm,
    query: CardLinear,
    key: CardLinear,
    value: CardLinear,
    qk_norm: Option<[BothNorm; 2]>,
    pub(crate) rope: Option<Rope>,
    scoring: CardScoring,
    host_scoring: Scoring,
    output: CardLinear,
    attention_post_norm: Option<BothNorm>,
    mlp_norm: Option<BothNorm>,
    feed_forward: CardFeedForward,
    mlp_post_norm: Option<BothNorm>,
    /// By the number of the adapter.
    adapters: Vec<CardAdapter>,
    /// The same of the CPU, for gradients.
    host_adapters: Vec<BlockAdapter>,
    scratch_bytes_per_token: usize,
}

/// A norm here and there; it is small.
#[derive(Debug)]
struct BothNorm {
    card: CardNorm,
    host: Norm,
}

/// What a run of a block needs besides `x`.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) heads: CardHeads,
    /// New tokens of all sequences.
    pub(super) steps: &'a Steps,
    pub(super) sequences: &'a Sequences,
    /// Addresses of the pages of all sequences in this block.
    pub(super) pages: View<'a, u64>,
    /// `[tokens, rotary_dim]`: cosines and sines of each token; none if the block does not turn by them.
    pub(super) angles: Option<View<'a, f32>>,
    /// Which tokens go through which adapter.
    pub(super) updates: &'a [(Range<usize>, usize)],
}

impl CardBlock {
    /// Brings a block, its adapters included, to a card.
    ///
    /// # Errors
    /// When the card has no memory for it.
    pub(crate) fn of(block: Block, engine: &Engine, device: &Arc<Device>) -> Result<Self, CudaError> {
        let scratch_bytes_per_token = block.scratch_bytes_per_token();
        let linear = |linear| CardLinear::of(linear, engine, device);
        let norm = |host: Norm| {
            Ok(BothNorm {
                card: CardNorm::of(&host, device)?,
                host,
            })
        };
        let mut card = Self {
            device: device.clone(),
            residual: block.residual,
            query: linear(&block.query)?,
            key: linear(&block.key)?,
            value: linear(&block.value)?,
            output: linear(&block.output)?,
            feed_forward: CardFeedForward::of(&block.feed_forward, engine, device)?,
            attention_norm: norm(block.attention_norm)?,
            qk_norm: match block.qk_norm {
                Some([query, key]) => Some([norm(query)?, norm(key)?]),
                None => None,
            },
            attention_post_norm: block.attention_post_norm.map(norm).transpose()?,
            mlp_norm: block.mlp_norm.map(norm).transpose()?,
            mlp_post_norm: block.mlp_post_norm.map(norm).transpose()?,
            scoring: CardScoring::of(&block.scoring, device)?,
            host_scoring: block.scoring,
            rope: block.rope,
            adapters: Vec::new(),
            host_adapters: Vec::new(),
            scratch_bytes_per_token,
        };
        for adapter in block.adapters {
            card.add_adapter(adapter, engine)?;
        }
        Ok(card)
    }

    /// Adds what one more adapter changes.
    ///
    /// # Errors
    /// When the card has no memory for it.
    pub(crate) fn add_adapter(&mut self, adapter: BlockAdapter, engine: &Engine) -> Result<(), CudaError> {
        self.adapters.push(CardAdapter::of(&adapter, engine, &self.device)?);
        self.host_adapters.push(adapter);
        Ok(())
    }

    /// The adapters as the CPU has them.
    pub(crate) fn host_adapters(&self) -> &[BlockAdapter] {
        &self.host_adapters
    }

    /// Bytes of activations that a run holds at a time for each token, about.
    pub(crate) fn scratch_bytes_per_token(&self) -> usize {
        self.scratch_bytes_per_token
    }

    /// Starts to replace `x`, `[tokens, hidden]` of all sequences one after the other, by the block's output.
    ///
    /// # Errors
    /// When the card refuses, or has no memory left.
    pub(super) fn run(&self, x: &mut Buffer<f32>, run: &Run<'_>) -> Result<(), CudaError> {
        let mut normed = self.temporary(x.len())?;
        self.attention_norm.card.apply(x.all(), normed.all_mut())?;
        let heads = self.attend(normed.all(), run)?;
        let mut out = self.temporary(x.len())?;
        self.output.apply(heads.all(), run.steps.all(), out.all_mut())?;
        self.update(Target::Output, heads.all(), &mut out, run)?;
        let parallel = self.residual.is_parallel();
        if let (true, Some(norm)) = (parallel, &self.mlp_norm) {
            norm.card.apply(x.all(), normed.all_mut())?;
        }
        self.add_normed(self.attention_post_norm.as_ref(), out.all(), x)?;
        if let (false, Some(norm)) = (parallel, &self.mlp_norm) {
            norm.card.apply(x.all(), normed.all_mut())?;
        }
        self.feed(normed.all(), &mut out, run)?;
        self.add_normed(self.mlp_post_norm.as_ref(), out.all(), x)
    }

    /// What the output projection gets, `[tokens, n_heads, head_dim]`. Keys and values are in the pages then.
    fn attend(&self, x: View<'_, f32>, run: &Run<'_>) -> Result<Buffer<f32>, CudaError> {
        let room = |linear: &CardLinear| self.temporary(run.steps.tokens() * linear.weight.rows());
        let (mut queries, mut keys, mut values) = (room(&self.query)?, room(&self.key)?, room(&self.value)?);
        let outs = [queries.all_mut(), keys.all_mut(), values.all_mut()];
        CardLinear::apply_each([&self.query, &self.key, &self.value], x, run.steps.all(), outs)?;
        self.update(Target::Query, x, &mut queries, run)?;
        self.update(Target::Key, x, &mut keys, run)?;
        self.update(Target::Value, x, &mut values, run)?;
        if let Some([query_norm, key_norm]) = &self.qk_norm {
            queries = self.normed(query_norm, &queries)?;
            keys = self.normed(key_norm, &keys)?;
        }
        let places = (run.sequences, run.pages);
        let new = [keys.all(), values.all()];
        run.heads.cache(places, run.angles, &mut queries.all_mut(), new)?;
        let mut out = self.temporary(queries.len())?;
        run.heads
            .attend(&self.scoring, places, queries.all(), &mut out.all_mut())?;
        Ok(out)
    }

    fn temporary(&self, len: usize) -> Result<Buffer<f32>, CudaError> {
        Buffer::temporary(&self.device, len)
    }

    fn normed(&self, norm: &BothNorm, x: &Buffer<f32>) -> Result<Buffer<f32>, CudaError> {
        let mut out = self.temporary(x.len())?;
        norm.card.apply(x.all(), out.all_mut())?;
        Ok(out)
    }

    /// `x += norm(y)`
    fn add_normed(&self, norm: Option<&BothNorm>, y: View<'_, f32>, x: &mut Buffer<f32>) -> Result<(), CudaError> {
        let Some(norm) = norm else {
            return elementwise::add(&self.device, &mut x.all_mut(), y);
        };
        let mut normed = self.temporary(y.len())?;
        norm.card.apply(y, normed.all_mut())?;
        elementwise::add(&self.device, &mut x.all_mut(), normed.all())
    }

    /// Adds to `y`, the projections of all tokens `x`, the updates of those that want any.
    fn update(&self, target: Target, x: View<'_, f32>, y: &mut Buffer<f32>, run: &Run<'_>) -> Result<(), CudaError> {
        for (tokens, idx) in run.updates {
            if let Some(adapter) = self.adapters.get(*idx) {
                adapter.add(target, run.steps.part(tokens.clone()), x, y)?;
            }
        }
        Ok(())
    }
}
