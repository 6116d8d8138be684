//! Why blocks cannot be held or computed by the client itself.

use std::io;

use thiserror::Error;

use crate::model::{AdapterError, ByteSize, ComputeError, LoadError, ResolveError};

/// Blocks of the client's own that cannot be had, or fail.
#[derive(Debug, Error)]
pub enum LocalError {
    /// More blocks than the model can spare: the others are the swarm's.
    #[error(
        "{model} has {n_blocks} blocks: {wanted} of its own at each end leave none to the swarm{}",
        if *most == 0 { ", and neither would fewer".to_owned() } else { format!("; at most {most} are possible") }
    )]
    NothingLeft {
        /// As given.
        model: String,
        /// Blocks of the whole model.
        n_blocks: u32,
        /// Blocks that were asked for at each end.
        wanted: u32,
        /// The most that leave one to the swarm.
        most: u32,
    },
    /// There is not enough memory.
    #[error("{what} of {model} need {}, {} are free here{remedy}", ByteSize(*needed), ByteSize(*free))]
    DoesNotFit {
        /// Which part of the model.
        what: String,
        /// As given.
        model: String,
        /// What it takes with its cache, in bytes.
        needed: u64,
        /// What there is for it, in bytes.
        free: u64,
        /// What would fit, as the end of a sentence.
        remedy: String,
    },
    /// Weights could not be found or fetched.
    #[error("cannot get the weights of blocks {start}:{end} to hold them here")]
    Fetch {
        /// First block.
        start: u32,
        /// One past the last.
        end: u32,
        /// Why.
        #[source]
        source: Box<ResolveError>,
    },
    /// Weights could not be loaded.
    #[error("cannot load blocks {start}:{end} to hold them here")]
    Load {
        /// First block.
        start: u32,
        /// One past the last.
        end: u32,
        /// Why.
        #[source]
        source: Box<LoadError>,
    },
    /// Embeddings or head could not be found or fetched.
    #[error("cannot get the embeddings and the head")]
    FetchEnds(#[source] Box<ResolveError>),
    /// Embeddings or head could not be loaded.
    #[error("cannot load the embeddings and the head")]
    LoadEnds(#[source] Box<LoadError>),
    /// The servers are asked for an adapter that the own blocks do not have.
    #[error("the blocks that are held here need the weights of the adapter {name} as well")]
    NoAdapter {
        /// What servers call it.
        name: String,
    },
    /// The adapter does not fit the model.
    #[error("cannot use the adapter in the blocks that are held here")]
    Adapter(#[source] AdapterError),
    /// The system gave no thread to compute on.
    #[error("cannot start the thread that computes the blocks that are held here")]
    Thread(#[source] io::Error),
    /// A step that does not fit, or a defect in the arithmetic.
    #[error("computing the blocks that are held here failed")]
    Compute(#[from] ComputeError),
    /// A defect in a block.
    #[error("a block that is held here crashed")]
    Crashed,
    /// An earlier step failed, or was not waited for: what the caches hold is not known any more.
    #[error("the session ended with an earlier error; start a new one")]
    Ended,
}
