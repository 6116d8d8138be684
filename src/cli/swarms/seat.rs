//! A node in one of its swarms: how far it is with that, and what a person is told of it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{node::Node, swarm::Swarm},
    control::{
        self,
        protocol::{SwarmRow, SwarmState},
    },
    dht::Dht,
    p2p::{Multiaddr, P2p},
    server::{Announced, Membership, Phase, Server, Voice},
    swarm::{models::PUBLIC_INITIAL_PEERS, standing::Access},
};

/// How often it is looked whether the sessions from a swarm are over.
const LOOK: Duration = Duration::from_millis(100);

/// What a swarm is called, and how it is found.
#[derive(Clone, Debug)]
pub(super) struct Sign {
    pub(super) number: u32,
    pub(super) name: String,
    /// Empty if this node was the first.
    pub(super) addresses: Vec<Multiaddr>,
    /// Fingerprint of its key.
    pub(super) key: Option<String>,
}

/// A swarm that the node is in, or wants to be in.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) sign: Sign,
    /// Told to leave.
    pub(super) leave: CancellationToken,
    /// Told not to wait for open sessions.
    pub(super) hurry: CancellationToken,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    inside: Option<Arc<Inside>>,
    /// Why the last attempt to join failed.
    failure: Option<String>,
}

/// What there is of a swarm that was joined.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) p2p: P2p,
    pub(super) dht: Dht,
    pub(super) access: Option<watch::Receiver<Access>>,
    pub(super) since: Instant,
    /// Of all but the home swarm.
    pub(super) guest: Option<Guest>,
}

/// The host of a further swarm, and what is said there.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) node: Node,
    pub(super) membership: Arc<Membership>,
    /// As many as there are servers.
    pub(super) voices: Vec<Voice>,
}

impl Seat {
    pub(super) fn new(sign: Sign) -> Self {
        Self {
            sign,
            leave: CancellationToken::new(),
            hurry: CancellationToken::new(),
            progress: Mutex::default(),
        }
    }

    pub(super) fn entered(&self, inside: Arc<Inside>) {
        *self.progress() = Progress {
            inside: Some(inside),
            failure: None,
        };
    }

    pub(super) fn failed(&self, reason: String) {
        self.progress().failure = Some(reason);
    }

    /// Why the last attempt to join failed, unless it is joined.
    pub(super) fn failure(&self) -> Option<String> {
        self.progress().failure.clone()
    }

    /// The host and the DHT there, once it is joined.
    pub(super) fn network(&self) -> Option<(P2p, Dht)> {
        let progress = self.progress();
        let inside = progress.inside.as_ref()?;
        Some((inside.p2p.clone(), inside.dht.clone()))
    }

    /// Whether `text` means this swarm.
    pub(super) fn is_called(&self, text: &str) -> bool {
        let Sign {
            number,
            name,
            addresses,
            ..
        } = &self.sign;
        text == name || text == number.to_string() || addresses.iter().any(|addr| addr.to_string() == text)
    }

    /// Sessions that are open from there.
    pub(super) fn n_sessions(&self, servers: &[Arc<Server>]) -> usize {
        let sessions = servers.iter().flat_map(|server| server.sessions());
        sessions.filter(|session| session.swarm == self.sign.number).count()
    }

    /// What a person is told.
    pub(super) fn row(&self, servers: &[Arc<Server>]) -> SwarmRow {
        let (inside, failure) = {
            let progress = self.progress();
            (progress.inside.clone(), progress.failure.clone())
        };
        let mut row = SwarmRow {
            number: self.sign.number,
            name: self.sign.name.clone(),
            addresses: self.sign.addresses.iter().map(Multiaddr::to_string).collect(),
            key: self.sign.key.clone(),
            sessions: self.n_sessions(servers),
            ..SwarmRow::default()
        };
        let looked = match &inside {
            Some(inside) => inside.look(&mut row, servers, self.sign.addresses.is_empty()),
            None => failure.map_or(Ok(SwarmState::Joining), Err),
        };
        (row.state, row.reason) = match looked {
            _ if self.leave.is_cancelled() => (SwarmState::Leaving, None),
            Ok(state) => (state, None),
            Err(reason) => (SwarmState::Offline, Some(reason)),
        };
        row
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    /// Fills in what can be seen there. `is_first` is whether the swarm began with this node, which may be alone then.
    ///
    /// # Errors
    /// Why nobody there hears the node.
    fn look(&self, row: &mut SwarmRow, servers: &[Arc<Server>], is_first: bool) -> Result<SwarmState, String> {
        row.joined_s = Some(self.since.elapsed().as_secs_f64());
        row.listening = self.p2p.addrs().iter().map(ToString::to_string).collect();
        row.nodes = self.dht.status().nodes;
        row.peers = self.p2p.connected_peers().len();
        let access = self.access.as_ref().map(|access| access.borrow().clone());
        row.reachable = access.as_ref().and_then(control::reachable).map(str::to_owned);
        let announced: Vec<Option<Announced>> = match &self.guest {
            None => servers.iter().map(|server| server.announced()).collect(),
            Some(guest) => guest.voices.iter().map(Voice::announced).collect(),
        };
        let overviews: Vec<_> = servers.iter().map(|server| server.overview()).collect();
        let mut state = SwarmState::Online;
        let mut silent = None;
        for (overview, announced) in overviews.iter().zip(announced) {
            match announced.map(|announced| (announced.blocks, announced.outcome)) {
                Some((blocks, Some(Ok(())))) => {
                    row.blocks
                        .push(format!("{} {}:{}", overview.prefix, blocks.start, blocks.end));
                }
                Some((_, Some(Err(error)))) => silent = Some(error.to_string()),
                Some((_, None)) | None => state = SwarmState::Joining,
            }
            if !matches!(overview.phase, Phase::Online | Phase::Paused) {
                state = SwarmState::Joining;
            }
        }
        match silent {
            // A host stays connected to those that it joined through.
            _ if row.peers == 0 && !is_first => Err("no other node of it is connected".to_owned()),
            Some(reason) => Err(reason),
            None => Ok(state),
        }
    }

    /// OFFLINE, then no more sessions than are open, then none.
    pub(super) async fn leave(&self, seat: &Seat, servers: &[Arc<Server>]) {
        let Some(guest) = &self.guest else { return };
        guest.membership.leave();
        futures::future::join_all(guest.voices.iter().map(Voice::fall_silent)).await;
        let over = async {
            // Nobody is told when a session ends.
            while seat.n_sessions(servers) > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        seat.hurry.run_until_cancelled(over).await;
        guest.node.tasks.shutdown().await;
    }
}

/// The name of a swarm that nobody named.
pub(super) fn name_of(swarm: &Swarm, number: u32) -> String {
    let public = swarm.initial_peers.iter().map(Multiaddr::to_string);
    match &swarm.lan {
        _ if public.eq(PUBLIC_INITIAL_PEERS) => "public".to_owned(),
        Some(lan) => lan.clone(),
        None => format!("swarm-{number}"),
    }
}
