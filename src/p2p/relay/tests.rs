//! The machine that keeps reservations, moved by hand.

use rand::{SeedableRng, rngs::StdRng};

use super::*;

struct Bench {
    relays: Relays,
    now: Instant,
    rng: StdRng,
}

impl Bench {
    fn new() -> Self {
        Self {
            relays: Relays::default(),
            now: Instant::now(),
            rng: StdRng::seed_from_u64(7),
        }
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        self.relays.on(event, self.now, &mut self.rng)
    }

    fn offer(&mut self, rank: Rank) -> PeerId {
        let peer = PeerId::random();
        self.on(Event::Offered(peer, rank));
        peer
    }

    /// Lets time pass until something is asked, and says how long that took.
    fn until_asked(&mut self) -> (Duration, Vec<Effect>) {
        let start = self.now;
        loop {
            self.now += Duration::from_secs(1);
            let effects = self.on(Event::Tick);
            if !effects.is_empty() {
                return (self.now - start, effects);
            }
            assert!(self.now - start < 2 * LONGEST_PAUSE, "never asked");
        }
    }
}

#[test]
fn nothing_is_reserved_until_it_is_wanted() {
    let mut bench = Bench::new();
    let relay = bench.offer(Rank::Trusted);
    assert_eq!(bench.on(Event::Tick), []);
    assert_eq!(bench.on(Event::Wanted(true)), [Effect::Reserve(relay)]);
    assert_eq!(bench.on(Event::Wanted(true)), [], "asked already");
}

#[test]
fn two_relays_are_held_and_no_third() {
    let mut bench = Bench::new();
    let offered: Vec<PeerId> = (0..5).map(|_| bench.offer(Rank::Met)).collect();
    let effects = bench.on(Event::Wanted(true));
    assert_eq!(effects.len(), 2);
    for effect in effects {
        let Effect::Reserve(peer) = effect else {
            panic!("{effect:?}")
        };
        assert!(offered.contains(&peer));
        assert_eq!(bench.on(Event::Reserved(peer)), []);
    }
    assert_eq!(bench.relays.held().len(), 2);
    assert_eq!(bench.on(Event::Tick), []);
}

#[test]
fn better_relays_are_asked_first() {
    let mut bench = Bench::new();
    let (_met, configured) = (bench.offer(Rank::Met), bench.offer(Rank::Configured));
    let (ours, trusted) = (bench.offer(Rank::Ours), bench.offer(Rank::Trusted));
    assert_eq!(
        bench.on(Event::Wanted(true)),
        [Effect::Reserve(trusted), Effect::Reserve(ours)]
    );
    assert_eq!(bench.on(Event::Failed(trusted)), [Effect::Reserve(configured)]);
}

#[test]
fn among_equals_different_nodes_choose_differently() {
    let offered: Vec<PeerId> = (0..8).map(|_| PeerId::random()).collect();
    let mut chosen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let mut bench = Bench::new();
        bench.rng = StdRng::seed_from_u64(seed);
        for peer in &offered {
            bench.on(Event::Offered(*peer, Rank::Met));
        }
        chosen.extend(bench.on(Event::Wanted(true)).into_iter().map(|effect| match effect {
            Effect::Reserve(peer) | Effect::Release(peer) => peer,
        }));
    }
    assert_eq!(chosen.len(), offered.len());
}

#[test]
fn a_lost_relay_is_replaced_at_once() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let (first, second) = (bench.offer(Rank::Met), bench.offer(Rank::Met));
    let third = bench.offer(Rank::Met);
    bench.on(Event::Reserved(first));
    bench.on(Event::Reserved(second));
    assert_eq!(bench.on(Event::Failed(first)), [Effect::Reserve(third)]);
    assert_eq!(bench.relays.held(), [second]);
}

#[test]
fn a_relay_that_refuses_is_asked_ever_more_seldom() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let relay = bench.offer(Rank::Trusted);
    let mut expected = FIRST_PAUSE;
    for _ in 0..14 {
        assert_eq!(bench.on(Event::Failed(relay)), []);
        let (waited, effects) = bench.until_asked();
        assert_eq!(effects, [Effect::Reserve(relay)]);
        let factor = waited.as_secs_f64() / expected.as_secs_f64();
        assert!((0.7..1.35).contains(&factor), "{waited:?} instead of {expected:?}");
        expected = (2 * expected).min(LONGEST_PAUSE);
    }
}

#[test]
fn a_reservation_that_held_makes_up_for_earlier_refusals() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let relay = bench.offer(Rank::Trusted);
    for _ in 0..5 {
        bench.on(Event::Failed(relay));
        bench.until_asked();
    }
    bench.on(Event::Reserved(relay));
    bench.now += STABLE;
    bench.on(Event::Failed(relay));
    let (waited, _) = bench.until_asked();
    assert!(waited < 2 * FIRST_PAUSE, "{waited:?}");
}

#[test]
fn a_relay_that_takes_and_drops_counts_as_one_that_refuses() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let relay = bench.offer(Rank::Met);
    let mut last = Duration::ZERO;
    for _ in 0..4 {
        bench.on(Event::Reserved(relay));
        bench.on(Event::Failed(relay));
        let (waited, _) = bench.until_asked();
        assert!(waited > last, "{waited:?} after {last:?}");
        last = waited;
    }
}

#[test]
fn what_is_held_is_released_when_it_is_no_longer_needed() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let (first, second) = (bench.offer(Rank::Met), bench.offer(Rank::Met));
    bench.on(Event::Reserved(first));
    assert_eq!(bench.on(Event::Wanted(false)), [Effect::Release(first)]);
    assert_eq!(
        bench.on(Event::Reserved(second)),
        [Effect::Release(second)],
        "it came too late"
    );
    assert!(bench.relays.held().is_empty());
    assert_eq!(
        bench.on(Event::Wanted(true)).len(),
        2,
        "and may be asked for again at once"
    );
}

#[test]
fn an_end_that_was_asked_for_is_no_failure() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let relay = bench.offer(Rank::Met);
    bench.on(Event::Reserved(relay));
    bench.on(Event::Wanted(false));
    assert_eq!(bench.on(Event::Failed(relay)), []);
    assert_eq!(bench.on(Event::Wanted(true)), [Effect::Reserve(relay)]);
}

#[test]
fn a_peer_that_left_is_not_asked_and_its_pause_survives_its_return() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let relay = bench.offer(Rank::Met);
    bench.on(Event::Failed(relay));
    bench.on(Event::Withdrawn(relay));
    assert_eq!(bench.on(Event::Offered(relay, Rank::Met)), [], "still paused");
    bench.on(Event::Withdrawn(relay));
    bench.now += 2 * FIRST_PAUSE;
    assert_eq!(bench.on(Event::Tick), []);
    assert!(bench.relays.candidates.is_empty());
}

#[test]
fn a_trusted_relay_is_tried_whether_it_offers_or_not() {
    let mut bench = Bench::new();
    let relay = bench.offer(Rank::Trusted);
    bench.on(Event::Withdrawn(relay));
    assert_eq!(bench.on(Event::Wanted(true)), [Effect::Reserve(relay)]);
}

#[test]
fn a_reservation_stays_when_its_relay_no_longer_offers() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let relay = bench.offer(Rank::Met);
    bench.on(Event::Reserved(relay));
    assert_eq!(bench.on(Event::Withdrawn(relay)), []);
    assert_eq!(bench.relays.held(), [relay]);
    bench.on(Event::Failed(relay));
    bench.now += 2 * FIRST_PAUSE;
    assert_eq!(bench.on(Event::Tick), []);
}

#[test]
fn what_is_known_of_strangers_is_bounded_and_trusted_relays_always_fit() {
    let mut bench = Bench::new();
    for _ in 0..10 * MAX_CANDIDATES {
        bench.offer(Rank::Met);
    }
    assert_eq!(bench.relays.candidates.len(), MAX_CANDIDATES);
    let trusted = bench.offer(Rank::Trusted);
    assert!(bench.on(Event::Wanted(true)).contains(&Effect::Reserve(trusted)));
}

#[test]
fn under_churn_it_never_holds_more_than_wanted_and_always_comes_back_to_it() {
    let mut bench = Bench::new();
    bench.on(Event::Wanted(true));
    let offered: Vec<PeerId> = (0..6).map(|_| bench.offer(Rank::Met)).collect();
    for _ in 0..5000 {
        bench.now += Duration::from_secs(bench.rng.random_range(0..60));
        let peer = offered[bench.rng.random_range(0..offered.len())];
        let asked = bench.relays.candidates.get(&peer).map(|relay| relay.state);
        let event = match (bench.rng.random_range(0..5), asked) {
            (0 | 1, Some(State::Asked)) => Event::Reserved(peer),
            (2, Some(State::Asked | State::Held(_))) => Event::Failed(peer),
            (3, _) => Event::Withdrawn(peer),
            (4, _) => Event::Offered(peer, Rank::Met),
            _ => Event::Tick,
        };
        bench.on(event);
        assert!(bench.relays.busy() <= WANTED);
    }
    for peer in &offered {
        bench.on(Event::Offered(*peer, Rank::Met));
    }
    bench.now += 2 * LONGEST_PAUSE;
    bench.on(Event::Tick);
    assert_eq!(bench.relays.busy(), WANTED);
}
