//! The swarms that a node is in. Petals' swarms are told apart only by whom one joins through, so one host in two of them
//! would make them one: each has a host, a DHT, a standing and announcements of its own. What is served is loaded once, and
//! served to all of them.
//!
//! ```text
//!   --also-join, sepal connect ──▶ dwell: a host there, join (again and again), announce, answer
//!   sepal disconnect ──────────────▶ └── OFFLINE there, wait for its sessions, close the host
//! ```
//!
//! Only servers are in several. The first swarm is the one that the node was started in; it ends with the node.

pub(super) mod orders;
mod seat;
mod wanted;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::anyhow;
use clap::Args as ClapArgs;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tracing::{info, warn};

use self::{
    seat::{Guest, Inside, Seat, Sign},
    wanted::Wanted,
};
use super::{
    node::{self, ListenArgs, Node},
    output,
    standing::{Standing, StandingArgs},
    swarm::Swarm,
};
use crate::{
    control::{
        self, Refusal,
        protocol::{Connect, FailureCode, SwarmRow, SwarmState},
    },
    dht::Dht,
    p2p::{Identity, P2p, SwarmKey},
    server::{HOME, Membership, Server},
    swarm::standing::Access,
    task::Tasks,
};

/// Swarms that a node may be in. Each has connections of its own.
const MAX_SWARMS: usize = 16;

/// How long somebody who asks to be in a swarm waits for the answer. It goes on in any case.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked how far that is.
const LOOK: Duration = Duration::from_millis(50);

/// First and longest pause between two attempts to join a swarm that the node was started with.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Flags of servers.
#[derive(Debug, ClapArgs)]
pub(super) struct AlsoArgs {
    /// Be in another swarm as well, and serve the same blocks there. The value says what to call it, nodes of it to join
    /// through, the file with its key if it is private, and a port to listen on there; all but one address may be left out.
    /// May be given several times; `sepal connect` does the same while the server runs.
    #[arg(long, value_name = "[NAME=]ADDR [ADDR ...] [key=FILE] [port=N]", value_parser = Wanted::parse, alias = "also_join")]
    also_join: Vec<Wanted>,
}

impl AlsoArgs {
    /// Is in these swarms from now on, and goes on trying where one cannot be joined.
    ///
    /// # Errors
    /// The node cannot be in one of them.
    pub(super) fn join(&self, swarms: &Arc<Swarms>) -> anyhow::Result<()> {
        for wanted in &self.also_join {
            let seat = swarms.take_seat(wanted.clone(), true);
            seat.map_err(|refusal| anyhow!("--also-join: {}", refusal.message))?;
        }
        Ok(())
    }
}

/// The swarms of one node.
#[derive(Debug)]
pub(super) struct Swarms {
    command: &'static str,
    home: Arc<Seat>,
    others: Mutex<Vec<Arc<Seat>>>,
    /// What a server needs to be in others as well.
    ground: Option<Ground>,
    tasks: Tasks,
}

/// What the hosts in further swarms are made from, and what they serve.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) identity: Identity,
    pub(super) listen: ListenArgs,
    pub(super) standing: StandingArgs,
    pub(super) auto_relay: bool,
    pub(super) servers: Vec<Arc<Server>>,
}

impl Swarms {
    /// Those of a node that runs as `command` and is in `swarm`.
    pub(super) fn new(
        command: &'static str,
        (node, swarm): (&Node, &Swarm),
        access: Option<watch::Receiver<Access>>,
        ground: Option<Ground>,
    ) -> Arc<Self> {
        let home = Seat::new(Sign {
            number: HOME,
            name: seat::name_of(swarm, HOME),
            addresses: swarm.initial_peers.clone(),
            key: swarm.key.as_ref().map(SwarmKey::fingerprint),
        });
        home.entered(Arc::new(Inside {
            p2p: node.p2p.clone(),
            dht: node.dht.clone(),
            access,
            since: Instant::now(),
            guest: None,
        }));
        Arc::new(Self {
            command,
            home: Arc::new(home),
            others: Mutex::default(),
            ground,
            tasks: Tasks::new(),
        })
    }

    /// What this node has in all but the home swarm, by the numbers of these swarms.
    pub(super) fn guests(&self) -> Vec<(u32, P2p, Dht)> {
        let seats = self.lock().clone();
        let guests = seats.iter().filter_map(|seat| {
            let (p2p, dht) = seat.network()?;
            Some((seat.sign.number, p2p, dht))
        });
        guests.collect()
    }

    /// Leaves all but the home swarm at once, and takes a seat in no other.
    pub(super) async fn close(&self) {
        let seats = {
            let seats = self.lock();
            // Those who dwell somewhere do not watch this: they say that they leave, and are waited for.
            self.tasks.token().cancel();
            seats.clone()
        };
        for seat in seats {
            seat.leave.cancel();
            seat.hurry.cancel();
        }
        self.tasks.shutdown().await;
    }

    /// Begins to be in a swarm; `stays` is whether it goes on trying.
    fn take_seat(self: &Arc<Self>, wanted: Wanted, stays: bool) -> Result<Arc<Seat>, Refusal> {
        if self.ground.is_none() {
            let message = format!("{} is in one swarm: only sepal serve can be in several", self.command);
            return Err(refusal(FailureCode::NotHere, message));
        }
        let swarm = wanted
            .swarm()
            .map_err(|error| refusal(FailureCode::BadRequest, format!("{error:#}")))?;
        let mut others = self.lock();
        if self.tasks.token().is_cancelled() {
            return Err(refusal(FailureCode::NotHere, "this node is stopping"));
        }
        let seats = || std::iter::once(&self.home).chain(others.iter());
        // The first number that is free.
        let is_taken = |number: &u32| seats().any(|seat| seat.sign.number == *number);
        let number = (HOME + 1..).find(|number| !is_taken(number)).unwrap_or(u32::MAX);
        let name = wanted.name.unwrap_or_else(|| seat::name_of(&swarm, number));
        if seats().count() >= MAX_SWARMS {
            let message =
                format!("this node is in {MAX_SWARMS} swarms, which is the most: sepal disconnect leaves one");
            return Err(refusal(FailureCode::BadRequest, message));
        }
        let taken = swarm.initial_peers.iter().map(ToString::to_string);
        let taken = taken.chain([name.clone()]);
        for text in taken {
            if let Some(seat) = seats().find(|seat| seat.is_called(&text)) {
                let Sign { number, name, .. } = &seat.sign;
                let message = format!("this node is in {text} already: swarm {number}, {name}");
                return Err(refusal(FailureCode::BadRequest, message));
            }
        }
        let seat = Arc::new(Seat::new(Sign {
            number,
            name,
            addresses: swarm.initial_peers.clone(),
            key: swarm.key.as_ref().map(SwarmKey::fingerprint),
        }));
        others.push(seat.clone());
        let (this, dweller, port) = (self.clone(), seat.clone(), wanted.port);
        // With the lock still held: whoever closes the swarms afterwards waits for this, too.
        self.tasks.spawn("swarm", async move {
            this.dwell(&dweller, (&swarm, port), stays).await;
            this.lock().retain(|seat| !Arc::ptr_eq(seat, &dweller));
        });
        Ok(seat)
    }

    /// Is in a swarm until it is told to leave, or, unless it `stays`, cannot be joined.
    async fn dwell(&self, seat: &Seat, (swarm, port): (&Swarm, u16), stays: bool) {
        let Some(ground) = &self.ground else { return };
        let mut pause = FIRST_PAUSE;
        let inside = loop {
            let entering = ground.enter(seat, swarm, port);
            let error = match seat.leave.run_until_cancelled(entering).await {
                None => return,
                Some(Ok(inside)) => break Arc::new(inside),
                Some(Err(error)) => error,
            };
            warn!(swarm = seat.sign.name, "cannot be in another swarm: {error:#}");
            seat.failed(format!("{error:#}"));
            let waited = seat.leave.run_until_cancelled(tokio::time::sleep(pause));
            if !stays || waited.await.is_none() {
                return;
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        };
        seat.entered(inside.clone());
        let addr = inside.p2p.addrs().first().map(ToString::to_string).unwrap_or_default();
        output::line(format_args!("joined {} listening {addr}", seat.sign.name));
        seat.leave.cancelled().await;
        inside.leave(seat, &ground.servers).await;
        info!(swarm = seat.sign.name, "left another swarm");
        output::line(format_args!("left {}", seat.sign.name));
    }

    /// How far it is with a swarm that was just asked for.
    async fn settled(&self, seat: &Seat) -> Result<SwarmRow, Refusal> {
        let waited = tokio::time::timeout(CONNECT_PATIENCE, async {
            loop {
                if let Some(reason) = seat.failure() {
                    return Err(refusal(FailureCode::NotJoined, reason));
                }
                let row = seat.row(self.servers());
                // A node that is still loading has nothing to say there yet.
                let has_blocks = self.servers().iter().any(|server| server.overview().blocks.is_some());
                if row.state != SwarmState::Joining || (row.joined_s.is_some() && !has_blocks) {
                    return Ok(row);
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        waited.await.unwrap_or_else(|_| Ok(seat.row(self.servers())))
    }

    fn servers(&self) -> &[Arc<Server>] {
        self.ground.as_ref().map_or(&[], |ground| &ground.servers)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the control socket hands on. It outlives no node, so it is a handle of its own.
#[derive(Clone, Debug)]
pub(super) struct Handle(pub(super) Arc<Swarms>);

impl control::Swarms for Handle {
    fn list(&self) -> Vec<SwarmRow> {
        let seats = std::iter::once(self.0.home.clone()).chain(self.0.lock().clone());
        seats.map(|seat| seat.row(self.0.servers())).collect()
    }

    fn guests(&self) -> Vec<(u32, P2p)> {
        let guests = self.0.guests().into_iter();
        guests.map(|(number, p2p, _)| (number, p2p)).collect()
    }

    fn connect(&self, asked: Connect) -> BoxFuture<'_, Result<SwarmRow, Refusal>> {
        Box::pin(async move {
            let wanted = Wanted::of(asked).map_err(|message| refusal(FailureCode::BadRequest, message))?;
            let seat = self.0.take_seat(wanted, false)?;
            self.0.settled(&seat).await
        })
    }

    fn disconnect(&self, swarm: &str, limit: Option<Duration>) -> Result<SwarmRow, Refusal> {
        let seats = self.0.lock().clone();
        if self.0.home.is_called(swarm) {
            let name = &self.0.home.sign.name;
            let message = match seats.is_empty() {
                true => format!("{name} is the only swarm that this node is in: sepal stop ends the node"),
                false => format!(
                    "{name} is the swarm that this node was started in, where its blocks are chosen: it can leave the \
                     others, and sepal stop ends the node"
                ),
            };
            return Err(refusal(FailureCode::BadRequest, message));
        }
        let Some(seat) = seats.iter().find(|seat| seat.is_called(swarm)) else {
            let message = format!("this node is in no swarm called {swarm}: sepal swarms lists those that it is in");
            return Err(refusal(FailureCode::BadRequest, message));
        };
        seat.leave.cancel();
        if let Some(limit) = limit {
            let hurry = seat.hurry.clone();
            self.0.tasks.spawn_until_stopped("patience", async move {
                tokio::time::sleep(limit).await;
                hurry.cancel();
            });
        }
        Ok(seat.row(self.0.servers()))
    }
}

impl Ground {
    /// Joins a swarm, and serves there.
    ///
    /// # Errors
    /// The node is in it already, cannot listen, or finds nobody.
    async fn enter(&self, seat: &Seat, swarm: &Swarm, port: u16) -> anyhow::Result<Inside> {
        let listen = self.listen.elsewhere(port, swarm.key.is_some());
        let node = node::listen_elsewhere(&self.identity, &listen, swarm, self.auto_relay).await?;
        let mut standing = Standing::of(&node, &self.standing);
        let network = (node.p2p.clone(), node.dht.clone());
        let membership = Arc::new(Membership::new(seat.sign.number, network, standing.access()));
        let handlers = self.servers.first().map(|server| server.handlers_in(&membership));
        node.router().serve(handlers.unwrap_or_default()).spawn(&node.tasks);
        let stopped = node.tasks.token().drop_guard();
        node.bootstrap("check the addresses, and the swarm key if it is a private one")
            .await?;
        let _ = stopped.disarm();
        standing.begin_quietly(&node.tasks);
        let voices = self
            .servers
            .iter()
            .map(|server| server.speak_in(&membership, &node.tasks));
        Ok(Inside {
            p2p: node.p2p.clone(),
            dht: node.dht.clone(),
            access: Some(standing.access()),
            since: Instant::now(),
            guest: Some(Guest {
                voices: voices.collect(),
                membership,
                node,
            }),
        })
    }
}

fn refusal(code: FailureCode, message: impl Into<String>) -> Refusal {
    Refusal {
        code,
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const NOBODY: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWQnwEGNqcM2nAcPtRR9rAX8Hrg4k9kJLCHoTR5chJfz6d";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        listen: ListenArgs,
        #[command(flatten)]
        standing: StandingArgs,
    }

    #[tokio::test]
    async fn a_node_that_stops_leaves_its_swarms_and_begins_no_other() {
        let line = ["sepal", "--listen", "/ip4/127.0.0.1/tcp/0", "--no-port-mapping"];
        let Line { listen, standing } = Line::try_parse_from(line).unwrap();
        let swarm = Swarm::default();
        let node = node::listen(&listen, &swarm, false).await.unwrap();
        let ground = Ground {
            identity: node.p2p.identity().clone(),
            listen,
            standing,
            auto_relay: false,
            servers: Vec::new(),
        };
        let swarms = Swarms::new("serve", (&node, &swarm), None, Some(ground));
        let wanted = Wanted::parse(NOBODY).unwrap();
        swarms.take_seat(wanted.clone(), true).unwrap();
        assert_eq!(swarms.lock().len(), 1);
        swarms.close().await;
        assert!(swarms.lock().is_empty());
        let refused = swarms.take_seat(wanted, false).unwrap_err();
        assert_eq!(refused, refusal(FailureCode::NotHere, "this node is stopping"));
        node.tasks.shutdown().await;
    }
}
