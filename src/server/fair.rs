//! Who of several peers goes first when there is not room for all: whoever had least of late. Pure bookkeeping; what is
//! counted, tokens or time, is up to who counts.

use std::collections::HashMap;

use crate::p2p::PeerId;

/// Peers that are known at most while some of them do not wait.
const MAX_KNOWN: usize = 1024;

/// What each of the peers had that wait now, or had more than those that do. Somebody with a hundred sessions so gets what
/// somebody with one gets.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    had: HashMap<PeerId, Had>,
    /// The least that one of them had who waited twice.
    floor: i64,
    /// How often it was said who waits.
    round: u64,
}

#[derive(Clone, Copy, Debug)]
struct Had {
    amount: i64,
    /// The last round in which the peer waited.
    round: u64,
}

impl Fair {
    /// These wait now. Whoever was not there before begins just below the one of the others that had least: it goes first
    /// once, and cannot ask for what others had while it was away. Whoever had more than that one does not begin anew by
    /// being away for a moment, as every client is between two steps: it would go before those who waited all along.
    pub(crate) fn present(&mut self, peers: impl Iterator<Item = PeerId> + Clone) {
        self.round += 1;
        let round = self.round;
        for peer in peers.clone() {
            if let Some(had) = self.had.get_mut(&peer) {
                had.round = round;
            }
        }
        let here = self.had.values().filter(|had| had.round == round);
        self.floor = here.map(|had| had.amount).min().unwrap_or(self.floor);
        let (floor, room) = (self.floor, self.had.len() <= MAX_KNOWN);
        self.had
            .retain(|_, had| had.round == round || (room && had.amount > floor));
        let amount = floor.saturating_sub(1);
        for peer in peers {
            self.had.entry(peer).or_insert(Had { amount, round });
        }
    }

    /// Something was done for a peer.
    pub(crate) fn ran(&mut self, peer: PeerId, amount: usize) {
        if let Some(had) = self.had.get_mut(&peer) {
            had.amount = had.amount.saturating_add(i64::try_from(amount).unwrap_or(i64::MAX));
        }
    }

    /// The order in which peers go: the smaller, the earlier.
    pub(crate) fn rank(&self, peer: &PeerId) -> i64 {
        self.had.get(peer).map_or(0, |had| had.amount)
    }

    /// How many peers wait.
    pub(crate) fn n_peers(&self) -> usize {
        self.had.values().filter(|had| had.round == self.round).count()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

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

    #[test]
    fn whoever_is_away_after_each_run_does_not_overtake_those_who_wait() {
        let [a, b, c] = peers();
        let (mut fair, mut runs) = (Fair::default(), HashMap::<PeerId, usize>::new());
        let mut away = None;
        for _ in 0..300 {
            let waiting = [a, b, c].into_iter().filter(|peer| away != Some(*peer));
            fair.present(waiting.clone());
            let next = waiting.min_by_key(|peer| fair.rank(peer)).unwrap();
            fair.ran(next, 64);
            *runs.entry(next).or_default() += 1;
            away = Some(next);
        }
        assert_eq!(runs.into_values().collect::<Vec<usize>>(), [100; 3]);
    }

    #[test]
    fn peers_that_come_once_are_forgotten() {
        let mut fair = Fair::default();
        for _ in 0..10 * MAX_KNOWN {
            let peer = PeerId::random();
            fair.present([peer].into_iter());
            fair.ran(peer, 1000);
        }
        assert!(fair.had.len() <= MAX_KNOWN + 2, "{}", fair.had.len());
    }

    #[test]
    fn a_crowd_is_looked_at_twice_and_takes_no_memory_when_it_is_known() {
        let (crowd, looked_at): ([PeerId; 500], _) = (peers(), Cell::new(0));
        let waiting = || {
            let looked_at = &looked_at;
            crowd.iter().copied().inspect(|_| looked_at.set(looked_at.get() + 1))
        };
        let mut fair = Fair::default();
        fair.present(waiting());
        let capacity = fair.had.capacity();
        looked_at.set(0);
        fair.present(waiting());
        assert_eq!(
            (looked_at.get(), fair.had.capacity(), fair.n_peers()),
            (1000, capacity, 500)
        );
        fair.present(waiting().take(100));
        assert_eq!(fair.n_peers(), 100);
    }
}
