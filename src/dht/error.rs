//! Why a node could not join the DHT. Everything else a DHT does may fail in part, and reports what it achieved.

use std::{error::Error, fmt};

use crate::p2p::{CallError, DialError, Multiaddr};

/// None of the initial peers can be used.
#[derive(Debug, thiserror::Error)]
#[error("none of the initial peers can be used{}", OnePerLine(failures))]
pub struct BootstrapError {
    /// What is wrong with each of them.
    pub failures: Vec<UnusablePeer>,
}

impl BootstrapError {
    /// Whether at least one peer answered and its clock is what stood in the way: then the clock here may be the wrong one.
    pub fn is_clock(&self) -> bool {
        self.failures
            .iter()
            .any(|failure| matches!(failure.reason, Unusable::ClockSkew { .. }))
    }
}

/// An initial peer that cannot be used. It is shown with all causes: it is one of several, so nobody else can ask for them.
#[derive(Debug)]
pub struct UnusablePeer {
    /// The peer, as it was configured.
    pub addr: Multiaddr,
    /// Why it cannot be used.
    pub reason: Unusable,
}

impl fmt::Display for UnusablePeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.addr, self.reason)?;
        let mut cause = self.reason.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// What makes a peer useless as an initial peer (hivemind, `dht/protocol.py`, `call_ping` with `validate`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// There is no connection to it.
    #[error("it cannot be connected to")]
    Dial(#[source] DialError),
    /// It does not answer `rpc_ping`.
    #[error("it does not answer as a DHT node")]
    Silent(#[source] CallError),
    /// It took longer than the others and was not waited for.
    #[error("it did not answer in time")]
    Late,
    /// It is a client: it does not serve the DHT.
    #[error("it is a client and holds no part of the DHT")]
    Client,
    /// It could not call this node back, which a node that is not a client must allow.
    #[error("it cannot call this node back: if this node cannot be reached from outside, run it in client mode")]
    NoWayBack,
    /// Its clock and ours are too far apart for expirations to mean the same.
    #[error(
        "its clock is {:.1} s {} ours, more than {limit_s} s: set the clock of this machine, or of that one",
        offset_s.abs(),
        if *offset_s > 0.0 { "ahead of" } else { "behind" }
    )]
    ClockSkew {
        /// Its time minus ours, in seconds.
        offset_s: f64,
        /// Largest allowed difference, in seconds.
        limit_s: f64,
    },
}

struct OnePerLine<'a>(&'a [UnusablePeer]);

impl fmt::Display for OnePerLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}
