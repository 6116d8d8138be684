//! How fast this node's line is, measured with nodes of the same swarm: one sends, the other sends the same back.
//!
//! An echo uses both directions at once, so that what comes back per second is the smaller of upload and download, which
//! is what a server is worth to a chain. Nobody can be made to send more than was sent to it. The call is one of Sepal's own,
//! which no Python node makes; one that is asked says that it does not know it, and is not counted.
//!
//! A measurement is at most 12 MiB each way, with three peers, in a few seconds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{join, join_all};
use rand::{Rng, seq::SliceRandom};
use sepal_protocol::names::SPEED_ECHO;
use tokio::time::timeout;

use crate::{
    p2p::{Handler, HandlerError, HandlerLimits, P2p, PeerId, StreamReceiver, StreamSender},
    swarm::Snapshot,
};

/// Size of a message, bytes: large beside its headers, small enough that several are on the way.
const MESSAGE: usize = 64 << 10;
/// Messages in one measurement with one peer, each way: 4 MiB.
const MESSAGES: usize = 64;
/// Fewer that came back say nothing.
const LEAST_MESSAGES: usize = 4;
/// Longest measurement.
const LIMIT: Duration = Duration::from_secs(3);
/// How long a peer may take for the first message: to be dialed, and to answer.
const HELLO_LIMIT: Duration = Duration::from_secs(3);
/// Peers to measure with at once, and peers to ask for that.
const PEERS: usize = 3;
const CANDIDATES: usize = 8;
/// Measurements that a node takes part in for others at the same time.
const MAX_ECHOES: usize = 4;
/// Longest a node takes part in one.
const ECHO_LIMIT: Duration = Duration::from_secs(10);

/// What came of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Bits per second that came back.
    pub bits_per_second: f64,
    /// Peers that took part.
    pub peers: usize,
}

/// The answering side, for every node that can be dialed.
pub fn handlers() -> Vec<Handler> {
    let limits = HandlerLimits {
        max_calls: MAX_ECHOES,
        max_message: MESSAGE,
    };
    vec![Handler::stream(SPEED_ECHO, limits, |_, requests, replies| async move {
        match timeout(ECHO_LIMIT, echo(requests, replies)).await {
            Ok(answered) => answered,
            Err(_) => Err(HandlerError::new(format!(
                "takes longer than {} s",
                ECHO_LIMIT.as_secs()
            ))),
        }
    })]
}

async fn echo(mut requests: StreamReceiver, mut replies: StreamSender) -> Result<(), HandlerError> {
    let gone = |error: crate::p2p::StreamError| HandlerError::new(error.to_string());
    // One more than those that are measured: the one that says hello.
    for _ in 0..=MESSAGES {
        match requests.recv().await.map_err(gone)? {
            Some(message) => replies.send(message).await.map_err(gone)?,
            None => break,
        }
    }
    Ok(())
}

/// Whom to measure with: servers that say they are Sepal's first, then others, then whoever there is a connection to.
/// Those behind relays are left out: it is the relay's line that would be measured.
pub fn candidates(snapshot: &Snapshot, connected: &[PeerId], me: PeerId, rng: &mut impl Rng) -> Vec<PeerId> {
    let direct = snapshot.spans.iter().filter(|span| span.info.using_relay != Some(true));
    let is_ours = |version: &Option<String>| version.as_ref().is_some_and(|version| version.starts_with("sepal"));
    let (mut ours, mut others): (Vec<_>, Vec<_>) = direct.partition(|span| is_ours(&span.info.version));
    ours.shuffle(rng);
    others.shuffle(rng);
    let mut connected = connected.to_vec();
    connected.shuffle(rng);
    let mut found = Vec::new();
    for peer in ours
        .into_iter()
        .map(|span| span.peer)
        .chain(connected)
        .chain(others.into_iter().map(|span| span.peer))
    {
        if peer != me && !found.contains(&peer) && found.len() < CANDIDATES {
            found.push(peer);
        }
    }
    found
}

/// Measures with the first of `candidates` that take part; `None` if none does, or nothing came back in time.
pub async fn measure(p2p: &P2p, candidates: &[PeerId]) -> Option<Line> {
    let hellos = candidates.iter().map(|peer| timeout(HELLO_LIMIT, hello(p2p, *peer)));
    let streams: Vec<_> = join_all(hellos)
        .await
        .into_iter()
        .filter_map(|hello| hello.ok().flatten())
        .collect();
    let echoes = streams
        .into_iter()
        .take(PEERS)
        .map(|(sender, receiver)| send_and_count(sender, receiver));
    let echoes: Vec<Echoed> = join_all(echoes).await.into_iter().flatten().collect();
    let single = echoes
        .iter()
        .map(|echo| echo.bytes / echo.end.duration_since(echo.start).as_secs_f64());
    // A slow peer would make the sum look slow, so that the best single one counts as well. Both are less than the line.
    let best = single.fold(0.0, f64::max);
    let start = echoes.iter().map(|echo| echo.start).min()?;
    let end = echoes.iter().map(|echo| echo.end).max()?;
    let sum = echoes.iter().map(|echo| echo.bytes).sum::<f64>() / end.duration_since(start).as_secs_f64();
    let bits_per_second = 8.0 * best.max(sum);
    bits_per_second.is_finite().then_some(Line {
        bits_per_second,
        peers: echoes.len(),
    })
}

/// A stream on which a message came back. Dialing, and the question whether the peer knows the call, end here.
async fn hello(p2p: &P2p, peer: PeerId) -> Option<(StreamSender, StreamReceiver)> {
    let (mut sender, mut receiver) = p2p.open_stream(peer, SPEED_ECHO, HELLO_LIMIT).await.ok()?;
    sender.send(Bytes::from_static(b"hello")).await.ok()?;
    receiver.recv().await.ok()??;
    Some((sender, receiver))
}

/// What came back from one peer after the first message.
struct Echoed {
    bytes: f64,
    start: Instant,
    end: Instant,
}

async fn send_and_count(mut sender: StreamSender, mut receiver: StreamReceiver) -> Option<Echoed> {
    let mut arrivals = Vec::new();
    let send = async {
        // Noise: a line that compresses would look faster than it is.
        let mut message = vec![0; MESSAGE];
        rand::rng().fill(&mut message[..]);
        let message = Bytes::from(message);
        for _ in 0..MESSAGES {
            if sender.send(message.clone()).await.is_err() {
                return;
            }
        }
        // The peer ends by itself; whether it heard this makes no difference.
        let _ = sender.finish().await;
    };
    let receive = async {
        while arrivals.len() < MESSAGES {
            match receiver.recv().await {
                Ok(Some(message)) if message.len() == MESSAGE => arrivals.push(Instant::now()),
                _ => return,
            }
        }
    };
    // What has arrived by then counts.
    let _ = timeout(LIMIT, join(send, receive)).await;
    if arrivals.len() < LEAST_MESSAGES {
        return None;
    }
    let (start, end) = (*arrivals.first()?, *arrivals.last()?);
    let bytes = ((arrivals.len() - 1) * MESSAGE) as f64;
    (end > start).then_some(Echoed { bytes, start, end })
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use sepal_protocol::record::ServerState;

    use super::*;
    use crate::{
        p2p::Router,
        swarm::testing::{host, peer, server},
        task::Tasks,
    };

    #[tokio::test]
    async fn a_line_is_measured_with_those_who_take_part() {
        let tasks = Tasks::new();
        let (me, echoing, silent) = (
            host(&tasks, true).await,
            host(&tasks, true).await,
            host(&tasks, true).await,
        );
        Router::new(echoing.clone()).serve(handlers()).spawn(&tasks);
        Router::new(silent.clone()).spawn(&tasks);
        for other in [&echoing, &silent] {
            me.connect(other.addrs()[0].clone()).await.unwrap();
        }
        assert_eq!(measure(&me, &[]).await, None);
        assert_eq!(measure(&me, &[silent.peer_id()]).await, None);
        let line = measure(&me, &[silent.peer_id(), echoing.peer_id()]).await.unwrap();
        assert_eq!(line.peers, 1);
        assert!(line.bits_per_second > 0.0, "{line:?}");
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn an_echo_ends_after_what_a_measurement_needs() {
        let tasks = Tasks::new();
        let (me, echoing) = (host(&tasks, true).await, host(&tasks, true).await);
        Router::new(echoing.clone()).serve(handlers()).spawn(&tasks);
        me.connect(echoing.addrs()[0].clone()).await.unwrap();
        let (mut sender, mut receiver) = me
            .open_stream(echoing.peer_id(), SPEED_ECHO, HELLO_LIMIT)
            .await
            .unwrap();
        let send = async { while sender.send(Bytes::from_static(b"more")).await.is_ok() {} };
        let receive = async {
            let mut n = 0;
            while let Ok(Some(_)) = receiver.recv().await {
                n += 1;
            }
            n
        };
        let received = tokio::select! {
            n = receive => n,
            () = async { send.await; std::future::pending().await } => 0,
        };
        assert_eq!(received, MESSAGES + 1);
        tasks.shutdown().await;
    }

    #[test]
    fn sepal_servers_are_asked_first_and_those_behind_relays_not_at_all() {
        let mut blocks = vec![crate::swarm::spans::BlockRecords::new()];
        for (id, version, using_relay) in [(1, "2.2.0", false), (2, "sepal 0.1", false), (3, "sepal 0.1", true)] {
            let mut info = server(ServerState::Online, 0..1);
            (info.version, info.using_relay) = (Some(version.to_string()), Some(using_relay));
            blocks[0].insert(peer(id), info);
        }
        let snapshot = Snapshot::new("m", blocks);
        let mut rng = StdRng::seed_from_u64(1);
        let found = candidates(&snapshot, &[peer(2), peer(4), peer(9)], peer(9), &mut rng);
        assert_eq!(found, [2, 4, 1].map(peer));
    }
}
