//! A server whose way to be reached changes while it runs.

use std::time::Duration;

use sepal_protocol::record::{ServerInfo, ServerState};
use tokio::sync::watch;

use super::setup::{N_BLOCKS, Node, PREFIX, Swarm, config, soon};
use crate::{
    p2p::{PeerId, Verdict},
    server::{Server, StartError},
    swarm::{
        Directory, reachability,
        standing::{Access, Keeper, Timing},
        testing::{MONITOR_SAYS_NO, monitor},
    },
};

/// What a reader of the DHT sees of the server, once it is as wanted.
pub(super) async fn seen(reader: &Node, peer: PeerId, wanted: impl Fn(&ServerInfo) -> bool) -> ServerInfo {
    let directory = Directory::new(reader.dht.clone(), PREFIX.to_owned(), N_BLOCKS);
    soon("the record says what is wanted", async {
        loop {
            let snapshot = directory.refresh().await;
            if let Some(info) = snapshot.blocks[0].get(&peer).filter(|info| wanted(info)) {
                return info.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_server_that_cannot_be_dialed_says_so_and_says_so_again_when_it_can() {
    let swarm = Swarm::start().await;
    let reader = swarm.caller().await;
    let checker = swarm.node().await;
    checker
        .join(reachability::handlers(checker.p2p.clone(), checker.tasks.clone()))
        .await;
    let node = swarm.hidden_node().await;
    let timing = Timing {
        second_opinion: Duration::from_millis(50),
        ..Timing::default()
    };
    let keeper = Keeper::new(node.p2p.clone(), node.dht.clone(), timing);
    let mut config = config(0..N_BLOCKS);
    config.access = keeper.access();
    config.relay_wait = Duration::from_millis(50);
    let network = (node.p2p.clone(), node.dht.clone());
    let server = Server::new(config, swarm.source.clone(), network, &node.tasks);
    let mut handlers = server.handlers();
    handlers.extend(reachability::handlers(node.p2p.clone(), node.tasks.clone()));
    node.join(handlers).await;
    keeper.spawn(&node.tasks);
    soon("online", server.bring_up()).await.unwrap();

    let peer = node.peer();
    let online = |info: &ServerInfo| info.state == ServerState::Online;
    let info = seen(&reader, peer, online).await;
    assert_eq!(info.using_relay, Some(true));
    assert!(node.dht.is_client());
    reader.dht.ping(peer, Duration::from_secs(10)).await.unwrap();

    node.p2p.judge(Verdict::Dialable).await;
    seen(&reader, peer, |info| online(info) && info.using_relay == Some(false)).await;
    assert!(!node.dht.is_client());
    node.p2p.judge(Verdict::NotDialable).await;
    seen(&reader, peer, |info| online(info) && info.using_relay == Some(true)).await;
    assert!(node.dht.is_client());
    server.shutdown().await;
    seen(&reader, peer, |info| info.state == ServerState::Offline).await;
}

#[tokio::test]
async fn nothing_is_announced_before_it_is_known_how_others_get_to_the_server() {
    let swarm = Swarm::start().await;
    let node = swarm.node().await;
    let (access, known) = watch::channel(Access::Unknown);
    let mut config = config(0..N_BLOCKS);
    config.access = known;
    let network = (node.p2p.clone(), node.dht.clone());
    let server = Server::new(config, swarm.source.clone(), network, &node.tasks);
    node.join(server.handlers()).await;
    let directory = Directory::new(swarm.bootstrap.dht.clone(), PREFIX.to_owned(), N_BLOCKS);
    {
        let online = server.bring_up();
        tokio::pin!(online);
        let early = tokio::time::timeout(Duration::from_millis(300), &mut online);
        assert!(early.await.is_err());
        assert!(directory.refresh().await.blocks[0].is_empty());
        access.send(Access::Relayed(vec![swarm.bootstrap.peer()])).unwrap();
        soon("online", online).await.unwrap();
    }
    let info = seen(&swarm.bootstrap, node.peer(), |_| true).await;
    assert_eq!((info.state, info.using_relay), (ServerState::Online, Some(true)));
    server.shutdown().await;
}

#[tokio::test]
async fn a_server_that_the_monitor_cannot_reach_goes_offline_again() {
    let swarm = Swarm::start().await;
    let node = swarm.node().await;
    let mut config = config(0..N_BLOCKS);
    let (monitor, _questions) = monitor(vec![(200, MONITOR_SAYS_NO); 8]);
    config.monitor = Some(monitor);
    let network = (node.p2p.clone(), node.dht.clone());
    let server = Server::new(config, swarm.source.clone(), network, &node.tasks);
    node.join(server.handlers()).await;
    let error = soon("refused", server.bring_up()).await.unwrap_err();
    assert!(matches!(error, StartError::NotReachable(_)), "{error:?}");
    let info = seen(&swarm.bootstrap, node.peer(), |_| true).await;
    assert_eq!(info.state, ServerState::Offline);
}
