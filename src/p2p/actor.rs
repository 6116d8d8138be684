//! The one task that owns the libp2p swarm. It takes commands and events, and never waits for a peer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    identify,
    kad::{self, QueryId},
    ping,
    swarm::{ConnectionId, SwarmEvent},
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

mod addresses;
mod finding;
mod gossip;
mod listening;
mod mapping;
mod neighbours;
mod reaching;
mod relaying;
mod visitors;

use self::{reaching::Reaching, relaying::Relaying};
use super::{
    Config,
    behaviour::{Behaviour, BehaviourEvent, is_swarm_member},
    book::Book,
    contacts::{Contact, Contacts},
    error::DialError,
    gossip::{Heard, PublishError},
    guard::Guard,
    kad_server::{self, Found},
    lan::{self, Neighbours},
    portmap::{Mapper, PortMap, Report},
    reachability::{Judge, Reachability, Verdict},
    relay,
    router::{Handler, HandlerLimits},
    rpc::OpenRequest,
    seek::{Seek, Stage},
    short_id,
    usage::Usage,
};

/// How often stale addresses are forgotten and lost bootstrap connections are made again.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// How often is looked at who may stay connected.
const REVIEW: Duration = Duration::from_secs(1);

/// With fewer connections than this, configured peers are dialed again; the number is Hivemind's daemon's.
const MIN_CONNECTIONS: usize = 4;

/// Kad requests served at the same time. Each is answered from memory; a stream stays open for a minute.
const KAD_LIMITS: HandlerLimits = HandlerLimits {
    max_calls: 2048,
    max_message: 16 * 1024,
};

/// What the handle asks of the actor.
#[derive(Debug)]
pub(crate) enum Command {
    Connect {
        peer: PeerId,
        addr: Multiaddr,
        reply: oneshot::Sender<Result<(), DialError>>,
    },
    Open {
        peer: PeerId,
        request: OpenRequest,
    },
    /// Who is near `key`, mostly a peer id? Asked by `from` over kad.
    Closest {
        key: Bytes,
        from: PeerId,
        reply: oneshot::Sender<Vec<Found>>,
    },
    NamesChanged,
    /// What a router says about a port.
    Mapping(Mapper, Report),
    /// What `rpc_check` found.
    Judge(Verdict),
    /// Who is connected?
    Contacts(oneshot::Sender<Vec<Contact>>),
    /// Something to say to everyone on a topic.
    Publish {
        topic: String,
        message: Bytes,
        reply: oneshot::Sender<Result<(), PublishError>>,
    },
}

/// What the actor shows to the handles.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) addrs: watch::Sender<Vec<Multiaddr>>,
    pub(crate) connected: watch::Sender<BTreeSet<PeerId>>,
    pub(crate) reachability: watch::Sender<Reachability>,
    pub(crate) neighbours: watch::Sender<BTreeSet<Multiaddr>>,
    pub(crate) port_map: watch::Sender<PortMap>,
    pub(crate) heard: broadcast::Sender<Heard>,
}

/// The handler of inbound kad streams: it asks the actor.
pub(crate) fn kad_handler(commands: mpsc::WeakSender<Command>) -> Handler {
    Handler::raw(kad_server::NAME, KAD_LIMITS, move |from, stream| {
        let commands = commands.clone();
        kad_server::serve(stream, move |key| {
            let commands = commands.clone();
            async move {
                let (reply, found) = oneshot::channel();
                let Some(commands) = commands.upgrade() else {
                    return Vec::new();
                };
                let _ = commands.send(Command::Closest { key, from, reply }).await;
                found.await.unwrap_or_default()
            }
            .boxed()
        })
    })
}

/// The task's state.
pub(crate) struct Actor {
    swarm: Swarm<Behaviour>,
    config: Config,
    outputs: Outputs,
    book: Book,
    contacts: Contacts,
    judge: Judge,
    reaching: Reaching,
    relaying: Relaying,
    guard: Guard,
    usage: Arc<Usage>,
    listeners: Vec<ListenerId>,
    listened: Vec<Multiaddr>,
    /// Addresses at the other side of the router that lead here.
    mapped: BTreeSet<(Mapper, Multiaddr)>,
    neighbours: Neighbours,
    gossiped: gossip::Counted,
    /// What nodes of our swarm on the local network serve.
    lan_protocol: Option<String>,
    /// Peers that calls wait for.
    seeks: HashMap<PeerId, Seek>,
    /// Peers that kad is asked for.
    lookups: HashMap<QueryId, PeerId>,
    /// Dials to an address that somebody named.
    connects: HashMap<ConnectionId, (PeerId, oneshot::Sender<Result<(), DialError>>)>,
}

impl Actor {
    pub(crate) fn new(swarm: Swarm<Behaviour>, config: Config, outputs: Outputs, usage: Arc<Usage>) -> Self {
        Self {
            guard: Guard::new(config.limits),
            neighbours: Neighbours::default(),
            gossiped: gossip::Counted::default(),
            lan_protocol: config.lan.as_deref().and_then(lan::protocol),
            usage,
            swarm,
            config,
            outputs,
            book: Book::default(),
            contacts: Contacts::default(),
            judge: Judge::default(),
            reaching: Reaching::default(),
            relaying: Relaying::default(),
            listeners: Vec::new(),
            listened: Vec::new(),
            mapped: BTreeSet::new(),
            seeks: HashMap::new(),
            lookups: HashMap::new(),
            connects: HashMap::new(),
        }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Command>, stop: CancellationToken) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut relays = tokio::time::interval(relaying::TICK);
        relays.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.start_relaying();
        let mut review = tokio::time::interval(REVIEW);
        review.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(command) = inbox.recv() => self.on_command(command),
                event = self.swarm.select_next_some() => self.on_event(event),
                _ = housekeeping.tick() => self.keep_house(),
                _ = relays.tick() => self.tick_relaying(),
                _ = review.tick() => {
                    self.review_visitors();
                    self.visit_neighbours();
                    self.gossiped.review();
                }
            }
        }
        self.unmap().await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { peer, addr, reply } => self.connect(peer, addr, reply),
            Command::Open { peer, request } => self.open(peer, request),
            Command::Closest { key, from, reply } => {
                let _ = reply.send(self.closest(&key, from));
            }
            Command::Publish { topic, message, reply } => {
                let _ = reply.send(self.publish(&topic, message));
            }
            Command::Judge(verdict) => self.on_check(verdict),
            Command::Mapping(mapper, report) => self.on_mapping(mapper, report),
            Command::NamesChanged => self.swarm.behaviour().rpc.names_changed(),
            Command::Contacts(reply) => drop(reply.send(self.contacts.all(Instant::now()))),
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewExternalAddrCandidate { address } => self.on_candidate(address),
            // libp2p announces it without asking; what is announced is decided in one place.
            SwarmEvent::ExternalAddrConfirmed { .. } => self.announce(),
            SwarmEvent::Dialing {
                peer_id: Some(peer),
                connection_id,
            } => self.on_behaviour_dials(peer, connection_id),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                let (remote, dialed) = (endpoint.get_remote_address(), endpoint.is_dialer());
                debug!(peer = %short_id(&peer_id), %remote, dialed, "connected");
                self.on_visited(peer_id, &endpoint);
                self.reaching.dial_backs.established(connection_id, Instant::now());
                self.book.connected(peer_id, connection_id, &endpoint, Instant::now());
                self.contacts
                    .connected(peer_id, connection_id, &endpoint, Instant::now());
                self.guard.connected(peer_id, Instant::now());
                self.outputs.connected.send_if_modified(|all| all.insert(peer_id));
                self.on_connected(peer_id);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                cause,
                ..
            } => {
                debug!(peer = %short_id(&peer_id), ?cause, remaining = num_established, "disconnected");
                self.book.disconnected(peer_id, connection_id, Instant::now());
                self.contacts.disconnected(&peer_id, connection_id);
                self.reaching.dial_backs.closed(connection_id);
                if num_established == 0 {
                    self.on_relay_event(relay::Event::Withdrawn(peer_id));
                    self.guard.disconnected(&peer_id);
                    self.usage.forget(&peer_id);
                    self.neighbours.disconnected(&peer_id);
                    self.outputs.connected.send_if_modified(|all| all.remove(&peer_id));
                }
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => {
                self.reaching.dial_backs.closed(connection_id);
                self.on_dial_failed(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { error, .. } => debug!(%error, "an inbound connection failed"),
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            event => self.on_listener_event(event),
        }
    }

    fn on_listener_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, listener_id } => {
                self.listened.push(address);
                self.announce();
                self.on_reserved(listener_id);
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => self.unlisten(&[address]),
            SwarmEvent::ListenerClosed {
                addresses,
                reason,
                listener_id,
            } => {
                if !self.on_reservation_closed(listener_id, &reason) {
                    warn!(?addresses, ?reason, "no longer listening");
                }
                self.unlisten(&addresses);
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "a listener reports an error"),
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, &info);
            }
            BehaviourEvent::Mdns(event) => self.on_mdns(event),
            BehaviourEvent::Upnp(event) => self.on_upnp(event),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Ping(ping::Event {
                peer, result: Ok(rtt), ..
            }) => self.contacts.measured(&peer, rtt),
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result: Err(ping::Failure::Timeout),
            }) => {
                debug!(peer = %short_id(&peer), "silent, closing the connection");
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed { id, step, .. }) if step.last => {
                if let Some(peer) = self.lookups.remove(&id) {
                    self.on_stage_failed(peer, Stage::Lookup(id), DialError::NotFound);
                }
            }
            BehaviourEvent::Autonat1(event) => self.on_autonat1(event),
            BehaviourEvent::Autonat2(event) => self.on_autonat2(event),
            BehaviourEvent::Relay(event) => debug!(?event, "relay client"),
            BehaviourEvent::Hop(event) => debug!(?event, "relay"),
            BehaviourEvent::Dcutr(event) => debug!(?event, "hole punching"),
            _ => {}
        }
    }

    /// What a peer says of itself decides whether others are told of it, and where it is dialed next time.
    fn on_identified(&mut self, peer: PeerId, info: &identify::Info) {
        self.identify_neighbour(peer, info);
        let belongs = is_swarm_member(info) || self.book.is_configured(&peer);
        self.guard.identified(&peer, belongs);
        self.on_offer(peer, info, belongs);
        let addrs = if belongs {
            self.book.announced(peer, &info.listen_addrs, Instant::now())
        } else {
            Vec::new()
        };
        self.contacts.identified(&peer, &info.agent_version, addrs.clone());
        let serves_kad = info.protocols.iter().any(|name| name.as_ref() == kad_server::NAME);
        let kad = &mut self.swarm.behaviour_mut().kad;
        if serves_kad && belongs {
            for addr in addrs {
                kad.add_address(&peer, addr);
            }
        } else {
            kad.remove_peer(&peer);
        }
    }

    fn keep_house(&mut self) {
        self.book.prune(Instant::now());
        self.usage.retain(|peer| self.book.is_connected(peer));
        if self.outputs.connected.borrow().len() < MIN_CONNECTIONS {
            for peer in self.book.missing() {
                self.seeks.entry(peer).or_insert_with(Seek::new);
                self.begin(peer);
            }
        }
    }
}
