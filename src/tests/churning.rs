//! Sessions that come and go at random: whoever stays gets the text that they get alone, and nothing is left of those
//! that went.

use futures::{FutureExt, StreamExt, stream};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    generating::{client, generate},
    setup::{Reference, Swarm, config, reference, soon, tokens, until},
};
use crate::client::Client;

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
