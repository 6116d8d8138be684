//! The first and the last blocks of a model that the client holds itself: which, whether there is room for them, and a
//! session's way through them. What is between them is the swarm's and not known here.

use std::{ops::Range, sync::Arc};

use super::{
    error::LocalError,
    span::{Local, LocalOptions, LocalSpan, Stretch},
    thread::Thread,
};
use crate::model::{Adapter, Engine, ModelSource};

/// The blocks that a client holds itself.
#[derive(Clone, Debug)]
pub struct PrivateEnds {
    /// How many at each end, at least one.
    pub blocks: u32,
    /// How they are kept.
    pub options: LocalOptions,
    /// The LoRA adapter that all blocks are used with, if any.
    pub adapter: Option<Adapter>,
}

impl PrivateEnds {
    /// The blocks that are left to the swarm.
    ///
    /// # Errors
    /// None are.
    pub fn others(&self, source: &ModelSource) -> Result<Range<u32>, LocalError> {
        let n_blocks = source.config().n_blocks;
        let others = self.blocks..n_blocks.saturating_sub(self.blocks);
        if others.is_empty() {
            return Err(LocalError::NothingLeft {
                model: source.name().to_owned(),
                n_blocks,
                wanted: self.blocks,
                most: n_blocks.saturating_sub(1) / 2,
            });
        }
        Ok(others)
    }

    /// Whether they fit into memory with their caches.
    ///
    /// # Errors
    /// They do not; with what would.
    pub fn check_room(&self, source: &ModelSource) -> Result<(), LocalError> {
        let (free, needed) = (self.options.free(), self.bytes(source, self.blocks));
        if needed <= free {
            return Ok(());
        }
        let fewer = (1..self.blocks)
            .rev()
            .find(|blocks| self.bytes(source, *blocks) <= free);
        let left = free.saturating_sub(self.adapter_bytes(source, self.blocks));
        let smaller = self.options.smaller(source, 2 * self.blocks, left);
        let ways = [
            fewer.map(|blocks| format!("--private-ends {blocks} fits")),
            smaller.map(|format| format!("--private-quant {}", format.as_str())),
        ];
        let ways: Vec<String> = ways.into_iter().flatten().collect();
        Err(LocalError::DoesNotFit {
            what: format!("the first and the last {} blocks", self.blocks),
            model: source.name().to_owned(),
            needed,
            free,
            remedy: match ways.is_empty() {
                true => String::new(),
                false => format!(": {}", ways.join(", or ")),
            },
        })
    }

    fn bytes(&self, source: &ModelSource, blocks: u32) -> u64 {
        self.options.bytes(source, 2 * blocks) + self.adapter_bytes(source, blocks)
    }

    fn adapter_bytes(&self, source: &ModelSource, blocks: u32) -> u64 {
        let adapter = self.adapter.as_ref();
        adapter.map_or(0, |adapter| {
            adapter.file_bytes() + u64::from(2 * blocks) * adapter.block_bytes(source.config())
        })
    }
}

/// [`PrivateEnds`], loaded. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct OwnEnds {
    first: Local,
    last: Local,
}

impl OwnEnds {
    /// Fetches and loads the blocks, and starts the thread that computes them. This waits for files and the network.
    ///
    /// # Errors
    /// Too many for the model, or weights that cannot be had. Whether there is room has been seen before.
    pub(crate) fn load(source: &ModelSource, wanted: &PrivateEnds, engine: &Engine) -> Result<Self, LocalError> {
        let (others, n_blocks) = (wanted.others(source)?, source.config().n_blocks);
        let thread = Thread::start()?;
        let load = |span| -> Result<Local, LocalError> {
            let stretch = Stretch::load(source, span, &wanted.options, wanted.adapter.as_ref(), engine)?;
            Ok(Local {
                stretch: Arc::new(stretch.rounding()),
                thread: thread.clone(),
            })
        };
        Ok(Self {
            first: load(0..others.start)?,
            last: load(others.end..n_blocks)?,
        })
    }

    pub(crate) fn session(&self, max_length: usize) -> OwnSpans {
        OwnSpans {
            first: LocalSpan::new(self.first.clone(), max_length),
            last: LocalSpan::new(self.last.clone(), max_length),
        }
    }
}

/// A session's way through the client's own blocks.
#[derive(Debug)]
pub(crate) struct OwnSpans {
    pub(crate) first: LocalSpan,
    pub(crate) last: LocalSpan,
}
