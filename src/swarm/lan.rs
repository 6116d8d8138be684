//! Makes the nodes that are found on the local network part of the DHT, as initial peers are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::join_all;
use tokio::{sync::watch, time::timeout};
use tracing::debug;

use crate::{
    dht::Dht,
    p2p::{Multiaddr, P2p, PeerId, peer_id_of},
    task::Tasks,
};

/// How soon neighbours are tried again that could not be joined through: most have just started and are not part of the
/// DHT yet. The pause doubles up to the longest one, after which is also looked whether all neighbours were lost.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The neighbours of this node on its way into the DHT.
#[derive(Clone, Debug)]
pub struct Lan {
    met: watch::Receiver<BTreeSet<PeerId>>,
}

impl Lan {
    /// Meets everyone who is found on the local network, from now on until `tasks` stop. The host has to be made with
    /// the name of a swarm (`p2p::Config::lan`).
    pub fn spawn(p2p: P2p, dht: Dht, tasks: &Tasks) -> Self {
        let (met_out, met) = watch::channel(BTreeSet::new());
        tasks.spawn_until_stopped("lan", keep_meeting(p2p.lan_peers(), dht, met_out));
        Self { met }
    }

    /// Waits until this node is in the DHT of a neighbour. Returns whether that happened within `limit`.
    pub async fn joined(&self, limit: Duration) -> bool {
        let mut met = self.met.clone();
        matches!(timeout(limit, met.wait_for(|met| !met.is_empty())).await, Ok(Ok(_)))
    }
}

async fn keep_meeting(mut found: watch::Receiver<BTreeSet<Multiaddr>>, dht: Dht, met: watch::Sender<BTreeSet<PeerId>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let addrs = found.borrow_and_update().clone();
        let mut here: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
        for addr in addrs {
            if let Some(peer) = peer_id_of(&addr) {
                here.entry(peer).or_default().push(addr);
            }
        }
        // Whoever left and comes back has to be met again; so has everyone after the connection to all of them was lost.
        let alone = dht.status().nodes == 0;
        met.send_if_modified(|met| {
            let before = met.len();
            met.retain(|peer| here.contains_key(peer) && !alone);
            met.len() != before
        });
        let known = met.borrow().clone();
        let strangers = here.into_iter().filter(|(peer, _)| !known.contains(peer));
        join_all(strangers.map(|(_, addrs)| meet(&dht, addrs, &met))).await;
        match timeout(pause, found.changed()).await {
            Ok(Ok(())) => pause = FIRST_PAUSE,
            Ok(Err(_)) => return,
            Err(_) => pause = (2 * pause).min(LONGEST_PAUSE),
        }
    }
}

/// Meets a peer at the first of its addresses that will do.
async fn meet(dht: &Dht, addrs: Vec<Multiaddr>, met: &watch::Sender<BTreeSet<PeerId>>) {
    for addr in addrs {
        match dht.meet(addr.clone()).await {
            Ok(peer) => {
                met.send_if_modified(|met| met.insert(peer));
                return;
            }
            Err(error) => debug!(%addr, %error, "a node of the local network cannot be joined through"),
        }
    }
}
