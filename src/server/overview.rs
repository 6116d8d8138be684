//! What a server is doing, for the person who runs it, and the pause that this person may make. It decides nothing.

use std::ops::Range;

use sepal_protocol::record::ServerState;

use super::{Rate, Server, SessionView, lifecycle::StartError};
use crate::swarm::directory::Directory;

/// What one model's server is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct Overview {
    /// The model by its name.
    pub model: String,
    /// The model by its name in the DHT.
    pub prefix: String,
    /// How many blocks the whole model has.
    pub n_model_blocks: u32,
    /// The blocks that are served.
    pub blocks: Option<Range<u32>>,
    /// How far it is.
    pub phase: Phase,
    /// The format of its weights.
    pub weights: &'static str,
    /// What it announces, in tokens per second.
    pub throughput: f64,
    /// The cache for sessions; all zero before there is one.
    pub cache: CacheUse,
    /// Tokens of sessions since the start.
    pub tokens: Rate,
    /// Open sessions.
    pub sessions: usize,
    /// Steps and requests that wait or are computed.
    pub queued: usize,
}

/// How far a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is announced yet.
    Starting,
    /// Blocks are loaded; others know that they will be there.
    Joining,
    /// It serves.
    Online,
    /// Open sessions go on, and nothing new is begun.
    Paused,
}

/// A cache in tokens, each of which is in all blocks of the span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// That hold something; sessions that share a beginning have it once.
    pub used: u64,
    /// That open sessions may come to use.
    pub reserved: u64,
    /// That can be reserved.
    pub total: u64,
}

impl Server {
    /// What it is doing now.
    pub fn overview(&self) -> Overview {
        let lifecycle = &self.lifecycle;
        let hosted = &lifecycle.hosted;
        let (info, serving) = (hosted.describe(), hosted.now());
        let phase = match (&serving, info.state) {
            (Some(_), _) if lifecycle.current().is_paused() => Phase::Paused,
            (Some(_), _) => Phase::Online,
            (None, ServerState::Offline) => Phase::Starting,
            (None, _) => Phase::Joining,
        };
        let cache = serving.as_ref().map(|serving| {
            let n_blocks = (serving.span.len() as u64).max(1);
            let token = (serving.blocks.cache_bytes_per_token() as u64).max(1) * n_blocks;
            let (free, total) = (serving.memory.free_bytes(), serving.memory.max_bytes());
            CacheUse {
                used: serving.blocks.cache_counts().used_tokens() as u64 / n_blocks,
                reserved: (total - free) / token,
                total: total / token,
            }
        });
        Overview {
            model: lifecycle.source.name().to_owned(),
            prefix: lifecycle.config.prefix.clone(),
            n_model_blocks: lifecycle.source.config().n_blocks,
            blocks: serving.map(|serving| serving.span.clone()),
            phase,
            weights: lifecycle.precision().weights.as_str(),
            throughput: info.throughput,
            cache: cache.unwrap_or_default(),
            tokens: hosted.ledger.tokens(),
            sessions: hosted.ledger.n_open(),
            queued: hosted.all().iter().map(|serving| serving.worker.queued()).sum(),
        }
    }

    /// Its open sessions, the oldest first.
    pub fn sessions(&self) -> Vec<SessionView> {
        self.lifecycle.hosted.ledger.views()
    }

    /// Who serves the model, as far as it was looked.
    pub fn directory(&self) -> &Directory {
        &self.lifecycle.directory
    }

    /// Begins nothing new on the whole node, with all its models, or does so again; open sessions go on in any case, and
    /// blocks stay where they are. Returns whether that is a change. What the swarm is told of it is up to
    /// [`Server::tell_pause`] of each model.
    pub fn set_paused(&self, paused: bool) -> bool {
        self.lifecycle.current().set_paused(paused) != paused
    }

    /// Tells the swarm whether this model takes new sessions, and returns once that is stored: JOINING while it does not.
    ///
    /// # Errors
    /// When the swarm does not learn of it.
    pub async fn tell_pause(&self) -> Result<(), StartError> {
        self.lifecycle.say_again().await
    }
}
