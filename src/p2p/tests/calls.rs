//! Unary calls between two hosts: answers, errors, limits, cancellation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    p2p::{CallError, Config, Handler, HandlerError, HandlerLimits, OpenError, P2p, Router},
    task::Tasks,
};

const LONG: Duration = Duration::from_secs(20);

async fn host(tasks: &Tasks) -> P2p {
    P2p::bind(Config::default(), tasks).await.unwrap()
}

/// A caller connected to a host that serves `handlers`.
async fn pair(tasks: &Tasks, handlers: Vec<Handler>) -> (P2p, P2p) {
    let (caller, callee) = (host(tasks).await, host(tasks).await);
    Router::new(callee.clone()).serve(handlers).spawn(tasks);
    caller.connect(callee.addrs()[0].clone()).await.unwrap();
    (caller, callee)
}

fn echo() -> Handler {
    Handler::unary("Test.rpc_echo", HandlerLimits::default(), |_, request| async move {
        Ok(request)
    })
}

#[tokio::test]
async fn a_unary_call_gets_its_answer() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, vec![echo()]).await;
    let answer = caller
        .call_unary(callee.peer_id(), "Test.rpc_echo", Bytes::from_static(b"hello"), LONG)
        .await
        .unwrap();
    assert_eq!(answer, "hello");
    assert!(tasks.shutdown().await);
}
