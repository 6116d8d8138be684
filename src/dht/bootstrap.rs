//! Joining the DHT through initial peers, and staying in it.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use sepal_protocol::dht_id::DhtId;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{
    error::{BootstrapError, Unusable, UnusablePeer},
    inquiry::Guide,
    node::Node,
    record::Record,
    routing::Contact,
    rpc::Pong,
    state::MAX_KEYS_PER_CALL,
};
use crate::p2p::{Multiaddr, PeerId, peer_id_of};

/// How far two clocks may be apart, in seconds (hivemind, `dht/protocol.py`, `MAX_DHT_TIME_DISCREPANCY_SECONDS`).
pub const MAX_CLOCK_SKEW_S: f64 = 3.0;

/// How often to look whether cached records have to be fetched again. They are due 5 s before they expire.
const REFRESH_TICK: Duration = Duration::from_secs(1);

/// How often a node without any neighbors tries its initial peers again.
pub(super) const REJOIN_PERIOD: Duration = Duration::from_secs(30);

impl Node {
    /// Pings the initial peers in parallel and searches for the own id, so that the nodes nearest to it know of it.
    /// Returns how many initial peers are usable; without initial peers that is 0, and the node is the first one.
    pub(crate) async fn bootstrap(self: &Arc<Self>) -> Result<usize, BootstrapError> {
        let peers = &self.config.initial_peers;
        if peers.is_empty() {
            return Ok(0);
        }
        let mut pings: FuturesUnordered<_> = peers
            .iter()
            .enumerate()
            .map(|(at, addr)| async move { (at, self.join_through(addr.clone()).await) })
            .collect();
        let mut reasons: Vec<Option<Unusable>> = peers.iter().map(|_| Some(Unusable::Late)).collect();
        let mut usable = 0;
        // The first usable peer decides how long the others are waited for.
        let mut deadline: Option<Instant> = None;
        loop {
            let late = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                answer = pings.next() => answer,
                () = late => None,
            };
            let Some((at, result)) = answer else { break };
            if result.is_ok() {
                usable += 1;
                deadline.get_or_insert(Instant::now() + self.config.bootstrap_timeout);
            }
            reasons[at] = result.err();
        }
        drop(pings);
        let failures: Vec<UnusablePeer> = std::iter::zip(peers, reasons)
            .filter_map(|(addr, reason)| {
                Some(UnusablePeer {
                    addr: addr.clone(),
                    reason: reason?,
                })
            })
            .collect();
        if usable == 0 {
            return Err(BootstrapError { failures });
        }
        for failure in &failures {
            warn!(error = %failure, "an initial peer cannot be used");
        }
        self.search_self().await;
        Ok(usable)
    }

    /// Joins through a further peer, found at run time.
    pub(crate) async fn meet(self: &Arc<Self>, addr: Multiaddr) -> Result<PeerId, Unusable> {
        let peer = self.join_through(addr).await?;
        self.search_self().await;
        Ok(peer)
    }

    /// Connects to an initial peer and finds out whether it is usable.
    async fn join_through(self: &Arc<Self>, addr: Multiaddr) -> Result<PeerId, Unusable> {
        let peer = self.network.connect(addr).await.map_err(Unusable::Dial)?;
        let (pong, offset_s) = self
            .ping_clock(peer, true, self.config.call_timeout)
            .await
            .map_err(Unusable::Silent)?;
        judge(&pong, offset_s, self.is_client()).inspect_err(|_| self.lost(&peer))?;
        Ok(peer)
    }

    /// Searches for the own id, which introduces this node to those near it. The search goes on in the background if it
    /// takes longer than the limit.
    async fn search_self(self: &Arc<Self>) {
        let finished = self.search_self_in_background();
        if timeout(self.config.bootstrap_timeout, finished).await.is_err() {
            debug!("the search for the own id takes longer");
        }
    }

    /// The result is there when the search is over; nobody has to wait for it.
    pub(crate) fn search_self_in_background(self: &Arc<Self>) -> oneshot::Receiver<()> {
        let node = self.clone();
        let (done, finished) = oneshot::channel();
        self.tasks.spawn_until_stopped("dht search for own id", async move {
            node.search(&[node.id], 1, &mut Nothing).await;
            // Nobody may be waiting any more.
            let _ = done.send(());
        });
        finished
    }

    /// Keeps the node in touch: fetches cached records again before they expire, joins again after all neighbors or
    /// some initial peers were lost, and, if configured, searches for random ids so that buckets stay fresh.
    pub(crate) async fn maintain(self: Arc<Self>) {
        let heartbeat = self.config.heartbeat.unwrap_or(REJOIN_PERIOD);
        let mut next_heartbeat = Instant::now() + heartbeat;
        loop {
            tokio::time::sleep(REFRESH_TICK).await;
            let due = self.state().take_due_refreshes(MAX_KEYS_PER_CALL, self.now());
            if !due.is_empty() {
                self.refresh(due).await;
            }
            if Instant::now() < next_heartbeat {
                continue;
            }
            next_heartbeat = Instant::now() + heartbeat;
            self.look_for_initial_peers();
            if self.state().table.len() == 0 && !self.config.initial_peers.is_empty() {
                match self.bootstrap().await {
                    Ok(usable) => info!(usable, "joined the DHT again"),
                    Err(error) => debug!(%error, "cannot join the DHT again"),
                }
            } else if self.config.heartbeat.is_some() {
                self.search(&[DhtId::from_bytes(rand::random())], 1, &mut Nothing).await;
            }
        }
    }

    /// Tries again, in the background, the initial peers that this node has lost while it kept others. When a swarm is cut
    /// in two, each half forgets the other, and nobody but a common initial peer brings them together afterwards.
    fn look_for_initial_peers(self: &Arc<Self>) {
        let lost: Vec<Multiaddr> = self
            .config
            .initial_peers
            .iter()
            .filter(|addr| !self.is_neighbor(addr))
            .cloned()
            .collect();
        if lost.is_empty() || self.state().table.len() == 0 {
            return;
        }
        let node = self.clone();
        self.tasks
            .spawn_until_stopped("dht search for lost initial peers", async move {
                join_all(lost.iter().map(|addr| node.join_through(addr.clone()))).await;
                let back: Vec<&Multiaddr> = lost.iter().filter(|addr| node.is_neighbor(addr)).collect();
                if !back.is_empty() {
                    info!(?back, "found initial peers again");
                    node.search_self().await;
                }
            });
    }

    fn is_neighbor(&self, addr: &Multiaddr) -> bool {
        peer_id_of(addr).is_some_and(|peer| self.state().table.id_of(&peer).is_some())
    }
}

/// Whether a node can be joined through that answered like this, with a clock so many seconds ahead of ours. Pure.
pub(super) fn judge(pong: &Pong, offset_s: Option<f64>, client_mode: bool) -> Result<(), Unusable> {
    let offset_s = offset_s.unwrap_or(0.0);
    if pong.node.is_none() {
        return Err(Unusable::Client);
    }
    if offset_s.abs() > MAX_CLOCK_SKEW_S {
        return Err(Unusable::ClockSkew {
            offset_s,
            limit_s: MAX_CLOCK_SKEW_S,
        });
    }
    if !pong.available && !client_mode {
        return Err(Unusable::NoWayBack);
    }
    Ok(())
}

/// The guide of a search that is made for the sake of searching.
struct Nothing;

impl Guide for Nothing {
    fn answered(&mut self, _key: &DhtId, _from: Contact, _record: Option<Record>) -> bool {
        false
    }

    fn ended(&mut self, _key: &DhtId, _nearest: Vec<Contact>) {}
}
