//! Jobs: the rules by themselves here, nodes that gossip in `network`, messages in `messages`.

mod messages;
mod network;

use std::time::Duration;

use super::{
    LEASE,
    check::FalseDelivery,
    message::{Settings, WorkOffer},
    order::{Order, passes},
    queue::{self, Key, Queue},
    submission::{Effect, Event, Submission},
};
use crate::p2p::PeerId;

const PATIENCE: Duration = Duration::from_secs(30);

fn order(prompt: &str) -> Order {
    let settings = Settings {
        max_new_tokens: 8,
        temperature_milli: 0,
        seed: 0,
    };
    Order::new("M-hf".to_owned(), prompt.to_owned(), settings, 0)
}

/// A job and its clock.
struct Story {
    submission: Submission,
    now: Duration,
}

impl Story {
    fn new() -> Self {
        let now = Duration::ZERO;
        Self {
            submission: Submission::new(PATIENCE, now),
            now,
        }
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        self.submission.on(event, self.now)
    }

    fn tick_after(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.on(Event::Tick)
    }

    fn claim(&mut self, worker: PeerId, jobs: u32) {
        let claimed = Event::Claimed {
            worker,
            number: 0,
            jobs,
        };
        assert_eq!(self.on(claimed), []);
    }

    /// Offered, claimed by these and given to one.
    fn assigned(workers: &[PeerId]) -> (Self, PeerId) {
        let mut story = Self::new();
        assert_eq!(story.on(Event::Tick), [Effect::Offer { number: 0 }]);
        workers.iter().for_each(|worker| story.claim(*worker, 0));
        let effects = story.tick_after(Duration::from_millis(300));
        match effects[..] {
            [Effect::Assign { worker, attempt: 0 }] => (story, worker),
            _ => panic!("{effects:?}"),
        }
    }

    /// Offered anew, claimed by `worker` and given to it.
    fn assigned_again(&mut self, worker: PeerId, attempt: u32) {
        let effects = self.tick_after(Duration::from_millis(10));
        assert!(matches!(effects[..], [Effect::Offer { .. }]), "{effects:?}");
        self.claim(worker, 0);
        let effects = self.tick_after(Duration::from_millis(300));
        assert_eq!(effects, [Effect::Assign { worker, attempt }]);
    }
}

#[test]
fn of_two_that_claim_at_once_one_gets_the_job() {
    let workers = [PeerId::random(), PeerId::random()];
    let (mut story, worker) = Story::assigned(&workers);
    assert!(workers.contains(&worker));
    story.claim(workers[0], 0);
    story.claim(workers[1], 0);
    assert_eq!(story.tick_after(Duration::from_secs(1)), []);
    let done = Event::Delivered {
        attempt: 0,
        outcome: Ok(()),
    };
    assert_eq!(story.on(done), [Effect::Done { attempt: 0 }]);
    assert_eq!(story.tick_after(PATIENCE), [], "it ended");
}

#[test]
fn who_has_fewer_jobs_is_chosen() {
    let [busy, free] = [PeerId::random(), PeerId::random()];
    let mut story = Story::new();
    story.on(Event::Tick);
    story.claim(busy, 3);
    story.claim(free, 1);
    let effects = story.tick_after(Duration::from_millis(300));
    assert_eq!(
        effects,
        [Effect::Assign {
            worker: free,
            attempt: 0
        }]
    );
}

#[test]
fn a_worker_that_is_silent_for_a_lease_loses_the_job_and_its_late_result_is_not_taken() {
    let [first, second] = [PeerId::random(), PeerId::random()];
    let (mut story, _) = Story::assigned(&[first]);
    assert_eq!(story.tick_after(LEASE / 2), []);
    story.on(Event::Beat { attempt: 0 });
    assert_eq!(story.tick_after(LEASE / 2), [], "it was heard");
    assert_eq!(story.tick_after(LEASE / 2), [Effect::Drop { attempt: 0 }]);
    story.assigned_again(second, 1);
    let late = Event::Delivered {
        attempt: 0,
        outcome: Ok(()),
    };
    assert_eq!(story.on(late), []);
    assert_eq!(story.on(Event::Beat { attempt: 0 }), []);
    assert_eq!(
        story.tick_after(LEASE),
        [Effect::Drop { attempt: 1 }],
        "not the beat of another"
    );
}

#[test]
fn a_worker_that_breaks_off_is_left_out_for_a_while_and_a_liar_for_good() {
    let [first, second] = [PeerId::random(), PeerId::random()];
    for lied in [false, true] {
        let (mut story, _) = Story::assigned(&[first]);
        let end = match lied {
            true => Event::Delivered {
                attempt: 0,
                outcome: Err(FalseDelivery::Signature),
            },
            false => Event::Lost {
                attempt: 0,
                why: "gone".to_owned(),
            },
        };
        assert_eq!(story.on(end), []);
        let effects = story.tick_after(Duration::from_millis(10));
        assert_eq!(effects, [Effect::Offer { number: 1 }]);
        story.claim(first, 0);
        let effects = story.tick_after(Duration::from_millis(500));
        assert_eq!(effects, [], "nobody else has claimed it");
        let effects = story.tick_after(Duration::from_secs(10));
        assert_eq!(effects, [Effect::Offer { number: 2 }]);
        story.claim(first, 0);
        let effects = story.tick_after(Duration::from_millis(500));
        let again = [Effect::Assign {
            worker: first,
            attempt: 1,
        }];
        assert_eq!(effects == again, !lied);
        if lied {
            story.now += Duration::from_secs(1);
            story.assigned_again(second, 1);
        }
    }
}

#[test]
fn a_job_that_nobody_takes_is_offered_again_and_fails_at_last() {
    let mut story = Story::new();
    let mut offers = 0;
    loop {
        match &story.tick_after(Duration::from_millis(100))[..] {
            [] => {}
            [Effect::Offer { number }] => {
                assert_eq!(*number, offers);
                offers += 1;
            }
            [Effect::Fail { why }] => {
                assert_eq!(why, "nobody took the job within 30 s");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(offers, 30);
    story.claim(PeerId::random(), 0);
    assert_eq!(story.tick_after(Duration::from_secs(1)), [], "too late");
}

#[test]
fn a_worker_that_refuses_a_job_is_not_given_it_again_and_its_reason_is_told_at_the_end() {
    let worker = PeerId::random();
    let (mut story, _) = Story::assigned(&[worker]);
    let refused = Event::Refused {
        attempt: 0,
        why: "too long".to_owned(),
    };
    assert_eq!(story.on(refused), []);
    loop {
        match &story.tick_after(Duration::from_millis(500))[..] {
            [] | [Effect::Offer { .. }] => story.claim(worker, 0),
            [Effect::Fail { why }] => {
                let expected = format!(
                    "given once to one worker in vain, then nobody took the job within 30 s; the last worker: {worker}: too long"
                );
                assert_eq!(*why, expected);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_job_that_all_workers_lose_fails_with_what_the_last_one_did() {
    let (mut story, _) = Story::assigned(&[PeerId::random()]);
    for attempt in 0.. {
        let lost = Event::Lost {
            attempt,
            why: "gone".to_owned(),
        };
        if let [Effect::Fail { why }] = &story.on(lost)[..] {
            assert_eq!(attempt, 15);
            let tried = "given 16 times to 16 workers in vain; the last worker: ";
            assert!(why.starts_with(tried), "{why}");
            assert!(why.ends_with(": gone"), "{why}");
            return;
        }
        story.assigned_again(PeerId::random(), attempt + 1);
    }
}

fn key(submitter: PeerId, job: &str, attempt: u32) -> Key {
    Key {
        submitter,
        job: job.to_owned(),
        attempt,
    }
}

#[test]
fn jobs_run_one_at_a_time_by_priority_and_none_waits_for_ever() {
    let submitter = PeerId::random();
    let mut queue = Queue::new("M-hf".to_owned(), 100);
    let first = key(submitter, "first", 0);
    assert_eq!(queue.assigned(first.clone(), 0), [queue::Effect::Start(first.clone())]);
    let low = key(submitter, "low", 0);
    assert_eq!(queue.assigned(low.clone(), -3), []);
    let mut running = first;
    for n in 0.. {
        let urgent = key(submitter, &format!("urgent {n}"), 0);
        assert_eq!(queue.assigned(urgent.clone(), 0), []);
        match &queue.finished(&running)[..] {
            [queue::Effect::Start(next)] if *next == low => {
                assert_eq!(n, 3, "passed over three times");
                break;
            }
            [queue::Effect::Start(next)] => {
                assert_eq!(*next, urgent);
                running = urgent;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn jobs_beyond_the_room_are_neither_claimed_nor_taken() {
    let submitter = PeerId::random();
    let mut queue = Queue::new("M-hf".to_owned(), 1);
    let offer: WorkOffer = order("hello").offer(4);
    let claim = queue.claim(&submitter, &offer).unwrap();
    assert_eq!((claim.number, claim.jobs), (4, 0));
    let other_model = WorkOffer {
        model: "N-hf".to_owned(),
        ..offer.clone()
    };
    assert_eq!(queue.claim(&submitter, &other_model), None);
    queue.assigned(key(submitter, "a", 0), 0);
    assert_eq!(queue.claim(&submitter, &offer), None);
    let second = key(submitter, "b", 0);
    assert_eq!(
        queue.assigned(second.clone(), 9),
        [queue::Effect::Refuse(second, "no room")]
    );
    assert!(passes("no room"), "it may be given the job again");
}

#[test]
fn a_job_that_comes_back_replaces_its_earlier_attempt_and_only_that() {
    let [submitter, other] = [PeerId::random(), PeerId::random()];
    let mut queue = Queue::new("M-hf".to_owned(), 9);
    let [first, again, late] = [0, 1, 0].map(|attempt| key(submitter, "a", attempt));
    queue.assigned(first.clone(), 0);
    assert_eq!(queue.assigned(again.clone(), 0), [queue::Effect::Stop(first.clone())]);
    let refused = queue::Effect::Refuse(late.clone(), "the job is here already");
    assert_eq!(queue.assigned(late, 0), [refused]);
    assert_eq!(queue.assigned(key(other, "a", 0), 0), [], "a job of somebody else");
    assert_eq!(queue.finished(&first), [queue::Effect::Start(again.clone())]);
    assert_eq!(queue.finished(&first), [], "it was told before");
    assert_eq!(queue.gone(&key(other, "a", 0)), []);
    assert_eq!(queue.gone(&again), [queue::Effect::Stop(again.clone())]);
    assert_eq!(queue.finished(&again), []);
    assert_eq!(queue.len(), 0);
}
