//! The routing table against Python's, and its own stricter rules.

use serde_json::Value as Json;

use super::*;
use crate::dht::testing::{contact, id, json_id, vectors};

fn text(json: &Json) -> &str {
    json.as_str().unwrap()
}

fn ids(json: &Json) -> Vec<DhtId> {
    json.as_array().unwrap().iter().map(json_id).collect()
}

/// The number that a bucket of Python begins or ends at, as 21 bytes: the last bucket ends at 2¹⁶⁰.
fn bound(json: &Json) -> [u8; 21] {
    let digits = format!("{:0>42}", text(json).trim_start_matches("0x"));
    hex::decode(digits).unwrap().try_into().unwrap()
}

fn range(bucket: &Bucket<PeerId>) -> ([u8; 21], [u8; 21]) {
    let mut lower = [0; 21];
    lower[1..].copy_from_slice(bucket.lower.as_bytes());
    let mut upper = lower;
    let step_bit = 160 - bucket.depth;
    let mut at = 20 - step_bit / 8;
    let mut carry = 1_u16 << (step_bit % 8);
    while carry > 0 {
        let sum = u16::from(upper[at]) + carry;
        upper[at] = (sum & 0xff) as u8;
        carry = sum >> 8;
        at = at.wrapping_sub(1);
    }
    (lower, upper)
}

#[test]
fn buckets_and_nearest_nodes_are_those_of_python() {
    let case = &vectors("hivemind/dhtid.json")["routing_table"];
    let number = |name: &str| usize::try_from(case[name].as_u64().unwrap()).unwrap();
    let mut table = RoutingTable::new(json_id(&case["own_id"]), number("bucket_size"), number("depth_modulo"));
    for add in case["adds"].as_array().unwrap() {
        let peer = text(&add["peer"]).parse().unwrap();
        let id = json_id(&add["node"]);
        let ping = table.add(Contact { id, peer });
        let expected = (!add["ping_requested"].is_null()).then(|| json_id(&add["ping_requested"]));
        assert_eq!(ping.map(|contact| contact.id), expected, "{add}");
    }
    let buckets = case["buckets"].as_array().unwrap();
    assert_eq!(table.buckets.len(), buckets.len());
    for (bucket, expected) in table.buckets.iter().zip(buckets) {
        assert_eq!(range(bucket), (bound(&expected["lower"]), bound(&expected["upper"])));
        assert_eq!(bucket.depth as u64, expected["depth"].as_u64().unwrap());
        assert_eq!(
            bucket.nodes.iter().map(|node| node.id).collect::<Vec<_>>(),
            ids(&expected["nodes"])
        );
        assert_eq!(
            bucket.replacements.iter().map(|node| node.id).collect::<Vec<_>>(),
            ids(&expected["replacements"])
        );
    }
    let query = json_id(&case["query"]);
    let found = |exclude: Option<&DhtId>| {
        table
            .nearest(&query, 8, exclude)
            .iter()
            .map(|node| node.id)
            .collect::<Vec<_>>()
    };
    let nearest = ids(&case["nearest8"]);
    assert_eq!(found(None), nearest);
    assert_eq!(found(Some(&nearest[0])), ids(&case["nearest8_excluding_first"]));
}

#[test]
fn the_nearest_nodes_of_a_large_table_are_those_of_a_full_sort() {
    let mut table = RoutingTable::new(id(0), 20, 5);
    for idx in 1..2000 {
        table.add(contact(idx));
    }
    let members: Vec<DhtId> = table
        .buckets
        .iter()
        .flat_map(|bucket| bucket.nodes.iter().map(|node| node.id))
        .collect();
    assert_eq!(members.len(), table.len());
    for seed in 5000..5050 {
        let target = id(seed);
        let mut expected = members.clone();
        expected.sort_by_key(|member| member.distance(&target));
        let nearest: Vec<DhtId> = table.nearest(&target, 20, None).iter().map(|node| node.id).collect();
        assert_eq!(nearest, expected[..20]);
    }
}

/// A table whose only bucket is full and cannot split, and the contacts that were offered to it, first come first.
fn full_bucket(offered: u64) -> (RoutingTable, Vec<Contact>) {
    let own = id(0);
    let mut table = RoutingTable::new(own, 3, 1);
    // Only ids in the half that the own id is not in: that half does not split any further.
    let far: Vec<Contact> = (1..)
        .map(contact)
        .filter(|node| node.id.bit(0) != own.bit(0))
        .take(offered as usize)
        .collect();
    for node in &far {
        table.add(*node);
    }
    (table, far)
}

#[test]
fn a_full_bucket_asks_for_its_oldest_member_and_promotes_the_newest_replacement() {
    let (mut table, far) = full_bucket(3);
    let newcomers: Vec<Contact> = (1000..)
        .map(contact)
        .filter(|node| node.id.bit(0) == far[0].id.bit(0))
        .take(2)
        .collect();
    assert_eq!(table.add(newcomers[0]), Some(far[0]));
    assert_eq!(
        table.add(newcomers[1]),
        Some(far[1]),
        "the first one is being pinged already"
    );
    assert!(table.contains(&newcomers[0].id));
    assert_eq!(table.len(), 3);

    table.remove(&far[0].id);
    let members: Vec<DhtId> = table.nearest(&far[0].id, 5, None).iter().map(|node| node.id).collect();
    assert!(members.contains(&newcomers[1].id) && !members.contains(&newcomers[0].id));

    table.ping_not_sent(&far[1].id);
    assert_eq!(
        table.add(newcomers[0]),
        Some(far[1]),
        "a ping that was not sent is asked for again"
    );
}

#[test]
fn replacements_are_bounded_and_the_oldest_are_forgotten() {
    let (table, far) = full_bucket(40);
    assert_eq!(table.len(), 3);
    assert_eq!(table.peer_of.len(), 6);
    assert_eq!(table.id_of.len(), 6);
    assert!(table.contains(&far[39].id) && !table.contains(&far[10].id));
}

#[test]
fn a_peer_has_one_entry_and_an_id_has_one_peer() {
    let mut table = RoutingTable::new(id(0), 20, 5);
    let first = contact(1);
    table.add(first);
    let restarted = Contact {
        id: id(2),
        peer: first.peer,
    };
    table.add(restarted);
    assert!(!table.contains(&first.id) && table.contains(&restarted.id));

    let thief = Contact {
        id: restarted.id,
        peer: contact(3).peer,
    };
    table.add(thief);
    assert_eq!(table.nearest(&thief.id, 1, None), [restarted]);
    table.remove(&restarted.id);
    table.add(thief);
    assert_eq!(table.nearest(&thief.id, 1, None), [thief]);
    assert_eq!(table.id_of(&first.peer), None);
}

#[test]
fn the_own_id_is_never_in_the_table() {
    let mut table = RoutingTable::new(id(0), 20, 5);
    table.add(contact(0));
    assert_eq!(table.len(), 0);
}

#[test]
fn nodes_nearer_than_a_distance_are_counted_as_if_all_were_looked_at() {
    let mut table: RoutingTable = RoutingTable::new(id(0), 20, 5);
    for number in 1..3000 {
        table.add(contact(number));
    }
    let members = table.nearest(&id(0), table.len(), None);
    for number in 3000..3050 {
        let target = id(number);
        let mut nearest = members.clone();
        nearest.sort_by_key(|node| node.id.distance(&target));
        for n_nodes in [1, 5, 30] {
            let distance = nearest[n_nodes].id.distance(&target);
            assert!(table.has_nearer(n_nodes, &target, distance));
            assert!(!table.has_nearer(n_nodes + 1, &target, distance));
        }
    }
}
