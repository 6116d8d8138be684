//! What can go wrong between peers, by what the caller can do about it.

use std::{io, time::Duration};

use libp2p::{Multiaddr, PeerId};
use sepal_protocol::WireError;

/// Why the host could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address as configured.
        addr: Multiaddr,
        /// What the transport said.
        #[source]
        source: io::Error,
    },
    /// A listener did not report its address in time.
    #[error("{addr} is still not open for connections after {} s", waited.as_secs())]
    Timeout {
        /// The address as configured.
        addr: Multiaddr,
        /// How long was waited.
        waited: Duration,
    },
    /// The address of a known peer does not say which peer is there.
    #[error("{addr} does not end in /p2p/PEER-ID")]
    KnownPeer {
        /// The address as configured.
        addr: Multiaddr,
    },
    /// The local network cannot be asked who is there.
    #[error("cannot look for other nodes on the local network (mDNS, UDP port 5353)")]
    Mdns {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The name of a swarm on the local network will not do.
    #[error("{name:?} is no name for a swarm: 1 to 64 letters, digits, dots, dashes and underscores")]
    LanName {
        /// The name as configured.
        name: String,
    },
    /// A QUIC address in a swarm with a key.
    #[error("{addr} is QUIC, which has no swarm keys: with --swarm-key nodes listen on TCP only")]
    QuicWithSwarmKey {
        /// The address as configured.
        addr: Multiaddr,
    },
    /// The key is unusable.
    #[error("the network host cannot be set up")]
    Setup {
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why there is no connection to a peer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The address does not say which peer is there.
    #[error("{0} does not end in /p2p/PEER-ID")]
    NoPeerId(Multiaddr),
    /// The peer id is our own.
    #[error("that peer is this node itself")]
    Ourselves,
    /// Neither this node nor any peer it asked knows an address.
    #[error("no address of the peer is known")]
    NotFound,
    /// Every known address was tried in vain.
    #[error("none of {} addresses could be reached{}", tried.len(), first_reasons(tried))]
    Unreachable {
        /// What was tried, with what the transport said.
        tried: Vec<(Multiaddr, String)>,
    },
    /// Another peer answered there.
    #[error("a different peer, {found}, is at {addr}")]
    WrongPeer {
        /// Where.
        addr: Multiaddr,
        /// Who answered.
        found: PeerId,
    },
    /// One of our own limits on connections.
    #[error("refused by a connection limit of this node")]
    Limit,
    /// Took too long.
    #[error("no connection within {} ms", after.as_millis())]
    Timeout {
        /// The limit.
        after: Duration,
    },
    /// The program is ending.
    #[error("the node is stopping")]
    Stopping,
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no connection and none could be made.
    #[error("no connection to the peer")]
    Dial(#[source] DialError),
    /// The peer is connected and does not serve this call.
    #[error("the peer does not serve this call")]
    UnknownName,
    /// The connection broke while the stream was being opened, repeatedly.
    #[error("the connection broke")]
    ConnectionLost,
    /// More streams wait to be opened to this peer than this node allows.
    #[error("too many streams to this peer are being opened")]
    Busy,
    /// Took too long.
    #[error("no stream within {} ms", after.as_millis())]
    Timeout {
        /// The limit.
        after: Duration,
    },
}

/// Why a unary call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No stream to the peer: it is away, or does not serve the call.
    #[error("the call did not reach the peer")]
    Open(#[source] OpenError),
    /// The peer executed the call and reports a failure, in its own words.
    #[error("the peer answered with an error: {text}")]
    Remote {
        /// What the peer says.
        text: String,
    },
    /// The request is larger than any peer reads. Nothing was sent.
    #[error("a request of {size} bytes is over the limit of {limit} bytes for one message")]
    TooLarge {
        /// Bytes of the request.
        size: usize,
        /// Bytes a peer accepts.
        limit: usize,
    },
    /// The peer closed the stream instead of answering.
    #[error("the peer closed the stream without an answer")]
    NoAnswer,
    /// The answer is not what the protocol allows.
    #[error("the answer is malformed")]
    Malformed(#[source] WireError),
    /// The stream or its connection broke.
    #[error("the stream broke")]
    Io(#[source] io::Error),
    /// Took too long.
    #[error("no answer within {} ms", after.as_millis())]
    Timeout {
        /// The limit.
        after: Duration,
    },
}

impl CallError {
    /// Whether the peer was reached and does not serve this call.
    pub fn is_unknown_name(&self) -> bool {
        matches!(self, Self::Open(OpenError::UnknownName))
    }
}

/// Why a stream of messages ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer reports a failure, in its own words.
    #[error("the peer reports an error: {text}")]
    Remote {
        /// What the peer says; may be empty.
        text: String,
    },
    /// The peer is connected and does not serve this call. (A stream is opened without waiting for the peer's yes, so
    /// this shows at the first use.)
    #[error("the peer does not serve this call")]
    UnknownName,
    /// What came is not what the protocol allows, or is larger than this call accepts.
    #[error("a malformed record")]
    Malformed(#[source] WireError),
    /// A message of ours is larger than this call allows. It was not sent.
    #[error("a message of {size} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// Bytes of the message.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The stream was ended by us before.
    #[error("the stream is already ended")]
    Ended,
    /// The caller went away.
    #[error("the caller is gone")]
    Cancelled,
    /// The stream or its connection broke.
    #[error("the stream broke")]
    Io(#[source] io::Error),
}

/// A failure inside a handler: the text that goes to the caller over the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HandlerError(pub String);

impl HandlerError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// The first few of what was tried; a peer may have sixteen addresses.
fn first_reasons(tried: &[(Multiaddr, String)]) -> String {
    let shown = tried.iter().take(3).map(|(addr, reason)| format!("; {addr}: {reason}"));
    shown.collect()
}

/// Tells "the peer refused the name" from other failures: libp2p reports it as an I/O error at the first read.
pub(crate) fn is_refused_name(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<libp2p::core::upgrade::NegotiationError>())
        .is_some_and(|inner| matches!(inner, libp2p::core::upgrade::NegotiationError::Failed))
}
