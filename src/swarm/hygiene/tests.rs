//! Every problem by an example, and what Petals servers write by its vectors.

use std::ops::Range;

use sepal_protocol::{msgpack::Value, record::ServerState};

use super::*;
use crate::{
    dht::{FoundDictionary, Refused},
    swarm::testing::{peer, server, vectors},
};

const NOW: f64 = 1_000_000.0;

fn online(blocks: Range<u32>) -> ServerInfo {
    server(ServerState::Online, blocks)
}

fn entry(subkey: &str, value: Vec<u8>, proven: bool) -> FoundEntry {
    FoundEntry {
        subkey: Value::from(subkey),
        value,
        expiration: NOW + 60.0,
        proven,
    }
}

fn sort(first: u32, found: impl IntoIterator<Item = Option<Found>>, n_blocks: u32) -> Sorted {
    let mut sorting = Sorting::new(first, n_blocks, NOW);
    found.into_iter().for_each(|found| sorting.add(found));
    sorting.finish()
}

fn of(id: u64, info: &ServerInfo, proven: bool) -> FoundEntry {
    entry(&peer(id).to_string(), info.encode(), proven)
}

fn found(entries: Vec<FoundEntry>) -> Option<Found> {
    let refused = Vec::new();
    Some(Found::Dictionary(FoundDictionary { entries, refused }))
}

#[test]
fn a_span_must_be_within_the_model_and_around_its_block() {
    assert_eq!(check(&online(0..8), 3, 8), Ok(()));
    assert_eq!(check(&online(3..4), 3, 8), Ok(()));
    #[expect(clippy::reversed_empty_ranges, reason = "what a broken record says")]
    let cases = [
        (0..80, "claims blocks 0:80 of a model of 8 blocks"),
        (6..2, "claims blocks 6:2, which are none"),
        (3..3, "claims blocks 3:3, which are none"),
        (4..8, "claims blocks 4:8 under block 3"),
        (0..3, "claims blocks 0:3 under block 3"),
    ];
    for (blocks, problem) in cases {
        assert_eq!(check(&online(blocks), 3, 8).unwrap_err().to_string(), problem);
    }
}

#[test]
fn records_without_a_span_are_those_of_old_servers() {
    let old = ServerInfo::new(ServerState::Online, 10.0);
    assert_eq!(check(&old, 3, 8), Ok(()));
    let half = ServerInfo {
        start_block: Some(7),
        ..old
    };
    assert_eq!(check(&half, 3, 8), Ok(()), "as Petals, which needs both");
}

#[test]
fn numbers_that_no_server_can_have_are_named() {
    let pings = |rtt| Some(vec![("peer".to_string(), rtt)]);
    let good = online(0..4);
    let unreachable = ServerInfo {
        next_pings: pings(f64::INFINITY),
        ..good.clone()
    };
    assert_eq!(check(&unreachable, 0, 4), Ok(()));
    let bad = [
        ServerInfo {
            throughput: 1e300,
            ..good.clone()
        },
        ServerInfo {
            inference_rps: Some(f64::NAN),
            ..good.clone()
        },
        ServerInfo {
            cache_tokens_left: Some(u64::MAX),
            ..good.clone()
        },
        ServerInfo {
            next_pings: pings(1e6),
            ..good.clone()
        },
    ];
    let problems = bad.map(|info| check(&info, 0, 4).unwrap_err().to_string());
    assert_eq!(
        problems,
        [
            "claims throughput = 1e300, more than is possible",
            "claims inference_rps = NaN, more than is possible",
            "claims cache_tokens_left = 1.8446744073709552e19, more than is possible",
            "claims a round trip = 1e6, more than is possible",
        ]
    );
}

#[test]
fn what_petals_servers_write_has_no_problem() {
    let file = vectors("server_info.json");
    for (name, case) in file["cases"].as_object().unwrap() {
        let info = ServerInfo::decode(&hex::decode(case["msgpack_hex"].as_str().unwrap()).unwrap()).unwrap();
        let block = info.start_block.unwrap_or(0);
        assert_eq!(check(&info, block, 80), Ok(()), "{name}");
    }
}

#[test]
fn records_that_are_not_the_word_of_a_server_are_kept_apart() {
    let good = online(0..1);
    let eternal = FoundEntry {
        expiration: NOW + 1e9,
        ..of(3, &good, false)
    };
    let wordy = ServerInfo {
        public_name: Some("x".repeat(MAX_RECORD_BYTES)),
        ..good.clone()
    };
    let unreadable = entry(&peer(5).to_string(), b"\x05".to_vec(), false);
    let nobody = entry("nobody", good.encode(), false);
    let entries = vec![of(1, &good, false), eternal, of(4, &wordy, false), unreadable, nobody];
    let regular = Some(Found::Regular {
        value: good.encode(),
        expiration: NOW + 60.0,
    });
    let sorted = sort(0, [found(entries), regular, None], 3);
    assert_eq!(sorted.blocks.iter().map(BTreeMap::len).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(sorted.blocks[0][&peer(1)], good);
    let flawed: Vec<_> = sorted.flawed.iter().map(|flawed| (flawed.block, flawed.peer)).collect();
    assert_eq!(
        flawed,
        [
            (0, Some(peer(3))),
            (0, Some(peer(4))),
            (0, Some(peer(5))),
            (0, None),
            (1, None)
        ]
    );
    assert!(matches!(sorted.flawed[0].problem, Problem::LivesTooLong { .. }));
    assert!(matches!(sorted.flawed[1].problem, Problem::TooLarge { .. }));
    assert!(matches!(sorted.flawed[2].problem, Problem::Unreadable(_)));
    assert_eq!(sorted.flawed[3].problem, Problem::NoPeer);
    assert_eq!(sorted.provenance[&peer(1)].expires, NOW + 60.0);
    assert_eq!(sorted.provenance[&peer(1)].signature, Signature::None);
}

#[test]
fn a_server_that_signs_one_record_is_not_believed_to_have_left_another_unsigned() {
    let (signs, not) = (online(10..12), online(10..14));
    let blocks = [
        found(vec![of(1, &signs, true), of(2, &not, false)]),
        found(vec![of(1, &signs, true), of(2, &not, false)]),
        found(vec![of(1, &not, false), of(2, &not, false)]),
    ];
    let sorted = sort(10, blocks, 20);
    assert!(sorted.blocks.iter().all(|servers| servers.contains_key(&peer(2))));
    assert!(!sorted.blocks[2].contains_key(&peer(1)));
    assert_eq!(
        sorted.flawed,
        [Flawed {
            peer: Some(peer(1)),
            block: 12,
            problem: Problem::Unsigned,
        }]
    );
    assert_eq!(sorted.provenance[&peer(1)].signature, Signature::Valid);
}

#[test]
fn a_flood_of_flawed_records_is_cut() {
    let refused = (0..2 * MAX_FLAWED).map(|number| Refused {
        subkey: Value::from(number),
        expiration: NOW + 1.0,
    });
    let dictionary = FoundDictionary {
        entries: Vec::new(),
        refused: refused.collect(),
    };
    let sorted = sort(0, [Some(Found::Dictionary(dictionary))], 1);
    assert_eq!(sorted.flawed.len(), MAX_FLAWED);
    assert!(sorted.blocks[0].is_empty());
}
