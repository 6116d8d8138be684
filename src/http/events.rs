//! The picture as server-sent events: one `swarm` event at once, one after every look, comments in between so that a
//! connection nobody needs is noticed. A listener that reads slowly skips pictures; nothing is queued for it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::App;
use crate::swarm::health::HealthState;

/// Who may listen at the same time. Each costs a connection and, at every look, a copy of the JSON.
pub(crate) const MAX_LISTENERS: usize = 64;

/// Silence after which a comment is sent; proxies close what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a browser waits before it listens again after a lost connection.
const RETRY: Duration = Duration::from_secs(3);

struct Listener {
    states: watch::Receiver<Arc<HealthState>>,
    stop: CancellationToken,
    first: bool,
    _permit: OwnedSemaphorePermit,
}

pub(crate) async fn events(State(app): State<App>) -> Response {
    let Ok(permit) = app.listeners.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many listen already\n").into_response();
    };
    let listener = Listener {
        states: app.health.watch(),
        stop: app.tasks.token(),
        first: true,
        _permit: permit,
    };
    Sse::new(events_of(listener))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

/// Ends when the node stops, so that its connections can be closed.
fn events_of(listener: Listener) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(listener, |mut listener| async move {
        loop {
            if !std::mem::take(&mut listener.first) {
                let stop = listener.stop.clone();
                let changed = stop.run_until_cancelled(listener.states.changed()).await;
                changed?.ok()?;
            }
            let state = listener.states.borrow_and_update().clone();
            match Event::default().event("swarm").retry(RETRY).json_data(&*state) {
                Ok(event) => return Some((Ok(event), listener)),
                Err(error) => tracing::error!(%error, "a picture cannot be written as JSON"),
            }
        }
    })
}
