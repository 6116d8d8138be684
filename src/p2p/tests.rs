//! In-process tests: hosts that talk to each other over real sockets on loopback.

use std::time::Duration;

use super::{Config, Handler, HandlerLimits, P2p, Router};
use crate::task::Tasks;

mod calls;
mod circuits;
mod finding;
mod foreign;
mod malformed;
mod mapped;
mod paced;
mod private;
mod relays;
mod streams;
mod transports;

/// A limit that is only reached when something is broken.
const LONG: Duration = Duration::from_secs(30);

async fn host(tasks: &Tasks) -> P2p {
    P2p::bind(Config::default(), tasks).await.unwrap()
}

/// A host that serves `handlers`.
async fn serving(tasks: &Tasks, config: Config, handlers: Vec<Handler>) -> P2p {
    let host = P2p::bind(config, tasks).await.unwrap();
    Router::new(host.clone()).serve(handlers).spawn(tasks);
    host
}

/// A caller connected to a host that serves `handlers`.
async fn pair(tasks: &Tasks, handlers: Vec<Handler>) -> (P2p, P2p) {
    let caller = host(tasks).await;
    let callee = serving(tasks, Config::default(), handlers).await;
    caller.connect(callee.addrs()[0].clone()).await.unwrap();
    (caller, callee)
}

const ECHO: &str = "Test.rpc_echo";

fn echo() -> Handler {
    Handler::unary(ECHO, HandlerLimits::default(), |_, request| async move { Ok(request) })
}

/// Fails the test instead of hanging it.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONG, future).await {
        Ok(value) => value,
        Err(_) => panic!("never happened: {what}"),
    }
}
