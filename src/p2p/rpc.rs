//! Named substreams: opened to a peer on demand, and accepted when the router serves the name.
//!
//! This is a behaviour of ours instead of `libp2p-stream`, which negotiates one outbound stream at a time, drops inbound
//! streams in bursts, and may pick a relayed connection although there is a direct one. Here every connection handler has
//! a bounded queue of streams to open, any number of them negotiate at once, direct connections are preferred, and inbound
//! streams go straight to the router, which takes a permit or refuses.
//!
//! It does not dial (the actor does) and does not know what is said on a stream.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, UpgradeInfo, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour, Stream,
        StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{mpsc, oneshot};

use super::{addr::is_relayed, bare_names, error::DialError, router::Registry};

/// Streams that wait to be opened on one connection. A client with a thousand calls at once is at the limit of what
/// yamux lets a connection carry; more than that is refused, not queued.
const MAX_WAITING: usize = 1024;

/// Limit for agreeing on the name of one stream, the same as p2pd's listening side.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection this young is used only if there is no older one: AutoNAT's servers make connections just to see whether
/// they can, and close them after a few seconds. A peer that restarted closes its old connections, or fails our pings in
/// that time.
const PROBATION: Duration = Duration::from_secs(30);

/// A name in the spelling that rust-libp2p accepts. Cheap to clone: the set is gathered at every poll of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(Arc<str>);

impl Name {
    /// From the name on the wire.
    pub(crate) fn new(wire: &str) -> Self {
        Self(bare_names::local_name(wire).into())
    }

    /// The name on the wire.
    pub(crate) fn wire(&self) -> &str {
        bare_names::wire_name(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Why a stream was not opened.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// There is no connection, and dialing failed (the actor says so).
    Dial(DialError),
    /// Too many streams wait to be opened.
    Busy,
    UnknownName,
    Timeout,
    ConnectionLost,
}

/// One stream to be opened, and who wants it. Dropping the receiving end gives the wish up.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) name: Name,
    pub(crate) reply: oneshot::Sender<Result<Stream, OpenFailure>>,
}

/// Why [`Behaviour::open`] did not take a request, which is given back.
#[derive(Debug)]
pub(crate) enum Refused {
    NotConnected(OpenRequest),
    Busy(OpenRequest),
}

/// A message to the handler of one connection.
#[derive(Debug)]
enum ToHandler {
    Open(OpenRequest),
    /// The set of served names is another one now: libp2p looks at it again after any wake-up.
    NamesChanged,
}

/// One connection to a peer.
#[derive(Debug)]
struct Link {
    id: ConnectionId,
    relayed: bool,
    since: Instant,
    to_handler: mpsc::Sender<ToHandler>,
}

/// The behaviour: which connections there are.
pub(crate) struct Behaviour {
    registry: Arc<Registry>,
    links: HashMap<PeerId, Vec<Link>>,
}

impl Behaviour {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            links: HashMap::new(),
        }
    }

    /// Hands `request` to the best connection of `peer`: a direct one if there is any, of those the newest (an older one
    /// may be a leftover from before the peer restarted) that is past its [`PROBATION`].
    pub(crate) fn open(&mut self, peer: &PeerId, request: OpenRequest, now: Instant) -> Result<(), Refused> {
        let Some(links) = self.links.get_mut(peer) else {
            return Err(Refused::NotConnected(request));
        };
        links.sort_by_key(|link| {
            let age = now.saturating_duration_since(link.since);
            let new = age < PROBATION;
            (link.relayed, new, if new { Duration::MAX - age } else { age })
        });
        let mut command = ToHandler::Open(request);
        let mut busy = false;
        for link in links {
            command = match link.to_handler.try_send(command) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(back)) => {
                    busy = true;
                    back
                }
                Err(mpsc::error::TrySendError::Closed(back)) => back,
            };
        }
        match command {
            ToHandler::Open(request) if busy => Err(Refused::Busy(request)),
            ToHandler::Open(request) => Err(Refused::NotConnected(request)),
            ToHandler::NamesChanged => Ok(()),
        }
    }

    /// Makes every connection look at the served names again, so that identify pushes them.
    pub(crate) fn names_changed(&self) {
        for link in self.links.values().flatten() {
            // A full queue wakes the handler anyway.
            let _ = link.to_handler.try_send(ToHandler::NamesChanged);
        }
    }

    fn add_link(&mut self, peer: PeerId, id: ConnectionId, addr: &Multiaddr, now: Instant) -> Handler {
        let (to_handler, commands) = mpsc::channel(MAX_WAITING);
        let link = Link {
            id,
            relayed: is_relayed(addr),
            since: now,
            to_handler,
        };
        self.links.entry(peer).or_default().push(link);
        Handler {
            peer,
            registry: self.registry.clone(),
            commands,
        }
    }

    fn drop_link(&mut self, peer: PeerId, id: ConnectionId) {
        self.registry.origins().disconnected(peer, id);
        if let Some(links) = self.links.get_mut(&peer) {
            links.retain(|link| link.id != id);
            if links.is_empty() {
                self.links.remove(&peer);
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.registry.origins().connected(peer, id, remote);
        Ok(self.add_link(peer, id, local, Instant::now()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.registry.origins().connected(peer, id, addr);
        Ok(self.add_link(peer, id, addr, Instant::now()))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(closed) => self.drop_link(closed.peer_id, closed.connection_id),
            // A behaviour beside this one may have refused the connection after we made a handler for it.
            FromSwarm::DialFailure(failure) => {
                if let Some(peer) = failure.peer_id {
                    self.drop_link(peer, failure.connection_id);
                }
            }
            FromSwarm::ListenFailure(failure) => {
                if let Some(peer) = failure.peer_id {
                    self.drop_link(peer, failure.connection_id);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// The names that are accepted now.
pub(crate) struct Served(Arc<[Name]>);

impl UpgradeInfo for Served {
    type Info = Name;
    type InfoIter = Vec<Name>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.to_vec()
    }
}

impl libp2p::core::InboundUpgrade<Stream> for Served {
    type Output = (Stream, Name);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, name: Name) -> Self::Future {
        ready(Ok((stream, name)))
    }
}

/// The one name that is asked for.
pub(crate) struct Wanted(Name);

impl UpgradeInfo for Wanted {
    type Info = Name;
    type InfoIter = std::iter::Once<Name>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0.clone())
    }
}

impl libp2p::core::OutboundUpgrade<Stream> for Wanted {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, _: Name) -> Self::Future {
        ready(Ok(stream))
    }
}

/// The streams of one connection.
pub(crate) struct Handler {
    peer: PeerId,
    registry: Arc<Registry>,
    commands: mpsc::Receiver<ToHandler>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Served;
    type OutboundProtocol = Wanted;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Result<Stream, OpenFailure>>;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(Served(self.registry.names()), ()).with_timeout(NEGOTIATION_TIMEOUT)
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        loop {
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(ToHandler::Open(request))) if request.reply.is_closed() => {}
                Poll::Ready(Some(ToHandler::Open(OpenRequest { name, reply }))) => {
                    let protocol = SubstreamProtocol::new(Wanted(name), reply).with_timeout(NEGOTIATION_TIMEOUT);
                    return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
                }
                Poll::Ready(Some(ToHandler::NamesChanged)) => {}
                // The behaviour only drops its end when the connection is closed.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), Self::OutboundOpenInfo>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, name),
                ..
            }) => self.registry.accept(self.peer, &name, stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                // The caller may be gone; then the stream is dropped here, which resets it.
                let _ = info.send(Ok(protocol));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let _ = info.send(Err(match error {
                    StreamUpgradeError::NegotiationFailed => OpenFailure::UnknownName,
                    StreamUpgradeError::Timeout => OpenFailure::Timeout,
                    StreamUpgradeError::Io(_) => OpenFailure::ConnectionLost,
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::multiaddr::Protocol;

    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn request() -> (OpenRequest, oneshot::Receiver<Result<Stream, OpenFailure>>) {
        let (reply, opened) = oneshot::channel();
        let name = Name::new("A.b");
        (OpenRequest { name, reply }, opened)
    }

    fn asked(handler: &mut Handler) -> bool {
        matches!(handler.commands.try_recv(), Ok(ToHandler::Open(_)))
    }

    fn circuit() -> Multiaddr {
        addr("/ip4/8.8.8.8/tcp/1")
            .with(Protocol::P2p(PeerId::random()))
            .with(Protocol::P2pCircuit)
    }

    #[test]
    fn a_stream_is_asked_of_a_direct_connection_and_of_the_newest() {
        let (mut rpc, peer, start) = (Behaviour::new(Arc::default()), PeerId::random(), Instant::now());
        let direct = addr("/ip4/8.8.8.8/tcp/1");
        let later = start + 2 * PROBATION;
        let mut older = rpc.add_link(peer, ConnectionId::new_unchecked(1), &direct, start);
        let mut newer = rpc.add_link(peer, ConnectionId::new_unchecked(2), &direct, start + PROBATION);
        let mut relayed = rpc.add_link(peer, ConnectionId::new_unchecked(3), &circuit(), start);

        assert!(rpc.open(&peer, request().0, later).is_ok());
        assert!(asked(&mut newer) && !asked(&mut older) && !asked(&mut relayed));
        drop(newer);
        assert!(rpc.open(&peer, request().0, later).is_ok());
        assert!(asked(&mut older) && !asked(&mut relayed));
        rpc.drop_link(peer, ConnectionId::new_unchecked(1));
        rpc.drop_link(peer, ConnectionId::new_unchecked(2));
        assert!(rpc.open(&peer, request().0, later).is_ok());
        assert!(asked(&mut relayed));
        rpc.drop_link(peer, ConnectionId::new_unchecked(3));
        assert!(matches!(
            rpc.open(&peer, request().0, later),
            Err(Refused::NotConnected(_))
        ));
    }

    #[test]
    fn a_connection_that_may_be_closed_after_a_few_seconds_is_used_last() {
        let (mut rpc, peer, start) = (Behaviour::new(Arc::default()), PeerId::random(), Instant::now());
        let direct = addr("/ip4/8.8.8.8/tcp/1");
        let mut relayed = rpc.add_link(peer, ConnectionId::new_unchecked(1), &circuit(), start);
        let mut first = rpc.add_link(peer, ConnectionId::new_unchecked(2), &direct, start);
        assert!(rpc.open(&peer, request().0, start).is_ok());
        assert!(
            asked(&mut first) && !asked(&mut relayed),
            "a direct one is used at once"
        );

        let second = start + PROBATION / 2;
        let mut dialed_back = rpc.add_link(peer, ConnectionId::new_unchecked(3), &direct, second);
        for moment in [second, start + PROBATION] {
            assert!(rpc.open(&peer, request().0, moment).is_ok());
            assert!(asked(&mut first) && !asked(&mut dialed_back));
        }
        assert!(rpc.open(&peer, request().0, second + PROBATION).is_ok());
        assert!(asked(&mut dialed_back) && !asked(&mut first));
    }

    #[test]
    fn more_waiting_streams_than_the_bound_are_refused() {
        let (mut rpc, peer, now) = (Behaviour::new(Arc::default()), PeerId::random(), Instant::now());
        let _handler = rpc.add_link(peer, ConnectionId::new_unchecked(1), &addr("/ip4/8.8.8.8/tcp/1"), now);
        for _ in 0..MAX_WAITING {
            assert!(rpc.open(&peer, request().0, now).is_ok());
        }
        assert!(matches!(rpc.open(&peer, request().0, now), Err(Refused::Busy(_))));
    }
}
