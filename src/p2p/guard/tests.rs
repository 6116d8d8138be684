//! The rules about who may stay.

use std::collections::HashSet;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const STRANGER_GRACE: Duration = Duration::from_secs(10);

fn guard(low_water: usize, high_water: usize) -> Guard {
    Guard::new(Limits {
        low_water,
        high_water,
        stranger_grace: STRANGER_GRACE,
        ..Limits::default()
    })
}

fn unused(_: &PeerId) -> Use {
    Use::default()
}

fn nobody(_: &PeerId) -> bool {
    false
}

fn guests(guard: &mut Guard, n: usize, now: Instant) -> Vec<PeerId> {
    let peers: Vec<PeerId> = (0..n).map(|_| PeerId::random()).collect();
    for (at, peer) in peers.iter().enumerate() {
        guard.connected(*peer, now + SECOND / 1000 * u32::try_from(at).unwrap());
    }
    peers
}

#[test]
fn a_stranger_goes_after_a_while_and_may_come_again_much_later() {
    let (mut guard, now) = (guard(10, 20), Instant::now());
    let peers = guests(&mut guard, 3, now);
    guard.identified(&peers[0], false);
    guard.identified(&peers[1], true);
    assert_eq!(guard.review(now + SECOND, unused, nobody), Verdict::default());
    let later = now + 2 * STRANGER_GRACE;
    assert_eq!(guard.review(later, unused, nobody).bar, [peers[0]]);
    // Identify never told who the third one is.
    assert_eq!(guard.review(now + 2 * UNKNOWN_GRACE, unused, nobody).bar, [peers[2]]);
    let verdict = guard.review(later + BARRED_FOR, unused, nobody);
    assert_eq!((verdict.bar, verdict.close), (vec![], vec![]), "members stay");
    assert_eq!(verdict.readmit, [peers[0]]);
}

#[test]
fn calls_and_the_configuration_make_a_stranger_welcome() {
    let (mut guard, now) = (guard(10, 20), Instant::now());
    let peers = guests(&mut guard, 3, now);
    for peer in &peers {
        guard.identified(peer, false);
    }
    let used = |peer: &PeerId| Use {
        calls: 0,
        last: (*peer == peers[0]).then_some(now),
    };
    let verdict = guard.review(now + 2 * STRANGER_GRACE, used, |peer| *peer == peers[1]);
    assert_eq!(verdict.bar, [peers[2]]);
    assert!(guard.wanted(&peers[2]) && !guard.wanted(&peers[2]));
}

#[test]
fn many_strangers_at_once_push_each_other_out() {
    let (mut guard, now) = (guard(1000, 2000), Instant::now());
    let peers = guests(&mut guard, MAX_STRANGERS + 5, now);
    for peer in &peers {
        guard.identified(peer, false);
    }
    assert_eq!(guard.review(now + SECOND, unused, nobody).bar, peers[..5]);
}

#[test]
fn barred_peers_are_remembered_up_to_a_bound() {
    let (mut guard, mut now) = (guard(1000, 2000), Instant::now());
    for _ in 0..3 {
        for peer in guests(&mut guard, MAX_BARRED / 2, now) {
            guard.identified(&peer, false);
        }
        now += 2 * STRANGER_GRACE;
        guard.review(now, unused, nobody);
    }
    let verdict = guard.review(now, unused, nobody);
    assert_eq!(verdict.readmit.len(), MAX_BARRED / 2);
    assert_eq!(guard.barred.len(), MAX_BARRED);
}

#[test]
fn above_the_high_water_mark_the_quietest_go_down_to_the_low_one() {
    let (mut guard, now) = (guard(6, 10), Instant::now());
    let peers = guests(&mut guard, 11, now);
    for peer in &peers {
        guard.identified(peer, true);
    }
    // The first is in the middle of a call, the second is configured, the third was used lately.
    let much_later = now + 2 * TRIM_GRACE;
    let used = |peer: &PeerId| Use {
        calls: usize::from(*peer == peers[0]),
        last: (*peer == peers[0] || *peer == peers[2]).then_some(much_later),
    };
    let protected = |peer: &PeerId| *peer == peers[1];
    assert!(
        guard.review(now + SECOND, used, protected).close.is_empty(),
        "too young"
    );
    let closed = guard.review(much_later, used, protected).close;
    assert_eq!(closed, peers[3..8], "five of eleven, the oldest of the unused");
    assert!(
        guard.review(much_later, used, protected).close.is_empty(),
        "between the marks"
    );
    let left: HashSet<PeerId> = guard.guests.keys().copied().collect();
    assert!(peers[..3].iter().all(|peer| left.contains(peer)));
}
