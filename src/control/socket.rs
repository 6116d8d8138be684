//! Takes connections to the control socket and answers what comes on them, line by line. It knows no answers itself.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::BufReader,
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::{debug, warn};

use super::{
    Node, lines,
    place::Listening,
    protocol::{Answer, FailureCode, Request},
};
use crate::task::Tasks;

/// Connections at the same time: a few people and their scripts. More are told so and hung up on.
pub(super) const MAX_CLIENTS: usize = 16;

/// Longest request, bytes. Directives for the log, and addresses of a swarm, are the
/// longest things in one.
pub(super) const MAX_REQUEST: u64 = 4096;

/// How long a client may take to read an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(600);

/// Shortest and longest pause between two pictures.
const PERIODS: (f64, f64) = (0.1, 60.0);

/// Pause after a connection could not be taken, which means that the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Takes connections until it is dropped.
pub(super) async fn run(listening: Listening, node: Arc<Node>, tasks: Tasks) {
    let permits = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        match (listening.accept().await, permits.clone().try_acquire_owned()) {
            (Ok(stream), Ok(permit)) => {
                tasks.spawn_until_stopped("control connection", connection(stream, node.clone(), permit));
            }
            (Ok(stream), Err(_)) => {
                let message = format!("{MAX_CLIENTS} others ask this node already");
                // Nobody waits for one who may not be reading. The line fits into the empty buffer of the socket.
                drop(stream.try_write(&Answer::failed(FailureCode::Busy, message).line()));
            }
            (Err(error), _) => {
                warn!(%error, "cannot take a connection to the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, node: Arc<Node>, permit: OwnedSemaphorePermit) {
    if let Err(error) = converse(BufReader::new(stream), &node).await {
        debug!(%error, "a connection to the control socket broke");
    }
    drop(permit);
}

async fn converse(mut stream: BufReader<UnixStream>, node: &Arc<Node>) -> std::io::Result<()> {
    loop {
        let line = match timeout(IDLE, lines::read(&mut stream, MAX_REQUEST)).await? {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => {
                // Where the next request begins is not known any more.
                let refusal = Answer::failed(FailureCode::BadRequest, &error);
                lines::write(stream.get_mut(), &refusal.line(), WRITE_PATIENCE).await?;
                return Err(error);
            }
        };
        let answer = match Request::read(&line) {
            Ok(Request::Watch { period_s }) => return show(stream, node, period_s).await,
            Ok(request) => node.answer(request).await,
            Err(refusal) => *refusal,
        };
        lines::write(stream.get_mut(), &answer.line(), WRITE_PATIENCE).await?;
    }
}

/// Sends pictures until the client hangs up, says anything, or does not read.
async fn show(mut stream: BufReader<UnixStream>, node: &Arc<Node>, period_s: f64) -> std::io::Result<()> {
    let period = period_s.clamp(PERIODS.0, PERIODS.1);
    let mut tick = interval(Duration::from_secs_f64(period));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = tokio::select! {
            due = tick.tick() => due,
            _ = lines::read(&mut stream, MAX_REQUEST) => return Ok(()),
        };
        let picture = Answer::Picture(Box::new(node.picture().await));
        debug!(took = ?Instant::now().saturating_duration_since(due), "picture");
        lines::write(stream.get_mut(), &picture.line(), WRITE_PATIENCE).await?;
    }
}
