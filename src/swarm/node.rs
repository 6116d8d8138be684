//! A node of a swarm: a host, its part of the DHT, and the tasks that both run on. Servers and clients are made on one. How
//! the way into a swarm is found, and what is said when there is none, is the command line's.

use std::time::Duration;

use thiserror::Error;

use super::{reachability, signature, speed};
use crate::{
    dht::{self, BootstrapError, Dht},
    p2p::{self, BindError, P2p, Router},
    task::Tasks,
};

/// How often a node looks up something random to keep its routing table fresh (Petals `cli/run_dht.py`,
/// refresh_period). Any server may be the one that others join through.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Nodes that a client asks at once in one search: a person waits for it (Petals `client/routing/sequence_manager.py`).
const CLIENT_WORKERS: usize = 32;

/// A host and a DHT that run until `tasks` are shut down. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Node {
    /// Connections and calls.
    pub p2p: P2p,
    /// Records.
    pub dht: Dht,
    /// What runs on this node, and ends with it.
    pub tasks: Tasks,
}

/// Why a node is not in a swarm.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The host could not start.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Nobody let it in.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
}

impl Node {
    /// Starts a node with this host, which will join through its known peers. It serves nothing yet and has joined nobody.
    ///
    /// # Errors
    /// When the host cannot start.
    pub async fn start(host: p2p::Config) -> Result<Self, BindError> {
        let tasks = Tasks::new();
        let config = dht::Config {
            client_mode: host.client_mode,
            initial_peers: host.known_peers.clone(),
            heartbeat: (!host.client_mode).then_some(HEARTBEAT),
            workers: match host.client_mode {
                true => CLIENT_WORKERS,
                false => dht::Config::default().workers,
            },
            validators: signature::validators(host.identity.clone()),
            ..dht::Config::default()
        };
        let p2p = P2p::bind(host, &tasks).await?;
        let dht = Dht::spawn(p2p.clone(), config, &tasks);
        Ok(Self { p2p, dht, tasks })
    }

    /// Starts a node with this host, serves what every node does, and joins the swarm of its known peers. Without any, it
    /// is the first node of a swarm.
    ///
    /// # Errors
    /// When the host cannot start, or none of the known peers can be used. Nothing of it runs any more then.
    ///
    /// # Cancel safety
    /// Dropping the future ends what was started.
    pub async fn join(host: p2p::Config) -> Result<Self, JoinError> {
        let node = Self::start(host).await?;
        // A host ends only when it is told to, also when the caller gives up in the middle.
        let stopped = node.tasks.token().drop_guard();
        node.router().spawn(&node.tasks);
        if let Err(error) = node.dht.bootstrap().await {
            // Whoever tries again finds the port free.
            node.stop().await;
            return Err(error.into());
        }
        let _ = stopped.disarm();
        Ok(node)
    }

    /// What every node that can be dialed answers; a server adds its own.
    pub fn router(&self) -> Router {
        Router::new(self.p2p.clone())
            .serve(self.dht.handlers())
            .serve(reachability::handlers(self.p2p.clone(), self.tasks.clone()))
            .serve(speed::handlers())
    }

    /// The two that servers and clients talk over.
    pub fn network(&self) -> (P2p, Dht) {
        (self.p2p.clone(), self.dht.clone())
    }

    /// Ends all that runs on this node. Returns whether it ended in time.
    pub async fn stop(&self) -> bool {
        self.tasks.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::timeout};

    use super::*;
    use crate::{
        p2p::{Multiaddr, PeerId},
        swarm::testing::free_port,
    };

    /// A host on this port of loopback that joins through somebody on that one, who is not known to be there.
    fn through(peer_port: u16, port: u16) -> p2p::Config {
        let peer = PeerId::random();
        let known: Multiaddr = format!("/ip4/127.0.0.1/tcp/{peer_port}/p2p/{peer}").parse().unwrap();
        p2p::Config {
            listen: vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()],
            ..p2p::Config::on_loopback(vec![known])
        }
    }

    #[tokio::test]
    async fn nodes_that_join_know_each_other_and_one_that_finds_nobody_says_so() {
        let first = Node::join(p2p::Config::default()).await.unwrap();
        let second = Node::join(p2p::Config::client(first.p2p.addrs())).await.unwrap();
        assert_eq!(second.dht.peers(), [first.p2p.peer_id()]);
        assert!(second.p2p.addrs().is_empty() && second.dht.is_client());
        let nobody = first.p2p.addrs();
        assert!(second.stop().await && first.stop().await);
        let error = Node::join(p2p::Config::client(nobody)).await.unwrap_err();
        assert!(
            error.to_string().starts_with("none of the initial peers can be used"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_join_that_fails_or_is_given_up_leaves_no_host_behind() {
        // Of a port that another process took in between, nothing is learnt.
        let failed = loop {
            let port = free_port();
            // Nobody listens on the port of the discard service.
            match Node::join(through(9, port)).await {
                Err(JoinError::Bootstrap(_)) => break port,
                outcome => assert!(matches!(outcome, Err(JoinError::Bind(_))), "{outcome:?}"),
            }
        };
        TcpListener::bind(("127.0.0.1", failed)).await.unwrap();

        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent_port = silent.local_addr().unwrap().port();
        let given_up = loop {
            let port = free_port();
            tokio::select! {
                outcome = Node::join(through(silent_port, port)) => {
                    assert!(matches!(outcome, Err(JoinError::Bind(_))), "{outcome:?}");
                }
                _ = silent.accept() => break port,
            }
        };
        let free_again = async {
            while TcpListener::bind(("127.0.0.1", given_up)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), free_again).await.unwrap();
    }
}
