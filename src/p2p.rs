//! The libp2p host: connections, named streams and the addresses of peers. It knows no tensors and no records.
//!
//! [`P2p`] is a cloneable handle to one task (`actor.rs`) that owns the libp2p swarm and never waits for a peer. Others
//! call out with [`P2p::call_unary`] and [`P2p::open_stream`], and serve calls by giving [`Handler`]s to a [`Router`]:
//!
//! ```text
//! call_unary(peer, name, request)                    inbound stream
//!   │ actor.rs   connected? else dial: addresses        │ rpc.rs      is the name served?
//!   │            from book.rs, else ask kad             ▼ router.rs   permit, task
//!   ▼ rpc.rs     a stream on the best connection        ▼ unary.rs · stream.rs   frames, cancellation
//!   ▼ unary.rs   frame, answer                          ▼ the handler
//! ```
//!
//! Three things are particular to Hivemind: names have no leading slash (`bare_names.rs`, `muxer.rs`), closing one's side
//! of a stream means "cancelled" (`unary.rs`, `stream.rs`), and libp2p's kad is nothing but an address book
//! (`kad_server.rs`).

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use libp2p::Stream;
pub use libp2p::{Multiaddr, PeerId};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::task::Tasks;

mod actor;
mod addr;
mod bandwidth;
mod bare_names;
mod behaviour;
mod book;
mod contacts;
mod error;
mod gossip;
mod guard;
mod identity;
mod kad_server;
mod lan;
mod muxer;
mod opening;
mod origins;
mod paced;
mod portmap;
mod reachability;
mod relay;
mod router;
mod rpc;
mod seek;
mod stream;
mod swarm_key;
#[cfg(test)]
mod tests;
mod transfer;
mod transport;
mod unary;
mod usage;
mod wire;

use actor::Command;
pub use addr::{is_loopback, is_quic, is_relayed, on_port, peer_of as peer_id_of, without_peer};
pub use bandwidth::Bandwidth;
pub use contacts::Contact;
pub use error::{BindError, CallError, DialError, HandlerError, OpenError, StreamError};
pub use gossip::{GossipConfig, Heard, MAX_GOSSIP, PublishError};
pub use identity::{Identity, IdentityError, is_signed_by};
pub use portmap::{Mapper, Mapping, PortMap};
pub use reachability::{Evidence, Reachability, Source, Standing, Verdict};
pub use router::{Handler, HandlerLimits, Router};
use rpc::{Name, OpenFailure};
pub use stream::{StreamReceiver, StreamSender};
pub use swarm_key::{SwarmKey, SwarmKeyError};
pub use transfer::Transfer;
pub(crate) use unary::Asked;

/// Commands that wait for the actor. It answers none of them late, so this many wait only under a burst of calls.
const COMMAND_QUEUE: usize = 1024;

/// How often a stream is asked for when connections break under the attempt.
const OPEN_ATTEMPTS: usize = 3;

/// Limit for [`P2p::connect`]; Hivemind's daemon allows the same for all addresses of a peer together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest message of a stream that this node calls, bytes. The same as what its handlers accept by default.
const MAX_STREAM_MESSAGE: usize = 16 * 1024 * 1024;

/// What a host is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Port 0 is any free port; wildcard addresses become those of the interfaces.
    pub listen: Vec<Multiaddr>,
    /// What to tell others instead of what is listened on. Empty: what is listened on, loopback only if there is nothing else.
    pub announce: Vec<Multiaddr>,
    /// Tell nobody where this node listens: it does so only for peers behind routers, with whom it agrees over a relay on
    /// dialing each other at the same moment (DCUtR).
    pub unlisted: bool,
    /// The key.
    pub identity: Identity,
    /// The key of a private swarm: no connection is made with anyone who has not the same one. QUIC is off with it.
    pub swarm_key: Option<SwarmKey>,
    /// Whether to ask for addresses only, and not to answer others who ask (`/ipfs/kad/1.0.0` is not served), until
    /// [`P2p::set_client_mode`] says otherwise.
    pub client_mode: bool,
    /// Peers to stay connected to, and to ask for addresses of others: the bootstrap nodes. Each ends in `/p2p/PEER-ID`.
    pub known_peers: Vec<Multiaddr>,
    /// The name of a swarm whose nodes on the local network are to be found, and treated like known peers.
    pub lan: Option<String>,
    /// What to gossip about; `None`: not at all.
    pub gossip: Option<GossipConfig>,
    /// Whether to ask the router for the ports that are listened on, over UPnP, PCP and NAT-PMP. Nothing is asked when all
    /// of it is loopback, or when `announce` says where others find this node.
    pub map_ports: bool,
    /// Relays: to be one, to use some.
    pub relay: RelayConfig,
    /// Whether to ask peers if this node can be dialed, and to answer when they ask (AutoNAT v1 and v2).
    pub autonat: bool,
    /// Bounds on connections.
    pub limits: Limits,
    /// What all connections together may carry.
    pub bandwidth: Bandwidth,
}

impl Default for Config {
    /// A fresh identity on any free port of the loopback interface, which asks nobody how it is reached.
    fn default() -> Self {
        let loopback = Multiaddr::empty()
            .with(libp2p::core::multiaddr::Protocol::Ip4(std::net::Ipv4Addr::LOCALHOST))
            .with(libp2p::core::multiaddr::Protocol::Tcp(0));
        Self {
            listen: vec![loopback],
            announce: Vec::new(),
            unlisted: false,
            identity: Identity::ephemeral(),
            swarm_key: None,
            client_mode: false,
            known_peers: Vec::new(),
            lan: None,
            gossip: None,
            map_ports: false,
            relay: RelayConfig::default(),
            autonat: false,
            limits: Limits::default(),
            bandwidth: Bandwidth::default(),
        }
    }
}

impl Config {
    /// A node on a free port of the loopback interface, which joins through those known peers.
    pub fn on_loopback(known_peers: Vec<Multiaddr>) -> Self {
        Self {
            known_peers,
            ..Self::default()
        }
    }

    /// A node that only dials out, to those known peers and to others through them, and is there for nobody.
    pub fn client(known_peers: Vec<Multiaddr>) -> Self {
        Self {
            listen: Vec::new(),
            client_mode: true,
            known_peers,
            ..Self::default()
        }
    }
}

/// What this node does with relays (circuit relay v2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Be a relay for others, as long as this node can be dialed itself.
    pub serve: bool,
    /// Hold reservations at relays, as long as this node cannot be dialed.
    pub auto: bool,
    /// Relays to prefer over those that are met. Each ends in `/p2p/PEER-ID`.
    pub trusted: Vec<Multiaddr>,
    /// Reach others through relays. Only a node that tests whether others can be dialed does not.
    pub dial: bool,
    /// Bounds on what this node does as a relay.
    pub limits: RelayLimits,
}

/// Bounds on what a relay does for others. Over a bound it refuses, and says so to whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// Nodes that are reached through the relay.
    pub reservations: usize,
    /// Circuits that begin or end at the peer that asks for another one.
    pub circuits_per_peer: usize,
}

impl Default for RelayLimits {
    /// Those that Hivemind's daemon has when it is reachable (`p2pd/main.go`).
    fn default() -> Self {
        Self {
            reservations: 128,
            circuits_per_peer: 16,
        }
    }
}

impl Default for RelayConfig {
    /// Reaches others through relays, and nothing else.
    fn default() -> Self {
        Self {
            serve: false,
            auto: false,
            trusted: Vec::new(),
            dial: true,
            limits: RelayLimits::default(),
        }
    }
}

/// Bounds on connections. Over a bound, new ones are refused; above the high-water mark old ones are closed (`guard.rs`).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all, both directions.
    pub connections: u32,
    /// Connections to one peer: two ends that dial each other at once have two, a relayed one may come on top.
    pub connections_per_peer: u32,
    /// Inbound connections whose handshake is under way.
    pub pending_incoming: u32,
    /// Outbound connections whose handshake is under way.
    pub pending_outgoing: u32,
    /// Streams of one connection, and of these negotiations under way.
    pub streams_per_connection: usize,
    /// With more connected peers than this, the quietest are disconnected …
    pub high_water: usize,
    /// … until this many are left.
    pub low_water: usize,
    /// How long a peer may stay that shows no sign of belonging to a Hivemind swarm: the time to make its first call.
    pub stranger_grace: Duration,
}

impl Default for Limits {
    /// Hivemind's daemon trims its connections at 512; a server of a large swarm has a few hundred clients and the DHT.
    fn default() -> Self {
        Self {
            connections: 2048,
            connections_per_peer: 8,
            pending_incoming: 256,
            pending_outgoing: 256,
            streams_per_connection: 4096,
            high_water: 1024,
            low_water: 768,
            stranger_grace: Duration::from_secs(10),
        }
    }
}

/// A running host. Clones are handles to the same one.
#[derive(Clone)]
pub struct P2p {
    peer_id: PeerId,
    identity: Identity,
    commands: mpsc::Sender<Command>,
    registry: Arc<router::Registry>,
    swarm_key: Option<SwarmKey>,
    bandwidth: Bandwidth,
    addrs: watch::Receiver<Vec<Multiaddr>>,
    connected: watch::Receiver<BTreeSet<PeerId>>,
    reachability: watch::Receiver<Reachability>,
    neighbours: watch::Receiver<BTreeSet<Multiaddr>>,
    port_map: watch::Receiver<PortMap>,
    heard: broadcast::Sender<Heard>,
}

impl P2p {
    /// Starts a host; it listens, and its addresses are known, when this returns. It serves nothing but libp2p's own
    /// protocols until a [`Router`] is spawned.
    ///
    /// # Errors
    ///
    /// If an address cannot be listened on, or the key is unusable.
    pub async fn bind(config: Config, tasks: &Tasks) -> Result<P2p, BindError> {
        let registry = Arc::new(router::Registry::default());
        let swarm = behaviour::swarm(&config, registry.clone())?;
        let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
        let (peer_id, identity) = (config.identity.peer_id(), config.identity.clone());
        let (swarm_key, bandwidth) = (config.swarm_key.clone(), config.bandwidth.clone());
        let (addrs_out, addrs) = watch::channel(Vec::new());
        let (connected_out, connected) = watch::channel(BTreeSet::new());
        let (port_map_out, port_map) = watch::channel(PortMap::default());
        let maps_ports = portmap::wanted(&config);
        let (neighbours_out, neighbours) = watch::channel(BTreeSet::new());
        let heard = broadcast::Sender::new(gossip::HEARD_QUEUE);
        let (reachability_out, reachability) = watch::channel(Reachability::default());
        registry.withhold(&[kad_server::NAME], config.client_mode);
        registry.add(vec![actor::kad_handler(commands.downgrade())], tasks);
        if let Some(name) = &config.lan {
            let protocol = lan::protocol(name).ok_or_else(|| BindError::LanName { name: name.clone() })?;
            // It is there to be seen; nobody has anything to say on it.
            registry.add(
                vec![Handler::raw(&protocol, HandlerLimits::default(), |_, _| async {})],
                tasks,
            );
        }
        let mut actor = actor::Actor::new(
            swarm,
            config,
            actor::Outputs {
                addrs: addrs_out,
                connected: connected_out,
                reachability: reachability_out,
                neighbours: neighbours_out,
                port_map: port_map_out,
                heard: heard.clone(),
            },
            registry.usage().clone(),
        );
        actor.listen().await?;
        if maps_ports {
            let ports = portmap::ports(actor.listened());
            tasks.spawn(
                "ports",
                portmap::keep_at_gateway(ports, commands.clone(), tasks.token()),
            );
        }
        tasks.spawn("p2p", actor.run(inbox, tasks.token()));
        Ok(P2p {
            peer_id,
            identity,
            commands,
            registry,
            swarm_key,
            bandwidth,
            addrs,
            connected,
            reachability,
            neighbours,
            port_map,
            heard,
        })
    }

    /// The id of this node.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The key of this node, to sign with.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where others can reach this node, each address ending in `/p2p/PEER-ID`.
    pub fn addrs(&self) -> Vec<Multiaddr> {
        self.addrs.borrow().clone()
    }

    /// The same, whenever it changes.
    pub fn watch_addrs(&self) -> watch::Receiver<Vec<Multiaddr>> {
        self.addrs.clone()
    }

    /// What another host on this machine is made from that only dials out, and not through relays, belongs to the same
    /// swarm, and shares neither the identity nor any connection with this one: to see this network as a stranger does.
    pub fn stranger(&self) -> Config {
        Config {
            swarm_key: self.swarm_key.clone(),
            bandwidth: self.bandwidth.clone(),
            relay: RelayConfig {
                dial: false,
                ..RelayConfig::default()
            },
            ..Config::client(self.addrs())
        }
    }

    /// The nodes of the same swarm on the local network ([`Config::lan`]), each address ending in `/p2p/PEER-ID`.
    pub fn lan_peers(&self) -> watch::Receiver<BTreeSet<Multiaddr>> {
        self.neighbours.clone()
    }

    /// What others say on the topics of [`Config::gossip`], from now on. Whoever reads too slowly misses the oldest.
    pub fn heard(&self) -> broadcast::Receiver<Heard> {
        self.heard.subscribe()
    }

    /// Says something to everyone who listens to `topic`, one of [`Config::gossip`].
    ///
    /// # Errors
    /// If it went to nobody.
    pub async fn publish(&self, topic: &str, message: Bytes) -> Result<(), PublishError> {
        let (reply, sent) = oneshot::channel();
        let topic = topic.to_owned();
        let command = Command::Publish { topic, message, reply };
        self.command(command).await.map_err(|_| PublishError::Stopping)?;
        sent.await.unwrap_or(Err(PublishError::Stopping))
    }

    /// What came of asking the router for ports ([`Config::map_ports`]).
    pub fn port_map(&self) -> watch::Receiver<PortMap> {
        self.port_map.clone()
    }

    /// Everyone there is a connection to.
    pub fn connected_peers(&self) -> Vec<PeerId> {
        self.connected.borrow().iter().copied().collect()
    }

    /// The same, with what is known of each; empty when the node stops.
    pub async fn contacts(&self) -> Vec<Contact> {
        let (reply, contacts) = oneshot::channel();
        match self.command(Command::Contacts(reply)).await {
            Ok(()) => contacts.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// From which addresses a peer is connected: none where it comes through a relay.
    pub fn origins(&self, peer: &PeerId) -> Vec<IpAddr> {
        self.registry.origins().of(peer)
    }

    /// What all connections together may carry.
    pub fn bandwidth(&self) -> &Bandwidth {
        &self.bandwidth
    }

    /// Whether strangers can dial this node, how that is known, and at which relays it can be reached if they cannot.
    pub fn reachability(&self) -> watch::Receiver<Reachability> {
        self.reachability.clone()
    }

    /// Reports the verdict of Petals' `rpc_check`: whether peers that were asked to dial this node got through.
    pub async fn judge(&self, verdict: Verdict) {
        // A node that is stopping needs no verdict.
        let _ = self.command(Command::Judge(verdict)).await;
    }

    /// Whether to only ask for addresses of others from now on (`true`), or to answer those who ask as well. Everyone who
    /// is connected learns of it through identify: Go nodes keep a peer in their table only while it serves kad.
    pub fn set_client_mode(&self, client: bool) {
        self.withhold(&[kad_server::NAME], client);
    }

    /// Stops to accept these names, or accepts them again. Who serves them makes no difference, nor whether anyone does
    /// yet; calls that run go on.
    pub fn withhold(&self, names: &[&str], withheld: bool) {
        self.registry.withhold(names, withheld);
        self.names_changed();
    }

    /// Connects to the peer at `addr`, which ends in `/p2p/PEER-ID`. Returns at once if it is connected already.
    ///
    /// # Errors
    ///
    /// If nobody, or somebody else, answers there.
    pub async fn connect(&self, addr: Multiaddr) -> Result<PeerId, DialError> {
        let peer = addr::peer_of(&addr).ok_or_else(|| DialError::NoPeerId(addr.clone()))?;
        let (reply, connected) = oneshot::channel();
        let dial = async {
            self.command(Command::Connect { peer, addr, reply }).await?;
            connected.await.unwrap_or(Err(DialError::Stopping))
        };
        let after = CONNECT_TIMEOUT;
        tokio::time::timeout(after, dial)
            .await
            .unwrap_or(Err(DialError::Timeout { after }))?;
        Ok(peer)
    }

    /// Calls the unary handler `name` of `peer`: dials if needed (known addresses, else kad is asked), sends the request,
    /// waits for the answer, all of it within `timeout`.
    ///
    /// # Errors
    ///
    /// By what the caller can do: see [`CallError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the call at the callee.
    pub async fn call_unary(
        &self,
        peer: PeerId,
        name: &str,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let call = async { self.ask_unary(peer, name, request).await?.answer().await };
        tokio::time::timeout(timeout, call)
            .await
            .unwrap_or(Err(CallError::Timeout { after: timeout }))
    }

    /// The first half of [`P2p::call_unary`], for callers who have something to do as soon as the request is out.
    ///
    /// # Errors
    ///
    /// If there is no connection and none can be made, or the request is too large.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future, or what it returns, cancels the call at the callee.
    pub(crate) async fn ask_unary(&self, peer: PeerId, name: &str, request: Bytes) -> Result<Asked, CallError> {
        unary::check_size(request.len())?;
        let in_use = self.registry.usage().enter(peer);
        let stream = self.open(peer, name).await.map_err(CallError::Open)?;
        unary::ask(stream, (peer, in_use), name, request).await
    }

    /// Opens a stream to the handler `name` of `peer`: dials if needed, within `timeout`. It does not wait for the peer's
    /// yes; that the peer does not serve the call may show only at the first message.
    ///
    /// # Errors
    ///
    /// If there is no connection and none can be made.
    pub async fn open_stream(
        &self,
        peer: PeerId,
        name: &str,
        timeout: Duration,
    ) -> Result<(StreamSender, StreamReceiver), OpenError> {
        let in_use = self.registry.usage().enter(peer);
        let stream = tokio::time::timeout(timeout, self.open(peer, name))
            .await
            .unwrap_or(Err(OpenError::Timeout { after: timeout }))?;
        Ok(stream::caller(stream, MAX_STREAM_MESSAGE, in_use))
    }

    /// A stream on which anything can be said, for tests of what peers do with it.
    #[cfg(test)]
    pub(crate) async fn open_raw(
        &self,
        peer: PeerId,
        name: &str,
    ) -> Result<impl futures::AsyncRead + futures::AsyncWrite + Unpin + use<>, OpenError> {
        self.open(peer, name).await
    }

    /// Opens a stream. A connection that breaks under the attempt is no reason to give up: nothing was said on it yet.
    async fn open(&self, peer: PeerId, name: &str) -> Result<Stream, OpenError> {
        let name = Name::new(name);
        for _ in 0..OPEN_ATTEMPTS {
            let (reply, opened) = oneshot::channel();
            let request = rpc::OpenRequest {
                name: name.clone(),
                reply,
            };
            self.command(Command::Open { peer, request })
                .await
                .map_err(OpenError::Dial)?;
            match opened.await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(OpenFailure::Dial(error))) => return Err(OpenError::Dial(error)),
                Ok(Err(OpenFailure::UnknownName)) => return Err(OpenError::UnknownName),
                Ok(Err(OpenFailure::Busy)) => return Err(OpenError::Busy),
                Ok(Err(OpenFailure::Timeout | OpenFailure::ConnectionLost)) | Err(_) => {}
            }
        }
        Err(OpenError::ConnectionLost)
    }

    async fn command(&self, command: Command) -> Result<(), DialError> {
        self.commands.send(command).await.map_err(|_| DialError::Stopping)
    }

    fn names_changed(&self) {
        // A full queue means that connections are woken anyway; new streams see the new names in any case.
        let _ = self.commands.try_send(Command::NamesChanged);
    }
}

impl fmt::Debug for P2p {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("P2p")
            .field("peer_id", &self.peer_id)
            .finish_non_exhaustive()
    }
}

/// The last characters of a peer id, for logs: ids of one kind all begin alike. Python prints them the same way.
pub fn short_id(peer: &PeerId) -> String {
    let text = peer.to_base58();
    format!("…{}", &text[text.len().saturating_sub(6)..])
}
