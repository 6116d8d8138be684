//! What a server is doing, for the person who runs it, and the pause that this person may make. It decides nothing.

use std::{ops::Range, time::SystemTime};

use sepal_protocol::record::ServerState;

use super::{Hold, Pause, Rate, Server, SessionView, Waits, lifecycle::StartError};
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
    /// Why it takes no new sessions, while it does not.
    pub pause: Option<Pause>,
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
    pub waits: Waits,
    /// Most of them that there may be before strangers' are refused, on each span.
    pub max_queue: usize,
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
        let (info, serving) = (hosted.describe(&lifecycle.current().membership), hosted.now());
        let phase = match (&serving, info.state) {
            (Some(_), _) if lifecycle.current().is_paused() => Phase::Paused,
            (Some(_), _) => Phase::Online,
            (None, ServerState::Offline) => Phase::Starting,
            (None, _) => Phase::Joining,
        };
        let cache = serving.as_ref().map(|serving| {
            let n_blocks = (serving.span.len() as u64).max(1);
            let token = (serving.blocks.cache_bytes_per_token() as u64).max(1) * n_blocks;
            let (free, total) = (serving.memory.free_bytes(), serving.memory.max().counted);
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
            pause: lifecycle.current().why_paused(),
            weights: lifecycle.precision().weights.as_str(),
            throughput: info.throughput,
            cache: cache.unwrap_or_default(),
            tokens: hosted.ledger.tokens(),
            sessions: hosted.ledger.n_open(),
            waits: hosted.waits(),
            max_queue: lifecycle.config.limits.max_queue,
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
    pub fn set_paused(&self, paused: bool, hold: Hold) -> bool {
        self.lifecycle.current().pause(|pauses| pauses.ordered(paused, hold))
    }

    /// The same for the hours that the node keeps: whether it lies within them now, and when that changes.
    pub fn set_hours(&self, within: bool, until: Option<SystemTime>) -> bool {
        self.lifecycle.current().pause(|pauses| pauses.hours(within, until))
    }

    /// Tells the swarm whether this model takes new sessions, and returns once that is stored: JOINING while it does not.
    ///
    /// # Errors
    /// When the swarm does not learn of it.
    pub async fn tell_pause(&self) -> Result<(), StartError> {
        self.lifecycle.say_again().await
    }
}
