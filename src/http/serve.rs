//! Connections: taken, bounded, and closed in time. What is asked on them is not known here.
//!
//! `axum::serve` bounds neither how many connections there are nor how long a request may take to come; this does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::task::Tasks;

/// Connections at the same time. More wait in the system's queue.
const MAX_CONNECTIONS: usize = 256;

/// How long the head of a request may take to come, counted from the end of the last answer: also the limit for
/// connections that are kept open for later.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of the head of a request.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// How long a connection lives. Browsers that listen to events come back by themselves; one who never reads goes.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// How long the last request of a connection may take when it has lived so long: the longest answer there is.
const LONGEST_ANSWER: Duration = Duration::from_secs(1800);

/// How long requests may still take when the node stops. Shorter than the time that all tasks have for it.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Pause after a connection could not be taken, which means that the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Takes connections until `tasks` are stopped.
pub(crate) async fn run(listener: TcpListener, router: Router, tasks: Tasks) {
    let stop = tasks.token();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let Some((Ok(permit), accepted)) = stop.run_until_cancelled(next).await else {
            return;
        };
        match accepted {
            Ok((stream, from)) => {
                let connection = connection(stream, from, router.clone(), tasks.clone());
                tasks.spawn("http connection", async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, from: SocketAddr, router: Router, tasks: Tasks) {
    let service = TowerToHyperService::new(router.layer(Extension(ConnectInfo(from))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stop = tasks.token();
    let stopping = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    let mut ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = tokio::time::sleep(MAX_LIFETIME) => None,
        () = stop.cancelled() => None,
    };
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        ended = tokio::select! {
            ended = connection => Some(ended),
            () = tokio::time::sleep(LONGEST_ANSWER) => None,
            () = stopping => None,
        };
    }
    let ended = ended.unwrap_or(Ok(()));
    if let Err(error) = ended {
        tracing::debug!(%from, error = &error as &dyn std::error::Error, "an HTTP connection broke");
    }
}
