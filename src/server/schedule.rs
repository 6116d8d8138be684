//! Who goes through which block next. Pure arithmetic: it is told what waits and how long things took, and runs nothing.
//!
//! Steps of sessions run block by block, and between two blocks others get on. Those at the lowest block go first: so
//! whoever comes later catches up with those ahead, and from there on they share the reading of the weights, also when
//! their chains only overlap. Whoever was overtaken as often as its own chain has blocks goes next, so the front moves on
//! however many follow.

use std::time::Duration;

/// The part of the time that a class gets while one before it wants all of it. Petals gives `rpc_forward` and
/// `rpc_backward` none (`server/task_prioritizer.py`): a swarm with busy sessions would never train. And a node that serves
/// its owner first is of use to others all the same.
pub(crate) const LEAST_SHARE: f64 = 0.125;

/// Tokens below which a step is not cut, and no piece of one is smaller: reading the weights costs as much as computing
/// with them for about so many.
pub(crate) const MIN_CHUNK: usize = 16;
/// Most tokens at a time: beyond that nothing is won.
const MAX_CHUNK: usize = 2048;
/// Tokens at a time before anything was measured.
const FIRST_CHUNK: usize = 64;
/// Tokens of short steps that go at a time while several peers wait: a peer with hundreds of sessions shall not make the
/// others' steps as long as all of its own.
pub(crate) const CROWD: usize = 64;
/// How long a step of another session may take because a prompt rides along.
const SHARED_PASS: Duration = Duration::from_millis(200);
/// How long the blocks that a prompt goes through at a call may take while nobody else is there: whoever comes then waits
/// for them. On the host that is one block.
const LONE_CALL: Duration = Duration::from_millis(250);
/// Weight of the last measurement in the mean.
const NEWEST: f64 = 0.25;

/// What Petals calls priorities; the first comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Steps of sessions of the person who runs the node.
    Own,
    /// Steps of other inference sessions: a person waits for each.
    Inference,
    /// `rpc_forward`, `rpc_backward` and their stream variants.
    Training,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Own, Self::Inference, Self::Training];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// Divides the time between classes, by their numbers; the first comes first, and each of the others has its least share.
#[derive(Debug)]
pub(crate) struct Shares<const N: usize> {
    /// Seconds that each is behind its share; negative when it had more. That of the first means nothing.
    owed: [f64; N],
}

impl<const N: usize> Default for Shares<N> {
    fn default() -> Self {
        Self { owed: [0.0; N] }
    }
}

impl<const N: usize> Shares<N> {
    /// Whose turn it is, given who waits: the one that is most behind, or else the first.
    pub(crate) fn next(&self, waits: [bool; N]) -> Option<usize> {
        let first = waits.iter().position(|waits| *waits)?;
        let behind = (first + 1..N).filter(|class| waits[*class] && self.owed[*class] > 0.0);
        let most = behind.max_by(|a, b| self.owed[*a].total_cmp(&self.owed[*b]));
        Some(most.unwrap_or(first))
    }

    /// Notes what one took, given who waits now. Only time that a class before wanted as well is accounted for.
    pub(crate) fn ran(&mut self, ran: usize, took: Duration, waits: [bool; N]) {
        let took = took.as_secs_f64();
        for class in 1..N {
            let before = (0..class).any(|before| waits[before] || before == ran);
            self.owed[class] = match (before, class == ran) {
                (true, true) => self.owed[class] - took,
                (true, false) if waits[class] => self.owed[class] + took * LEAST_SHARE / (1.0 - LEAST_SHARE),
                _ => 0.0,
            };
        }
    }
}

/// Where a step is on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The next block.
    pub(crate) block: u32,
    /// How many block runs of others it watched since its chunk was begun.
    pub(crate) overtaken: usize,
    /// How many it has to watch: the length of its chain.
    pub(crate) patience: usize,
}

impl Place {
    pub(crate) fn is_urgent(self) -> bool {
        self.overtaken >= self.patience
    }
}

/// The block to run next, for steps in the order in which they wait.
pub(crate) fn next_block(places: impl Iterator<Item = Place> + Clone) -> Option<u32> {
    let urgent = places.clone().find(|place| place.is_urgent());
    let lowest = places.map(|place| place.block).min();
    urgent.map(|place| place.block).or(lowest)
}

/// How fast tokens go through a block, and so how many of a prompt go at a time.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Of one token in one block, when many go at once.
    seconds: Option<f64>,
    /// The part of the time that is computed in: rests count for those who wait.
    share: f64,
}

impl Pace {
    pub(crate) fn new(share: f64) -> Self {
        Self { seconds: None, share }
    }

    /// Notes that `tokens` went through one block.
    pub(crate) fn ran(&mut self, tokens: usize, took: Duration) {
        if tokens < MIN_CHUNK {
            return;
        }
        let newest = took.as_secs_f64() / tokens as f64;
        let mean = self.seconds.unwrap_or(newest);
        self.seconds = Some(mean + NEWEST * (newest - mean));
    }

    /// Tokens of prompts to take into a pass through `chain_len` blocks, of which `at_a_call` go at a call.
    pub(crate) fn chunk(&self, (chain_len, at_a_call): (usize, usize), crowded: bool) -> usize {
        let Some(seconds) = self.seconds else {
            return FIRST_CHUNK;
        };
        let per_block = if crowded {
            SHARED_PASS.as_secs_f64() / chain_len.max(1) as f64
        } else {
            LONE_CALL.as_secs_f64() / at_a_call.max(1) as f64
        };
        // Out of range, infinite or not a number: the cast keeps to what an usize holds.
        ((per_block * self.share / seconds) as usize).clamp(MIN_CHUNK, MAX_CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn place(block: u32, overtaken: usize) -> Place {
        Place {
            block,
            overtaken,
            patience: 4,
        }
    }

    #[test]
    fn whoever_is_behind_catches_up_until_the_front_was_overtaken_often_enough() {
        let next = |places: &[Place]| next_block(places.iter().copied());
        assert_eq!(next(&[]), None);
        assert_eq!(next(&[place(2, 0), place(0, 0), place(1, 3)]), Some(0));
        assert_eq!(next(&[place(2, 4), place(0, 0), place(1, 9)]), Some(2));
    }

    #[test]
    fn a_stream_of_newcomers_delays_nobody_by_more_than_one_pass() {
        // One newcomer before every block: the first of them still goes through all four.
        let mut places = vec![place(0, 0)];
        let mut runs = 0;
        while places[0].block < 4 {
            places.push(place(0, 0));
            let block = next_block(places.iter().copied()).unwrap();
            for place in &mut places {
                if place.block == block {
                    place.block += 1;
                } else {
                    place.overtaken += 1;
                }
            }
            runs += 1;
        }
        assert!(runs <= 8, "{runs} block runs for a chain of four blocks");
    }

    #[test]
    fn chains_that_overlap_meet_at_the_block_they_have_in_common() {
        let mut chains = [vec![0, 1], vec![1, 2]];
        let mut met = Vec::new();
        while let Some(block) = next_block(
            chains
                .iter()
                .filter_map(|chain| chain.first().map(|block| place(*block, 0))),
        ) {
            let riding = chains.iter_mut().filter(|chain| chain.first() == Some(&block));
            met.push((block, riding.map(|chain| chain.remove(0)).count()));
        }
        assert_eq!(met, [(0, 1), (1, 2), (2, 1)]);
    }

    /// The part of the time that each class gets that never stops to want some; what each takes at a time.
    fn divided<const N: usize>(wants: [bool; N], takes: [Duration; N]) -> [f64; N] {
        let (mut shares, mut had) = (Shares::default(), [Duration::ZERO; N]);
        for _ in 0..100_000 {
            let class = shares.next(wants).unwrap();
            had[class] += takes[class];
            shares.ran(class, takes[class], wants);
        }
        let total: Duration = had.iter().sum();
        had.map(|had| had.as_secs_f64() / total.as_secs_f64())
    }

    fn assert_divided<const N: usize>(got: [f64; N], expected: [f64; N]) {
        let near = got.iter().zip(&expected).all(|(got, share)| (got - share).abs() < 0.01);
        assert!(near, "{got:?} instead of {expected:?}");
    }

    #[test]
    fn each_class_gets_its_share_however_much_the_ones_before_want_and_no_more() {
        let takes = [3 * MS, 3 * MS, 50 * MS];
        assert_divided(
            divided([false, true, true], takes),
            [0.0, 1.0 - LEAST_SHARE, LEAST_SHARE],
        );
        assert_divided(
            divided([true, false, true], takes),
            [1.0 - LEAST_SHARE, 0.0, LEAST_SHARE],
        );
        assert_divided(
            divided([true, true, false], takes),
            [1.0 - LEAST_SHARE, LEAST_SHARE, 0.0],
        );
        let all = divided([true; 3], takes);
        assert_divided(all, [1.0 - 2.0 * LEAST_SHARE, LEAST_SHARE, LEAST_SHARE]);
        assert_divided(divided([true; 2], [200 * MS, MS]), [1.0 - LEAST_SHARE, LEAST_SHARE]);
    }

    #[test]
    fn the_first_class_goes_first_and_nothing_is_saved_up_while_nobody_competes() {
        let [own, inference, training] = Class::ALL.map(Class::index);
        let mut shares = Shares::<3>::default();
        assert_eq!(shares.next([true; 3]), Some(own));
        assert_eq!(shares.next([false, true, true]), Some(inference));
        assert_eq!(shares.next([false, false, true]), Some(training));
        assert_eq!(shares.next([false; 3]), None);
        shares.ran(inference, 1000 * MS, [false, true, false]);
        assert_eq!(shares.next([false, true, true]), Some(inference));
        shares.ran(training, 1000 * MS, [false, true, true]);
        shares.ran(inference, MS, [false, true, false]);
        shares.ran(inference, MS, [false, true, true]);
        assert_eq!(shares.next([false, true, true]), Some(training));
        // Strangers had all the time for long; own requests that come are no reason to let them wait for as long.
        (0..1000).for_each(|_| shares.ran(inference, MS, [false, true, true]));
        (0..8).for_each(|_| shares.ran(own, MS, [true, true, false]));
        assert_eq!(shares.next([true, true, false]), Some(inference));
    }

    #[test]
    fn chunks_are_as_long_as_the_time_allows() {
        let mut pace = Pace::new(1.0);
        assert_eq!(pace.chunk((4, 1), true), FIRST_CHUNK);
        pace.ran(1, 1000 * MS);
        assert_eq!(
            pace.chunk((4, 1), true),
            FIRST_CHUNK,
            "one token says nothing about many"
        );
        pace.ran(100, 50 * MS);
        assert_eq!((pace.chunk((4, 1), true), pace.chunk((4, 1), false)), (100, 500));
        assert_eq!(pace.chunk((4, 4), false), 125, "four blocks at a call");
        assert_eq!(pace.chunk((1000, 1), true), MIN_CHUNK);
        let mut resting = Pace::new(0.25);
        resting.ran(100, 50 * MS);
        assert_eq!(resting.chunk((4, 1), false), 125, "as much rest is between two pieces");
        pace.ran(100, Duration::ZERO);
        assert!(pace.chunk((4, 1), true) > 100);
        let mut instant = Pace::new(1.0);
        instant.ran(100, Duration::ZERO);
        assert_eq!(instant.chunk((4, 1), true), MAX_CHUNK);
    }
}
