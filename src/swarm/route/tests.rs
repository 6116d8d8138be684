//! Routes compared with those Petals chose, and what Petals gets wrong.

use std::collections::BTreeMap;

use rand::{SeedableRng, rngs::StdRng};
use sepal_protocol::record::{ServerInfo, ServerState};

use super::*;
use crate::swarm::testing::{peer, records, server, vectors};

fn swarm(servers: &[(u64, ServerInfo)], n_blocks: usize) -> Snapshot {
    let mut blocks = vec![BTreeMap::new(); n_blocks];
    for (id, info) in servers {
        for block in info.start_block.unwrap()..info.end_block.unwrap() {
            blocks[block as usize].insert(peer(*id), info.clone());
        }
    }
    Snapshot::new("m", blocks)
}

fn online(blocks: Range<u32>) -> ServerInfo {
    server(ServerState::Online, blocks)
}

fn hops(route: &[Hop]) -> Vec<(PeerId, Range<u32>)> {
    route.iter().map(|hop| (hop.peer, hop.blocks.clone())).collect()
}

#[test]
fn routes_and_their_costs_equal_those_of_petals() {
    let file = vectors("routing.json");
    let cases = file["min_latency"].as_array().unwrap();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let label = &case["label"];
        let snapshot = Snapshot::new("m", records(case, "num_blocks"));
        let rtts = case["client_rtts"].as_object().unwrap().iter();
        let rtts = rtts.map(|(id, rtt)| (peer(id.parse().unwrap()), rtt.as_f64().unwrap_or(f64::INFINITY)));
        let block = |key: &str| u32::try_from(case[key].as_u64().unwrap()).unwrap();
        let route = shortest(
            &snapshot,
            block("start")..block("end"),
            &rtts.collect::<RttMap>().into(),
            case["cache_tokens_needed"].as_u64(),
            &HashSet::new(),
        )
        .unwrap();
        let expected = case["path [peer, start, end]"].as_array().unwrap().iter().map(|hop| {
            let at = |i: usize| hop[i].as_u64().unwrap();
            (
                peer(at(0)),
                u32::try_from(at(1)).unwrap()..u32::try_from(at(2)).unwrap(),
            )
        });
        assert_eq!(hops(&route.hops), expected.collect::<Vec<_>>(), "{label}");
        let cost = case["total_cost"].as_f64().unwrap();
        assert!(
            (route.seconds - cost).abs() < 1e-9,
            "{label}: {} instead of {cost}",
            route.seconds
        );
    }
}

#[test]
fn an_excluded_peer_is_not_used_even_if_it_is_the_quickest() {
    let mut slow = online(0..4);
    slow.inference_rps = Some(1.0);
    let snapshot = swarm(&[(1, online(0..4)), (2, slow)], 4);
    let nobody = HashSet::new();
    let route = shortest(&snapshot, 0..4, &Known::default(), None, &nobody).unwrap();
    assert_eq!(hops(&route.hops), [(peer(1), 0..4)]);
    let route = shortest(&snapshot, 0..4, &Known::default(), None, &HashSet::from([peer(1)])).unwrap();
    assert_eq!(hops(&route.hops), [(peer(2), 0..4)]);
}

#[test]
fn servers_that_are_not_online_are_not_used() {
    let snapshot = swarm(
        &[
            (1, server(ServerState::Joining, 0..4)),
            (2, server(ServerState::Offline, 0..4)),
        ],
        4,
    );
    assert!(shortest(&snapshot, 0..4, &Known::default(), None, &HashSet::new()).is_err());
}

#[test]
fn a_missing_chain_names_the_gaps_and_the_servers_that_are_there() {
    let snapshot = swarm(&[(1, online(0..12)), (2, online(10..12)), (3, online(20..24))], 32);
    let excluded = HashSet::from([peer(2)]);
    let error = shortest(&snapshot, 0..32, &Known::default(), None, &excluded).unwrap_err();
    assert_eq!(error.missing, [12..20, 24..32]);
    assert_eq!(
        error.to_string(),
        format!(
            "blocks 12:20, 24:32 of m are served by nobody; known servers: {} 0:12, {} 10:12 (failed), {} 20:24",
            peer(1),
            peer(2),
            peer(3)
        )
    );
    let mut rng = StdRng::seed_from_u64(1);
    assert_eq!(
        random_walk(&snapshot, 0..32, &RttMap::new(), &excluded, &mut rng),
        Err(error)
    );
    let nobody = shortest(&swarm(&[], 4), 0..4, &Known::default(), None, &excluded).unwrap_err();
    assert_eq!(
        nobody.to_string(),
        "blocks 0:4 of m are served by nobody; known servers: none"
    );
}

#[test]
fn blocks_that_are_missing_for_want_of_an_adapter_say_so() {
    let text = |servers: &[(u64, ServerInfo)], there: &[&str]| {
        let gap = AdapterGap {
            wanted: "nope".to_owned(),
            there: there.iter().map(|name| (*name).to_owned()).collect(),
        };
        let snapshot = Snapshot {
            adapter: Some(Box::new(gap)),
            ..swarm(servers, 4)
        };
        let missing = shortest(&snapshot, 0..4, &Known::default(), None, &HashSet::new());
        missing.unwrap_err().to_string()
    };
    assert_eq!(
        text(&[], &["everything", "qv"]),
        "no server of m has the adapter nope; there are: everything, qv"
    );
    assert_eq!(text(&[], &[]), "no server of m has the adapter nope; none has any");
    assert_eq!(
        text(&[(1, online(0..2))], &["nope"]),
        format!(
            "blocks 2:4 of m are served by nobody with the adapter nope; known servers: {} 0:2",
            peer(1)
        )
    );
}

#[test]
fn no_blocks_need_no_hops() {
    let snapshot = swarm(&[(1, online(0..4))], 4);
    let route = shortest(&snapshot, 2..2, &Known::default(), None, &HashSet::new()).unwrap();
    assert_eq!(
        route,
        Route {
            hops: Vec::new(),
            seconds: 0.0
        }
    );
}

#[test]
fn of_equally_quick_chains_the_one_with_fewer_hops_wins() {
    let free_hop = |blocks: Range<u32>, next: u64| ServerInfo {
        next_pings: Some(vec![(peer(next).to_string(), 0.0)]),
        ..online(blocks)
    };
    // Both ways cost the same: running the blocks takes the long server as long as the second hop takes otherwise.
    let (mut long, mut head, mut tail) = (online(0..2), free_hop(0..1, 2), online(1..2));
    long.inference_rps = Some(2.0 / 0.018);
    head.inference_rps = Some(f64::MAX);
    tail.inference_rps = Some(f64::MAX);
    let snapshot = swarm(&[(1, head), (2, tail), (3, long)], 2);
    let route = shortest(&snapshot, 0..2, &Known::default(), None, &HashSet::new()).unwrap();
    let split = shortest(&snapshot, 0..2, &Known::default(), None, &HashSet::from([peer(3)])).unwrap();
    assert_eq!(route.seconds, split.seconds);
    assert_eq!(hops(&route.hops), [(peer(3), 0..2)]);
    assert_eq!(split.hops.len(), 2);
}

#[test]
fn records_with_absurd_numbers_still_give_a_route() {
    for rps in [0.0, 1e-320, f64::MAX] {
        let mut odd = online(0..4);
        odd.inference_rps = Some(rps);
        odd.next_pings = Some(vec![("not a peer id".into(), 1.0)]);
        odd.cache_tokens_left = Some(0);
        let snapshot = swarm(&[(1, odd), (2, online(4..8))], 8);
        let route = shortest(&snapshot, 0..8, &Known::default(), Some(u64::MAX), &HashSet::new()).unwrap();
        assert_eq!(hops(&route.hops), [(peer(1), 0..4), (peer(2), 4..8)]);
    }
}

#[test]
fn a_random_walk_covers_the_blocks_and_prefers_long_spans() {
    let snapshot = swarm(
        &[
            (1, online(0..9)),
            (2, online(0..1)),
            (3, online(1..12)),
            (4, online(7..12)),
        ],
        12,
    );
    let mut rng = StdRng::seed_from_u64(7);
    let mut starts = BTreeMap::new();
    for _ in 0..1000 {
        let walk = random_walk(&snapshot, 0..10, &RttMap::new(), &HashSet::new(), &mut rng).unwrap();
        assert_eq!(walk[0].blocks.start, 0);
        assert_eq!(walk.last().unwrap().blocks.end, 10);
        assert!(walk.windows(2).all(|pair| pair[0].blocks.end == pair[1].blocks.start));
        *starts.entry(walk[0].peer).or_insert(0) += 1;
    }
    // Nine blocks against one: 900 of 1000 are expected, and 800 is ten deviations away.
    assert!(starts[&peer(1)] > 800, "{starts:?}");
    assert!(starts[&peer(2)] > 0, "{starts:?}");
}

#[test]
fn a_random_walk_takes_an_unreachable_server_only_if_there_is_no_other() {
    let snapshot = swarm(&[(1, online(0..6)), (2, online(0..1)), (3, online(1..6))], 6);
    let rtts = RttMap::from([(peer(1), f64::INFINITY)]);
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..100 {
        let walk = random_walk(&snapshot, 0..6, &rtts, &HashSet::new(), &mut rng).unwrap();
        assert_eq!(hops(&walk), [(peer(2), 0..1), (peer(3), 1..6)]);
    }
    let only = HashSet::from([peer(2), peer(3)]);
    let walk = random_walk(&snapshot, 0..6, &rtts, &only, &mut rng).unwrap();
    assert_eq!(hops(&walk), [(peer(1), 0..6)]);
}

/// One hop of a step, as a client saw it.
fn took(id: u64, blocks: Range<u32>, seconds: f64) -> Measured {
    Measured {
        peer: peer(id),
        blocks,
        seconds,
        pushed: false,
    }
}

fn near(ids: &[u64]) -> Known {
    RttMap::from_iter(ids.iter().map(|id| (peer(*id), 0.01))).into()
}

fn learn(known: &mut Known, step: &[Measured]) {
    let rtts = known.rtts.clone();
    known.times.record(step, &rtts, |_, _| None, known.now);
}

#[test]
fn a_chain_that_was_measured_is_expected_to_take_what_it_took() {
    let snapshot = swarm(&[(1, online(0..2)), (2, online(2..4))], 4);
    let mut known = near(&[1, 2]);
    for pushed in [false, true] {
        let second = Measured {
            pushed,
            ..took(2, 2..4, 0.3)
        };
        for _ in 0..100 {
            learn(&mut known, &[took(1, 0..2, 0.2), second.clone()]);
        }
        let route = shortest(&snapshot, 0..4, &known, None, &HashSet::new()).unwrap();
        assert!((route.seconds - 0.5).abs() < 1e-6, "{route:?}");
    }
}

#[test]
fn a_server_that_turned_out_slow_is_left_for_another_and_gets_a_chance_again_later() {
    let snapshot = swarm(&[(1, online(0..4)), (2, online(0..2)), (3, online(2..4))], 4);
    let mut known = near(&[1, 2, 3]);
    let route = |known: &Known| hops(&shortest(&snapshot, 0..4, known, None, &HashSet::new()).unwrap().hops);
    assert_eq!(route(&known), [(peer(1), 0..4)], "fewest hops");
    learn(&mut known, &[took(1, 0..4, 2.0)]);
    assert_eq!(route(&known), [(peer(2), 0..2), (peer(3), 2..4)]);
    known.now += 3600.0;
    assert_eq!(route(&known), [(peer(1), 0..4)]);
    // Whatever comes, what is old is forgotten.
    learn(&mut known, &[took(2, 0..2, 0.1)]);
    assert_eq!(known.times.peers(), [peer(2)].into());
}

#[test]
fn measured_hops_may_beat_fewer_ones() {
    let snapshot = swarm(&[(1, online(0..4)), (2, online(0..2)), (3, online(2..4))], 4);
    let mut known = near(&[1, 2, 3]);
    learn(&mut known, &[took(2, 0..2, 0.011), took(3, 2..4, 0.011)]);
    let route = shortest(&snapshot, 0..4, &known, None, &HashSet::new()).unwrap();
    assert_eq!(hops(&route.hops), [(peer(2), 0..2), (peer(3), 2..4)]);
}

#[test]
fn a_new_measurement_moves_the_estimate_by_a_fifth_of_the_difference() {
    let snapshot = swarm(&[(1, online(0..4))], 4);
    let mut known = near(&[1]);
    learn(&mut known, &[took(1, 0..4, 1.0)]);
    learn(&mut known, &[took(1, 0..4, 2.0)]);
    let route = shortest(&snapshot, 0..4, &known, None, &HashSet::new()).unwrap();
    assert!((route.seconds - 1.2).abs() < 1e-9, "{route:?}");
    // What was measured of the same server is also known of other blocks of it.
    let route = shortest(&snapshot, 2..4, &known, None, &HashSet::new()).unwrap();
    assert!((route.seconds - (0.01 + 1.19 / 2.0)).abs() < 1e-9, "{route:?}");
}

#[test]
fn an_explanation_names_every_server_and_why_it_is_not_taken() {
    let mut full = online(0..4);
    full.cache_tokens_left = Some(80);
    let snapshot = swarm(
        &[
            (1, online(0..4)),
            (2, online(0..2)),
            (3, online(2..4)),
            (4, server(ServerState::Joining, 0..4)),
            (5, full),
            (6, online(1..2)),
            (7, online(0..4)),
        ],
        4,
    );
    let banned = HashSet::from([peer(7)]);
    let why = explain(&snapshot, &(0..4), &near(&[1, 2, 3]), Some(100), &banned);
    let of = |id: u64| {
        why.candidates
            .iter()
            .find(|candidate| candidate.peer == peer(id))
            .unwrap()
    };
    assert_eq!(of(1).verdict, Verdict::Taken(0));
    assert!(matches!(
        of(2).verdict,
        Verdict::Slower {
            n_hops: 2,
            is_full: false,
            ..
        }
    ));
    assert_eq!(of(2).verdict, of(3).verdict);
    assert_eq!(of(4).verdict, Verdict::NotOnline);
    assert!(matches!(
        of(5).verdict,
        Verdict::Slower {
            n_hops: 1,
            is_full: true,
            ..
        }
    ));
    assert_eq!(of(5).cache_left, Some(10));
    assert_eq!(of(6).verdict, Verdict::NoWay);
    assert_eq!(of(7).verdict, Verdict::Banned);
    let chains = why.chains.unwrap();
    assert_eq!(chains.len(), 2);
    let peers = |chain: &why::Chain| chain.parts.iter().map(|part| part.hop.peer).collect::<Vec<_>>();
    assert_eq!(peers(&chains[0]), [peer(1)]);
    assert_eq!(peers(&chains[1]), [peer(2), peer(3)]);
    let best = shortest(&snapshot, 0..4, &near(&[1, 2, 3]), Some(100), &banned).unwrap();
    assert!((chains[0].seconds - best.seconds).abs() < 1e-12);
    let Verdict::Slower { seconds, .. } = of(2).verdict else {
        panic!()
    };
    assert!((chains[1].seconds - seconds).abs() < 1e-12);
}

#[test]
fn an_explanation_of_a_route_that_there_is_not_names_what_is_missing() {
    let snapshot = swarm(&[(1, online(0..2))], 4);
    let why = explain(&snapshot, &(0..4), &Known::default(), None, &HashSet::new());
    assert_eq!(why.candidates[0].verdict, Verdict::NoWay);
    assert_eq!(
        why.chains.unwrap_err().missing,
        std::iter::once(2..4).collect::<Vec<_>>()
    );
}
