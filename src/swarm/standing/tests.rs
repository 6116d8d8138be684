//! The timing by itself, and keepers of nodes that can and cannot be dialed.

use super::*;
use crate::{
    p2p::{Multiaddr, Router},
    swarm::{reachability::handlers, testing::host},
};

fn rounds() -> (Rounds, Instant) {
    let now = Instant::now();
    (Rounds::new(Timing::default(), now), now)
}

const YES: Answers = answers(1, 0, 0);
const NO: Answers = answers(1, 2, 3);
const SILENCE: Answers = answers(0, 0, 2);
/// There was nobody to ask.
const NOBODY: Answers = answers(0, 0, 0);

const fn answers(yes: usize, no: usize, silent: usize) -> Answers {
    Answers { yes, no, silent }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn known(standing: Standing, relays: usize) -> Reachability {
    Reachability {
        standing,
        relays: (0..relays).map(|_| PeerId::random()).collect(),
        evidence: Vec::new(),
    }
}

#[test]
fn a_positive_verdict_counts_at_once_and_is_checked_rarely() {
    let (mut rounds, now) = rounds();
    assert_eq!(rounds.answered(YES, now), Some(Verdict::Dialable));
    assert!(rounds.settled);
    assert_eq!(rounds.due, now + seconds(15 * 60));
}

#[test]
fn a_negative_verdict_counts_after_a_second_opinion_and_is_checked_often() {
    let (mut rounds, now) = rounds();
    assert_eq!(rounds.answered(NO, now), None);
    assert!(!rounds.settled, "it is not known yet");
    let later = now + seconds(10);
    assert_eq!(rounds.due, later);
    assert_eq!(rounds.answered(NO, later), Some(Verdict::NotDialable));
    let later = later + seconds(120);
    assert_eq!(rounds.due, later);
    assert_eq!(
        rounds.answered(NO, later),
        Some(Verdict::NotDialable),
        "no doubt the next time"
    );
    assert_eq!(rounds.answered(YES, later), Some(Verdict::Dialable));
    assert_eq!(rounds.answered(NO, later), None, "and doubt again after that");
}

#[test]
fn the_second_opinion_of_a_restarted_node_is_what_counts() {
    let (mut rounds, now) = rounds();
    assert_eq!(rounds.answered(NO, now), None);
    assert_eq!(rounds.answered(YES, now + seconds(10)), Some(Verdict::Dialable));
}

#[test]
fn without_answers_a_node_counts_as_dialable_and_asks_again() {
    let (mut rounds, now) = rounds();
    let nothing = known(Standing::Unknown, 0);
    assert_eq!(rounds.access(&nothing), Access::Unknown);
    assert_eq!(rounds.answered(NOBODY, now), None);
    assert_eq!(rounds.access(&nothing), Access::Direct);
    assert_eq!(rounds.due, now + seconds(60));
    rounds.answered(NO, now);
    rounds.answered(NO, now);
    assert_eq!(rounds.access(&nothing), Access::Unreachable);
    rounds.answered(NOBODY, now);
    assert_eq!(rounds.access(&nothing), Access::Unreachable, "silence changes nothing");
}

#[test]
fn peers_that_do_not_answer_at_the_start_are_asked_once_more_before_anything_is_assumed() {
    let (mut rounds, now) = rounds();
    assert_eq!(rounds.answered(SILENCE, now), None);
    assert_eq!((rounds.settled, rounds.due), (false, now + seconds(3)));
    assert_eq!(rounds.answered(SILENCE, now), None);
    assert_eq!((rounds.settled, rounds.due), (true, now + seconds(60)));
    assert_eq!(rounds.answered(SILENCE, now), None);
    assert_eq!(rounds.due, now + seconds(60));
}

#[test]
fn what_the_host_knows_counts_more_than_our_last_verdict() {
    let (mut rounds, now) = rounds();
    for standing in [Standing::Unknown, Standing::Public, Standing::Private] {
        let access = rounds.access(&known(standing, 2));
        assert_eq!(access, Access::Unknown, "nobody was asked yet");
    }
    rounds.answered(YES, now);
    assert_eq!(rounds.access(&known(Standing::Unknown, 0)), Access::Direct);
    assert_eq!(rounds.access(&known(Standing::Private, 0)), Access::Unreachable);
    let relayed = known(Standing::Private, 2);
    let access = rounds.access(&relayed);
    assert_eq!(access, Access::Relayed(relayed.relays.clone()));
    assert!(access.using_relay() && access.is_open());
    assert_eq!(rounds.access(&known(Standing::Public, 2)), Access::Direct);
}

#[test]
fn new_addresses_are_a_reason_to_ask_soon() {
    let (mut rounds, now) = rounds();
    rounds.answered(YES, now);
    rounds.moved(now);
    assert_eq!(rounds.due, now + seconds(5));
}

/// Short pauses; long until anything is asked again by itself.
fn timing() -> Timing {
    Timing {
        second_opinion: Duration::from_millis(50),
        ..Timing::default()
    }
}

struct Node {
    p2p: P2p,
    dht: Dht,
    access: watch::Receiver<Access>,
}

/// A node with a keeper that has joined through these peers.
async fn node(tasks: &Tasks, listens: bool, initial_peers: Vec<Multiaddr>) -> Node {
    let p2p = host(tasks, listens).await;
    let config = crate::dht::Config {
        initial_peers,
        ..crate::dht::Config::default()
    };
    let dht = Dht::spawn(p2p.clone(), config, tasks);
    Router::new(p2p.clone())
        .serve(dht.handlers())
        .serve(handlers(p2p.clone(), tasks.clone()))
        .spawn(tasks);
    let keeper = Keeper::new(p2p.clone(), dht.clone(), timing());
    assert!(dht.is_client(), "until it is known better");
    dht.bootstrap().await.unwrap();
    let access = keeper.access();
    keeper.spawn(tasks);
    Node { p2p, dht, access }
}

impl Node {
    async fn becomes(&mut self, wanted: Access) {
        let waiting = self.access.wait_for(|access| *access == wanted);
        let arrived = tokio::time::timeout(seconds(60), waiting).await;
        assert!(arrived.is_ok(), "it stays {:?} and never becomes {wanted:?}", self.dht);
    }
}

#[tokio::test]
async fn the_first_node_of_a_swarm_is_part_of_the_dht_at_once() {
    let tasks = Tasks::new();
    let mut node = node(&tasks, true, Vec::new()).await;
    node.becomes(Access::Direct).await;
    assert!(!node.dht.is_client());
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_node_that_others_can_dial_takes_part_and_one_that_only_dials_does_not() {
    let tasks = Tasks::new();
    let mut first = node(&tasks, true, Vec::new()).await;
    first.becomes(Access::Direct).await;
    let mut direct = node(&tasks, true, first.p2p.addrs()).await;
    direct.becomes(Access::Direct).await;
    let mut hidden = node(&tasks, false, first.p2p.addrs()).await;
    hidden.becomes(Access::Unreachable).await;
    assert!(hidden.dht.is_client() && !direct.dht.is_client());
    let peer = hidden.p2p.peer_id();
    assert!(!first.dht.peers().contains(&peer));
    assert!(first.dht.peers().contains(&direct.p2p.peer_id()));
    first.dht.ping(peer, seconds(10)).await.unwrap();

    hidden.p2p.judge(Verdict::Dialable).await;
    hidden.becomes(Access::Direct).await;
    let known = async {
        while !first.dht.peers().contains(&peer) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(seconds(60), known)
        .await
        .expect("others learn that it is back");
    tasks.shutdown().await;
}
