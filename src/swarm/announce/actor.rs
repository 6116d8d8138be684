//! The task behind an `Announcer`: stores, repeats, retries, and lets a new state interrupt all of that.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use sepal_protocol::{
    dht_id::DhtId,
    record::{MODEL_REGISTRY_KEY, ModelInfo, ServerInfo, ServerState},
    value::Subkey,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{AnnounceConfig, AnnounceError};
use crate::{
    dht::{Dht, Found, Freshness, StoreItem},
    swarm::{
        directory::{block_key, read_blocks, server_of},
        models::is_private,
        ping::{self, Rtts},
        spans::BlockRecords,
    },
};

/// First and longest pause between two attempts to store: the records should be there soon after the first DHT peer is,
/// and a swarm that has come apart should not be flooded.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often OFFLINE is tried. With the pauses between, about as long as a person waits for Ctrl-C.
const OFFLINE_ATTEMPTS: u32 = 3;

/// Seconds by which a record outlives the one it replaces. DHT nodes drop a record that does not live longer than the
/// one they have, which would happen after a clock was set back or after a restart with a shorter expiration.
const EXPIRATION_STEP_S: f64 = 0.001;

/// Seconds from now beyond which an expiration found under our name is not ours. Python nodes check no signatures: anyone
/// can put a record there that never expires, and to outlive it would make ours last for ever too.
const MAX_OWN_EXPIRATION_S: f64 = 24.0 * 3600.0;

/// What the server says about itself at this moment.
pub(super) type Describe = Box<dyn Fn() -> ServerInfo + Send + Sync>;

/// A state to announce, and who waits for it to be stored.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) state: ServerState,
    /// Blocks of the span that nothing is said about.
    pub(super) except: Range<u32>,
    pub(super) answer: Answer,
}

type Answer = oneshot::Sender<Result<(), AnnounceError>>;

type Outcome = watch::Sender<Option<Result<(), AnnounceError>>>;

pub(super) struct Actor {
    dht: Dht,
    config: AnnounceConfig,
    describe: Describe,
    /// The records are out of date.
    news: Arc<Notify>,
    /// What became of the last attempt to store them.
    outcome: Outcome,
    state: ServerState,
    except: Range<u32>,
    rtts: Rtts,
    rng: StdRng,
    /// Latest expiration, in DHT time, of any record of ours in the DHT that we know of.
    last_expiration: f64,
}

impl Actor {
    pub(super) fn new(
        dht: Dht,
        config: AnnounceConfig,
        describe: Describe,
        (news, outcome): (Arc<Notify>, Outcome),
    ) -> Self {
        Self {
            dht,
            config,
            describe,
            news,
            outcome,
            state: ServerState::Offline,
            except: 0..0,
            rtts: Rtts::new(),
            rng: StdRng::from_os_rng(),
            last_expiration: 0.0,
        }
    }

    /// Announces each state that comes in until the next one does. Ends after OFFLINE, or when the announcer is dropped.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut next = inbox.recv().await;
        while let Some(command) = next {
            (self.state, self.except) = (command.state, command.except);
            let mut answer = Some(command.answer);
            next = tokio::select! {
                next = inbox.recv() => next,
                () = self.announce(&mut answer) => None,
            };
            if let Some(answer) = answer {
                reply(answer, Err(AnnounceError::Superseded));
            }
        }
    }

    /// Announces the current state, answers, and keeps it alive. Returns after OFFLINE only.
    async fn announce(&mut self, answer: &mut Option<Answer>) {
        if self.state == ServerState::Offline {
            let result = self.store(Some(OFFLINE_ATTEMPTS)).await;
            return answer.take().into_iter().for_each(|answer| reply(answer, result));
        }
        let stored = self.store(None).await;
        answer.take().into_iter().for_each(|answer| reply(answer, stored));
        let mut round = Instant::now();
        if self.measure_next_servers().await {
            self.keep_alive().await;
        }
        loop {
            let rest = self.config.period.saturating_sub(round.elapsed());
            let due = tokio::select! {
                () = tokio::time::sleep(rest) => true,
                () = self.news.notified() => false,
            };
            round = Instant::now();
            // News does not wait for peers that are slow to answer.
            if due {
                self.measure_next_servers().await;
            }
            self.keep_alive().await;
            if round.elapsed() > self.config.period {
                tracing::warn!(
                    took_s = round.elapsed().as_secs(),
                    period_s = self.config.period.as_secs(),
                    "announcing takes longer than the update period; records may expire"
                );
            }
        }
    }

    async fn keep_alive(&mut self) {
        // Without a limit on attempts it ends when all is stored.
        let _ = self.store(None).await;
    }

    /// Stores the records until the DHT has taken those of all blocks, or `attempts` times.
    async fn store(&mut self, attempts: Option<u32>) -> Result<(), AnnounceError> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let stored = self.store_once().await;
            self.outcome.send_replace(Some(stored));
            let Err(error) = stored else {
                if attempt > 1 {
                    tracing::info!(prefix = self.config.prefix, "the DHT took the records of all blocks");
                }
                return Ok(());
            };
            if attempts.is_some_and(|attempts| attempt >= attempts) {
                return Err(error);
            }
            tracing::warn!(
                prefix = self.config.prefix,
                state = ?self.state,
                %error,
                retry_in_s = pause.as_secs(),
                "clients cannot see this server: is any of the initial peers reachable?"
            );
            tokio::time::sleep(pause).await;
            self.learn_expirations().await;
            pause = (2 * pause).min(LONGEST_PAUSE);
            attempt += 1;
        }
    }

    async fn store_once(&mut self) -> Result<(), AnnounceError> {
        let lifetime = self.config.expiration.as_secs_f64();
        self.last_expiration = (self.dht.now() + lifetime).max(self.last_expiration + EXPIRATION_STEP_S);
        let mut items = self.records();
        let blocks = items.len();
        items.extend(self.registry_entry());
        let stored = self.dht.store_many(items).await;
        // The registry entry is shared by all servers of the model: that it is refused means that another server's
        // lives longer.
        let stored = stored.into_iter().take(blocks).filter(|stored| *stored).count();
        if stored == blocks {
            tracing::debug!(prefix = self.config.prefix, state = ?self.state, blocks, "announced");
            Ok(())
        } else {
            Err(AnnounceError::NotStored { stored, blocks })
        }
    }

    /// One record for each block that there is something to say about, all with the same text.
    fn records(&self) -> Vec<StoreItem> {
        let pings = self.rtts.at(self.dht.now()).into_iter();
        let mut pings: Vec<(String, f64)> = pings.map(|(peer, rtt)| (peer.to_string(), rtt)).collect();
        pings.sort_by(|a, b| a.0.cmp(&b.0));
        let info = ServerInfo {
            state: self.state,
            start_block: Some(self.config.blocks.start),
            end_block: Some(self.config.blocks.end),
            next_pings: (self.state != ServerState::Offline).then_some(pings),
            ..(self.describe)()
        };
        let value = info.encode();
        let item = |block| StoreItem {
            key: block_key(&self.config.prefix, block),
            subkey: Subkey::text(&self.config.peer.to_string()),
            value: value.clone(),
            expiration: self.last_expiration,
        };
        let blocks = self.config.blocks.clone();
        blocks.filter(|block| !self.except.contains(block)).map(item).collect()
    }

    /// What makes the model known to those who do not know its prefix. Private models, and servers that leave, add none.
    fn registry_entry(&self) -> Option<StoreItem> {
        if self.state == ServerState::Offline || is_private(&self.config.prefix) {
            return None;
        }
        let model = ModelInfo {
            num_blocks: self.config.n_model_blocks,
            repository: self.config.repository.clone(),
        };
        Some(StoreItem {
            key: DhtId::of_str(MODEL_REGISTRY_KEY),
            subkey: Subkey::text(&self.config.prefix),
            value: model.encode(),
            expiration: self.last_expiration,
        })
    }

    /// Pings a few servers that clients may go to after this one. Returns whether there is something new to publish.
    async fn measure_next_servers(&mut self) -> bool {
        let (blocks, end) = (&self.config.blocks, self.config.n_model_blocks);
        let after = blocks.start + 1..(blocks.end + 1).min(end);
        let mut records = read_blocks(&self.dht, &self.config.prefix, after, end).await.blocks;
        if blocks.end >= end {
            // Nothing comes after the last block of the model.
            records.push(BlockRecords::new());
        }
        let peers = ping::sample_for_server(&records, self.config.peer, &mut self.rng);
        let known = self.rtts.at(self.dht.now());
        let news = peers.iter().any(|peer| !known.contains_key(peer));
        for (peer, rtt) in ping::measure(&self.dht, peers, ping::SERVER_TIMEOUT).await {
            self.rtts.record(peer, rtt, self.dht.now());
        }
        news
    }

    /// Finds out how long records of ours that are in the DHT already will live, so that the next ones live longer.
    async fn learn_expirations(&mut self) {
        let prefix = &self.config.prefix;
        let keys = self.config.blocks.clone().map(|block| block_key(prefix, block));
        let found = self.dht.get_many(keys.collect(), Freshness::Latest).await;
        let credible = self.dht.now() + MAX_OWN_EXPIRATION_S;
        for found in found.into_iter().flatten() {
            let Found::Dictionary(servers) = found else { continue };
            // Forgeries count: nodes that check nothing hold them, and take ours only if it lives longer.
            let good = servers.entries.iter().map(|entry| (&entry.subkey, entry.expiration));
            let forged = servers.refused.iter().map(|entry| (&entry.subkey, entry.expiration));
            let own = good
                .chain(forged)
                .filter(|(subkey, _)| server_of(subkey) == Some(self.config.peer));
            let own = own.filter(|(_, expiration)| *expiration < credible);
            self.last_expiration = own.fold(self.last_expiration, |last, (_, expiration)| last.max(expiration));
        }
    }
}

fn reply(answer: Answer, result: Result<(), AnnounceError>) {
    // Whoever asked may have stopped waiting.
    let _ = answer.send(result);
}
