//! A host that keeps to a bandwidth, over both carriers: it takes as long as it has to, and carries everything.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{AsyncWriteExt, FutureExt};

use super::{LONG, soon};
use crate::{
    p2p::{Bandwidth, Config, Handler, HandlerLimits, P2p, Router},
    task::Tasks,
};

const SINK: &str = "Test.rpc_sink";
const UNREAD: &str = "Test.rpc_unread";
const RATE: u64 = 400_000;

/// What is sent each way, bytes.
const LOAD: usize = 160_000;

async fn host(carrier: &str, bandwidth: Bandwidth, tasks: &Tasks) -> P2p {
    let config = Config {
        listen: vec![format!("/ip4/127.0.0.1/{carrier}").parse().unwrap()],
        bandwidth,
        ..Config::default()
    };
    P2p::bind(config, tasks).await.unwrap()
}

/// Sends a load back for one that it is sent.
fn echo() -> Handler {
    Handler::unary(SINK, HandlerLimits::default(), |_, request| async move { Ok(request) })
}

#[tokio::test]
async fn what_is_sent_and_what_is_read_keeps_to_the_line_over_tcp_and_quic() {
    for carrier in ["tcp/0", "udp/0/quic-v1"] {
        for (up, down) in [(Some(RATE), None), (None, Some(RATE))] {
            let tasks = Tasks::new();
            let narrow = host(carrier, Bandwidth::new(up, down), &tasks).await;
            let wide = host(carrier, Bandwidth::default(), &tasks).await;
            Router::new(narrow.clone()).serve(vec![echo()]).spawn(&tasks);
            let addr = narrow.addrs()[0].clone();
            soon("connected", wide.connect(addr)).await.unwrap();
            let (load, start) = (Bytes::from(vec![7; LOAD]), Instant::now());
            let calls = (0..2).map(|_| wide.call_unary(narrow.peer_id(), SINK, load.clone(), LONG));
            for answer in futures::future::join_all(calls).await {
                assert_eq!(answer.unwrap(), load);
            }
            // What it makes up for from before, and what QUIC and the system hold without it, comes off.
            let least = Duration::from_secs_f64((2 * LOAD) as f64 / RATE as f64) - Duration::from_millis(200);
            assert!(start.elapsed() >= least, "{carrier}: {:?}", start.elapsed());
            assert!(tasks.shutdown().await);
        }
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_leaves_others_room_on_its_connection() {
    let tasks = Tasks::new();
    let narrow = host("udp/0/quic-v1", Bandwidth::new(None, Some(RATE)), &tasks).await;
    let wide = host("udp/0/quic-v1", Bandwidth::default(), &tasks).await;
    let unread = Handler::raw(UNREAD, HandlerLimits::default(), |_, stream| async move {
        let _unread = stream;
        std::future::pending().await
    });
    Router::new(narrow.clone()).serve(vec![echo(), unread]).spawn(&tasks);
    let peer = soon("connected", wide.connect(narrow.addrs()[0].clone()))
        .await
        .unwrap();
    let mut stream = soon("opened", wide.open_raw(peer, UNREAD)).await.unwrap();
    // As much as the other end takes without reading.
    let mut sent = 0;
    while let Some(written) = stream.write(&[7; 4096]).now_or_never() {
        sent += written.unwrap();
    }
    assert!(sent > 4096, "{sent}");
    let load = Bytes::from(vec![7; 4096]);
    let answer = wide.call_unary(peer, SINK, load.clone(), LONG).await;
    assert_eq!(answer.unwrap(), load);
    assert!(tasks.shutdown().await);
}
