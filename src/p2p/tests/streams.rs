//! Streams between two hosts: both directions, ends, errors, cancellation, limits.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use super::{LONG, pair, soon};
use crate::{
    p2p::{Handler, HandlerError, HandlerLimits, P2p, StreamError, StreamReceiver, StreamSender},
    task::Tasks,
};

const TEST: &str = "Test.rpc_stream";

async fn open(caller: &P2p, callee: &P2p) -> (StreamSender, StreamReceiver) {
    caller.open_stream(callee.peer_id(), TEST, LONG).await.unwrap()
}

/// Answers every message with itself, until END.
fn echo_stream() -> Handler {
    Handler::stream(
        TEST,
        HandlerLimits::default(),
        |_, mut receiver, mut sender| async move {
            while let Some(message) = receiver
                .recv()
                .await
                .map_err(|error| HandlerError::new(error.to_string()))?
            {
                sender
                    .send(message)
                    .await
                    .map_err(|error| HandlerError::new(error.to_string()))?;
            }
            Ok(())
        },
    )
}

#[tokio::test]
async fn messages_go_both_ways_and_end_on_both_sides() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, vec![echo_stream()]).await;
    let (mut sender, mut receiver) = open(&caller, &callee).await;
    for size in [0_usize, 1, 9, 40_000, 1_000_000, 9 * 1024 * 1024] {
        let message = Bytes::from(vec![size as u8; size]);
        let (sent, received) = futures::future::join(sender.send(message.clone()), receiver.recv()).await;
        sent.unwrap();
        assert!(received.unwrap().unwrap() == message, "{size} bytes");
    }
    sender.finish().await.unwrap();
    assert!(soon("the end", receiver.recv()).await.unwrap().is_none());
    assert!(receiver.recv().await.unwrap().is_none(), "the end stays the end");
    assert!(matches!(sender.send(Bytes::new()).await, Err(StreamError::Ended)));
}

#[tokio::test]
async fn answers_still_come_after_the_last_request() {
    let tasks = Tasks::new();
    let counting = Handler::stream(
        TEST,
        HandlerLimits::default(),
        |_, mut receiver, mut sender| async move {
            let mut n = 0;
            while let Ok(Some(_)) = receiver.recv().await {
                n += 1;
            }
            for _ in 0..n {
                let _ = sender.send(Bytes::from_static(b"answer")).await;
            }
            Ok(())
        },
    );
    let (caller, callee) = pair(&tasks, vec![counting]).await;
    let (mut sender, mut receiver) = open(&caller, &callee).await;
    for _ in 0..20 {
        sender.send(Bytes::from_static(b"request")).await.unwrap();
    }
    sender.finish().await.unwrap();
    let mut n = 0;
    while let Some(message) = soon("answers", receiver.recv()).await.unwrap() {
        assert_eq!(message, "answer");
        n += 1;
    }
    assert_eq!(n, 20);
}

#[tokio::test]
async fn a_failing_handler_sends_its_messages_and_then_the_error() {
    let tasks = Tasks::new();
    let failing = Handler::stream(TEST, HandlerLimits::default(), |_, _receiver, mut sender| async move {
        let _ = sender.send(Bytes::from_static(b"first")).await;
        Err(HandlerError::new("boom"))
    });
    let (caller, callee) = pair(&tasks, vec![failing]).await;
    let (_sender, mut receiver) = open(&caller, &callee).await;
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "first");
    let error = soon("an error", receiver.recv()).await.unwrap_err();
    assert!(matches!(error, StreamError::Remote { text } if text == "boom"));
}

#[tokio::test]
async fn an_error_sent_by_hand_is_the_only_one() {
    let tasks = Tasks::new();
    let failing = Handler::stream(TEST, HandlerLimits::default(), |_, _receiver, sender| async move {
        let _ = sender.error("by hand").await;
        Err(HandlerError::new("too late"))
    });
    let (caller, callee) = pair(&tasks, vec![failing]).await;
    let (_sender, mut receiver) = open(&caller, &callee).await;
    let error = soon("an error", receiver.recv()).await.unwrap_err();
    assert!(matches!(error, StreamError::Remote { text } if text == "by hand"));
    assert!(receiver.recv().await.unwrap().is_none());
}

/// A handler that reports what its receiver says, and its own end.
fn observed(seen: mpsc::Sender<String>, dropped: Arc<Notify>) -> Handler {
    struct Guard(Arc<Notify>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    Handler::stream(TEST, HandlerLimits::default(), move |_, mut receiver, sender| {
        let (seen, guard) = (seen.clone(), Guard(dropped.clone()));
        async move {
            let (_guard, _sender) = (guard, sender);
            while let Ok(Some(message)) = receiver.recv().await {
                let _ = seen.send(String::from_utf8_lossy(&message).into_owned()).await;
            }
            std::future::pending().await
        }
    })
}

#[tokio::test]
async fn a_caller_that_closes_drops_or_finishes_and_closes_cancels_the_handler() {
    for how in ["close", "drop", "finish then close"] {
        let tasks = Tasks::new();
        let (seen, mut sightings) = mpsc::channel(8);
        let dropped = Arc::new(Notify::new());
        let (caller, callee) = pair(&tasks, vec![observed(seen, dropped.clone())]).await;
        let (mut sender, receiver) = open(&caller, &callee).await;
        sender.send(Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(soon("the message arrives", sightings.recv()).await.unwrap(), "hello");
        if how == "finish then close" {
            sender.finish().await.unwrap();
        }
        if how == "drop" {
            drop((sender, receiver));
        } else {
            sender.close().await.unwrap();
        }
        soon(how, dropped.notified()).await;
    }
}

#[tokio::test]
async fn a_stream_over_the_limit_is_refused_with_a_reason() {
    let tasks = Tasks::new();
    let limits = HandlerLimits {
        max_calls: 0,
        ..HandlerLimits::default()
    };
    let closed = Handler::stream(TEST, limits, |_, _, _| async { Ok(()) });
    let (caller, callee) = pair(&tasks, vec![closed]).await;
    let (_sender, mut receiver) = open(&caller, &callee).await;
    let error = soon("a refusal", receiver.recv()).await.unwrap_err();
    assert!(
        matches!(&error, StreamError::Remote { text } if text.starts_with("busy")),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_unknown_name_shows_at_the_first_use() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, vec![]).await;
    let (_sender, mut receiver) = open(&caller, &callee).await;
    let error = soon("a refusal", receiver.recv()).await.unwrap_err();
    assert!(matches!(error, StreamError::UnknownName), "{error:?}");
}

#[tokio::test]
async fn a_message_over_the_handlers_limit_ends_the_call() {
    let tasks = Tasks::new();
    let limits = HandlerLimits {
        max_message: 1000,
        ..HandlerLimits::default()
    };
    let small = Handler::stream(TEST, limits, |_, mut receiver, _sender| async move {
        while let Ok(Some(_)) = receiver.recv().await {}
        std::future::pending().await
    });
    let (caller, callee) = pair(&tasks, vec![small]).await;
    let (mut sender, mut receiver) = open(&caller, &callee).await;
    sender.send(Bytes::from(vec![0; 1001])).await.unwrap();
    assert!(soon("the end", receiver.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_send_that_was_cancelled_still_goes_out_whole() {
    let tasks = Tasks::new();
    let (caller, callee) = pair(&tasks, vec![echo_stream()]).await;
    let (mut sender, mut receiver) = open(&caller, &callee).await;
    let large = Bytes::from(vec![5; 8 * 1024 * 1024]);
    // Nobody reads the answer yet, so this stops in the middle of the message.
    let sent = tokio::time::timeout(std::time::Duration::from_millis(50), sender.send(large.clone())).await;
    let rest = async {
        if sent.is_err() {
            sender.send(Bytes::from_static(b"next")).await.unwrap();
        }
        sender.finish().await.unwrap();
    };
    let (received, ()) = futures::future::join(receiver.recv(), rest).await;
    assert!(received.unwrap().unwrap() == large);
    if sent.is_err() {
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "next");
    }
    assert!(receiver.recv().await.unwrap().is_none());
}
