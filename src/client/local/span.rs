//! A stretch of blocks that the client holds, and a session's way through it: its keys and values and what it took. Who
//! waits for whom on the way is decided in `thread`.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    error::LocalError,
    thread::{Step, Thread},
};
use crate::model::{
    Adapter, AdapterId, Blocks, Cache, CacheOptions, ComputeError, DEFAULT_MAX_CHUNK_BYTES, Ends, Engine, Hidden,
    ModelSource, Part, Precision, Scratch, WeightDType, WeightFormat, free_memory,
};

/// Most tokens that are counted with in a step: a session sends no more at once.
const STEP_TOKENS: usize = 1024;

/// How blocks are kept by the client.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Format of the weight matrices; `None` keeps the checkpoint's own.
    pub quant: Option<WeightFormat>,
    /// Tokens of all sessions for which the memory of keys and values is taken at the start. Those beyond take theirs as
    /// they come.
    pub cache_tokens: usize,
    /// Bytes to plan with; `None` for what is free.
    pub memory: Option<u64>,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            quant: None,
            cache_tokens: 4096,
            memory: None,
        }
    }
}

impl LocalOptions {
    /// Weights in the format that is wanted, everything else in the checkpoint's own type.
    pub(super) fn precision(&self, source: &ModelSource) -> Precision {
        let dtype = own_dtype(source);
        let own = || source.own_format().unwrap_or(dtype.into());
        Precision {
            weights: self.quant.unwrap_or_else(own),
            dtype,
        }
    }

    pub(super) fn free(&self) -> u64 {
        self.memory.or_else(free_memory).unwrap_or(u64::MAX)
    }

    /// Bytes of `n_blocks` blocks with their caches, and of the activations.
    pub(super) fn bytes(&self, source: &ModelSource, n_blocks: u32) -> u64 {
        let (config, dtype) = (source.config(), own_dtype(source));
        let weights = match (self.quant, source.own_format()) {
            (None, Some(_)) => source.own_block_bytes(config.kept_on_host(dtype.into())),
            _ => config.block_bytes(config.kept_on_host(self.precision(source).weights)),
        };
        let cache = (self.cache_tokens * config.cache_bytes_per_token(dtype.into())) as u64;
        u64::from(n_blocks) * (weights + cache) + config.scratch_bytes(STEP_TOKENS, DEFAULT_MAX_CHUNK_BYTES)
    }

    /// The most precise format in which `n_blocks` blocks fit that do not in this one.
    pub(super) fn smaller(&self, source: &ModelSource, n_blocks: u32, free: u64) -> Option<WeightFormat> {
        WeightFormat::ALL.into_iter().find(|format| {
            let other = Self {
                quant: Some(*format),
                ..self.clone()
            };
            other.bytes(source, n_blocks) <= free
        })
    }
}

/// The type of the checkpoint, so that nothing is lost.
pub(super) fn own_dtype(source: &ModelSource) -> WeightDType {
    source.config().torch_dtype.unwrap_or(WeightDType::F32)
}

/// Blocks that follow each other, loaded, perhaps with an adapter before and a head behind them.
#[derive(Debug)]
pub(super) struct Stretch {
    blocks: Blocks,
    chain: Vec<u32>,
    adapter: Option<AdapterId>,
    /// What comes in and goes out is rounded to, as it would be on the way to and from a server with these blocks.
    rounded_to: Option<WeightDType>,
    head: Option<Arc<Ends>>,
}

impl Stretch {
    /// Fetches and loads the blocks of `span`, and allocates their caches.
    ///
    /// # Errors
    /// Weights that cannot be had, or an adapter that does not fit.
    pub(super) fn load(
        source: &ModelSource,
        span: Range<u32>,
        options: &LocalOptions,
        adapter: Option<&Adapter>,
        engine: &Engine,
    ) -> Result<Self, LocalError> {
        let (start, end) = (span.start, span.end);
        let files = source
            .files_for_span(span.clone())
            .map_err(|source| LocalError::Fetch {
                start,
                end,
                source: Box::new(source),
            })?;
        let files = match options.quant {
            None => files.with_own_formats(),
            Some(_) => files,
        };
        let cache = CacheOptions {
            dtype: None,
            block_tokens: options.cache_tokens as u64 * u64::from(end - start),
            share_prefixes: false,
        };
        let loaded = Blocks::load(&files, span.clone(), options.precision(source), engine);
        let blocks = loaded
            .and_then(|blocks| blocks.with_cache(cache))
            .map_err(|source| LocalError::Load {
                start,
                end,
                source: Box::new(source),
            })?;
        let blocks = blocks
            .with_adapters(adapter.map_or(&[], std::slice::from_ref))
            .map_err(LocalError::Adapter)?;
        Ok(Self {
            adapter: adapter.and_then(|adapter| blocks.adapter(adapter.name())),
            blocks,
            chain: span.collect(),
            rounded_to: None,
            head: None,
        })
    }

    /// Rounds what comes in and goes out, as a server with these blocks would.
    pub(super) fn rounding(self) -> Self {
        Self {
            rounded_to: Some(self.blocks.dtype()),
            ..self
        }
    }

    /// Can answer with logits.
    pub(super) fn with_head(self, head: Arc<Ends>) -> Self {
        Self {
            head: Some(head),
            ..self
        }
    }

    pub(super) fn round(&self, x: &mut Hidden) {
        if let Some(dtype) = self.rounded_to {
            x.data.iter_mut().for_each(|x| *x = dtype.round(*x));
        }
    }

    pub(super) fn run(&self, parts: &mut [Part<'_>], scratch: &mut Scratch) -> Result<(), ComputeError> {
        self.blocks.run_batch(&self.chain, parts, scratch)
    }

    /// What is answered to a step that went through.
    pub(super) fn finish(&self, step: Step) -> Result<(Hidden, Cache), LocalError> {
        let Step { cache, mut x, .. } = step;
        self.round(&mut x);
        if step.logits > 0
            && let Some(head) = &self.head
        {
            x.tokens = step.logits.min(x.tokens);
            let unwanted = x.data.len().saturating_sub(x.tokens * x.width);
            x.data = head.logits(&x.data[unwanted..])?;
            x.width = head.config().vocab_size;
        }
        Ok((x, cache))
    }

    fn new_cache(&self, batch: usize, max_length: usize) -> Cache {
        self.blocks
            .new_cache(self.chain.len(), batch, max_length)
            .with_adapter(self.adapter)
    }
}

/// A stretch and the thread that computes it. Clones share both.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) stretch: Arc<Stretch>,
    pub(super) thread: Thread,
}

/// One session's way through a stretch.
#[derive(Debug)]
pub(crate) struct LocalSpan {
    local: Local,
    max_length: usize,
    /// `None` before the first step, while one is under way, and after one that failed.
    cache: Option<Cache>,
    busy: Duration,
    steps: u32,
}

impl LocalSpan {
    pub(super) fn new(local: Local, max_length: usize) -> Self {
        Self {
            local,
            max_length,
            cache: None,
            busy: Duration::ZERO,
            steps: 0,
        }
    }

    /// Sends `x`, `[batch, tokens, hidden]`, through the blocks; its first token is at `position` of every sequence, and
    /// what was known from there on is forgotten.
    ///
    /// # Errors
    /// What does not fit together; a defect in a block. What the session holds is not known then, and it can only begin
    /// again at position 0.
    ///
    /// # Cancel safety
    /// None: after the future was dropped it is as after an error.
    pub(crate) async fn step(&mut self, x: Hidden, position: usize) -> Result<Hidden, LocalError> {
        self.go(x, position, 0).await
    }

    /// [`LocalSpan::step`], with the logits after so many of the last tokens as the answer if any are wanted and the
    /// stretch has a head: of a single sequence.
    pub(super) async fn go(&mut self, x: Hidden, position: usize, logits: usize) -> Result<Hidden, LocalError> {
        let (start, tokens, max_length) = (Instant::now(), x.tokens, self.max_length);
        if position + tokens > max_length {
            let too_long = ComputeError::TooLong {
                position,
                tokens,
                max_length,
            };
            return Err(too_long.into());
        }
        let cache = match self.cache.take() {
            Some(cache) if position > 0 => cache,
            None if position > 0 => return Err(LocalError::Ended),
            _ => self.local.stretch.new_cache(x.batch, self.max_length),
        };
        let step = Step {
            stretch: self.local.stretch.clone(),
            cache,
            x,
            position,
            logits,
        };
        let (output, cache) = self.local.thread.step(step).await?;
        self.cache = Some(cache);
        // As of servers: the first step also reads the whole prompt, which is not what a step usually takes.
        if position > 0 {
            self.busy += start.elapsed();
            self.steps += 1;
        }
        Ok(output)
    }

    /// The steps so far were pieces of a prompt.
    pub(crate) fn forget_times(&mut self) {
        self.busy = Duration::ZERO;
        self.steps = 0;
    }

    /// The blocks, as numbered in the model.
    pub(crate) fn blocks(&self) -> Range<u32> {
        self.local.stretch.blocks.span()
    }

    /// Mean time of a step, over the steps after the first.
    pub(crate) fn per_step(&self) -> Option<Duration> {
        (self.steps > 0).then(|| self.busy / self.steps)
    }
}
