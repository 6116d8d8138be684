//! Every task runs once, whatever the sizes, callers and panics are; no test waits for a time.

use std::sync::Barrier;

use super::*;

fn counts(pool: &Pool, n: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
    pool.run(n, &|i| {
        counts[i].fetch_add(1, SeqCst);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_runs_exactly_once() {
    for threads in [1, 2, 3, 16] {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        for n in [0, 1, 2, 3, 100, 1000] {
            assert_eq!(counts(&pool, n), vec![1; n]);
        }
    }
}

#[test]
fn threads_stay_on_cores_only_where_they_use_them_all() {
    let cores = [3, 5, 7, 9].map(|id| CoreId { id });
    let place_of = |threads, i| place(&cores, threads, i).map(|core| core.id);
    let places = |threads: usize| (1..threads).map(|i| place_of(threads, i)).collect::<Vec<_>>();
    let expected = [vec![None], vec![Some(5), Some(7), Some(9)], vec![None; 15]];
    assert_eq!([2, 4, 16].map(places), expected);
}

#[test]
fn regions_in_quick_succession_do_not_mix() {
    let pool = Pool::new(4).unwrap();
    for n in (2..40).cycle().take(4000) {
        assert_eq!(counts(&pool, n), vec![1; n]);
    }
}

#[test]
fn threads_that_fell_asleep_join_again() {
    let pool = Pool::new(2).unwrap();
    for _ in 0..3 {
        // Two tasks that wait for each other need two threads.
        let both = Barrier::new(2);
        pool.run(2, &|_| {
            both.wait();
        });
        while pool.shared.sleepers.load(SeqCst) == 0 {
            thread::yield_now();
        }
    }
}

#[test]
fn several_callers_take_turns() {
    let pool = Pool::new(3).unwrap();
    let inside = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let caller = thread::current().id();
                    let owner = Mutex::new(None);
                    pool.run(5, &|_| {
                        lock(&owner).get_or_insert(caller);
                        inside.fetch_add(1, SeqCst);
                    });
                    assert_eq!(*lock(&owner), Some(caller));
                }
            });
        }
    });
    assert_eq!(inside.into_inner(), 4 * 200 * 5);
}

#[test]
fn a_region_inside_a_task_runs_there() {
    let pool = Pool::new(2).unwrap();
    let sum = AtomicUsize::new(0);
    pool.run(4, &|i| {
        let here = thread::current().id();
        pool.run(3, &|j| {
            assert_eq!(thread::current().id(), here);
            sum.fetch_add(10 * i + j, SeqCst);
        });
    });
    assert_eq!(sum.into_inner(), 3 * (10 + 20 + 30) + 4 * (1 + 2));
}

#[test]
fn a_panic_of_a_task_reaches_the_caller_and_the_pool_goes_on() {
    let pool = Pool::new(3).unwrap();
    for bad in [0, 7, 63] {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, &|i| assert_ne!(i, bad, "a bad task"));
        }));
        let said = outcome.unwrap_err();
        let said = said.downcast_ref::<String>().unwrap();
        assert!(said.contains("a bad task"), "{said}");
        assert_eq!(counts(&pool, 50), vec![1; 50]);
    }
}

#[test]
fn pools_come_and_go() {
    for i in 0..50 {
        let pool = Pool::new(4).unwrap();
        if i % 2 == 0 {
            assert_eq!(counts(&pool, 9), vec![1; 9]);
        }
    }
}
