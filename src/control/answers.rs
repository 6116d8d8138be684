//! What a node knows of itself, in the words of the protocol: snapshots of the layers below, taken when they are asked for.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use sepal_protocol::record::ServerState;
use tokio::sync::Mutex;

use super::{
    Node, name_of,
    protocol::{
        Answer, CacheRow, FailureCode, ModelRow, PauseRow, PeerRow, Picture, QueueRow, RefusedRow, Request, SessionRow,
        State, Status, Tokens, Who,
    },
};
use crate::{
    p2p::{Contact, PeerId},
    server::{HOME, Overview, Pause, Phase, Rate, Refusals, SessionView, Waits},
    swarm::{directory::Directory, standing::Access},
};

/// How old what is known of the swarm may be when somebody asks who serves what.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How long somebody who asks waits for the DHT; what was known before is the answer then.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);

/// When the swarm was looked at last.
#[derive(Debug, Default)]
pub(super) struct Looked(Mutex<Option<Instant>>);

impl Node {
    /// Answers everything but [`Request::Watch`], which has no end.
    pub(super) async fn answer(self: &Arc<Self>, request: Request) -> Answer {
        match request {
            Request::Who => Answer::Node(self.who()),
            Request::Status => Answer::Status(Box::new(self.status().await)),
            Request::Peers => {
                self.look().await;
                Answer::Peers {
                    peers: self.peers().await,
                }
            }
            Request::Sessions => Answer::Sessions {
                sessions: self.sessions(),
            },
            Request::Pause => self.pause().await,
            Request::Resume => self.resume().await,
            Request::Drain { timeout_s } => self.drain(timeout_s).await,
            Request::Stop => self.stop(),
            Request::Swarms => Answer::Swarms {
                swarms: self.subject.swarms.list(),
            },
            Request::Connect(asked) => self.connect(asked).await,
            Request::Disconnect { swarm, timeout_s } => self.disconnect(&swarm, timeout_s),
            Request::Log { level } => self.log(level.as_deref()),
            Request::Watch { .. } => Answer::failed(FailureCode::BadRequest, "pictures are no answer"),
        }
    }

    pub(super) async fn picture(self: &Arc<Self>) -> Picture {
        // Nobody who watches waits for the DHT; the next picture shows what it says.
        let this = self.clone();
        self.tasks
            .spawn_until_stopped("look at the swarm", async move { this.look().await });
        let (peers, mut status) = (self.peers().await, self.status().await);
        status.peers = peers.len();
        Picture {
            status,
            sessions: self.sessions(),
            peers,
        }
    }

    fn who(&self) -> Who {
        let subject = &self.subject;
        let mut models: Vec<String> = self.overviews().into_iter().map(|overview| overview.model).collect();
        models.extend(subject.calls.iter().map(|called| called.model.clone()));
        models.dedup();
        Who {
            name: name_of(&subject.p2p),
            peer_id: subject.p2p.peer_id().to_base58(),
            command: subject.command.to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state(),
            models,
        }
    }

    async fn status(&self) -> Status {
        let (subject, overviews) = (&self.subject, self.overviews());
        let contacts = self.contacts().await;
        let mut tokens = Tokens::default();
        for rate in overviews.iter().map(|overview| overview.tokens) {
            tokens.total += rate.total;
            tokens.per_second += rate.recent;
            tokens.per_second_mean += rate.mean;
        }
        let access = subject.access.as_ref().and_then(|access| reachable(&access.borrow()));
        Status {
            node: self.who(),
            state: self.state(),
            uptime_s: self.began.elapsed().as_secs_f64(),
            addresses: subject.p2p.addrs().iter().map(ToString::to_string).collect(),
            reachable: access.map(str::to_owned),
            sessions: overviews.iter().map(|overview| overview.sessions).sum(),
            queued: self.queued(),
            queue: queue_row(&overviews),
            refused: self.refused(),
            pause: overviews.iter().find_map(|overview| overview.pause).map(pause_row),
            models: overviews.into_iter().map(model_row).collect(),
            tokens,
            api: subject.api.as_ref().map(|api| (api.0)()),
            jobs: subject.jobs.as_ref().map(|jobs| (jobs.0)()).unwrap_or_default(),
            peers: contacts.len(),
            peers_relayed: contacts.iter().filter(|(_, contact)| contact.relayed).count(),
            swarms: subject.swarms.list(),
            log: subject.log.level(),
            errors: subject.log.recent(),
        }
    }

    async fn peers(&self) -> Vec<PeerRow> {
        let serves = self.who_serves();
        let contacts = self.contacts().await;
        let rows = contacts.into_iter().map(|(swarm, contact)| PeerRow {
            peer_id: contact.peer.to_base58(),
            swarm,
            address: contact.addr.to_string(),
            relayed: contact.relayed,
            dialed: contact.dialed,
            connected_s: contact.connected.as_secs_f64(),
            rtt_s: contact.rtt.map(|rtt| rtt.as_secs_f64()),
            serves: serves.get(&contact.peer).cloned().unwrap_or_default(),
            agent: contact.agent,
        });
        rows.collect()
    }

    /// Who is connected in which swarm.
    async fn contacts(&self) -> Vec<(u32, Contact)> {
        let (p2p, mut guests) = (self.subject.p2p.clone(), self.subject.swarms.guests());
        guests.insert(0, (HOME, p2p));
        let mut contacts = Vec::new();
        for (swarm, host) in guests {
            contacts.extend(host.contacts().await.into_iter().map(|contact| (swarm, contact)));
        }
        contacts
    }

    fn sessions(&self) -> Vec<SessionRow> {
        let servers = self.subject.servers.iter();
        let sessions = servers.flat_map(|server| {
            let prefix = server.overview().prefix;
            let row = move |view| session_row(&prefix, view);
            server.sessions().into_iter().map(row)
        });
        sessions.collect()
    }

    /// How the node is as a whole: what was ordered, else how far the last of its models is.
    pub(super) fn state(&self) -> State {
        if self.subject.stop.is_cancelled() {
            return State::Stopping;
        }
        if self.orders.is_draining() {
            return State::Draining;
        }
        let states = self.overviews().into_iter().map(|overview| state_of(overview.phase));
        let furthest_behind = states.min_by_key(|state| match state {
            State::Paused => 0,
            State::Starting => 1,
            State::Joining => 2,
            _ => 3,
        });
        furthest_behind.unwrap_or(State::Running)
    }

    pub(super) fn overviews(&self) -> Vec<Overview> {
        let servers = self.subject.servers.iter();
        servers.map(|server| server.overview()).collect()
    }

    fn queued(&self) -> usize {
        self.overviews().iter().map(|overview| overview.waits.total()).sum()
    }

    fn refused(&self) -> RefusedRow {
        // Servers of one node have their counts in common.
        let Some(server) = self.subject.servers.first() else {
            return RefusedRow::default();
        };
        let Refusals {
            overloaded,
            paused,
            denied,
            sessions,
            tokens,
            cache,
        } = server.stats().refusals;
        RefusedRow {
            overloaded,
            paused,
            denied,
            sessions,
            tokens,
            cache,
        }
    }

    fn directories(&self) -> impl Iterator<Item = &Directory> {
        let served = self.subject.servers.iter().map(|server| server.directory());
        served.chain(self.subject.calls.iter().map(|called| &called.directory))
    }

    /// What each peer was found to serve, or to be about to.
    fn who_serves(&self) -> BTreeMap<PeerId, Vec<String>> {
        let mut serves: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
        for snapshot in self.directories().map(Directory::snapshot) {
            for span in snapshot.spans(ServerState::Joining) {
                let text = format!("{} {}:{}", snapshot.prefix, span.blocks.start, span.blocks.end);
                let texts = serves.entry(span.peer).or_default();
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
        }
        serves
    }

    /// Looks at the swarm if that was long ago. Whoever comes while another one looks does without.
    async fn look(&self) {
        let Ok(mut looked) = self.looked.0.try_lock() else {
            return;
        };
        if looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        let looks = self.directories().map(Directory::refresh);
        drop(tokio::time::timeout(LOOK_PATIENCE, futures::future::join_all(looks)).await);
        *looked = Some(Instant::now());
    }
}

pub(super) fn state_of(phase: Phase) -> State {
    match phase {
        Phase::Starting => State::Starting,
        Phase::Joining => State::Joining,
        Phase::Online => State::Online,
        Phase::Paused => State::Paused,
    }
}

/// How others get to a node, in the words of the protocol.
pub fn reachable(access: &Access) -> Option<&'static str> {
    match access {
        Access::Unknown => None,
        Access::Direct => Some("direct"),
        Access::Relayed(_) => Some("relay"),
        Access::Unreachable => Some("none"),
    }
}

fn queue_row(overviews: &[Overview]) -> QueueRow {
    let waits = overviews.iter().map(|overview| overview.waits);
    let Waits { own, sessions, passes } = waits.fold(Waits::default(), |sum, waits| sum + waits);
    QueueRow {
        own,
        sessions,
        passes,
        limit: overviews.first().map_or(0, |overview| overview.max_queue),
    }
}

fn pause_row(pause: Pause) -> PauseRow {
    let left = pause
        .until
        .map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
    PauseRow {
        by: if pause.by_hours { "schedule" } else { "person" }.to_owned(),
        until_s: left.map(|left| left.as_secs_f64()),
    }
}

fn model_row(overview: Overview) -> ModelRow {
    ModelRow {
        state: state_of(overview.phase),
        model: overview.model,
        prefix: overview.prefix,
        blocks: overview.blocks.map(|blocks| format!("{}:{}", blocks.start, blocks.end)),
        n_blocks: overview.n_model_blocks,
        weights: overview.weights.to_owned(),
        throughput: overview.throughput,
        tokens: tokens(overview.tokens),
        sessions: overview.sessions,
        cache: CacheRow {
            used: overview.cache.used,
            reserved: overview.cache.reserved,
            total: overview.cache.total,
        },
    }
}

fn session_row(prefix: &str, view: SessionView) -> SessionRow {
    SessionRow {
        prefix: prefix.to_owned(),
        number: view.number,
        id: view.id,
        peer_id: view.peer.to_base58(),
        swarm: view.swarm,
        blocks: format!("{}:{}", view.blocks.start, view.blocks.end),
        batch: view.batch,
        position: view.position,
        max_length: view.max_length,
        age_s: view.age.as_secs_f64(),
        idle_s: view.idle.as_secs_f64(),
        tokens: tokens(view.tokens),
    }
}

fn tokens(rate: Rate) -> Tokens {
    Tokens {
        total: rate.total,
        per_second: rate.recent,
        per_second_mean: rate.mean,
    }
}
