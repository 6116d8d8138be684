//! The search against Python's on the same network, and its behaviour when nodes fail or lie.

use std::collections::HashMap;

use super::*;
use crate::dht::testing::{id, json_id, vectors};

type Network = HashMap<DhtId, Vec<DhtId>>;

fn neighbors(network: &Network, node: &DhtId, query: &DhtId, limit: usize) -> Vec<DhtId> {
    let mut known = network[node].clone();
    known.sort_by_key(|other| other.distance(query));
    known.truncate(limit);
    known
}

/// Runs a search to its end, answering the oldest question first. Returns the results and the number of questions.
fn run(search: &mut Search, mut answer: impl FnMut(&Call) -> Option<Vec<Answer>>) -> (HashMap<DhtId, Finished>, usize) {
    let mut under_way = std::collections::VecDeque::new();
    let mut finished = HashMap::new();
    let mut calls = 0;
    loop {
        while let Some(call) = search.next_call() {
            calls += 1;
            under_way.push_back(call);
        }
        finished.extend(search.take_finished().into_iter().map(|end| (end.query, end)));
        if search.is_over() {
            return (finished, calls);
        }
        let call = under_way.pop_front().unwrap();
        match answer(&call) {
            Some(answers) => search.answered(&call, &answers),
            None => search.failed(&call),
        }
    }
}

fn answer(network: &Network, call: &Call, limit: usize) -> Vec<Answer> {
    let answer = |query| Answer {
        neighbors: neighbors(network, &call.node, query, limit),
        enough: false,
    };
    call.queries.iter().map(answer).collect()
}

fn nearest(ids: impl Iterator<Item = DhtId>, target: &DhtId, limit: usize) -> Vec<DhtId> {
    let mut ids: Vec<DhtId> = ids.collect();
    ids.sort_by_key(|other| other.distance(target));
    ids.truncate(limit);
    ids
}

/// 200 nodes, each of which knows its 25 nearest ones and 10 others.
fn network() -> Network {
    let ids: Vec<DhtId> = (0..200).map(id).collect();
    let known = |at: usize| {
        let mut known = nearest(ids.iter().filter(|other| **other != ids[at]).copied(), &ids[at], 25);
        known.extend((1..=10).map(|step| ids[(at + step * 17) % ids.len()]));
        known
    };
    ids.iter().enumerate().map(|(at, node)| (*node, known(at))).collect()
}

fn shape(workers: usize) -> Shape {
    Shape {
        beam: 20,
        workers,
        queries_per_call: 2,
    }
}

#[test]
fn a_search_finds_what_python_finds_with_no_more_questions() {
    let file = vectors("hivemind/traverse.json");
    let ids = |json: &serde_json::Value| json.as_array().unwrap().iter().map(json_id).collect::<Vec<_>>();
    let known: Network = file["known"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(node, known)| (json_id(&node.as_str().into()), ids(known)))
        .collect();
    let number = |name: &str| usize::try_from(file[name].as_u64().unwrap()).unwrap();
    let queries = ids(&file["queries"]);
    let shape = Shape {
        beam: number("beam_size"),
        workers: 1,
        queries_per_call: number("queries_per_call"),
    };
    let own = id(0);
    let mut search = Search::new(shape, own, &queries, &ids(&file["initial_nodes"]));
    let (finished, calls) = run(&mut search, |call| Some(answer(&known, call, 5)));
    // In which order Python asks depends on how it iterates over a set, so only the effort is compared.
    assert!(calls <= number("num_calls"), "{calls} questions");
    for query in &queries {
        let name = query.to_string();
        assert_eq!(finished[query].nearest, ids(&file["nearest"][&name]));
    }

    let mut single = Search::new(shape, own, &queries[..1], &ids(&file["initial_nodes"]));
    let (finished, _) = run(&mut single, |call| Some(answer(&known, call, 5)));
    assert_eq!(finished[&queries[0]].nearest, ids(&file["simple_traverse_first_query"]));
}

#[test]
fn the_nearest_nodes_are_found_with_any_number_of_workers() {
    let network = network();
    let queries: Vec<DhtId> = (1000..1009).map(id).collect();
    for workers in [1, 4, 32] {
        let mut search = Search::new(shape(workers), id(9999), &queries, &[id(0), id(1)]);
        let (finished, _) = run(&mut search, |call| {
            assert!(call.queries.len() <= 2);
            Some(answer(&network, call, 20))
        });
        for query in &queries {
            assert_eq!(finished[query].nearest, nearest(network.keys().copied(), query, 20));
        }
    }
}

#[test]
fn nodes_that_do_not_answer_are_left_out_and_replaced_by_farther_ones() {
    let network = network();
    let target = id(1000);
    let dead: HashSet<DhtId> = nearest(network.keys().copied(), &target, 15)
        .into_iter()
        .step_by(2)
        .collect();
    let mut search = Search::new(shape(4), id(9999), &[target], &[id(0), id(1), id(2)]);
    let (finished, _) = run(&mut search, |call| {
        (!dead.contains(&call.node)).then(|| answer(&network, call, 20))
    });
    let alive = network.keys().filter(|node| !dead.contains(*node)).copied();
    assert_eq!(finished[&target].nearest, nearest(alive, &target, 20));
}

#[test]
fn a_search_stops_as_soon_as_it_is_told_that_there_is_enough() {
    let network = network();
    let targets = [id(1000), id(1001)];
    let mut search = Search::new(shape(1), id(9999), &targets, &[id(0)]);
    let mut asked = Vec::new();
    let (finished, _) = run(&mut search, |call| {
        asked.push(call.clone());
        let mut answers = answer(&network, call, 20);
        for (query, answer) in call.queries.iter().zip(&mut answers) {
            answer.enough = *query == targets[0];
        }
        Some(answers)
    });
    assert_eq!(finished[&targets[0]].visits, 1);
    assert!(finished[&targets[1]].visits > 20);
    assert!(asked[1..].iter().all(|call| call.queries == [targets[1]]));
}

#[test]
fn a_search_without_a_start_or_with_dead_starts_only_ends_empty() {
    let mut search = Search::new(shape(4), id(0), &[id(1000)], &[]);
    let (finished, calls) = run(&mut search, |_| None);
    assert!(finished[&id(1000)].nearest.is_empty() && calls == 0);
    let mut search = Search::new(shape(4), id(0), &[id(1000)], &[id(1), id(2)]);
    let (finished, calls) = run(&mut search, |_| None);
    assert!(finished[&id(1000)].nearest.is_empty() && calls == 2);
}

#[test]
fn the_own_node_is_never_asked() {
    let network = network();
    let own = id(5);
    let mut search = Search::new(shape(4), own, &[own], &[id(0), own]);
    let (finished, _) = run(&mut search, |call| {
        assert_ne!(call.node, own);
        Some(answer(&network, call, 20))
    });
    assert_eq!(
        finished[&own].nearest,
        nearest(network.keys().filter(|node| **node != own).copied(), &own, 20)
    );
}

#[test]
fn nodes_that_invent_ever_nearer_ones_cannot_keep_a_search_going() {
    let target = id(1000);
    let mut invented = 0_u64;
    let mut search = Search::new(shape(4), id(0), &[target], &[id(1)]);
    let (finished, calls) = run(&mut search, |_| {
        let near = (0..1000).map(|_| {
            invented += 1;
            let mut bytes = *target.as_bytes();
            let distance = (u64::MAX - invented).to_be_bytes();
            bytes[..8]
                .iter_mut()
                .zip(distance)
                .for_each(|(byte, flip)| *byte ^= flip);
            DhtId::from_bytes(bytes)
        });
        Some(vec![Answer {
            neighbors: near.collect(),
            enough: false,
        }])
    });
    assert!(calls <= MAX_VISITS);
    assert!(finished[&target].nearest.len() == 20);
}
