//! Prompts that go through several servers in pieces: all of them at work at once, and the same numbers as in one, whatever
//! happens to whom.

use std::{ops::Range, time::Duration};

use super::{
    generating::client_on,
    setup::{Node, Swarm, TestServer, WIDTH, assert_same_bits, config, soon, until},
    spoiling::{FIRST, Fault, SECOND, Spoiler},
};
use crate::{
    client::{Client, Session},
    model::Hidden,
    p2p::PeerId,
    server::{Config, LimitChoice},
};

const ROWS: usize = 8;
/// Three messages of eight rows.
pub(super) const TOKENS: usize = 260;
pub(super) const PIECES: usize = 3;
/// Seven such messages, all but the last of one shape.
const MANY_TOKENS: usize = 772;

/// With room for several such prompts.
pub(super) fn roomy(blocks: Range<u32>) -> Config {
    let limits = LimitChoice {
        attn_cache_tokens: Some(32 * 1024),
        ..LimitChoice::default()
    };
    Config {
        limits,
        ..config(blocks)
    }
}

fn noise(tokens: usize) -> Hidden {
    let data = (0..ROWS * tokens * WIDTH).map(|i| ((i * 7919 % 10_007) as f32 / 5003.0 - 1.0).sin());
    Hidden::new(data.collect(), ROWS, tokens, WIDTH).unwrap()
}

pub(super) async fn through(session: &mut Session, tokens: usize) -> Hidden {
    soon("a step", session.step(noise(tokens))).await.unwrap()
}

/// A server of everything, and for each half one that computes and two in front of it, of which clients prefer the first.
struct Scene {
    swarm: Swarm,
    node: Node,
    whole: TestServer,
    computing: Vec<TestServer>,
    halves: [[Spoiler; 2]; 2],
}

impl Scene {
    async fn start() -> Self {
        let swarm = Swarm::start().await;
        let whole = swarm.serve_with(roomy(0..4)).await;
        let (low, high) = (swarm.serve_with(roomy(0..2)).await, swarm.serve_with(roomy(2..4)).await);
        let halves = [
            [
                Spoiler::serve(&swarm, &low, 0..2, FIRST).await,
                Spoiler::serve(&swarm, &low, 0..2, SECOND).await,
            ],
            [
                Spoiler::serve(&swarm, &high, 2..4, FIRST).await,
                Spoiler::serve(&swarm, &high, 2..4, SECOND).await,
            ],
        ];
        Self {
            node: swarm.caller().await,
            swarm,
            whole,
            computing: vec![low, high],
            halves,
        }
    }

    async fn client(&self, allowed: impl IntoIterator<Item = PeerId>) -> Client {
        let allowed = allowed.into_iter().collect();
        client_on(&self.node, &self.swarm, |config| config.filter.allowed = Some(allowed)).await
    }

    /// What one server makes of a prompt, and of a token after it.
    async fn expected(&self) -> [Hidden; 2] {
        let mut session = self.client([self.whole.node.peer()]).await.session(TOKENS + 1);
        [through(&mut session, TOKENS).await, through(&mut session, 1).await]
    }

    fn spoilers(&self) -> impl Iterator<Item = &Spoiler> {
        self.halves.iter().flatten()
    }

    /// The same through two halves, one of which goes wrong after so many answers.
    async fn survives(&self, half: usize, fault: Fault, after: usize, expected: &[Hidden; 2]) {
        for spoiler in self.spoilers() {
            spoiler.spoil(Fault::Nothing, 0);
        }
        let faulty = &self.halves[half][0];
        faulty.spoil(fault, after);
        let client = self.client(self.spoilers().map(Spoiler::peer)).await;
        let mut session = client.session(TOKENS + 1);
        let what = format!("{fault:?} of half {half} after {after}");
        assert_same_bits(&through(&mut session, TOKENS).await.data, &expected[0].data);
        assert!(faulty.answered() > after, "{what} was not tried");
        assert_same_bits(&through(&mut session, 1).await.data, &expected[1].data);
        assert!(session.report().iter().all(|hop| hop.peer != faulty.peer()), "{what}");
        session.close().await;
    }
}

#[tokio::test]
async fn a_server_has_the_next_piece_while_the_one_behind_it_computes() {
    let scene = Scene::start().await;
    let expected = scene.expected().await;
    let [low, high] = [&scene.halves[0][0], &scene.halves[1][0]];
    high.spoil(Fault::Silent, 0);
    let mut session = scene.client([low.peer(), high.peer()]).await.session(TOKENS + 1);
    let ahead = async {
        // One answer waits to be taken on, and another piece is answered meanwhile.
        until("the first half goes on, and the second is silent", || {
            low.answered() >= 2 && high.answered() >= 1
        })
        .await;
        assert_eq!(high.answered(), 1, "held back until now");
        high.thaw();
    };
    let (output, ()) = tokio::join!(through(&mut session, TOKENS), ahead);
    assert_same_bits(&output.data, &expected[0].data);
    assert_same_bits(&through(&mut session, 1).await.data, &expected[1].data);
}

#[tokio::test]
async fn a_server_that_fails_at_any_piece_is_replaced() {
    let scene = Scene::start().await;
    let expected = scene.expected().await;
    for (half, after) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
        scene.survives(half, Fault::Closes, after, &expected).await;
    }
    for fault in [Fault::NotANumber, Fault::Says("Could not allocate")] {
        scene.survives(1, fault, 1, &expected).await;
    }
    for server in scene.computing.iter().chain([&scene.whole]) {
        server.idle().await;
    }
}

#[tokio::test]
async fn a_server_that_is_silent_at_a_piece_is_overtaken() {
    let scene = Scene::start().await;
    let expected = scene.expected().await;
    for (half, after) in [(0, 1), (1, 1)] {
        scene.survives(half, Fault::Silent, after, &expected).await;
    }
}

#[tokio::test]
async fn servers_push_pieces_to_each_other() {
    let swarm = Swarm::start().await;
    let whole = swarm.serve_with(roomy(0..4)).await;
    let mut servers = Vec::new();
    for blocks in [0..1, 1..3, 3..4] {
        servers.push(swarm.serve_with(roomy(blocks)).await);
    }
    let node = swarm.caller().await;
    let client = |servers: &[TestServer]| {
        let allowed = servers.iter().map(|server| server.node.peer()).collect();
        client_on(&node, &swarm, |config| config.filter.allowed = Some(allowed))
    };
    let whole = [whole];
    let expected = through(&mut client(&whole).await.session(TOKENS), TOKENS).await;
    let mut session = client(&servers).await.session(TOKENS);
    assert_same_bits(&through(&mut session, TOKENS).await.data, &expected.data);
    for hop in session.report() {
        let times = (hop.per_step, hop.last_step);
        assert_eq!(times, (None, None), "pieces are not usual steps");
    }
    for server in &servers[..2] {
        until("its pushes were answered", || {
            server.server.stats().pushes_sent == PIECES as u64
        })
        .await;
    }
    for server in &servers {
        // No piece was computed twice, though it came from the client as well.
        assert_eq!(server.server.stats().steps, PIECES as u64);
    }
    soon("a goodbye", session.close()).await;
}

#[tokio::test]
async fn answers_to_what_was_pushed_before_a_failure_are_not_taken_for_those_after_it() {
    let swarm = Swarm::start().await;
    let mut servers = Vec::new();
    for blocks in [0..4, 0..1, 1..2, 2..4] {
        servers.push(swarm.serve_with(roomy(blocks)).await);
    }
    let [whole, first, second, behind] = &servers[..] else {
        unreachable!("as many as blocks were given")
    };
    let faulty = Spoiler::serve(&swarm, behind, 2..4, FIRST).await;
    let other = Spoiler::serve(&swarm, behind, 2..4, SECOND).await;
    let node = swarm.caller().await;
    let client = |allowed: Vec<PeerId>| {
        let allowed = allowed.into_iter().collect();
        client_on(&node, &swarm, |config| config.filter.allowed = Some(allowed))
    };
    let mut undisturbed = client(vec![whole.node.peer()]).await.session(MANY_TOKENS + 1);
    let expected = through(&mut undisturbed, MANY_TOKENS).await;
    let expected_token = through(&mut undisturbed, 1).await;
    // Right answers to the empty step that opens the session and to the first piece.
    faulty.spoil(Fault::Silent, 2);
    let chain = [first.node.peer(), second.node.peer(), faulty.peer(), other.peer()];
    let client = client(chain.to_vec()).await;
    let mut session = client.session(MANY_TOKENS + 1);
    // The one before it is asked for four pieces while it is silent, and is pushed more.
    let ahead = until("more is pushed than is asked for", || second.server.stats().steps > 4);
    let (output, ()) = tokio::join!(through(&mut session, MANY_TOKENS), ahead);
    assert_same_bits(&output.data, &expected.data);
    assert!(faulty.answered() > 2, "it was not silent");
    assert_same_bits(&through(&mut session, 1).await.data, &expected_token.data);
    let used: Vec<PeerId> = session.report().iter().map(|hop| hop.peer).collect();
    assert_eq!(used, [first.node.peer(), second.node.peer(), other.peer()]);
    let avoided = client.avoided();
    assert!(
        avoided.iter().all(|server| server.peer == faulty.peer()),
        "only one did anything wrong: {avoided:?}"
    );
    soon("a goodbye", session.close()).await;
}

#[tokio::test]
async fn a_prompt_ends_with_an_error_when_nobody_is_left() {
    let scene = Scene::start().await;
    let [low, high] = [&scene.halves[0][0], &scene.halves[1][0]];
    high.spoil(Fault::Closes, 1);
    let client = scene.client([low.peer(), high.peer()]).await;
    let mut session = client.session(TOKENS);
    let outcome = tokio::time::timeout(Duration::from_secs(60), session.step(noise(TOKENS))).await;
    let error = outcome.unwrap().unwrap_err().to_string();
    assert!(error.contains("2:4"), "{error}");
    assert!(session.is_over());
}
