//! What happens to sessions and records when the person who runs a server pauses, resumes, drains and stops it.

use std::sync::Arc;

use sepal_protocol::{names, record::ServerState};
use tokio_util::sync::CancellationToken;

use super::{
    caller::{Session, Step, call},
    setup::{Node, PREFIX, Reference, Swarm, config, reference, soon, tokens, until},
};
use crate::{
    control::{
        Connection, Control, Log, Subject,
        protocol::{Answer, Change, LogRow, PeerRow, Request, SessionRow, State, Status},
        testing::Nowhere,
    },
    server::Server,
    swarm::directory::Directory,
};

#[derive(Debug)]
struct NoLog;

impl Log for NoLog {
    fn level(&self) -> String {
        String::new()
    }

    fn set_level(&self, _: &str) -> Result<(), String> {
        Err("there is no log".to_owned())
    }

    fn recent(&self) -> Vec<LogRow> {
        Vec::new()
    }
}

/// A server of the whole model with a control socket, and somebody who uses it.
struct Stage {
    node: Node,
    server: Arc<Server>,
    caller: Node,
    stop: CancellationToken,
    connection: Connection,
    reference: Reference,
    _folder: tempfile::TempDir,
    _control: Control,
    _swarm: Swarm,
}

impl Stage {
    async fn start() -> Self {
        let swarm = Swarm::start().await;
        let (node, folder, stop) = (
            swarm.node().await,
            tempfile::tempdir().unwrap(),
            CancellationToken::new(),
        );
        let network = (node.p2p.clone(), node.dht.clone());
        let server = Arc::new(Server::new(config(0..4), swarm.source.clone(), network, &node.tasks));
        let subject = Subject {
            command: "serve",
            p2p: node.p2p.clone(),
            access: None,
            servers: vec![server.clone()],
            calls: Vec::new(),
            api: None,
            jobs: None,
            swarms: Arc::new(Nowhere),
            log: Arc::new(NoLog),
            stop: stop.clone(),
        };
        let path = folder.path().join("control");
        let control = Control::open(&path, subject).await.unwrap();
        let mut connection = Connection::open(&path).await.unwrap();
        let Answer::Node(who) = connection.ask(&Request::Who).await.unwrap() else {
            panic!("nobody")
        };
        assert_eq!(who.state, State::Starting);
        node.join(server.handlers()).await;
        soon("online", server.bring_up()).await.unwrap();
        Self {
            caller: swarm.caller().await,
            connection,
            node,
            server,
            stop,
            reference: reference(),
            _folder: folder,
            _control: control,
            _swarm: swarm,
        }
    }

    async fn order(&mut self, request: Request) -> Change {
        match self.connection.ask(&request).await.unwrap() {
            Answer::State(change) => change,
            other => panic!("{other:?}"),
        }
    }

    async fn status(&mut self) -> Status {
        match self.connection.ask(&Request::Status).await.unwrap() {
            Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    async fn sessions(&mut self) -> Vec<SessionRow> {
        match self.connection.ask(&Request::Sessions).await.unwrap() {
            Answer::Sessions { sessions } => sessions,
            other => panic!("{other:?}"),
        }
    }

    async fn peers(&mut self) -> Vec<PeerRow> {
        match self.connection.ask(&Request::Peers).await.unwrap() {
            Answer::Peers { peers } => peers,
            other => panic!("{other:?}"),
        }
    }

    /// What everybody else reads of it, of all its blocks.
    async fn recorded(&self) -> Vec<ServerState> {
        let snapshot = Directory::new(self.caller.dht.clone(), PREFIX, 4).refresh().await;
        let blocks = snapshot.blocks.iter();
        blocks.map(|servers| servers[&self.node.peer()].state).collect()
    }

    async fn session(&self) -> Session {
        Session::open(&self.caller, self.node.peer()).await
    }

    fn first(&self) -> Step {
        Step::first(&tokens(&self.reference.embeddings, 0..3), 64).session("a session")
    }

    fn next(&self) -> Step {
        Step::next(&tokens(&self.reference.embeddings, 3..4))
    }
}

#[tokio::test]
async fn a_person_sees_who_uses_a_server_and_how() {
    let mut stage = Stage::start().await;
    let mut session = stage.session().await;
    session.step(&stage.first()).await.output();
    session.step(&stage.next()).await.output();

    let rows = stage.sessions().await;
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((row.prefix.as_str(), row.id.as_deref()), (PREFIX, Some("a session")));
    assert_eq!(row.peer_id, stage.caller.peer().to_string());
    assert_eq!(
        (row.blocks.as_str(), row.batch, row.position, row.max_length),
        ("0:4", 1, 4, 64)
    );
    assert_eq!(row.tokens.total, 4);
    assert!(row.tokens.per_second > 0.0 && row.idle_s <= row.age_s);

    let status = stage.status().await;
    assert_eq!(
        (status.state, status.sessions, status.tokens.total),
        (State::Online, 1, 4)
    );
    let model = &status.models[0];
    assert_eq!(
        (model.blocks.as_deref(), model.n_blocks, model.throughput),
        (Some("0:4"), 4, 100.0)
    );
    let cache = model.cache;
    assert_eq!((cache.reserved, cache.total), (64, 1024));
    // A page is 16 tokens.
    assert_eq!(cache.used, 16);

    let peers = stage.peers().await;
    let caller = stage.caller.peer().to_string();
    let peer = peers.iter().find(|peer| peer.peer_id == caller).unwrap();
    assert!(
        !peer.relayed && !peer.dialed && peer.address.starts_with("/ip4/127.0.0.1/tcp/"),
        "{peer:?}"
    );
    assert!(peer.serves.is_empty());
    assert_eq!(status.peers, peers.len());

    drop(session);
    until("the session is off the list", || stage.server.sessions().is_empty()).await;
    assert_eq!(stage.status().await.tokens.total, 4);
}

#[tokio::test]
async fn a_paused_server_begins_nothing_new_and_finishes_what_it_has() {
    let mut stage = Stage::start().await;
    let mut session = stage.session().await;
    session.step(&stage.first()).await.output();
    assert_eq!(stage.recorded().await, [ServerState::Online; 4]);

    let change = stage.order(Request::Pause).await;
    assert_eq!(
        (change.before, change.now, change.sessions),
        (State::Online, State::Paused, 1)
    );
    assert!(change.announced);
    assert_eq!(stage.recorded().await, [ServerState::Joining; 4]);
    let mut refused = stage.session().await;
    let error = refused.step(&stage.first().session("another")).await.error();
    assert_eq!(error, "server takes no new sessions right now");
    let mut pass = stage.first().request();
    pass.uid = format!("{PREFIX}.0");
    let pass = prost_bytes(&pass);
    let error = call(&stage.caller, stage.node.peer(), names::FORWARD, pass)
        .await
        .unwrap_err();
    assert_eq!(error, "RuntimeError('server takes no new sessions right now')");
    session.step(&stage.next()).await.output();
    assert_eq!(stage.order(Request::Pause).await.before, State::Paused);

    let change = stage.order(Request::Resume).await;
    assert_eq!(
        (change.before, change.now, change.announced),
        (State::Paused, State::Online, true)
    );
    assert_eq!(stage.recorded().await, [ServerState::Online; 4]);
    let mut again = stage.session().await;
    again.step(&stage.first().session("another")).await.output();
}

#[tokio::test]
async fn a_server_that_drains_stops_after_its_last_session_unless_it_is_told_to_resume() {
    let mut stage = Stage::start().await;
    let mut session = stage.session().await;
    session.step(&stage.first()).await.output();
    let drain = Request::Drain { timeout_s: None };
    let change = stage.order(drain.clone()).await;
    assert_eq!((change.now, change.sessions), (State::Draining, 1));
    assert_eq!(stage.order(Request::Resume).await.now, State::Online);
    assert_eq!(stage.order(drain).await.before, State::Online);
    session.step(&stage.next()).await.output();
    assert_eq!(stage.status().await.state, State::Draining);
    assert!(!stage.stop.is_cancelled());
    drop(session);
    soon("the end after the last session", stage.stop.cancelled()).await;
    assert_eq!(stage.status().await.state, State::Stopping);
    stage.server.shutdown().await;
    assert_eq!(stage.recorded().await, [ServerState::Offline; 4]);
}

#[tokio::test]
async fn a_drain_with_a_time_limit_does_not_wait_for_ever() {
    let mut stage = Stage::start().await;
    let mut session = stage.session().await;
    session.step(&stage.first()).await.output();
    stage.order(Request::Drain { timeout_s: Some(0.05) }).await;
    soon("the end of patience", stage.stop.cancelled()).await;
    assert_eq!(stage.server.sessions().len(), 1);
    let refused = stage.connection.ask(&Request::Drain { timeout_s: Some(-1.0) }).await;
    assert!(refused.unwrap_err().to_string().contains("-1"));
}

fn prost_bytes(request: &sepal_protocol::proto::ExpertRequest) -> Vec<u8> {
    sepal_protocol::Message::encode_to_vec(request)
}
