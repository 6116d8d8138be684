//! Who serves which blocks now: reads the records of a model out of the DHT and keeps the last picture of it.
//!
//! It chooses no route and bans nobody; it only knows what the DHT says, minus what the user does not want to see.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Range,
    sync::{Arc, PoisonError, RwLock},
};

use sepal_protocol::{
    dht_id::DhtId,
    msgpack::Value,
    record::{BlockUid, MODEL_REGISTRY_KEY, ModelInfo, ServerInfo, ServerState},
};
use tokio::sync::Mutex;

use crate::{
    dht::{Dht, Found, Freshness},
    p2p::PeerId,
    swarm::{
        Snapshot,
        hygiene::{Sorted, Sorting},
        spans::{AdapterGap, BlockRecords},
    },
};

/// Most adapters that are named to somebody who wants another one.
const MAX_NAMED_ADAPTERS: usize = 20;

/// Longest of these names, in bytes.
const MAX_ADAPTER_NAME: usize = 200;

/// Which servers a user wants to see. Everyone, unless set otherwise.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only servers that announce this adapter.
    pub adapter: Option<String>,
    /// Only these servers.
    pub allowed: Option<HashSet<PeerId>>,
    /// None of these servers.
    pub blocked: HashSet<PeerId>,
}

impl Filter {
    fn admits(&self, peer: &PeerId, info: &ServerInfo) -> bool {
        let adapted = self
            .adapter
            .as_ref()
            .is_none_or(|adapter| info.adapters.contains(adapter));
        adapted && self.admits_peer(peer)
    }

    fn admits_peer(&self, peer: &PeerId) -> bool {
        let allowed = self.allowed.as_ref().is_none_or(|allowed| allowed.contains(peer));
        allowed && !self.blocked.contains(peer)
    }

    /// What is not seen because of the adapter, if anything is.
    fn adapter_gap(&self, blocks: &[BlockRecords]) -> Option<Box<AdapterGap>> {
        let wanted = self.adapter.as_ref()?;
        let mut lacking = false;
        let mut there: BTreeSet<&String> = BTreeSet::new();
        for (peer, info) in blocks.iter().flatten() {
            if info.state == ServerState::Online && self.admits_peer(peer) {
                lacking |= !info.adapters.contains(wanted);
                there.extend(info.adapters.iter().filter(|name| is_readable(name)));
            }
        }
        lacking.then(|| {
            Box::new(AdapterGap {
                wanted: wanted.clone(),
                there: there.into_iter().take(MAX_NAMED_ADAPTERS).cloned().collect(),
            })
        })
    }
}

/// Whether a stranger's name for an adapter can stand in a message.
fn is_readable(name: &str) -> bool {
    name.len() <= MAX_ADAPTER_NAME && !name.chars().any(char::is_control)
}

/// What the DHT says about one model. Clones share the last picture.
#[derive(Clone, Debug)]
pub struct Directory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dht: Dht,
    prefix: String,
    n_blocks: u32,
    filter: Filter,
    current: RwLock<Arc<Snapshot>>,
    /// Held while the DHT is asked, so that an older answer never replaces a newer one.
    refreshing: Mutex<()>,
}

impl Directory {
    /// A directory of the model that is called `prefix` in the DHT and has `n_blocks` blocks. Empty until the first
    /// [`refresh`](Self::refresh).
    pub fn new(dht: Dht, prefix: impl Into<String>, n_blocks: u32) -> Self {
        Self::filtered(dht, prefix, n_blocks, Filter::default())
    }

    /// The same, for a user who does not want to see every server.
    pub fn filtered(dht: Dht, prefix: impl Into<String>, n_blocks: u32, filter: Filter) -> Self {
        let prefix = prefix.into();
        let empty = vec![BlockRecords::new(); n_blocks as usize];
        let current = RwLock::new(Arc::new(Snapshot::new(prefix.clone(), empty)));
        let shared = Shared {
            dht,
            prefix,
            n_blocks,
            filter,
            current,
            refreshing: Mutex::new(()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The last picture.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let current = self.shared.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Asks the DHT for the latest records of all blocks and returns the new picture. Blocks of which nothing is found
    /// are served by nobody, as far as this node can tell.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the last picture as it was.
    pub async fn refresh(&self) -> Arc<Snapshot> {
        let shared = &*self.shared;
        let _one_at_a_time = shared.refreshing.lock().await;
        let mut read = read_blocks(&shared.dht, &shared.prefix, 0..shared.n_blocks, shared.n_blocks).await;
        let adapter = shared.filter.adapter_gap(&read.blocks);
        for servers in &mut read.blocks {
            servers.retain(|peer, info| shared.filter.admits(peer, info));
        }
        let snapshot = Arc::new(Snapshot {
            adapter,
            ..Snapshot::of_sorted(shared.prefix.clone(), read)
        });
        *shared.current.write().unwrap_or_else(PoisonError::into_inner) = snapshot.clone();
        snapshot
    }
}

/// The latest records of some blocks of the model `prefix`, which has `n_blocks`: those that can be true in block order, and
/// what is wrong with the others.
pub async fn read_blocks(dht: &Dht, prefix: &str, blocks: Range<u32>, n_blocks: u32) -> Sorted {
    let keys = blocks.clone().map(|block| block_key(prefix, block)).collect();
    let found = dht.get_many(keys, Freshness::Latest).await;
    let mut sorting = Sorting::new(blocks.start, n_blocks, dht.now());
    found.into_iter().for_each(|found| sorting.add(found));
    sorting.finish()
}

/// The models that servers have put into the public registry, by prefix.
pub async fn read_registry(dht: &Dht) -> BTreeMap<String, ModelInfo> {
    let found = dht
        .get_many(vec![DhtId::of_str(MODEL_REGISTRY_KEY)], Freshness::Latest)
        .await;
    let Some(Some(Found::Dictionary(models))) = found.into_iter().next() else {
        return BTreeMap::new();
    };
    let readable = models.entries.iter().filter_map(|entry| {
        let prefix = entry.subkey.as_str()?.to_string();
        match ModelInfo::decode(&entry.value) {
            Ok(info) => Some((prefix, info)),
            Err(error) => {
                tracing::debug!(prefix, %error, "skipped a malformed registry entry");
                None
            }
        }
    });
    readable.collect()
}

/// Where the record of one block is kept.
pub(crate) fn block_key(prefix: &str, block: u32) -> DhtId {
    DhtId::of_str(&BlockUid::format_chain(prefix, block..block + 1))
}

/// The peer whose record is kept under `subkey`.
pub(crate) fn server_of(subkey: &Value) -> Option<PeerId> {
    subkey.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use sepal_protocol::value::Subkey;

    use super::*;
    use crate::{
        dht::StoreItem,
        swarm::testing::{node, peer, server},
        task::Tasks,
    };

    async fn store(dht: &Dht, block: u32, subkey: Subkey, value: Vec<u8>) {
        let item = StoreItem {
            key: block_key("m", block),
            subkey,
            value,
            expiration: dht.now() + 60.0,
        };
        assert_eq!(dht.store_many(vec![item]).await, [true]);
    }

    #[tokio::test]
    async fn readable_records_are_found_by_other_nodes_and_the_rest_is_skipped() {
        let tasks = Tasks::new();
        let (first, dht) = node(&tasks, Vec::new()).await;
        let (_, other) = node(&tasks, first.addrs()).await;
        let good = server(ServerState::Online, 0..2);
        for block in 0..2 {
            store(&dht, block, Subkey::text(&peer(1).to_string()), good.encode()).await;
            store(&dht, block, Subkey::text(&peer(2).to_string()), b"\x05".to_vec()).await;
            store(&dht, block, Subkey::text("no peer id"), good.encode()).await;
        }
        store(&dht, 2, Subkey::None, good.encode()).await;
        let directory = Directory::new(other, "m", 4);
        assert!(directory.snapshot().spans.is_empty());
        let snapshot = directory.refresh().await;
        let expected = BlockRecords::from([(peer(1), good)]);
        assert_eq!(
            snapshot.blocks,
            [expected.clone(), expected, BlockRecords::new(), BlockRecords::new()]
        );
        assert_eq!(snapshot.spans.len(), 1);
        assert_eq!(snapshot.spans[0].blocks, 0..2);
        let flawed = |block, peer, problem: &str| (block, peer, problem.to_string());
        let seen = snapshot.flawed.iter();
        let mut seen: Vec<_> = seen
            .map(|flaw| flawed(flaw.block, flaw.peer, &flaw.problem.to_string()))
            .collect();
        seen.sort();
        let bad_of = |block| {
            [
                flawed(block, None, "is not stored under the id of a peer"),
                flawed(block, Some(peer(2)), "cannot be read"),
            ]
        };
        let expected = [&bad_of(0)[..], &bad_of(1), &bad_of(2)[..1]].concat();
        assert_eq!(seen, expected);
        assert!(Arc::ptr_eq(&snapshot, &directory.snapshot()));
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn servers_that_the_user_does_not_want_are_not_seen() {
        let tasks = Tasks::new();
        let (_, dht) = node(&tasks, Vec::new()).await;
        for id in 1..5 {
            let mut info = server(ServerState::Online, 0..1);
            info.adapters = vec![if id == 4 { "other" } else { "mine" }.to_string()];
            store(&dht, 0, Subkey::text(&peer(id).to_string()), info.encode()).await;
        }
        let filter = Filter {
            adapter: Some("mine".to_string()),
            allowed: Some(HashSet::from([peer(1), peer(2), peer(4)])),
            blocked: HashSet::from([peer(2)]),
        };
        let snapshot = Directory::filtered(dht, "m", 1, filter).refresh().await;
        assert_eq!(
            snapshot.spans.iter().map(|span| span.peer).collect::<Vec<_>>(),
            [peer(1)]
        );
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn servers_without_the_wanted_adapter_tell_which_there_are() {
        let tasks = Tasks::new();
        let (_, dht) = node(&tasks, Vec::new()).await;
        let servers = [
            (1, ServerState::Online, "b"),
            (2, ServerState::Online, "a"),
            (3, ServerState::Online, "\u{1b}[2J"),
            (4, ServerState::Joining, "later"),
        ];
        for (id, state, adapter) in servers {
            let mut info = server(state, 0..1);
            info.adapters = vec![adapter.to_string()];
            store(&dht, 0, Subkey::text(&peer(id).to_string()), info.encode()).await;
        }
        let gap_of = async |adapter: Option<&'static str>, allowed: Option<HashSet<PeerId>>| {
            let filter = Filter {
                adapter: adapter.map(str::to_owned),
                allowed,
                ..Filter::default()
            };
            let snapshot = Directory::filtered(dht.clone(), "m", 1, filter).refresh().await;
            snapshot.adapter.as_deref().map(|gap| gap.there.join(" "))
        };
        assert_eq!(gap_of(Some("nope"), None).await.as_deref(), Some("a b"));
        let allowed = |id| Some(HashSet::from([peer(id)]));
        assert_eq!(gap_of(Some("nope"), allowed(1)).await.as_deref(), Some("b"));
        assert_eq!(gap_of(Some("b"), allowed(1)).await, None, "it is seen");
        assert_eq!(
            gap_of(Some("nope"), allowed(4)).await,
            None,
            "it would not be used anyway"
        );
        assert_eq!(gap_of(None, None).await, None);
        tasks.shutdown().await;
    }
}
