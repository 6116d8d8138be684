//! From the files of a model to blocks that compute, and how fast they do. What is announced meanwhile is decided in
//! `lifecycle.rs`, and which blocks they are in `moving.rs`.

use std::{ops::Range, sync::Arc};

use super::{
    BlockChoice,
    lifecycle::{Lifecycle, StartError},
    serving::Serving,
    throughput::{self, Key, Load, Rates, Throughput, Turn},
};
use crate::{
    model::{Blocks, CacheOptions, ModelFiles, ModelSource},
    swarm::speed::{self, Line},
};

impl Lifecycle {
    /// Blocks to serve, and what they can do.
    pub(super) async fn load(&self, span: &Range<u32>) -> Result<(Serving, Rates), StartError> {
        // By the memory that is free now, before blocks take theirs.
        self.pass_bytes();
        let cache = self.cache_options(span.len());
        let shares = self.shares(span.len());
        let blocks = self.load_blocks(span.clone(), shares, Some(cache)).await?;
        let rates = match self.rates.get() {
            Some(rates) => *rates,
            None => self.rates(&blocks, span.len()).await?,
        };
        Ok((self.serving(blocks, None)?, *self.rates.get_or_init(|| rates)))
    }

    /// The files of `span`, downloaded if need be. Nobody deletes them while this is held.
    pub(super) async fn fetch(&self, span: Range<u32>) -> Result<ModelFiles, StartError> {
        let source = self.source.clone();
        let fetching = tokio::task::spawn_blocking(move || files_of(&source, span));
        fetching.await.map_err(|_| StartError::Interrupted)?
    }

    /// How many of `n_blocks` to load into each place: as was planned together with the other models of the node if that still
    /// fits, else as is free now.
    fn shares(&self, n_blocks: usize) -> Vec<usize> {
        let (need, free) = (self.want().need(), self.free());
        let planned = self.planned.get();
        let planned = planned.filter(|shares| shares.iter().sum::<usize>() == n_blocks && need.holds(&free, shares));
        planned.cloned().unwrap_or_else(|| need.spread(&free, n_blocks))
    }

    /// Blocks with their adapters, as many in each place as `shares` says; `cache` is what is kept for sessions on them, if
    /// there will be any.
    pub(super) async fn load_blocks(
        &self,
        span: Range<u32>,
        shares: Vec<usize>,
        cache: Option<CacheOptions>,
    ) -> Result<Arc<Blocks>, StartError> {
        let (source, precision) = (self.source.clone(), self.precision());
        let max_chunk_bytes = self.config.limits.max_chunk_size_bytes;
        let adapters = self.config.adapters.clone();
        let (machine, own_formats) = (self.config.machine.clone(), self.keeps_own_formats());
        let loading = tokio::task::spawn_blocking(move || {
            let (start, end) = (span.start, span.end);
            let files = files_of(&source, span.clone())?;
            let files = if own_formats { files.with_own_formats() } else { files };
            let loaded = Blocks::load_at(&files, span, precision, (&machine, &shares)).and_then(|blocks| match cache {
                Some(options) => blocks.with_cache(options),
                None => Ok(blocks),
            });
            let loaded = loaded.map_err(|source| StartError::Load { start, end, source })?;
            let loaded = loaded.with_max_chunk_bytes(max_chunk_bytes).with_adapters(&adapters);
            loaded.map(Arc::new).map_err(StartError::Adapter)
        });
        loading.await.map_err(|_| StartError::Interrupted)?
    }

    /// What a server of `n_blocks` blocks can do, measured on one of `blocks`. Servers of this machine measure one after
    /// the other.
    async fn rates(&self, blocks: &Arc<Blocks>, n_blocks: usize) -> Result<Rates, StartError> {
        let choice = self.config.throughput;
        if let Throughput::Fixed(throughput) = choice {
            return Ok(throughput::fixed(throughput));
        }
        let (cache, key, measured) = (
            self.config.throughput_cache.clone(),
            self.throughput_key().to_string(),
            blocks.clone(),
        );
        let is_idle = self.current().announced().is_err();
        let computing = tokio::task::spawn_blocking(move || {
            let turn = cache.as_deref().map(Turn::take);
            let cache = cache.as_deref().map(|file| (file, key.as_str()));
            let compute = throughput::compute_rates(choice, &measured, cache, is_idle);
            Ok((turn, compute.map_err(StartError::Measure)?))
        });
        let (turn, compute) = computing.await.map_err(|_| StartError::Interrupted)??;
        let line = self.measure_line().await;
        drop(turn);
        let load = Load {
            n_blocks,
            n_models: self.current().n_models(),
            hidden_size: blocks.config().hidden_size,
            cpu_share: self.duty().share(),
            max_bits: self.p2p.bandwidth().bits_per_second(),
        };
        Ok(throughput::combine(compute, line, load))
    }

    async fn measure_line(&self) -> Option<Line> {
        let snapshot = self.directory.refresh().await;
        let (me, connected) = (self.p2p.peer_id(), self.p2p.connected_peers());
        let candidates = speed::candidates(&snapshot, &connected, me, &mut rand::rng());
        speed::measure(&self.p2p, &candidates).await
    }

    /// Measures without serving anything.
    ///
    /// # Errors
    /// When a block cannot be loaded or fails.
    pub(super) async fn measure(&self) -> Result<Rates, StartError> {
        let (first, n_blocks) = match &self.config.blocks {
            BlockChoice::Fixed(span) => (span.start, span.len()),
            BlockChoice::Count(count) => (0, *count as usize),
            BlockChoice::AsManyAsFit => (0, self.fitting()? as usize),
        };
        let cache = self.cache_options(1);
        let blocks = self.load_blocks(first..first + 1, self.shares(1), Some(cache)).await?;
        self.rates(&blocks, n_blocks).await
    }

    fn throughput_key(&self) -> Key {
        Key {
            model: self.source.name().to_owned(),
            dtype: self.dtype().as_torch_str(),
            quantisation: self.precision().weights.as_str(),
            kv_dtype: self.kv_dtype(),
            threads: self.config.machine.engine().threads(),
            kernels: self.config.machine.kernels(),
            quant_kernels: self.config.machine.quant_kernels(),
        }
    }
}

fn files_of(source: &ModelSource, span: Range<u32>) -> Result<ModelFiles, StartError> {
    let (start, end) = (span.start, span.end);
    let files = source.files_for_span(span);
    files.map_err(|source| StartError::Fetch { start, end, source })
}
