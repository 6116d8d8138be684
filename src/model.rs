//! Models: finding and loading them, running their blocks, choosing tokens. It knows no peers; only `hub` uses the
//! network.
//!
//! ```text
//! MODEL ──▶ ModelSource ──▶ ModelConfig ─┐
//!                └────────▶ ModelFiles ──┴▶ Blocks ── step(block, cache, x, position) ──▶ x
//!                                   └─────▶ Ends   ── embed(tokens) ──▶ x ──▶ logits ──▶ Sampler ──▶ token
//! ```
//!
//! What a model consists of is said in three places: `config` (which parts, of which sizes), `family` (how a family's
//! `config.json` says so and what its tensors are called) and `layout` (both together: the tensors of a block).
//!
//! A step goes through these files: `block` (the layer, in paper order) calls `norm`, `linear` (matrix products), `rope`
//! (positions), `kv` (where keys and values are kept), `attention` and `feed_forward`; all of them end in `cpu` (the
//! kernels).
//! Weights and caches are f32, bf16 or f16; activations are f32 everywhere.

pub mod accuracy;
mod activation;
mod attention;
mod batch;
mod block;
mod builtin;
mod config;
mod cpu;
mod cuda;
mod ends;
mod error;
mod family;
mod feed_forward;
mod files;
mod free;
mod generation;
mod gguf;
mod grad;
mod hub;
mod known;
mod kv;
mod layout;
mod linear;
mod load;
mod lora;
mod machine;
mod noise;
mod norm;
mod number;
mod places;
mod quant;
mod rope;
mod sample;
mod sharing;
mod source;
mod tensor;

use std::{ops::Range, sync::Arc};

use attention::Heads;
pub(crate) use batch::emptied;
pub use batch::{Part, Scratch};
use block::{Block, Shared};
pub(crate) use builtin::{NAME as BUILTIN_NAME, REPO_NAME as BUILTIN_REPOSITORY};
pub use config::{
    ModelConfig, WeightDType,
    parts::{
        Activation, AlibiKind, AttentionConfig, EndsConfig, ExpertsConfig, FeedForwardConfig, NormConfig, NormKind,
        Position, Residual, Routing, SlidingWindow,
    },
    rope::{RopeConfig, RopeScaling},
};
use cpu::Kernels;
pub use cpu::{Engine, LargeMemory, MachineLimits, measure_limits};
use cuda::Device;
pub use cuda::{CardLimits, CudaError, Toolkit, measure_cards};
pub use ends::Ends;
pub use error::{ComputeError, ConfigError, LoadError};
pub use family::{Family, Support};
pub use files::{ModelFiles, ShardIndex};
pub(crate) use free::{ByteSize, free_memory, memory_limit};
pub use generation::GenerationConfig;
pub use gguf::GgufError;
#[cfg(test)]
pub(crate) use gguf::testing::{byte_level_json, demo_gguf, sentence_piece_json};
use grad::Through;
pub(crate) use grad::{Breath, INNER_TOKENS_ON_THE_WAY_BACK, bytes_on_the_way_back};
pub use hub::{DiskSpace, Download, HubError, HubFault, HubOptions, Progress, Transfer, disk_space};
pub use known::{KnownModel, known_models};
use kv::{Arena, KvShape};
pub use kv::{Cache, CacheCounts, KvDType};
pub(crate) use kv::{PAGE_TOKENS, in_whole_pages};
use layout::BlockLayout;
pub use linear::measure_gemm;
use load::TensorReader;
pub use lora::{Adapter, AdapterError, AdapterId};
pub use machine::{Cards, Machine, ProofError};
use places::{Held, in_order, spread};
pub(crate) use places::{Need, room_on_cards};
pub use quant::{Precision, WeightFormat};
pub use sample::{Choice, Logprobs, MAX_LOGPROBS, SampleError, Sampler, SamplingParams, Seen};
pub use sharing::CacheOptions;
pub use source::{ChatFiles, ModelSource, ResolveError};
pub use tensor::Hidden;

/// Activations a step may hold at a time, in bytes; longer steps are computed in parts. Petals' `max_chunk_size_bytes`.
pub const DEFAULT_MAX_CHUNK_BYTES: usize = 256 << 20;

/// The instruction set that blocks are computed with on this CPU, and whether it is one there are fast kernels for.
pub fn cpu_kernels() -> (&'static str, bool) {
    let kernels = Kernels::detect();
    (kernels.name(), kernels.are_fast())
}

/// The instructions this CPU has, among those that some kernel is made of.
pub fn cpu_features() -> Vec<&'static str> {
    cpu::features()
}

/// A loaded contiguous span of a model's blocks. All methods compute on the calling thread and on those of the
/// engine; none of them waits for anything else. Clones share the weights.
#[derive(Clone, Debug)]
pub struct Blocks {
    config: Arc<ModelConfig>,
    span: Range<u32>,
    precision: Precision,
    /// Those that the blocks' places are numbers of.
    cards: Vec<Arc<Device>>,
    shared: Shared,
    blocks: Vec<Arc<Held>>,
    /// The names of the adapters, by [`AdapterId`].
    adapters: Vec<String>,
    max_chunk_bytes: usize,
    share_prefixes: bool,
    /// An activation that makes a block panic.
    #[cfg(test)]
    poison: Option<f32>,
}

impl Blocks {
    /// Loads the blocks of `span` and packs their weights for the kernels of `machine`, which will run them: an [`Engine`],
    /// or one with cards, which then have all of them. With a [`WeightDType`], weights and caches are of that type.
    ///
    /// # Errors
    /// An empty span or one outside the model; the first file or tensor that is not as the configuration says; a card
    /// without the memory.
    pub fn load(
        files: &ModelFiles,
        span: Range<u32>,
        precision: impl Into<Precision>,
        machine: impl Into<Machine>,
    ) -> Result<Self, LoadError> {
        let (precision, machine) = (precision.into(), machine.into());
        let block_bytes = files.config().block_bytes(precision.weights);
        let shares = spread(&machine, block_bytes, span.len()).map_err(LoadError::Card)?;
        Self::load_at(files, span, precision, (&machine, &shares))
    }

    /// The same on those cards, as many blocks on each as `shares` says.
    ///
    /// # Errors
    /// As [`Blocks::load`].
    pub(crate) fn load_at(
        files: &ModelFiles,
        span: Range<u32>,
        precision: Precision,
        (machine, shares): (&Machine, &[usize]),
    ) -> Result<Self, LoadError> {
        let config = files.shared_config();
        if span.is_empty() || span.end > config.n_blocks {
            return Err(LoadError::Span {
                span,
                n_blocks: config.n_blocks,
            });
        }
        let mut reader = TensorReader::new(files, precision, &machine.engine);
        // Cards multiply prompts in the type that weights have.
        if !machine.has_cards() {
            reader = reader.narrow().rounding();
        }
        let blocks: Result<Vec<_>, LoadError> = span
            .clone()
            .zip(in_order(machine, shares))
            .map(|(block_idx, place)| {
                let block = Block::load(&mut reader, &config, block_idx)?;
                Held::new((block, reader.take_packed()), files.lease(), (machine, place))
            })
            .collect();
        files.opened();
        let heads = Heads {
            engine: machine.engine.clone(),
            kv: KvShape::new(&config, precision.dtype.into()),
            group: config.group_size(),
        };
        let shared = Shared {
            arena: Arena::of(heads.kv, (&machine.cards, &[]), 0)?,
            passes: Arena::of(heads.kv, (&machine.cards, &[]), 0)?,
            heads,
        };
        Ok(Self {
            config,
            span,
            precision,
            cards: machine.cards.clone(),
            shared,
            blocks: blocks?,
            adapters: Vec::new(),
            max_chunk_bytes: DEFAULT_MAX_CHUNK_BYTES,
            share_prefixes: false,
            #[cfg(test)]
            poison: None,
        })
    }

    /// The blocks of `span`, each of them shared with this span or with `added`, which has the same adapters; the cache is
    /// that of this span. A block's weights are freed with the last span that has it.
    ///
    /// # Errors
    /// A block that neither has.
    pub fn moved(&self, added: &Self, span: Range<u32>) -> Result<Self, LoadError> {
        let blocks = span
            .clone()
            .map(|block| self.held(block).or(added.held(block)).cloned());
        let blocks: Option<Vec<_>> = blocks.collect();
        let blocks = blocks.filter(|blocks| !blocks.is_empty()).ok_or(LoadError::Span {
            span: span.clone(),
            n_blocks: self.config.n_blocks,
        })?;
        Ok(Self {
            span,
            blocks,
            ..self.clone()
        })
    }

    /// Bounds the activations that a step holds at a time, in bytes (at least one token is computed at a time).
    #[must_use]
    pub fn with_max_chunk_bytes(mut self, bytes: usize) -> Self {
        self.max_chunk_bytes = bytes;
        self
    }

    /// Blocks that panic when they meet this number among their inputs.
    #[cfg(test)]
    pub(crate) fn with_poison(mut self, poison: f32) -> Self {
        self.poison = Some(poison);
        self
    }

    /// Adds adapters that sequences may ask for by name.
    ///
    /// # Errors
    /// The first adapter that does not fit, changes no block of the model, or has the name of another; any, if other
    /// spans have these blocks already.
    pub fn with_adapters(mut self, adapters: &[Adapter]) -> Result<Self, AdapterError> {
        for adapter in adapters {
            let name = adapter.name().to_owned();
            if self.adapters.contains(&name) {
                return Err(AdapterError::Twice { name });
            }
            for (block_idx, held) in self.span.clone().zip(&mut self.blocks) {
                let held = Arc::get_mut(held).ok_or_else(|| AdapterError::Shared { name: name.clone() })?;
                // The names that differ between checkpoints of a family are not those that adapters have.
                let layout = BlockLayout::new(&self.config, block_idx, &|_| false);
                let adapter = adapter.block(&layout, block_idx, &self.shared.heads.engine)?;
                held.add_adapter(adapter, &self.shared.heads.engine)?;
            }
            // One of other blocks than these is no mistake: other servers have those.
            if adapter.block_bytes(&self.config) == 0 {
                return Err(AdapterError::Idle { name });
            }
            self.adapters.push(name);
        }
        Ok(self)
    }

    /// The adapter of this name; `None` if there is none.
    pub fn adapter(&self, name: &str) -> Option<AdapterId> {
        self.adapters.iter().position(|known| known == name).map(AdapterId)
    }

    /// Bytes that the largest block takes without its adapters: of bf16 fewer than its 16 bits where the processor computes.
    pub fn block_bytes(&self) -> u64 {
        let numbers = self.config.numbers_per_block();
        let rest = |weights| numbers.saturating_sub(weights) * size_of::<f32>() as u64;
        let bytes = self
            .blocks
            .iter()
            .map(|held| held.packed.bytes + rest(held.packed.weights));
        bytes.max().unwrap_or(0)
    }

    /// The format of the weights, and what they take in memory where that is another number of bits.
    pub fn weights_in_words(&self) -> String {
        let format = self.precision.weights;
        let all = self.blocks.iter().map(|held| held.packed);
        let (bytes, weights) = all.fold((0, 0), |sum, packed| (sum.0 + packed.bytes, sum.1 + packed.weights));
        let bits = 8.0 * bytes as f64 / weights.max(1) as f64;
        match format.dtype() {
            Some(dtype) if bits < 8.0 * dtype.size() as f64 - 0.5 => format!("{} ({bits:.1} bits)", format.as_str()),
            _ => format.as_str().to_owned(),
        }
    }

    /// Which blocks of the model these are.
    pub fn span(&self) -> Range<u32> {
        self.span.clone()
    }

    /// The configuration of the whole model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The type of caches, and of weights that are not quantised.
    pub fn dtype(&self) -> WeightDType {
        self.precision.dtype
    }

    /// Bytes that one token of one sequence is counted with in the cache of one block: key and value in the type of
    /// the weights, however they are kept.
    pub fn cache_bytes_per_token(&self) -> usize {
        self.config.cache_bytes_per_token(self.precision.dtype.into())
    }

    /// An empty cache for `batch` sequences of up to `max_length` tokens through `chain_len` blocks. It takes memory
    /// as it is filled.
    pub fn new_cache(&self, chain_len: usize, batch: usize, max_length: usize) -> Cache {
        Cache::new(&self.shared.arena, chain_len, batch, max_length)
    }

    /// The cache for `batch` whole sequences of `tokens` tokens through `chain_len` blocks. Its pages are no session's.
    pub(crate) fn new_pass_cache(&self, chain_len: usize, batch: usize, tokens: usize) -> Cache {
        Cache::new(&self.shared.passes, chain_len, batch, tokens)
    }

    /// Replaces `x`, `[batch, tokens, hidden]`, by the output of `block` (numbered as in the model). Its tokens are at
    /// `position` and after in every sequence; their keys and values are written to entry `chain_idx` of `cache`,
    /// where anything behind them is forgotten. Without tokens nothing happens.
    ///
    /// # Errors
    /// Whatever does not fit together; `x` and `cache` are unchanged then.
    #[expect(
        clippy::too_many_arguments,
        reason = "what to compute, where to keep it, and at which position"
    )]
    pub fn step(
        &self,
        block: u32,
        cache: &mut Cache,
        chain_idx: usize,
        x: &mut Hidden,
        position: usize,
    ) -> Result<(), ComputeError> {
        self.step_through(&[block], (cache, chain_idx), x, position)
    }

    /// [`Blocks::step`] through all blocks of `chain`, which go at a call ([`Blocks::at_a_call`]); the first one's keys and
    /// values go to entry `chain_idx`.
    ///
    /// # Errors
    /// As [`Blocks::step`].
    pub(crate) fn step_through(
        &self,
        chain: &[u32],
        (cache, chain_idx): (&mut Cache, usize),
        x: &mut Hidden,
        position: usize,
    ) -> Result<(), ComputeError> {
        let part = Part {
            cache,
            chain_idx,
            rows: 0..x.batch,
            tokens: 0..x.tokens,
            x,
            position,
        };
        self.run_batch(chain, &mut [part], &mut Scratch::default())
    }

    /// Replaces `x`, `[batch, tokens, hidden]` from position 0, by the output of `block`, and keeps nothing.
    ///
    /// # Errors
    /// As [`Blocks::step`].
    pub fn forward(&self, block: u32, x: &mut Hidden) -> Result<(), ComputeError> {
        self.forward_with(block, None, x)
    }

    /// [`Blocks::forward`] with an adapter, if it is one.
    ///
    /// # Errors
    /// As [`Blocks::step`].
    pub fn forward_with(&self, block: u32, adapter: Option<AdapterId>, x: &mut Hidden) -> Result<(), ComputeError> {
        self.held_block(block)?;
        self.check(x)?;
        if x.data.is_empty() {
            // There may be any number of sequences without tokens.
            return Ok(());
        }
        let mut cache = self.new_pass_cache(1, x.batch, x.tokens).with_adapter(adapter);
        self.step(block, &mut cache, 0, x, 0)
    }

    /// The gradient by the input `x_in` (positions from 0) of `block` with `adapter` that belongs to the gradient
    /// `grad_out` by its output. All are `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// As [`Blocks::step`].
    pub fn backward(
        &self,
        block: u32,
        adapter: Option<AdapterId>,
        x_in: &Hidden,
        grad_out: &Hidden,
    ) -> Result<Hidden, ComputeError> {
        self.backward_with(block, adapter, [x_in, grad_out], &mut || Ok(()))
    }

    /// [`Blocks::backward`] of `[x_in, grad_out]` with a breath after every piece, in which others may be computed for.
    ///
    /// # Errors
    /// As [`Blocks::step`], and those of `breath`.
    pub(crate) fn backward_with(
        &self,
        block: u32,
        adapter: Option<AdapterId>,
        [x_in, grad_out]: [&Hidden; 2],
        breath: &mut Breath<'_>,
    ) -> Result<Hidden, ComputeError> {
        let held = self.held_block(block)?;
        self.check(x_in)?;
        grad_out.check_size()?;
        let shape = |x: &Hidden| [x.batch, x.tokens, x.width];
        if shape(x_in) != shape(grad_out) {
            return Err(ComputeError::Gradient {
                input: shape(x_in),
                gradient: shape(grad_out),
            });
        }
        if x_in.data.is_empty() {
            return Ok(x_in.clone());
        }
        let engine = &self.shared.heads.engine;
        held.with_host(engine, |block, adapters| {
            let adapter = adapter.and_then(|AdapterId(idx)| adapters.get(idx));
            let through = Through { engine, adapter };
            grad::backward(block, through, &self.config, [x_in, grad_out], breath)
        })?
    }

    fn held(&self, block: u32) -> Option<&Arc<Held>> {
        let idx = block.checked_sub(self.span.start)?;
        self.blocks.get(idx as usize)
    }

    fn held_block(&self, block: u32) -> Result<&Held, ComputeError> {
        self.held(block).map(|held| &**held).ok_or_else(|| ComputeError::Block {
            block,
            span: self.span(),
        })
    }

    fn check(&self, x: &Hidden) -> Result<(), ComputeError> {
        x.check_size()?;
        if x.width != self.config.hidden_size {
            return Err(ComputeError::Width {
                expected: self.config.hidden_size,
                found: x.width,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
