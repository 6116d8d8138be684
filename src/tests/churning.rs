//! Sessions that come and go at random: whoever stays gets the text that they get alone, and nothing is left of those
//! that went.

use futures::{FutureExt, StreamExt, stream};
use rand::{Rng, SeedableRng, rngs::StdRng};

use sepal_protocol::names;

use super::{
    caller::{Answer, Session, Step, call, forward},
    generating::{client, generate},
    setup::{PREFIX, Reference, Swarm, WIDTH, config, reference, soon, tokens, until},
};
use crate::{client::Client, model::Hidden};

const N_SESSIONS: u64 = 200;
/// At once; more than the cache holds, so that some wait for others to leave.
const AT_ONCE: usize = 40;
const MAX_NEW_TOKENS: usize = 16;

/// How a session ends.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It generates its text.
    Stays,
    /// It says goodbye after some steps.
    Closes,
    /// It disappears between two steps.
    Drops,
    /// It disappears while a step is computed.
    DropsWithin,
}

async fn live(client: &Client, reference: &Reference, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let fates = [Fate::Stays, Fate::Closes, Fate::Drops, Fate::DropsWithin];
    let fate = fates[rng.random_range(0..fates.len())];
    if let Fate::Stays = fate {
        let generation = generate(client, &reference.prompt, MAX_NEW_TOKENS, &mut |_| {}).await;
        assert_eq!(generation.unwrap().token_ids, reference.greedy, "session {seed}");
        return;
    }
    let mut session = client.session(reference.prompt.len() + MAX_NEW_TOKENS);
    let n_tokens = reference.prompt.len();
    let mut done = 0;
    for _ in 0..rng.random_range(1..8) {
        let n = rng.random_range(1..4).min(n_tokens - done);
        let x = tokens(&reference.embeddings, done..done + n);
        session.step(x).await.unwrap();
        done += n;
    }
    match fate {
        Fate::Closes => session.close().await,
        Fate::DropsWithin => {
            let x = tokens(&reference.embeddings, 0..n_tokens);
            // Sent, and not waited for.
            drop(session.step(x).now_or_never());
        }
        Fate::Stays | Fate::Drops => drop(session),
    }
}

#[tokio::test]
async fn two_hundred_sessions_that_come_and_go_disturb_nobody_and_leave_nothing() {
    let swarm = Swarm::start().await;
    let server = swarm.serve_with(config(0..4)).await;
    let (_node, client) = client(&swarm).await;
    let reference = reference();
    let sessions = stream::iter(0..N_SESSIONS).map(|seed| live(&client, &reference, seed));
    soon("all sessions", sessions.buffer_unordered(AT_ONCE).collect::<Vec<_>>()).await;
    server.idle().await;
    let stats = server.server.stats();
    assert_eq!(stats.queued, 0);
    let all_pages_are_back = || {
        let cache = server.server.stats().cache;
        // What is known of prefixes stays, in memory that nobody needs.
        cache.free + cache.kept == cache.total && cache.overflow == 0 && cache.shared == 0
    };
    until("no session has a page", all_pages_are_back).await;
    assert!(stats.cache.total > 0, "the server has no pages of its own");
    assert!(stats.block_tokens > stats.block_runs, "nobody ever met in a batch");
}

fn numbers(rng: &mut StdRng, batch: usize, tokens: usize) -> Hidden {
    let data = (0..batch * tokens * WIDTH).map(|_| rng.random_range(-1.0..1.0));
    Hidden::new(data.collect(), batch, tokens, WIDTH).unwrap()
}

#[tokio::test]
async fn sessions_of_any_shape_that_fill_the_cache_never_take_more_than_they_reserved() {
    let mut config = config(0..4);
    config.limits.attn_cache_tokens = Some(100);
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    let (mut rng, peer) = (StdRng::seed_from_u64(11), server.node.peer());
    let keeps_to_the_arena = || assert_eq!(server.server.stats().cache.overflow, 0);
    let mut refused = 0;
    for _ in 0..4 {
        let mut open: Vec<(Session, usize, usize)> = Vec::new();
        for _ in 0..12 {
            let (batch, length) = (rng.random_range(1..8), rng.random_range(1..40));
            let tokens = rng.random_range(1..=length);
            let mut session = Session::open(&node, peer).await;
            let first = Step::first(&numbers(&mut rng, batch, tokens), length);
            match session.step(&first).await {
                Answer::Output(_) => open.push((session, batch, length - tokens)),
                answer => {
                    let text = answer.error();
                    assert!(text.ends_with("immediately: out of memory"), "{text}");
                    refused += 1;
                }
            }
            keeps_to_the_arena();
            for (session, batch, left) in &mut open {
                let rows: Vec<i64> = (0..*batch).map(|_| rng.random_range(0..*batch as i64)).collect();
                let tokens = rng.random_range(0..=*left);
                let step = Step::next(&numbers(&mut rng, *batch, tokens)).rows(&rows);
                session.step(&step).await.output();
                *left -= tokens;
                keeps_to_the_arena();
            }
            let request = forward(&format!("{PREFIX}.1"), &numbers(&mut rng, 5, 3));
            call(&node, peer, names::FORWARD, request).await.unwrap();
            keeps_to_the_arena();
        }
        drop(open);
        server.idle().await;
    }
    assert!(refused > 0, "the cache was never full");
}

#[tokio::test]
async fn one_sequence_may_have_the_whole_cache_whatever_its_length() {
    let mut config = config(0..4);
    config.limits.attn_cache_tokens = Some(100);
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve_with(config).await, swarm.caller().await);
    for (n_blocks, length) in [(4, 100), (3, 133), (1, 400)] {
        let mut session = Session::open(&node, server.node.peer()).await;
        let mut first = Step::first(&numbers(&mut StdRng::seed_from_u64(1), 1, length), length);
        let uids: Vec<String> = (0..n_blocks).map(|block| format!("{PREFIX}.{block}")).collect();
        first.uid = uids.join(" ");
        session.step(&first).await.output();
        let cache = server.server.stats().cache;
        assert_eq!((cache.overflow, cache.total), (0, 4 * 8));
        drop(session);
        server.idle().await;
    }
}
