//! Jobs between real nodes on loopback. What runs is not a model: the text is the prompt backwards.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use tokio::sync::Notify;

use super::order;
use crate::{
    jobs::{
        self, Delivery, JobError, Order, Output, Place, Running,
        order::{Answer, NAME, encode},
    },
    p2p::{Config, Handler, HandlerLimits, P2p, Router},
    task::Tasks,
};

const LIMIT: Duration = Duration::from_secs(60);

struct Node {
    p2p: P2p,
    tasks: Tasks,
}

impl Node {
    async fn new(gossips: bool) -> Self {
        let tasks = Tasks::new();
        let config = Config {
            gossip: gossips.then(|| jobs::gossip(&["M-hf"])),
            ..Config::default()
        };
        let p2p = P2p::bind(config, &tasks).await.unwrap();
        Self { p2p, tasks }
    }

    async fn knows(&self, other: &Node) {
        self.p2p.connect(other.p2p.addrs().remove(0)).await.unwrap();
    }

    async fn submit(&self, order: Order) -> Result<Delivery, JobError> {
        let patience = Duration::from_secs(20);
        let job = jobs::submit(&self.p2p, order, patience, &self.tasks);
        tokio::time::timeout(LIMIT, job).await.expect("a result in time")
    }
}

/// How a worker is held up, and what it did.
#[derive(Default)]
struct Doings {
    /// Jobs whose prompts begin with "wait" wait for this.
    gate: Notify,
    begun: Notify,
    /// Prompts of those that came to their end.
    done: Mutex<Vec<String>>,
    stopped: AtomicUsize,
}

struct Stopped<'a>(&'a AtomicUsize);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn reverse(doings: &Doings, running: Running) -> Result<Output, String> {
    let prompt = running.order.prompt;
    doings.begun.notify_one();
    if prompt.starts_with("refuse") {
        return Err("not here".to_owned());
    }
    let stopped = Stopped(&doings.stopped);
    if prompt.starts_with("wait") {
        doings.gate.notified().await;
    }
    std::mem::forget(stopped);
    doings.done.lock().unwrap().push(prompt.clone());
    Ok(Output {
        text: prompt.chars().rev().collect(),
        token_ids: vec![1, 2],
        prompt_tokens: 1,
    })
}

async fn worker() -> (Node, Arc<Doings>) {
    let node = Node::new(true).await;
    let doings = Arc::new(Doings::default());
    let place = Place {
        model: "M-hf".to_owned(),
        weights: "float32".to_owned(),
        room: 16,
    };
    let own = doings.clone();
    let executor = move |running| {
        let doings = own.clone();
        async move { reverse(&doings, running).await }.boxed()
    };
    let (handler, _) = jobs::serve(&node.p2p, place, Arc::new(executor), &node.tasks);
    Router::new(node.p2p.clone()).serve(vec![handler]).spawn(&node.tasks);
    (node, doings)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect(what);
}

#[tokio::test]
async fn a_job_is_done_and_those_who_do_not_gossip_are_none_the_wiser() {
    let (worker, _) = worker().await;
    let (submitter, quiet) = (Node::new(true).await, Node::new(false).await);
    submitter.knows(&quiet).await;
    submitter.knows(&worker).await;
    quiet.knows(&worker).await;
    let delivery = submitter.submit(order("hello")).await.unwrap();
    assert_eq!((delivery.text.as_str(), delivery.attempts), ("olleh", 1));
    assert_eq!(delivery.worker, worker.p2p.peer_id());
    assert!(submitter.p2p.connected_peers().contains(&quiet.p2p.peer_id()));
}

#[tokio::test]
async fn each_of_many_jobs_is_done_once_by_one_of_two_workers() {
    let ((first, one), (second, other)) = (worker().await, worker().await);
    let submitter = Node::new(true).await;
    submitter.knows(&first).await;
    submitter.knows(&second).await;
    first.knows(&second).await;
    let prompts: Vec<String> = (0..12).map(|n| format!("job {n:02}")).collect();
    let jobs = prompts.iter().map(|prompt| submitter.submit(order(prompt)));
    for outcome in futures::future::join_all(jobs).await {
        outcome.unwrap();
    }
    let mut done = [one.done.lock().unwrap().clone(), other.done.lock().unwrap().clone()].concat();
    done.sort();
    assert_eq!(done, prompts);
}

#[tokio::test]
async fn a_job_of_a_worker_that_dies_is_taken_over() {
    let ((first, one), (second, other)) = (worker().await, worker().await);
    let submitter = Node::new(true).await;
    submitter.knows(&first).await;
    submitter.knows(&second).await;
    let killing = async {
        let (dead, rest) = tokio::select! {
            () = one.begun.notified() => (&first, &other),
            () = other.begun.notified() => (&second, &one),
        };
        dead.tasks.token().cancel();
        rest.begun.notified().await;
        rest.gate.notify_one();
    };
    let (delivery, ()) = tokio::join!(submitter.submit(order("wait for it")), killing);
    let delivery = delivery.unwrap();
    assert_eq!((delivery.text.as_str(), delivery.attempts), ("ti rof tiaw", 2));
    let done = one.done.lock().unwrap().len() + other.done.lock().unwrap().len();
    assert_eq!(done, 1);
}

#[tokio::test]
async fn a_job_whose_submitter_is_gone_is_stopped_and_the_next_one_runs() {
    let (worker, doings) = worker().await;
    let [gone, submitter] = [Node::new(true).await, Node::new(true).await];
    gone.knows(&worker).await;
    submitter.knows(&worker).await;
    tokio::select! {
        outcome = gone.submit(order("wait")) => panic!("{outcome:?}"),
        () = doings.begun.notified() => {}
    }
    gone.tasks.shutdown().await;
    let delivery = submitter.submit(order("next")).await.unwrap();
    assert_eq!(delivery.text, "txen");
    until("the job of the one who is gone stops", || {
        doings.stopped.load(Ordering::SeqCst) == 1
    })
    .await;
    assert_eq!(*doings.done.lock().unwrap(), ["next"]);
}

#[tokio::test]
async fn results_without_a_true_receipt_are_not_taken() {
    // It claims as a worker does, and answers by itself.
    let (liar, _) = worker().await;
    let asked = Arc::new(Notify::new());
    let tell = asked.clone();
    let lie = Handler::stream(NAME, HandlerLimits::default(), move |_, _, mut replies| {
        let tell = tell.clone();
        async move {
            tell.notify_one();
            let result = Answer::Result {
                text: "a lie".to_owned(),
                token_ids: vec![1],
                receipt: "{}".to_owned(),
            };
            drop(replies.send(encode(&result)).await);
            Ok(())
        }
    });
    Router::new(liar.p2p.clone()).serve(vec![lie]).spawn(&liar.tasks);
    let submitter = Node::new(true).await;
    submitter.knows(&liar).await;
    let job = submitter.submit(order("hello"));
    let honest = async {
        asked.notified().await;
        let (worker, doings) = worker().await;
        submitter.knows(&worker).await;
        (worker, doings)
    };
    let (delivery, _worker) = tokio::join!(job, honest);
    let delivery = delivery.unwrap();
    assert_eq!((delivery.text.as_str(), delivery.attempts), ("olleh", 2));
    assert_ne!(delivery.worker, liar.p2p.peer_id());
}

#[tokio::test]
async fn a_job_that_the_only_worker_refuses_is_given_to_it_once_and_ends_with_its_reason() {
    let (worker, _) = worker().await;
    let submitter = Node::new(true).await;
    submitter.knows(&worker).await;
    // Longer than those are left out that may take it later.
    let patience = Duration::from_secs(5);
    let job = jobs::submit(&submitter.p2p, order("refuse this"), patience, &submitter.tasks);
    let outcome = tokio::time::timeout(LIMIT, job).await.expect("an end in time");
    let why = outcome.unwrap_err().to_string();
    assert!(why.starts_with("given once to one worker in vain, "), "{why}");
    assert!(why.ends_with(": not here"), "{why}");
}

#[tokio::test]
async fn a_job_for_which_there_is_nobody_ends_with_an_error() {
    let submitter = Node::new(true).await;
    let patience = Duration::from_millis(300);
    let outcome = jobs::submit(&submitter.p2p, order("hello"), patience, &submitter.tasks).await;
    assert!(matches!(outcome, Err(JobError::NotDone { .. })));
    let long = Order {
        prompt: "x".repeat(70_000),
        ..order("")
    };
    let outcome = submitter.submit(long).await;
    assert!(matches!(outcome, Err(JobError::Unfit(_))));
}
