//! What the DHT needs of the network, so that tests can put something else in its place.

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

use crate::p2p::{CallError, DialError, Multiaddr, P2p, PeerId};

/// Calls to peers. [`P2p`] is the one used outside of tests.
pub(crate) trait Network: Send + Sync {
    /// Connects to the peer at an address that ends in `/p2p/PEER-ID`.
    fn connect(&self, addr: Multiaddr) -> BoxFuture<'_, Result<PeerId, DialError>>;

    /// Calls the unary handler `name` of `peer`. Dropping the future cancels the call.
    fn call(
        &self,
        peer: PeerId,
        name: &'static str,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>>;

    /// Stops to accept calls of these names, or accepts them again.
    fn withhold(&self, names: &[&'static str], withheld: bool);
}

impl Network for P2p {
    fn connect(&self, addr: Multiaddr) -> BoxFuture<'_, Result<PeerId, DialError>> {
        Self::connect(self, addr).boxed()
    }

    fn call(
        &self,
        peer: PeerId,
        name: &'static str,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        self.call_unary(peer, name, request, timeout).boxed()
    }

    fn withhold(&self, names: &[&'static str], withheld: bool) {
        Self::withhold(self, names, withheld);
    }
}
