//! What a model's server tells the swarm, span by span. When it is told is decided in `lifecycle.rs` and `moving.rs`.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sepal_protocol::record::{ServerInfo, ServerState};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    Throughput,
    current::Record,
    lifecycle::{Lifecycle, StartError, version},
    membership::Membership,
    throughput::Rates,
    voice::Announced,
};
use crate::{
    swarm::{
        announce::{AnnounceConfig, AnnounceError, Announcer},
        models,
        spans::BlockRecords,
        standing::Access,
    },
    task::Tasks,
};

/// Announced while loading, in tokens per second.
const UNMEASURED_THROUGHPUT: f64 = 1.0;

/// The announcers that are alive: one, or two while the server moves.
pub(super) type Announcers = Vec<(Range<u32>, Arc<Announcer>)>;

impl Lifecycle {
    /// An announcer of `span`, which says nothing yet.
    pub(super) fn spawn_announcer(&self, span: &Range<u32>) -> Arc<Announcer> {
        let announcer = self.announcer_in(&self.current().membership, span, &self.tasks);
        self.announcers().push((span.clone(), announcer.clone()));
        announcer
    }

    /// The same for any swarm that the node is in.
    pub(super) fn announcer_in(&self, there: &Arc<Membership>, span: &Range<u32>, tasks: &Tasks) -> Arc<Announcer> {
        let (hosted, membership) = (self.hosted.clone(), there.clone());
        let describe = move || hosted.describe(&membership);
        let config = self.announce_config(span);
        Arc::new(Announcer::spawn(there.dht().clone(), config, describe, tasks))
    }

    /// What the home swarm was told.
    pub(super) fn announced(&self) -> Option<Announced> {
        Announced::last(&self.announcers())
    }

    fn announcers(&self) -> MutexGuard<'_, Announcers> {
        lock(&self.announcers)
    }

    /// Takes back what was said of `span`; the server stays at `home`.
    pub(super) async fn withdraw(&self, span: &Range<u32>, home: &Range<u32>) {
        let announcers = self.announcers().clone();
        for (_, announcer) in announcers.iter().filter(|(announced, _)| announced == span) {
            say_offline(announcer, home).await;
        }
        self.announcers().retain(|(announced, _)| announced != span);
    }

    /// `span` is ONLINE and everything else is OFFLINE, in the order that leaves no reader with both.
    pub(super) async fn change_over(&self, span: &Range<u32>) -> Result<(), StartError> {
        let announcers = self.announcers().clone();
        for (_, old) in announcers.iter().filter(|(announced, _)| announced != span) {
            say_offline(old, span).await;
        }
        self.announcers().retain(|(announced, _)| announced == span);
        for (_, new) in announcers.iter().filter(|(announced, _)| announced == span) {
            self.say_serving(new).await?;
        }
        Ok(())
    }

    /// That the blocks are there: ONLINE, or JOINING while no new sessions are taken. Petals knows no such state; JOINING
    /// keeps clients away and counts for servers that choose blocks, which a pause is no reason to move for.
    pub(super) async fn say_serving(&self, announcer: &Announcer) -> Result<(), StartError> {
        loop {
            let paused = self.current().is_paused();
            let state = if paused {
                ServerState::Joining
            } else {
                ServerState::Online
            };
            match announcer.set_state(state).await {
                // It changed while that was being stored.
                Ok(()) if self.current().is_paused() != paused => {}
                // Whoever said something since says what holds.
                Ok(()) | Err(AnnounceError::Superseded) => return Ok(()),
                Err(error) => return Err(StartError::Announce(error)),
            }
        }
    }

    /// Says anew what holds of the span that is served, after it changed whether new sessions are taken.
    pub(super) async fn say_again(&self) -> Result<(), StartError> {
        let Some(serving) = self.hosted.now() else {
            return Ok(());
        };
        let announcers = self.announcers().clone();
        for (_, announcer) in announcers.iter().filter(|(announced, _)| *announced == serving.span) {
            self.say_serving(announcer).await?;
        }
        Ok(())
    }

    /// Takes back what the swarm still has of a run that ended without a word, but for `span`: until those records expire,
    /// clients would ask us for blocks that we do not have, and others would take them for served.
    pub(super) async fn take_back_last_run(&self, span: &Range<u32>) {
        let snapshot = self.directory.refresh().await;
        let me = self.p2p.peer_id();
        let is_said = |servers: &BlockRecords| servers.get(&me).is_some_and(|info| info.state != ServerState::Offline);
        let blocks = (0..).zip(&snapshot.blocks);
        let mut left = blocks.filter(|(block, servers)| !span.contains(block) && is_said(servers));
        let Some((first, _)) = left.next() else { return };
        let last = left.last().map_or(first, |(last, _)| last);
        let left = first..last + 1;
        info!(except = ?span, "taking back what is still said of blocks {left:?}");
        let announcer = self.announcer_in(&self.current().membership, &left, &self.tasks);
        say_offline(&announcer, span).await;
    }

    /// OFFLINE under every block that anything was said about.
    pub(super) async fn go_offline(&self) {
        let announcers = std::mem::take(&mut *self.announcers());
        for (_, announcer) in announcers {
            say_offline(&announcer, &(0..0)).await;
        }
    }

    /// Tells the swarm at once when others get to us in another way than before.
    pub(super) fn watch_access(self: &Arc<Self>) {
        let this = self.clone();
        self.moving.spawn_until_stopped("access", async move {
            follow_access(this.config.access.clone(), &this.announcers).await;
        });
    }

    fn announce_config(&self, span: &Range<u32>) -> AnnounceConfig {
        let period = self.config.update_period;
        AnnounceConfig {
            prefix: self.config.prefix.clone(),
            peer: self.p2p.peer_id(),
            blocks: span.clone(),
            n_model_blocks: self.source.config().n_blocks,
            repository: self.source.repo_name().map(models::repository_url),
            period,
            expiration: self
                .config
                .expiration
                .unwrap_or_else(|| AnnounceConfig::default_expiration(period)),
        }
    }

    /// What does not change while a span is served. State, span and pings are the announcer's, and how others get to us
    /// is looked up when it is announced.
    pub(super) fn record(&self, rates: Option<Rates>) -> Record {
        let throughput = self.throughput(rates);
        let info = ServerInfo {
            public_name: self.config.public_name.clone(),
            version: Some(version()),
            network_rps: rates.and_then(|rates| rates.network_rps),
            forward_rps: rates.and_then(|rates| rates.forward_rps),
            inference_rps: rates.and_then(|rates| rates.inference_rps),
            torch_dtype: Some(self.dtype().as_torch_str().to_string()),
            quant_type: Some(self.precision().weights.quant_type().to_string()),
            adapters: self
                .config
                .adapters
                .iter()
                .map(|adapter| adapter.name().to_owned())
                .collect(),
            ..ServerInfo::new(ServerState::Joining, throughput)
        };
        Record {
            info,
            relayed_throughput: rates.map_or(throughput, |rates| rates.relayed_throughput),
        }
    }

    /// While loading nothing is measured yet, but the span must count for others that choose blocks at the same time: a
    /// zero would make them take the same ones.
    fn throughput(&self, rates: Option<Rates>) -> f64 {
        match (rates, self.config.throughput) {
            (Some(rates), _) => rates.throughput,
            (None, Throughput::Fixed(throughput)) => throughput,
            (None, Throughput::Auto | Throughput::Eval) => UNMEASURED_THROUGHPUT,
        }
    }
}

/// The announcers, also after a panic of somebody who had them: that leaves none half made.
pub(super) fn lock(announcers: &Mutex<Announcers>) -> MutexGuard<'_, Announcers> {
    announcers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says everything anew whenever others get to us in another way than before. Ends when nobody looks after that any more:
/// then it stays as it is.
pub(super) async fn follow_access(mut access: watch::Receiver<Access>, announcers: &Mutex<Announcers>) {
    let mut told = access.borrow_and_update().using_relay();
    while access.changed().await.is_ok() {
        let now = access.borrow_and_update().using_relay();
        if now != std::mem::replace(&mut told, now) {
            info!(
                using_relay = now,
                "announcing that others get to this server in another way"
            );
            lock(announcers).iter().for_each(|(_, announcer)| announcer.renew());
        }
    }
}

/// The last word of an announcer; nothing about the blocks in `except`.
pub(super) async fn say_offline(announcer: &Announcer, except: &Range<u32>) {
    match announcer.set_state_except(ServerState::Offline, except.clone()).await {
        // It was said already.
        Ok(()) | Err(AnnounceError::Stopped) => {}
        Err(error) => warn!(%error, "the swarm learns that these blocks are gone only when their records expire"),
    }
}
