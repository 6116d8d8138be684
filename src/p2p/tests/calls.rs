//! Unary calls between two hosts: answers, errors, limits, cancellation.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::{Notify, Semaphore};

use super::{ECHO, LONG, echo, host, pair, soon};
use crate::{
    p2p::{CallError, DialError, Handler, HandlerError, HandlerLimits, OpenError},
    task::Tasks,
};

const TEST: &str = "Test.rpc_test";

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// Tells when the future it is kept in is dropped.
struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A handler that tells when it starts and when it is dropped, and never answers.
fn endless(started: &Arc<Notify>, dropped: &Arc<Notify>) -> Handler {
    let (started, dropped) = (started.clone(), dropped.clone());
    Handler::unary(TEST, HandlerLimits::default(), move |_, _| {
        let guard = OnDrop(dropped.clone());
        let started = started.clone();
        async move {
            let _guard = guard;
            started.notify_one();
            std::future::pending().await
        }
    })
}

#[tokio::test]
async fn a_unary_call_gets_its_answer_and_the_handler_knows_the_caller() {
    let tasks = Tasks::new();
    let whoami = Handler::unary(TEST, HandlerLimits::default(), |peer: PeerId, _| async move {
        Ok(Bytes::from(peer.to_bytes()))
    });
    let (caller, callee) = pair(&tasks, vec![whoami]).await;
    let answer = caller.call_unary(callee.peer_id(), TEST, Bytes::new(), LONG).await;
    assert_eq!(answer.unwrap(), caller.peer_id().to_bytes());
    assert!(tasks.shutdown().await);
}

#[tokio::test]
async fn calls_go_both_ways_over_one_connection() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, vec![echo()]).await;
    crate::p2p::Router::new(caller.clone())
        .serve(vec![echo()])
        .spawn(&tasks);
    let there = caller.call_unary(callee.peer_id(), ECHO, bytes("there"), LONG).await;
    assert_eq!(there.unwrap(), "there");
    let back = callee.call_unary(caller.peer_id(), ECHO, bytes("back"), LONG).await;
    assert_eq!(back.unwrap(), "back");
}

#[tokio::test]
async fn the_text_of_a_handlers_error_reaches_the_caller() {
    let tasks = Tasks::new();
    let failing = Handler::unary(TEST, HandlerLimits::default(), |_, _| async {
        Err(HandlerError::new("ValueError('boom')"))
    });
    let (caller, callee) = pair(&tasks, vec![failing]).await;
    let error = caller
        .call_unary(callee.peer_id(), TEST, Bytes::new(), LONG)
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Remote { text } if text == "ValueError('boom')"));
}

#[tokio::test]
async fn a_hundred_calls_at_once_are_all_answered() {
    let tasks = Tasks::new();
    // Nobody is answered before all have arrived, so the streams are open at the same time.
    let (arrived, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (arrive, pass) = (arrived.clone(), gate.clone());
    let waiting = Handler::unary(TEST, HandlerLimits::default(), move |_, request| {
        let (arrive, pass) = (arrive.clone(), pass.clone());
        async move {
            arrive.add_permits(1);
            pass.acquire().await.unwrap().forget();
            Ok(request)
        }
    });
    let (caller, callee) = pair(&tasks, vec![waiting]).await;
    let calls = (0..100_u32).map(|n| {
        let (caller, peer) = (caller.clone(), callee.peer_id());
        async move {
            let request = Bytes::copy_from_slice(&n.to_be_bytes());
            caller.call_unary(peer, TEST, request.clone(), LONG).await.unwrap() == request
        }
    });
    let release = async {
        arrived.acquire_many(100).await.unwrap().forget();
        gate.add_permits(100);
    };
    let (answers, ()) = soon(
        "all answered",
        futures::future::join(futures::future::join_all(calls), release),
    )
    .await;
    assert!(answers.into_iter().all(|same| same));
}

#[tokio::test]
async fn a_request_is_out_before_there_is_an_answer() {
    let tasks = Tasks::new();
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let handler = Handler::unary(TEST, HandlerLimits::default(), move |_, request| {
        let held = held.clone();
        async move {
            held.notified().await;
            Ok(request)
        }
    });
    let (caller, callee) = pair(&tasks, vec![handler]).await;
    // Larger than what a stream carries before somebody reads.
    let request = Bytes::from(vec![7; 1 << 20]);
    let asked = caller.ask_unary(callee.peer_id(), TEST, request.clone());
    let asked = soon("the request is out", asked).await.unwrap();
    release.notify_one();
    assert_eq!(asked.answer().await.unwrap(), request);
}

#[tokio::test]
async fn a_caller_that_gives_up_cancels_the_handler() {
    let tasks = Tasks::new();
    let (started, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (caller, callee) = pair(&tasks, vec![endless(&started, &dropped)]).await;
    {
        let call = caller.call_unary(callee.peer_id(), TEST, Bytes::new(), LONG);
        tokio::select! {
            answer = call => panic!("answered: {answer:?}"),
            () = soon("started", started.notified()) => {}
        }
    }
    soon("the handler is dropped", dropped.notified()).await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_ends_with_a_timeout_and_is_cancelled() {
    let tasks = Tasks::new();
    let (started, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (caller, callee) = pair(&tasks, vec![endless(&started, &dropped)]).await;
    let after = Duration::from_millis(200);
    let error = caller
        .call_unary(callee.peer_id(), TEST, Bytes::new(), after)
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error:?}");
    soon("the handler is dropped", dropped.notified()).await;
}

#[tokio::test]
async fn a_call_over_the_limit_is_refused_at_once_with_a_reason() {
    let tasks = Tasks::new();
    let (started, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let limits = HandlerLimits {
        max_calls: 1,
        ..HandlerLimits::default()
    };
    let start = started.clone();
    let single = Handler::unary(TEST, limits, move |_, _| {
        start.notify_one();
        std::future::pending()
    });
    let (caller, callee) = pair(&tasks, vec![single]).await;
    let peer = callee.peer_id();
    let first = caller.call_unary(peer, TEST, Bytes::new(), LONG);
    let second = async {
        soon("the first call runs", started.notified()).await;
        caller.call_unary(peer, TEST, Bytes::new(), LONG).await
    };
    tokio::select! {
        answer = first => panic!("answered: {answer:?}"),
        refused = second => {
            let error = refused.unwrap_err();
            assert!(matches!(&error, CallError::Remote { text } if text.starts_with("busy")), "{error:?}");
        }
    }
    drop(dropped);
}

#[tokio::test]
async fn an_unknown_name_is_told_from_a_broken_connection() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, vec![echo()]).await;
    let error = caller
        .call_unary(callee.peer_id(), "No.such", Bytes::new(), LONG)
        .await
        .unwrap_err();
    assert!(error.is_unknown_name(), "{error:?}");
    let answer = caller.call_unary(callee.peer_id(), ECHO, bytes("on"), LONG).await;
    assert_eq!(answer.unwrap(), "on");
}

#[tokio::test]
async fn messages_of_almost_four_mebibytes_pass_and_larger_ones_are_not_sent() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, vec![echo()]).await;
    let large = Bytes::from(vec![7; 4_194_000]);
    let answer = caller
        .call_unary(callee.peer_id(), ECHO, large.clone(), LONG)
        .await
        .unwrap();
    assert!(answer == large);
    let error = caller
        .call_unary(callee.peer_id(), ECHO, vec![0; 4 * 1024 * 1024].into(), LONG)
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_over_the_limit_becomes_an_error_instead_of_silence() {
    let tasks = Tasks::new();
    let huge = Handler::unary(TEST, HandlerLimits::default(), |_, _| async {
        Ok(Bytes::from(vec![0; 5 * 1024 * 1024]))
    });
    let (caller, callee) = pair(&tasks, vec![huge]).await;
    let error = caller
        .call_unary(callee.peer_id(), TEST, Bytes::new(), LONG)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CallError::Remote { text } if text.contains("limit")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_node_does_not_call_itself_and_a_peer_nobody_knows_is_not_found() {
    let tasks = Tasks::new();
    let (caller, _callee) = pair(&tasks, vec![]).await;
    let ourselves = caller
        .call_unary(caller.peer_id(), ECHO, Bytes::new(), LONG)
        .await
        .unwrap_err();
    assert!(matches!(
        ourselves,
        CallError::Open(OpenError::Dial(DialError::Ourselves))
    ));
    let alone = host(&tasks).await;
    let stranger = alone
        .call_unary(caller.peer_id(), ECHO, Bytes::new(), LONG)
        .await
        .unwrap_err();
    assert!(
        matches!(stranger, CallError::Open(OpenError::Dial(DialError::NotFound))),
        "{stranger:?}"
    );
}

#[tokio::test]
async fn a_handler_that_stops_with_its_tasks_takes_no_more_calls() {
    let (tasks, serving) = (Tasks::new(), Tasks::new());
    let (caller, callee) = (host(&tasks).await, host(&tasks).await);
    crate::p2p::Router::new(callee.clone())
        .serve(vec![echo()])
        .spawn(&serving);
    caller.connect(callee.addrs()[0].clone()).await.unwrap();
    let answer = caller.call_unary(callee.peer_id(), ECHO, bytes("a"), LONG).await;
    assert_eq!(answer.unwrap(), "a");
    assert!(serving.shutdown().await);
    let error = caller
        .call_unary(callee.peer_id(), ECHO, bytes("b"), LONG)
        .await
        .unwrap_err();
    assert!(error.is_unknown_name(), "{error:?}");
}
