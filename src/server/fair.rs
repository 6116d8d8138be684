//! Who of several peers goes first when there is not room for all: whoever had least of late. Pure bookkeeping; what is
//! counted, tokens or time, is up to who counts.

use std::collections::HashMap;

use crate::p2p::PeerId;

/// What each of the peers had that wait now. Somebody with a hundred sessions so gets what somebody with one gets.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    had: HashMap<PeerId, i64>,
}

impl Fair {
    /// These wait now. Whoever was not there before begins just below the one of the others that had least: it goes first
    /// once, and cannot ask for what others had while it was away.
    pub(crate) fn present(&mut self, peers: impl Iterator<Item = PeerId> + Clone) {
        if !self.had.is_empty() {
            let mut gone: Vec<PeerId> = self.had.keys().copied().collect();
            gone.retain(|peer| !peers.clone().any(|present| present == *peer));
            for peer in gone {
                self.had.remove(&peer);
            }
        }
        let least = self.had.values().copied().min().unwrap_or_default();
        for peer in peers {
            self.had.entry(peer).or_insert(least - 1);
        }
    }

    /// Something was done for a peer.
    pub(crate) fn ran(&mut self, peer: PeerId, amount: usize) {
        if let Some(had) = self.had.get_mut(&peer) {
            *had = had.saturating_add(i64::try_from(amount).unwrap_or(i64::MAX));
        }
    }

    /// The order in which peers go: the smaller, the earlier.
    pub(crate) fn rank(&self, peer: &PeerId) -> i64 {
        self.had.get(peer).copied().unwrap_or_default()
    }

    /// How many peers wait.
    pub(crate) fn n_peers(&self) -> usize {
        self.had.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers<const N: usize>() -> [PeerId; N] {
        std::array::from_fn(|_| PeerId::random())
    }

    #[test]
    fn a_peer_with_many_jobs_gets_what_a_peer_with_one_gets() {
        let [crowd, single] = peers();
        let waiting: Vec<PeerId> = std::iter::repeat_n(crowd, 100).chain([single]).collect();
        let (mut fair, mut runs) = (Fair::default(), HashMap::<PeerId, usize>::new());
        for _ in 0..1000 {
            fair.present(waiting.iter().copied());
            let next = *waiting.iter().min_by_key(|peer| fair.rank(peer)).unwrap();
            fair.ran(next, 10);
            *runs.entry(next).or_default() += 1;
        }
        assert_eq!((runs[&crowd], runs[&single]), (500, 500));
    }

    #[test]
    fn cost_counts_and_not_how_often_somebody_goes() {
        let [dear, cheap] = peers();
        let (mut fair, mut had) = (Fair::default(), [0, 0]);
        for _ in 0..1000 {
            fair.present([dear, cheap].into_iter());
            let is_dear = fair.rank(&dear) <= fair.rank(&cheap);
            let (peer, cost) = if is_dear { (dear, 300) } else { (cheap, 7) };
            fair.ran(peer, cost);
            had[usize::from(is_dear)] += cost;
        }
        assert!(had[0].abs_diff(had[1]) <= 300, "{had:?}");
    }

    #[test]
    fn a_newcomer_goes_first_once_and_absence_earns_nothing() {
        let [old, new] = peers();
        let mut fair = Fair::default();
        fair.present([old].into_iter());
        fair.ran(old, 1_000_000);
        fair.present([old, new].into_iter());
        assert!(fair.rank(&new) < fair.rank(&old));
        fair.ran(new, 2);
        assert!(
            fair.rank(&new) > fair.rank(&old),
            "it does not get a million before the other gets one"
        );
        fair.present([old].into_iter());
        assert_eq!(fair.n_peers(), 1);
    }
}
