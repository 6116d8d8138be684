//! Round-trip times to peers: smoothed estimates, whom to measure, and the measuring itself.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    time::{Duration, Instant},
};

use futures::future::join_all;
use rand::{Rng, seq::IteratorRandom};
use sepal_protocol::record::ServerState;

use crate::{
    dht::Dht,
    p2p::PeerId,
    swarm::{Snapshot, spans::BlockRecords},
};

/// Round trips in seconds; infinite for peers that did not answer, absent for those never asked.
pub type RttMap = HashMap<PeerId, f64>;

/// Weight of a new measurement, as in `petals/utils/ping.py`.
const SMOOTHING: f64 = 0.2;

/// Seconds for which an estimate is believed after its last measurement.
const LIFETIME_S: f64 = 300.0;

/// Most servers a server measures per round in each of its two groups.
const SERVER_SAMPLE: usize = 5;

/// Most servers a client measures per round in each of its three groups.
const CLIENT_SAMPLE: usize = 3;

/// How long a server waits for the answers of those that may come after it.
pub const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client waits for the answers of servers, with a user waiting for it.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Exponentially smoothed round trips to peers. Times are seconds of any clock, always the same one.
#[derive(Clone, Debug, Default)]
pub struct Rtts {
    estimates: HashMap<PeerId, Estimate>,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    rtt: f64,
    expires: f64,
}

impl Rtts {
    /// No estimates yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a measured round trip in seconds, infinite if there was no answer. After an unreachable or unknown
    /// state the new value counts alone.
    pub fn record(&mut self, peer: PeerId, rtt: f64, now: f64) {
        let old = self.get(&peer, now).filter(|old| old.is_finite());
        let rtt = old.map_or(rtt, |old| SMOOTHING * rtt + (1.0 - SMOOTHING) * old);
        let expires = now + LIFETIME_S;
        self.estimates.insert(peer, Estimate { rtt, expires });
        self.estimates.retain(|_, estimate| estimate.expires > now);
    }

    /// The estimate for one peer, if there is a fresh one.
    pub fn get(&self, peer: &PeerId, now: f64) -> Option<f64> {
        let estimate = self.estimates.get(peer).filter(|estimate| estimate.expires > now);
        estimate.map(|estimate| estimate.rtt)
    }

    /// All fresh estimates.
    pub fn at(&self, now: f64) -> RttMap {
        let fresh = self.estimates.iter().filter(|(_, estimate)| estimate.expires > now);
        fresh.map(|(peer, estimate)| (*peer, estimate.rtt)).collect()
    }
}

/// Whom a client of `blocks` should measure: a few servers of the first of them, of the last one, and of those between.
///
/// Petals means to do the same, but forgets the first group, so that the first hop of its routes is often a guess.
pub fn sample_for_client(snapshot: &Snapshot, blocks: Range<u32>, rng: &mut impl Rng) -> BTreeSet<PeerId> {
    let Range { start, end } = blocks;
    let (second, last) = ((start + 1).min(end), end.saturating_sub(1).max(start));
    let groups = [start..second, second..last, last..end];
    let groups = groups.map(|blocks| serving(records(&snapshot.blocks, blocks), ServerState::Online));
    groups
        .into_iter()
        .flat_map(|peers| peers.into_iter().choose_multiple(rng, CLIENT_SAMPLE))
        .collect()
}

/// Whom a server should measure: a few servers that may come after it, from `next_blocks`, the records of the blocks
/// after its first one and of the one after its span. That last block is where most sessions go on, so it has a sample
/// of its own. The server itself is left out.
pub fn sample_for_server(next_blocks: &[BlockRecords], me: PeerId, rng: &mut impl Rng) -> BTreeSet<PeerId> {
    let Some((last, middle)) = next_blocks.split_last() else {
        return BTreeSet::new();
    };
    [middle, std::slice::from_ref(last)]
        .into_iter()
        .flat_map(|group| {
            let mut peers = serving(group, ServerState::Joining);
            peers.remove(&me);
            peers.into_iter().choose_multiple(rng, SERVER_SAMPLE)
        })
        .collect()
}

/// Pings all of `peers` at once and returns the round trips in seconds, infinite where there was no answer in time.
///
/// A peer that says it does not know the call is there all the same: Python servers behind a relay do not serve DHT
/// calls. (Petals waits for a text that its own daemon no longer sends, and takes such servers for unreachable.)
pub async fn measure(dht: &Dht, peers: impl IntoIterator<Item = PeerId>, timeout: Duration) -> Vec<(PeerId, f64)> {
    let pings = peers.into_iter().map(|peer| async move {
        let asked = Instant::now();
        let rtt = match dht.ping(peer, timeout).await {
            Ok(rtt) => rtt.as_secs_f64(),
            Err(error) if error.is_unknown_name() => asked.elapsed().as_secs_f64(),
            Err(error) => {
                tracing::debug!(%peer, %error, "no answer to a ping");
                f64::INFINITY
            }
        };
        (peer, rtt)
    });
    join_all(pings).await
}

fn records(blocks: &[BlockRecords], range: Range<u32>) -> &[BlockRecords] {
    blocks.get(range.start as usize..range.end as usize).unwrap_or(&[])
}

fn serving(blocks: &[BlockRecords], min_state: ServerState) -> BTreeSet<PeerId> {
    let servers = blocks.iter().flatten().filter(|(_, info)| info.state >= min_state);
    servers.map(|(peer, _)| *peer).collect()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::swarm::testing::{peer, server};

    fn blocks(servers: &[(u64, Range<u32>)], n_blocks: usize) -> Vec<BlockRecords> {
        let mut blocks = vec![BlockRecords::new(); n_blocks];
        for (id, range) in servers {
            for block in range.clone() {
                blocks[block as usize].insert(peer(*id), server(ServerState::Online, range.clone()));
            }
        }
        blocks
    }

    #[test]
    fn a_new_round_trip_moves_the_estimate_by_a_fifth() {
        let mut rtts = Rtts::new();
        rtts.record(peer(1), 1.0, 0.0);
        assert_eq!(rtts.get(&peer(1), 1.0), Some(1.0));
        rtts.record(peer(1), 2.0, 1.0);
        assert_eq!(rtts.get(&peer(1), 1.0), Some(0.2 * 2.0 + 0.8 * 1.0));
    }

    #[test]
    fn an_unreachable_peer_costs_infinity_until_it_answers_again() {
        let mut rtts = Rtts::new();
        rtts.record(peer(1), 0.1, 0.0);
        rtts.record(peer(1), f64::INFINITY, 1.0);
        assert_eq!(rtts.get(&peer(1), 1.0), Some(f64::INFINITY));
        rtts.record(peer(1), 0.3, 2.0);
        assert_eq!(rtts.get(&peer(1), 2.0), Some(0.3));
    }

    #[test]
    fn an_estimate_is_forgotten_five_minutes_after_its_last_measurement() {
        let mut rtts = Rtts::new();
        rtts.record(peer(1), 0.1, 0.0);
        rtts.record(peer(2), 0.2, 200.0);
        assert_eq!(rtts.at(299.0).len(), 2);
        assert_eq!(rtts.at(301.0), RttMap::from([(peer(2), 0.2)]));
        rtts.record(peer(1), 0.4, 301.0);
        assert_eq!(rtts.get(&peer(1), 301.0), Some(0.4));
    }

    #[test]
    fn a_client_measures_first_middle_and_last_servers() {
        let first: Vec<(u64, Range<u32>)> = (10..20).map(|id| (id, 0..1)).collect();
        let middle: Vec<(u64, Range<u32>)> = (20..30).map(|id| (id, 1..3)).collect();
        let last: Vec<(u64, Range<u32>)> = (30..40).map(|id| (id, 3..4)).collect();
        let snapshot = Snapshot::new("m", blocks(&[first, middle, last].concat(), 4));
        let sample = sample_for_client(&snapshot, 0..4, &mut StdRng::seed_from_u64(1));
        for group in [10..20, 20..30, 30..40] {
            assert_eq!(group.filter(|id| sample.contains(&peer(*id))).count(), CLIENT_SAMPLE);
        }
        // Whoever holds both ends itself starts and ends elsewhere.
        let sample = sample_for_client(&snapshot, 1..3, &mut StdRng::seed_from_u64(1));
        assert!((20..30).filter(|id| sample.contains(&peer(*id))).count() == sample.len());
        assert!(sample.len() > CLIENT_SAMPLE);
        for n_blocks in [0, 1, 2] {
            let snapshot = Snapshot::new("m", blocks(&[(1, 0..n_blocks)], n_blocks as usize));
            let sample = sample_for_client(&snapshot, 0..n_blocks, &mut StdRng::seed_from_u64(1));
            assert_eq!(sample.len(), usize::from(n_blocks > 0));
        }
    }

    #[test]
    fn a_server_measures_those_that_may_come_after_it_but_not_itself() {
        let middle: Vec<(u64, Range<u32>)> = (10..20).map(|id| (id, 0..2)).collect();
        let last: Vec<(u64, Range<u32>)> = (20..30).map(|id| (id, 2..3)).collect();
        let mut next = blocks(&[middle, last, vec![(1, 0..3)]].concat(), 3);
        next[2].insert(peer(40), server(ServerState::Offline, 2..3));
        for seed in 0..20 {
            let sample = sample_for_server(&next, peer(1), &mut StdRng::seed_from_u64(seed));
            for group in [10..20, 20..30] {
                assert_eq!(group.filter(|id| sample.contains(&peer(*id))).count(), SERVER_SAMPLE);
            }
            assert!(!sample.contains(&peer(1)) && !sample.contains(&peer(40)));
        }
        assert!(sample_for_server(&[], peer(1), &mut StdRng::seed_from_u64(1)).is_empty());
    }
}
