//! One node in two swarms: it serves the same blocks in both, and they do not become one by it.

use std::{ops::Range, sync::Arc, time::Duration};

use sepal_protocol::record::ServerState;

use super::{
    caller::{Session, Step},
    generating::{client, generate},
    setup::{Node, PREFIX, Swarm, TestServer, config, reference, soon, tokens, until},
};
use crate::{
    p2p::PeerId,
    server::{self, BlockChoice, Hold, Membership, Voice},
    swarm::{Directory, standing::Access},
};

/// A server that was started in one swarm and is in another one as well.
struct Both {
    home: TestServer,
    /// Its host in the other one.
    guest: Node,
    membership: Arc<Membership>,
    voice: Voice,
}

impl Both {
    async fn start(first: &Swarm, second: &Swarm, config: server::Config) -> Self {
        let home = first.serve_with(config).await;
        let guest = second.node_as(home.node.p2p.identity()).await;
        let network = (guest.p2p.clone(), guest.dht.clone());
        let membership = Arc::new(Membership::new(2, network, Access::assumed_direct()));
        guest.join(home.server.handlers_in(&membership)).await;
        let voice = home.server.speak_in(&membership, &guest.tasks);
        Self {
            home,
            guest,
            membership,
            voice,
        }
    }

    fn peer(&self) -> PeerId {
        self.home.node.peer()
    }
}

/// What is read of the blocks of `peer` in a swarm.
pub(super) async fn recorded(reader: &Node, peer: PeerId) -> Vec<Option<ServerState>> {
    let snapshot = Directory::new(reader.dht.clone(), PREFIX, 4).refresh().await;
    let blocks = snapshot.blocks.iter();
    blocks
        .map(|servers| servers.get(&peer).map(|info| info.state))
        .collect()
}

/// Waits until exactly `blocks` are there in this state; the others may be offline.
pub(super) async fn announced(reader: &Node, peer: PeerId, blocks: Range<usize>, state: ServerState) {
    let right = |recorded: Vec<Option<ServerState>>| {
        recorded.into_iter().enumerate().all(|(block, found)| match found {
            found if blocks.contains(&block) => found == Some(state),
            found => found.is_none_or(|found| found == ServerState::Offline),
        })
    };
    let seen = async { while !right(recorded(reader, peer).await) {} };
    soon("the record", seen).await;
}

fn step() -> Step {
    Step::first(&tokens(&reference().embeddings, 0..3), 64)
}

#[tokio::test]
async fn a_server_in_two_swarms_serves_both_and_they_stay_apart() {
    let (first, second) = (Swarm::start().await, Swarm::start().await);
    let both = Both::start(&first, &second, config(0..2)).await;
    let me = both.peer();
    let rest = [first.serve(2..4).await, second.serve(2..4).await];
    let reference = reference();
    for (swarm, rest) in [&first, &second].into_iter().zip(&rest) {
        announced(&swarm.caller().await, me, 0..2, ServerState::Online).await;
        let (_node, client) = client(swarm).await;
        let generation = generate(&client, &reference.prompt, 16, &mut |_| {}).await.unwrap();
        assert_eq!(generation.token_ids, reference.greedy);
        let route: Vec<PeerId> = generation.route.iter().map(|hop| hop.peer).collect();
        assert_eq!(route, [me, rest.node.peer()]);
        // Outputs went from one server to the next within the swarm.
        assert!(rest.server.stats().pushes_received > 0);
    }
    assert_eq!(both.home.server.stats().steps, 32);

    let strangers = |swarm: &Swarm, rest: &TestServer| [swarm.bootstrap.peer(), rest.node.peer()];
    for (here, host, there) in [
        (&first, &both.home.node, strangers(&second, &rest[1])),
        (&second, &both.guest, strangers(&first, &rest[0])),
    ] {
        for stranger in there {
            assert!(!here.bootstrap.dht.peers().contains(&stranger), "the DHTs have met");
            assert!(!host.dht.peers().contains(&stranger), "the DHTs have met");
            assert!(!host.p2p.connected_peers().contains(&stranger), "the hosts have met");
            assert!(
                !here.bootstrap.p2p.connected_peers().contains(&stranger),
                "the hosts have met"
            );
        }
    }
}

#[tokio::test]
async fn a_swarm_is_left_without_a_word_in_the_other_one() {
    let (first, second) = (Swarm::start().await, Swarm::start().await);
    let both = Both::start(&first, &second, config(0..4)).await;
    let me = both.peer();
    let readers = [first.caller().await, second.caller().await];
    announced(&readers[1], me, 0..4, ServerState::Online).await;
    let mut here = Session::open(&readers[0], me).await;
    here.step(&step().session("here")).await.output();
    let mut there = Session::open(&readers[1], me).await;
    there.step(&step().session("there")).await.output();
    let from = |swarm| {
        let sessions = both.home.server.sessions();
        sessions.into_iter().filter(|session| session.swarm == swarm).count()
    };
    assert_eq!((from(1), from(2)), (1, 1));

    both.membership.leave();
    soon("the last word", both.voice.fall_silent()).await;
    announced(&readers[1], me, 0..4, ServerState::Offline).await;
    assert_eq!(recorded(&readers[0], me).await, [Some(ServerState::Online); 4]);
    // What is open there goes on, and nothing new is begun.
    let next = Step::next(&tokens(&reference().embeddings, 3..4));
    there.step(&next).await.output();
    let refusal = Session::open(&readers[1], me).await.step(&step()).await.error();
    assert_eq!(refusal, "server takes no new sessions right now");
    drop(there);
    until("the session is over", || from(2) == 0).await;
    both.guest.tasks.shutdown().await;
    here.step(&next).await.output();
    let mut again = Session::open(&readers[0], me).await;
    again.step(&step()).await.output();
}

#[tokio::test]
async fn another_swarm_hears_of_pauses_and_of_the_end() {
    let (first, second) = (Swarm::start().await, Swarm::start().await);
    let both = Both::start(&first, &second, config(1..3)).await;
    let (me, reader) = (both.peer(), second.caller().await);
    announced(&reader, me, 1..3, ServerState::Online).await;
    both.home.server.set_paused(true, Hold::WhileHours);
    announced(&reader, me, 1..3, ServerState::Joining).await;
    both.home.server.set_paused(false, Hold::WhileHours);
    announced(&reader, me, 1..3, ServerState::Online).await;
    both.home.server.shutdown().await;
    announced(&reader, me, 1..3, ServerState::Offline).await;
    // A record is read as soon as one node has it, and said when all have that keep it.
    until("the last word is said", || both.voice.announced().is_none()).await;
}

#[tokio::test]
async fn another_swarm_hears_of_a_move() {
    let (first, second) = (Swarm::start().await, Swarm::start().await);
    let rest = first.serve(0..2).await;
    let moving = server::Config {
        blocks: BlockChoice::Count(2),
        balance_quality: 0.75,
        mean_balance_check_period: Duration::from_millis(50),
        ..config(0..2)
    };
    let both = Both::start(&first, &second, moving).await;
    let (me, reader) = (both.peer(), second.caller().await);
    announced(&reader, me, 2..4, ServerState::Online).await;
    // Nobody serves the first half any more.
    rest.server.shutdown().await;
    let _other = first.serve(2..4).await;
    assert_eq!(soon("the move", both.home.server.moved()).await.unwrap(), 0..2);
    announced(&reader, me, 0..2, ServerState::Online).await;
}
