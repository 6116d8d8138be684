//! The models of a node for as long as one of them is served: where they move to, and which end. Each moves by itself
//! (`moving.rs`).

use std::{future::pending, ops::Range, sync::Arc};

use futures::stream::{FuturesUnordered, StreamExt};
use tracing::error;

use super::{Server, StartError};

/// Waits until none of `servers`, all of one node, serves anything any more, and returns why the last one ended. Whenever one
/// has moved, `online` is told the prefix of its model and its blocks. One that ends leaves the swarm, and the others go on;
/// but a card that is lost is lost for all.
pub async fn stay(servers: &[Arc<Server>], online: impl Fn(&str, &Range<u32>)) -> StartError {
    let online = &online;
    let ends = servers.iter().map(|server| async move {
        loop {
            match server.moved().await {
                Ok(span) => online(server.prefix(), &span),
                Err(error) => return (server, error),
            }
        }
    });
    let mut ends: FuturesUnordered<_> = ends.collect();
    while let Some((server, error)) = ends.next().await {
        if ends.is_empty() || matches!(error, StartError::CardLost(_)) {
            return error;
        }
        error!(
            prefix = server.prefix(),
            error = &error as &dyn std::error::Error,
            "this model is not served any more; the others of this node are"
        );
        server.shutdown().await;
    }
    pending().await
}
