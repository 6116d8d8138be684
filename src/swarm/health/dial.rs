//! Whether a stranger can dial a peer: what health.petals.dev answers to servers that start. A host of its own asks,
//! which shares no connection with this node; answers are kept for a moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use sepal_protocol::{Message, names::DHT_PING, proto::PingRequest};
use thiserror::Error;
use tokio::{sync::Semaphore, time::Instant};

use super::probe::{PROBE_TIMEOUT, describe};
use crate::{
    p2p::{CallError, Multiaddr, OpenError, P2p, PeerId},
    swarm::reachability::call_when_introduced,
    task::Tasks,
};

/// Peers that are dialed at the same time. Each costs a libp2p host of its own for up to five seconds.
const MAX_DIALS: usize = 8;

/// How long a question waits for its turn. Petals waits for ten seconds in all.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long an answer is good. Petals asks again after 15 s and wants to see that something changed by then.
const GOOD_FOR: Duration = Duration::from_secs(5);

/// Most answers kept.
const MAX_KEPT: usize = 1024;

/// Whether a peer can be dialed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialable {
    /// Why not; none if it can.
    pub error: Option<String>,
}

/// Too many ask whether somebody can be dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many peers are being dialed; ask again in a few seconds")]
pub struct Busy;

#[derive(Debug)]
pub(crate) struct Dialer {
    p2p: P2p,
    initial_peers: Vec<Multiaddr>,
    tasks: Tasks,
    permits: Arc<Semaphore>,
    kept: Mutex<HashMap<PeerId, (Instant, Dialable)>>,
}

impl Dialer {
    pub(crate) fn new(p2p: P2p, initial_peers: Vec<Multiaddr>, tasks: Tasks) -> Self {
        Self {
            p2p,
            initial_peers,
            tasks,
            permits: Arc::new(Semaphore::new(MAX_DIALS)),
            kept: Mutex::default(),
        }
    }

    /// Whether `peer` can be dialed, now or a moment ago.
    ///
    /// # Errors
    /// [`Busy`] if too many ask.
    pub(crate) async fn dialable(&self, peer: PeerId) -> Result<Dialable, Busy> {
        if peer == self.p2p.peer_id() {
            return Ok(Dialable { error: None });
        }
        if let Some(answer) = self.kept(peer) {
            return Ok(answer);
        }
        let turn = tokio::time::timeout(PATIENCE, self.permits.acquire());
        let Ok(Ok(_permit)) = turn.await else {
            return Err(Busy);
        };
        // Somebody may have asked the same while this question waited.
        if let Some(answer) = self.kept(peer) {
            return Ok(answer);
        }
        let answer = Dialable {
            error: self.dial(peer).await.err(),
        };
        self.keep(peer, answer.clone());
        Ok(answer)
    }

    fn kept(&self, peer: PeerId) -> Option<Dialable> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, answer) = kept.get(&peer)?;
        (at.elapsed() < GOOD_FOR).then(|| answer.clone())
    }

    fn keep(&self, peer: PeerId, answer: Dialable) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (at, _)| at.elapsed() < GOOD_FOR);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(peer, (Instant::now(), answer));
        }
    }

    /// Dials as somebody whom `peer` has never seen. Any answer to a ping will do, also "I do not serve this": a server
    /// behind a relay takes no part in the DHT.
    async fn dial(&self, peer: PeerId) -> Result<(), String> {
        let tasks = self.tasks.child();
        // Dropping the guard stops the stranger, also when the asker gives up in the middle.
        let _guard = tasks.token().drop_guard();
        let mut config = self.p2p.stranger();
        config.known_peers.extend(self.initial_peers.iter().cloned());
        // A relay is as good a way as any, as it is for health.petals.dev.
        config.relay.dial = true;
        let stranger = P2p::bind(config, &tasks).await.map_err(|error| describe(&error))?;
        let question = Bytes::from(PingRequest::default().encode_to_vec());
        let call = call_when_introduced(&stranger, peer, DHT_PING, question);
        match tokio::time::timeout(PROBE_TIMEOUT, call).await {
            Ok(Err(CallError::Open(OpenError::UnknownName))) | Ok(Ok(_)) => Ok(()),
            // The peer said something: it was reached.
            Ok(Err(CallError::Remote { .. } | CallError::NoAnswer | CallError::Malformed(_))) => Ok(()),
            Ok(Err(error)) => Err(describe(&error)),
            // Petals prints this for its user.
            Err(_) => Err(format!(
                "no connection within {} s; a firewall or router may be in the way",
                PROBE_TIMEOUT.as_secs()
            )),
        }
    }
}
