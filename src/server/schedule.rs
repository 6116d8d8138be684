//! Who goes through which block next. Pure arithmetic: it is told what waits and how long things took, and runs nothing.
//!
//! Steps of sessions run block by block, and between two blocks others get on. Those at the lowest block go first: so
//! whoever comes later catches up with those ahead, and from there on they share the reading of the weights, also when
//! their chains only overlap. Whoever was overtaken as often as its own chain has blocks goes next, so the front moves on
//! however many follow.

use std::time::Duration;

/// The part of the time that `rpc_forward` and `rpc_backward` get while sessions want all of it. Petals gives them none
/// (`server/task_prioritizer.py`); a swarm with busy sessions would never train.
pub(crate) const TRAINING_SHARE: f64 = 0.125;

/// Tokens below which a step is not cut, and no piece of one is smaller: reading the weights costs as much as computing
/// with them for about so many.
pub(crate) const MIN_CHUNK: usize = 16;
/// Most tokens at a time: beyond that nothing is won.
const MAX_CHUNK: usize = 2048;
/// Tokens at a time before anything was measured.
const FIRST_CHUNK: usize = 64;
/// How long a step of another session may take because a prompt rides along.
const SHARED_PASS: Duration = Duration::from_millis(200);
/// How long the blocks that a prompt goes through at a call may take while nobody else is there: whoever comes then waits
/// for them. On the host that is one block.
const LONE_CALL: Duration = Duration::from_millis(250);
/// Weight of the last measurement in the mean.
const NEWEST: f64 = 0.25;

/// What Petals calls priorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Steps of inference sessions: a person waits for each.
    Inference,
    /// `rpc_forward`, `rpc_backward` and their stream variants.
    Training,
}

/// Divides the time between the classes.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// Seconds that training is behind its share; negative when it had more.
    owed: f64,
}

impl Shares {
    /// Whose turn it is, given who waits.
    pub(crate) fn next(&self, inference: bool, training: bool) -> Option<Class> {
        match (inference, training) {
            (false, false) => None,
            (true, false) => Some(Class::Inference),
            (false, true) => Some(Class::Training),
            (true, true) if self.owed > 0.0 => Some(Class::Training),
            (true, true) => Some(Class::Inference),
        }
    }

    /// Notes what `class` took. Only time that the other class wanted as well is accounted for.
    pub(crate) fn ran(&mut self, class: Class, took: Duration, other_waits: bool) {
        let took = took.as_secs_f64();
        match class {
            _ if !other_waits => self.owed = 0.0,
            Class::Inference => self.owed += took * TRAINING_SHARE / (1.0 - TRAINING_SHARE),
            Class::Training => self.owed -= took,
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
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Of one token in one block, when many go at once.
    seconds: Option<f64>,
}

impl Pace {
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
        ((per_block / seconds) as usize).clamp(MIN_CHUNK, MAX_CHUNK)
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

    #[test]
    fn training_gets_its_share_however_much_inference_there_is_and_no_more() {
        let mut shares = Shares::default();
        let (mut inference, mut training) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..10_000 {
            match shares.next(true, true).unwrap() {
                Class::Inference => {
                    inference += 3 * MS;
                    shares.ran(Class::Inference, 3 * MS, true);
                }
                Class::Training => {
                    training += 50 * MS;
                    shares.ran(Class::Training, 50 * MS, true);
                }
            }
        }
        let share = training.as_secs_f64() / (training + inference).as_secs_f64();
        assert!((share - TRAINING_SHARE).abs() < 0.01, "{share}");
    }

    #[test]
    fn inference_goes_first_and_nothing_is_saved_up_while_nobody_competes() {
        let mut shares = Shares::default();
        assert_eq!(shares.next(true, true), Some(Class::Inference));
        assert_eq!(shares.next(false, true), Some(Class::Training));
        assert_eq!(shares.next(false, false), None);
        shares.ran(Class::Inference, 1000 * MS, false);
        assert_eq!(shares.next(true, true), Some(Class::Inference));
        shares.ran(Class::Training, 1000 * MS, true);
        shares.ran(Class::Inference, MS, false);
        shares.ran(Class::Inference, MS, true);
        assert_eq!(shares.next(true, true), Some(Class::Training));
    }

    #[test]
    fn chunks_are_as_long_as_the_time_allows() {
        let mut pace = Pace::default();
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
        pace.ran(100, Duration::ZERO);
        assert!(pace.chunk((4, 1), true) > 100);
        let mut instant = Pace::default();
        instant.ran(100, Duration::ZERO);
        assert_eq!(instant.chunk((4, 1), true), MAX_CHUNK);
    }
}
