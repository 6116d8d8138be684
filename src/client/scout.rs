//! A client without any part of the model: it knows the servers, chooses chains and sends activations through them. It
//! makes no activations out of tokens, and no tokens out of activations.

use std::sync::{Arc, PoisonError};

use sepal_protocol::record::ServerState;

use super::{
    Avoided, Config, Shared,
    session::{Session, Verifier},
};
use crate::{
    dht::Dht,
    p2p::P2p,
    swarm::{
        Snapshot,
        route::{self, Explanation},
    },
    task::Tasks,
};

/// Most servers that are pinged for one explanation.
const MAX_PINGS: usize = 64;

/// Finds ways through the servers of one model. Clones share everything.
#[derive(Clone, Debug)]
pub struct Scout {
    pub(super) shared: Arc<Shared>,
}

impl Scout {
    /// Reads who serves the model's `n_blocks` blocks, and keeps that knowledge fresh in the background.
    pub async fn connect(config: Config, n_blocks: u32, (p2p, dht): (P2p, Dht), tasks: &Tasks) -> Self {
        let update_period = config.update_period;
        let shared = Arc::new(Shared::new(config, n_blocks, p2p, dht));
        shared.refresh().await;
        let background = shared.clone();
        tasks.spawn_until_stopped("directory", async move {
            loop {
                tokio::time::sleep(update_period).await;
                background.refresh().await;
            }
        });
        Self { shared }
    }

    /// A session that can take `max_length` tokens. Servers reserve memory for all of them at the first step.
    pub fn session(&self, max_length: usize) -> Session {
        let verifier = Verifier::new(self.shared.verify, false);
        Session::new(self.shared.clone(), None, max_length, verifier)
    }

    /// Who serves what, as last read.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.directory.snapshot()
    }

    /// The servers that are left out for a while because of what they did to sessions of this client.
    pub fn avoided(&self) -> Vec<Avoided> {
        self.shared.avoided()
    }

    /// Which chain a new session of `max_length` tokens would take now, and why; all servers are pinged first.
    pub async fn explain(&self, max_length: usize) -> Explanation {
        let snapshot = self.snapshot();
        let online = snapshot.spans(ServerState::Online).into_iter();
        let peers = online.map(|span| span.peer).take(MAX_PINGS).collect();
        self.shared.ping(peers).await;
        let banned = self.shared.bans.lock().unwrap_or_else(PoisonError::into_inner);
        let banned = banned.active(std::time::Instant::now());
        let (blocks, length) = (self.shared.blocks.clone(), Some(max_length as u64));
        route::explain(&snapshot, &blocks, &self.shared.known(), length, &banned)
    }
}
