//! One peer that calls wait for while a connection to it is being made: what was tried, and who waits.

use libp2p::{Multiaddr, TransportError, kad::QueryId, swarm};
use std::{error::Error, io};

use super::{
    error::DialError,
    rpc::{OpenFailure, OpenRequest},
};

/// Streams that may wait for one peer to be found.
const MAX_PARKED: usize = 1024;

/// What is being tried, in this order. Every step is taken once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing yet.
    Start,
    /// Dialing the known addresses that need no relay.
    Direct,
    /// Dialing the known addresses behind relays.
    Relayed,
    /// Asking others; the query dials the peer itself as soon as it hears of an address.
    Lookup(QueryId),
    /// The query is over and a dial that it started is not.
    LastDial,
}

/// The search for one peer.
#[derive(Debug)]
pub(crate) struct Seek {
    pub(crate) stage: Stage,
    parked: Vec<OpenRequest>,
    last_error: Option<DialError>,
}

impl Seek {
    pub(crate) fn new() -> Self {
        Self {
            stage: Stage::Start,
            parked: Vec::new(),
            last_error: None,
        }
    }

    /// Lets a stream wait.
    pub(crate) fn park(&mut self, request: OpenRequest) {
        self.parked.retain(|waiting| !waiting.reply.is_closed());
        if self.parked.len() < MAX_PARKED {
            self.parked.push(request);
        } else {
            let _ = request.reply.send(Err(OpenFailure::Busy));
        }
    }

    /// Remembers why a step failed. What an address said is worth more than that there was none.
    pub(crate) fn note(&mut self, error: DialError) {
        if self.last_error.is_none() || !matches!(error, DialError::NotFound) {
            self.last_error = Some(error);
        }
    }

    /// The streams that waited, when the peer is connected.
    pub(crate) fn into_parked(self) -> Vec<OpenRequest> {
        self.parked
    }

    /// Tells everyone who waited that the peer cannot be reached.
    pub(crate) fn fail(self) -> DialError {
        let error = self.last_error.unwrap_or(DialError::NotFound);
        for request in self.parked {
            let _ = request.reply.send(Err(OpenFailure::Dial(error.clone())));
        }
        error
    }
}

/// What libp2p says about a failed dial, by what the caller can do.
pub(crate) fn dial_error(error: &swarm::DialError) -> DialError {
    match error {
        swarm::DialError::LocalPeerId { .. } => DialError::Ourselves,
        swarm::DialError::NoAddresses => DialError::NotFound,
        swarm::DialError::WrongPeerId { obtained, address } => DialError::WrongPeer {
            addr: address.clone(),
            found: *obtained,
        },
        swarm::DialError::Denied { .. } => DialError::Limit,
        swarm::DialError::Transport(failures) => DialError::Unreachable {
            tried: failures
                .iter()
                .map(|(addr, failure)| (addr.clone(), describe(failure)))
                .collect(),
        },
        swarm::DialError::Aborted | swarm::DialError::DialPeerConditionFalse(_) => {
            DialError::Unreachable { tried: Vec::new() }
        }
    }
}

/// The addresses at which a dial failed.
pub(crate) fn failed_addrs(error: &swarm::DialError) -> Vec<Multiaddr> {
    match error {
        swarm::DialError::WrongPeerId { address, .. } => vec![address.clone()],
        swarm::DialError::Transport(failures) => failures.iter().map(|(addr, _)| addr.clone()).collect(),
        _ => Vec::new(),
    }
}

/// The innermost reason: the outer ones repeat what layer it came through.
fn describe(failure: &TransportError<io::Error>) -> String {
    let mut reason: &dyn Error = match failure {
        TransportError::MultiaddrNotSupported(_) => return "not an address this node can dial".to_owned(),
        TransportError::Other(error) => error,
    };
    while let Some(inner) = reason.source() {
        reason = inner;
    }
    reason.to_string()
}
