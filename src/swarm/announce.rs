//! Tells the swarm what this server serves: JOINING while blocks are loaded, ONLINE while requests are answered,
//! OFFLINE at the end.
//!
//! ```text
//!   set_state ──▶ actor: store the records of all blocks ──▶ answer
//!                   │ every period, and on news: ping possible next servers, store again; back off while that fails
//!                   └ until the next set_state
//! ```
//!
//! The actor owns nothing but the timing. What a record says comes from the server (`describe`), what goes into it from
//! here is the state, the span and the round trips to servers that may come after this one.

use std::{ops::Range, sync::Arc, time::Duration};

use sepal_protocol::record::{ServerInfo, ServerState};
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::actor::{Actor, Command};
use crate::{dht::Dht, p2p::PeerId, task::Tasks};

mod actor;

/// Changes of state that may wait for the actor. There are three in the life of a server.
const MAX_WAITING_COMMANDS: usize = 4;

/// What is announced, and how often.
#[derive(Clone, Debug)]
pub struct AnnounceConfig {
    /// This server.
    pub peer: PeerId,
    /// The model's name in the DHT.
    pub prefix: String,
    /// The blocks this server serves; not empty.
    pub blocks: Range<u32>,
    /// How many blocks the whole model has.
    pub n_model_blocks: u32,
    /// The page of the model's repository, for the registry. None for models without one.
    pub repository: Option<String>,
    /// How often the records are stored again.
    pub period: Duration,
    /// How long a record lives unless it is stored again.
    pub expiration: Duration,
}

impl AnnounceConfig {
    /// How long records have to live so that one lost announcement does not take a server out of the swarm: two
    /// periods, and no less than the 3 s by which the clocks of DHT nodes may differ.
    pub fn default_expiration(period: Duration) -> Duration {
        (2 * period).max(Duration::from_secs(3))
    }
}

/// Why the swarm does not know about a new state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AnnounceError {
    /// Another state was set before this one was stored.
    #[error("another state was announced before this one was stored")]
    Superseded,
    /// No node of the DHT took some of the records.
    #[error("the DHT took the records of {stored} of {blocks} blocks")]
    NotStored {
        /// Blocks whose record was stored.
        stored: usize,
        /// Blocks that should have been announced.
        blocks: usize,
    },
    /// OFFLINE was announced before, or the node is stopping.
    #[error("this server no longer announces anything")]
    Stopped,
}

/// The announcer of one span. To serve other blocks, announce OFFLINE and spawn another one, or let the two overlap
/// (`set_state_except`):
///
/// ```text
///                     old announcer              new announcer
///   while loading     ONLINE                     JOINING, except for the old blocks
///   when loaded       OFFLINE, except for new    ONLINE
/// ```
///
/// The old records are replaced before the new ones say ONLINE: Python's readers take all blocks between two ONLINE
/// records of one peer for served. A reader in between sees ONLINE records of the blocks that stay, else JOINING ones.
///
/// Dropping it stops the announcements without a last word: the records stay until they expire.
#[derive(Debug)]
pub struct Announcer {
    commands: mpsc::Sender<Command>,
    news: Arc<Notify>,
    outcome: watch::Receiver<Option<Result<(), AnnounceError>>>,
}

impl Announcer {
    /// An announcer that says nothing until the first [`set_state`](Self::set_state).
    ///
    /// `describe` is called whenever records are stored. State, span and `next_pings` of what it returns are replaced.
    pub fn spawn(
        dht: Dht,
        config: AnnounceConfig,
        describe: impl Fn() -> ServerInfo + Send + Sync + 'static,
        tasks: &Tasks,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(MAX_WAITING_COMMANDS);
        let news = Arc::new(Notify::new());
        let (tell, outcome) = watch::channel(None);
        let actor = Actor::new(dht, config, Box::new(describe), (news.clone(), tell));
        tasks.spawn_until_stopped("announce", actor.run(inbox));
        Self {
            commands,
            news,
            outcome,
        }
    }

    /// Announces a state and returns when the records of all blocks are stored. From then on they are kept alive,
    /// except after OFFLINE, which is the last state.
    ///
    /// JOINING and ONLINE are tried until they succeed, OFFLINE a few times: a process that ends cannot wait for ever.
    ///
    /// # Errors
    ///
    /// [`AnnounceError`], with what to make of it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not take the announcement back.
    pub async fn set_state(&self, state: ServerState) -> Result<(), AnnounceError> {
        self.set_state_except(state, 0..0).await
    }

    /// The same, but says nothing about the blocks in `except`, which another announcer of this server speaks for.
    ///
    /// # Errors
    ///
    /// As [`set_state`](Self::set_state).
    ///
    /// # Cancel safety
    ///
    /// As [`set_state`](Self::set_state).
    pub async fn set_state_except(&self, state: ServerState, except: Range<u32>) -> Result<(), AnnounceError> {
        let (answer, stored) = oneshot::channel();
        let command = Command { state, except, answer };
        self.commands.send(command).await.map_err(|_| AnnounceError::Stopped)?;
        stored.await.unwrap_or(Err(AnnounceError::Stopped))
    }

    /// Stores the records of the present state again now instead of at the end of the period, because `describe` says
    /// something else than before. Does nothing before the first state and after OFFLINE.
    pub fn renew(&self) {
        self.news.notify_one();
    }

    /// Whether the swarm took the records the last time that they were to be stored; `None` before the first time.
    pub fn outcome(&self) -> Option<Result<(), AnnounceError>> {
        *self.outcome.borrow()
    }
}

#[cfg(test)]
mod tests;
