//! Two machines on one local network, with nothing configured on either: a job goes from one to the other and comes back.

use std::time::{Duration, Instant};

use interop_tests::{
    ANSWER, WORK,
    hub::Hub,
    network::{Nat, Network},
    node,
    process::Process,
};

/// What is promised, from the start of both programs to the result. The rate is printed; a slow machine fails no test.
const PROMISED: Duration = Duration::from_secs(30);
/// Runs, unless `SEPAL_JOB_RUNS` says how many.
const RUNS: usize = 2;

#[expect(clippy::disallowed_methods, reason = "whoever wants a rate says of how many runs")]
fn n_runs() -> usize {
    std::env::var("SEPAL_JOB_RUNS")
        .ok()
        .and_then(|runs| runs.parse().ok())
        .unwrap_or(RUNS)
}

#[test]
fn two_nodes_with_nothing_configured_have_a_job_done() {
    let hub = Hub::new().unwrap();
    let mut network = Network::new().unwrap();
    let mut home = network.home("home", Nat::Easy).unwrap();
    let [worker, submitter] = ["worker", "submitter"].map(|name| hub.at(&home.machine(name).unwrap()));
    let mut times = Vec::new();
    for _ in 0..n_runs() {
        let started = Instant::now();
        let serve = &mut node::sepal(&worker, &["serve", "demo", "--jobs"]).unwrap();
        let _worker = Process::start("sepal serve --jobs", serve).unwrap();
        let prompt = ["--prompt", "What is 2+2?", "--max-new-tokens", "8", "--json"];
        let submit = [&["job", "submit", "--model", "demo"][..], &prompt].concat();
        let submit = &mut node::sepal(&submitter, &submit).unwrap();
        let mut submit = Process::start("sepal job submit", submit).unwrap();
        let done = submit.wait_exit(WORK).unwrap().success();
        let time = started.elapsed();
        assert!(done, "{}", submit.said().err);
        let answer = submit.answer(ANSWER).unwrap();
        assert!(answer["text"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
        times.push(time);
    }
    times.sort();
    let kept = times.iter().filter(|time| **time < PROMISED).count();
    let runs = times.len();
    println!("{kept} of {runs} jobs were done within {PROMISED:?} of the start of both nodes: {times:.1?}");
}
