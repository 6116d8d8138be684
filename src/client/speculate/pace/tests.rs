//! Swarms and texts in numbers: how much of what guesses can bring does the rule find, and what do its mistakes cost?

use super::*;

/// A swarm and a text, in numbers.
#[derive(Clone, Copy)]
struct Scenario {
    source: Source,
    plain: f64,
    further: f64,
    drafting: f64,
    right: f64,
}

/// 1500 tokens, with guesses as `choose` has it: tokens per second, and steps with guesses.
fn run(scenario: Scenario, choose: &mut dyn FnMut(&mut Pace, &[Offer]) -> Option<Offer>) -> (f64, usize) {
    let (mut pace, mut tokens, mut time, mut guesses) = (Pace::default(), 0, 0.0, 0);
    let mut state = 1_u32;
    let mut chance = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24)
    };
    while tokens < 1500 {
        let offers = [Offer {
            source: scenario.source,
            most: MOST,
        }];
        let taken = choose(&mut pace, &offers).map_or(0, |offer| offer.most);
        // Lines are never quite even.
        let seconds = (scenario.plain + taken as f64 * scenario.further) * (0.95 + 0.1 * chance());
        let drafting = taken as f64 * scenario.drafting;
        pace.stepped(taken, seconds);
        time += seconds + drafting;
        let right = (0..taken).take_while(|_| chance() < scenario.right).count();
        if taken > 0 {
            guesses += 1;
            pace.drafted(taken, drafting);
            pace.verified(scenario.source, taken, right);
        } else if scenario.source != Source::Model {
            // What costs nothing is guessed in any case, and compared.
            pace.verified(scenario.source, 1, usize::from(chance() < scenario.right));
        }
        tokens += right + 1;
    }
    (f64::from(tokens as u32) / time, guesses)
}

/// Its speed by the rule, as multiples of no guesses and of the best fixed number of guesses.
fn gains(scenario: Scenario) -> (f64, f64) {
    let fixed = |n: usize| {
        let mut choose = |_: &mut Pace, offers: &[Offer]| (n > 0).then_some(Offer { most: n, ..offers[0] });
        run(scenario, &mut choose).0
    };
    let best = (0..=MOST).map(fixed).fold(0.0, f64::max);
    let found = run(scenario, &mut |pace, offers| pace.choose(offers)).0;
    (found / fixed(0), found / best)
}

fn scenarios() -> impl Iterator<Item = Scenario> {
    let sources = [Source::Lookup(1), Source::Lookup(3), Source::Lookup(16), Source::Model];
    // Seconds of a round trip: a local network, a country, the other side of the world.
    let lines = [0.005, 0.05, 0.15];
    // What a token costs the servers: waiting for memory, in between, and as much as the first one.
    let costs = [0.0002, 0.005, 0.03];
    let rights = [0.0, 0.2, 0.5, 0.8, 0.95];
    sources.into_iter().flat_map(move |source| {
        lines.into_iter().flat_map(move |line| {
            costs.into_iter().flat_map(move |further| {
                rights.into_iter().map(move |right| Scenario {
                    source,
                    plain: line + 0.03,
                    further,
                    drafting: if source == Source::Model { 0.01 } else { 0.0 },
                    right,
                })
            })
        })
    })
}

#[test]
fn guessing_never_costs_more_than_a_little_and_brings_most_of_what_there_is() {
    for scenario in scenarios() {
        let (over_plain, of_best) = gains(scenario);
        let Scenario {
            source,
            plain,
            further,
            right,
            ..
        } = scenario;
        let name = format!("{source:?}, plain {plain}, further {further}, right {right}: {over_plain}, {of_best}");
        assert!(over_plain > 0.97, "{name}");
        assert!(of_best > 0.85, "{name}");
    }
}

#[test]
fn good_guesses_over_a_slow_line_are_several_times_as_fast() {
    let scenario = Scenario {
        source: Source::Lookup(8),
        plain: 0.18,
        further: 0.003,
        drafting: 0.0,
        right: 0.9,
    };
    let (over_plain, _) = gains(scenario);
    assert!(over_plain > 4.0, "{over_plain}");
}

#[test]
fn guesses_that_do_not_pay_become_rare() {
    let scenario = Scenario {
        source: Source::Model,
        plain: 0.035,
        further: 0.03,
        drafting: 0.02,
        right: 0.7,
    };
    let (_, guesses) = run(scenario, &mut |pace, offers| pace.choose(offers));
    assert!((1..30).contains(&guesses), "{guesses}");
}

#[test]
fn what_has_become_better_is_found_out() {
    let mut pace = Pace::default();
    let offers = [Offer {
        source: Source::Model,
        most: MOST,
    }];
    for _ in 0..3 {
        pace.stepped(0, 0.1);
    }
    for _ in 0..20 {
        pace.stepped(4, 0.1);
        pace.drafted(4, 0.01);
        pace.verified(Source::Model, 4, 0);
    }
    pace.stepped(0, 0.1);
    assert_eq!(pace.choose(&offers), None);
    let mut found = None;
    for step in 0..200 {
        let taken = pace.choose(&offers).map_or(0, |offer| offer.most);
        pace.stepped(taken, 0.1);
        if taken > 0 {
            pace.verified(Source::Model, taken, taken);
        }
        if taken > TRIAL {
            found = Some(step);
            break;
        }
    }
    assert!(found.is_some_and(|step| step < 60), "{found:?}");
}

#[test]
fn nothing_is_guessed_before_plain_steps_are_known() {
    let mut pace = Pace::default();
    let offers = [Offer {
        source: Source::Lookup(16),
        most: 9,
    }];
    assert_eq!(pace.choose(&offers), None);
    pace.stepped(0, 0.1);
    assert_eq!(pace.choose(&offers), None);
    pace.stepped(0, 0.1);
    assert_eq!(pace.choose(&offers).map(|offer| offer.most), Some(FIRST_GUESS));
}

#[test]
fn a_step_in_which_a_server_was_replaced_says_nothing() {
    let mut pace = Pace::default();
    for _ in 0..5 {
        pace.stepped(0, 0.1);
    }
    pace.stepped(0, 3.0);
    pace.stepped(2, 3.0);
    assert!((pace.plain.value - 0.1).abs() < 1e-9);
    assert_eq!(pace.further.n, 0);
}

#[test]
fn the_source_that_was_right_more_often_is_taken() {
    let offers = [
        Offer {
            source: Source::Lookup(1),
            most: 4,
        },
        Offer {
            source: Source::Model,
            most: 4,
        },
    ];
    let mut pace = Pace::default();
    assert_eq!(pace.most_right(&offers), Some(offers[1]));
    for _ in 0..50 {
        pace.verified(Source::Model, 4, 0);
    }
    assert_eq!(pace.most_right(&offers), Some(offers[0]));
}

#[test]
fn a_model_that_is_right_more_often_than_repetitions_is_preferred_to_them_and_else_it_is_not() {
    for (by_lookup, by_model, drafting) in [(0.3, 0.9, 0.002), (0.9, 0.3, 0.002), (0.8, 0.85, 0.05)] {
        let mut pace = Pace::default();
        let sources = [Source::Lookup(3), Source::Model];
        let offers = sources.map(|source| Offer { source, most: MOST });
        let (mut state, mut taken_of) = (7_u32, [0, 0]);
        let mut chance = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 24)
        };
        for step in 0..1000 {
            let taken = pace.choose(&offers);
            let n = taken.map_or(0, |offer| offer.most);
            pace.stepped(n, 0.1 + n as f64 * 0.002);
            let mut right = |n: usize, share: f64| (0..n).take_while(|_| chance() < share).count();
            match taken.map(|offer| offer.source) {
                Some(Source::Model) => {
                    pace.drafted(n, n as f64 * drafting);
                    let right = right(n, by_model);
                    pace.verified(Source::Model, n, right);
                }
                Some(source) => {
                    let right = right(n, by_lookup);
                    pace.verified(source, n, right);
                }
                None => {}
            }
            if taken.is_none_or(|offer| offer.source == Source::Model) {
                let right = right(1, by_lookup);
                pace.verified(Source::Lookup(3), 1, right);
            }
            if let Some(offer) = taken.filter(|_| step > 100) {
                taken_of[offer.source.slot()] += 1;
            }
        }
        let better = usize::from(by_model > 2.0 * by_lookup);
        assert!(taken_of[better] > 700, "{by_lookup} {by_model}: {taken_of:?}");
        assert!(taken_of[1 - better] < 120, "{by_lookup} {by_model}: {taken_of:?}");
    }
}

#[test]
fn a_model_that_takes_longer_than_the_servers_is_hopeless_once_that_is_known() {
    let mut pace = Pace::default();
    assert!(!pace.is_hopeless(Source::Model));
    let offers = [Offer {
        source: Source::Model,
        most: MOST,
    }];
    for _ in 0..FIRST_PLAIN {
        pace.stepped(0, 0.1);
    }
    assert_eq!(pace.choose(&offers).map(|offer| offer.most), Some(TRIAL));
    pace.drafted(TRIAL, TRIAL as f64 * 0.4);
    pace.stepped(TRIAL, 0.11);
    pace.verified(Source::Model, TRIAL, TRIAL);
    assert!(pace.is_hopeless(Source::Model));
    assert!((0..1000).all(|_| pace.choose(&offers).is_none()));
}
