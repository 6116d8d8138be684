//! Which open session has seen the beginning of this prompt? Sessions of finished generations stay open for a while, so
//! that a conversation that goes on sends its new tokens only. It knows tokens, not messages.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Client, ClientError, Generation, Params, Session, TextCodec, Token,
    run::{Run, Start, Used},
    speculate::Speculator,
};
use crate::task::Tasks;

/// How much longer than the first prompt and its answer a conversation may become before it needs a new session.
const ROOM: usize = 2;

/// Of what servers have free, sessions that wait may hold one part in so many.
const SHARE: usize = 4;

/// Most tokens that sessions which wait hold, if servers do not say what they have free.
const MOST_TOKENS: usize = 8192;

/// How often sessions that waited too long are looked for at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// What is kept open.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most sessions that wait for their conversation to go on. Each holds memory on every server of its route; there are
    /// fewer where they would hold too much of what servers have free.
    pub max_idle: usize,
    /// How long one waits.
    pub max_idle_time: Duration,
}

impl Default for Limits {
    /// A few conversations of one person; servers give up sessions that are silent for half an hour.
    fn default() -> Self {
        Self {
            max_idle: 8,
            max_idle_time: Duration::from_secs(600),
        }
    }
}

/// The sessions of one client's conversations. Clones share them.
#[derive(Clone, Debug)]
pub struct Conversations {
    client: Client,
    limits: Limits,
    idle: IdleSessions,
}

/// Sessions that wait, the oldest first. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct IdleSessions(Arc<Mutex<Vec<Idle>>>);

#[derive(Debug)]
struct Idle {
    used: Used,
    since: Instant,
}

impl Conversations {
    /// Keeps sessions of `client`, and closes in the background those that waited too long.
    pub fn new(client: Client, limits: Limits, tasks: &Tasks) -> Self {
        let this = Self {
            client,
            limits,
            idle: IdleSessions::default(),
        };
        let background = this.clone();
        tasks.spawn_until_stopped("idle sessions", async move {
            loop {
                tokio::time::sleep((background.limits.max_idle_time / 4).max(SHORTEST_PAUSE)).await;
                background.close_idle(background.limits.max_idle).await;
            }
        });
        this
    }

    /// Starts to continue `prompt`, in the session that has seen most of it if there is one. Otherwise so many of those that
    /// wait are closed first that the new one is not one too many: servers may allow each peer only so much. Give it back
    /// with [`Conversations::end`], whether it came to its end or not.
    ///
    /// # Errors
    /// As [`Client::begin`].
    pub async fn begin(&self, codec: Option<&TextCodec>, prompt: &[u32], params: &Params) -> Result<Run, ClientError> {
        let needed = prompt.len().saturating_add(params.max_new_tokens);
        let (session, speculator) = match self.take(prompt, needed) {
            Some(known) => known,
            None => {
                self.close_idle(self.limits.max_idle.saturating_sub(1)).await;
                let context = self.client.ends().config().context_length();
                let session = self.client.session(room(needed, context)).hasty();
                let speculator = self.client.speculator(&session);
                (session, speculator)
            }
        };
        let start = Start {
            prompt,
            session,
            speculator,
            idle: Some(self.idle.clone()),
        };
        Run::new(&self.client, codec, start, params)
    }

    /// What came of a generation; its session waits for the conversation to go on.
    ///
    /// # Errors
    /// The last tokens are no text.
    pub async fn end(&self, run: Run) -> Result<Generation, ClientError> {
        let (generation, used) = run.end();
        if used.session.is_over() || used.tokens.is_empty() {
            used.session.close().await;
        } else {
            let since = Instant::now();
            self.idle.lock().push(Idle { used, since });
        }
        self.close_idle(self.limits.max_idle).await;
        generation
    }

    /// Begins, hands each token to `on_token`, and ends.
    ///
    /// # Errors
    /// As [`Client::generate`].
    pub async fn generate(
        &self,
        codec: Option<&TextCodec>,
        prompt: &[u32],
        params: &Params,
        on_token: &mut (dyn FnMut(&Token) + Send),
    ) -> Result<Generation, ClientError> {
        let mut run = self.begin(codec, prompt, params).await?;
        let outcome = run.drive(on_token).await;
        let generation = self.end(run).await;
        outcome?;
        generation
    }

    /// Closes all sessions that wait.
    pub async fn close(&self) {
        self.idle.close_all().await;
    }

    /// Whose sessions they are.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How many sessions wait.
    pub fn n_idle(&self) -> usize {
        self.idle.lock().len()
    }

    /// The session that has seen the longest beginning of `prompt`, taken back to where they part. What was another
    /// conversation, of which most would be lost, is left alone.
    fn take(&self, prompt: &[u32], needed: usize) -> Option<(Session, Speculator)> {
        let mut idle = self.idle.lock();
        let usable = |idle: &Idle| {
            let common = common_prefix(&idle.used.tokens, prompt).min(prompt.len().saturating_sub(1));
            let fits = idle.used.session.max_length() >= needed;
            (fits && common > 0 && common * 2 >= idle.used.tokens.len()).then_some(common)
        };
        let found = idle
            .iter()
            .enumerate()
            .filter_map(|(at, idle)| Some((usable(idle)?, at)));
        let (common, at) = found.max()?;
        let Used {
            mut session,
            speculator,
            ..
        } = idle.remove(at).used;
        session.rewind(common).then_some((session, speculator))
    }

    /// Closes the sessions that waited too long, and the oldest until `most` are left that do not hold too much.
    async fn close_idle(&self, most: usize) {
        let closing: Vec<Session> = {
            let mut idle = self.idle.lock();
            let surplus = idle.len().saturating_sub(most).max(n_too_many(&idle));
            let mut at = 0;
            let closed = idle.extract_if(.., |idle| {
                at += 1;
                at <= surplus || idle.since.elapsed() > self.limits.max_idle_time
            });
            closed.map(|idle| idle.used.session).collect()
        };
        futures::future::join_all(closing.into_iter().map(Session::close)).await;
    }
}

impl IdleSessions {
    /// Closes all of them, so that servers have room for others.
    pub(super) async fn close_all(&self) {
        let closing = std::mem::take(&mut *self.lock());
        let closing = closing.into_iter().map(|idle| idle.used.session.close());
        futures::future::join_all(closing).await;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of the oldest must go for the others to hold no more than a share of what their servers have free. The newest
/// may stay whatever it holds.
fn n_too_many(idle: &[Idle]) -> usize {
    let free = idle.iter().filter_map(|idle| idle.used.session.room_left()).min();
    let most = free.map_or(MOST_TOKENS, |free| free / SHARE);
    let mut tokens = 0_usize;
    let fits = |idle: &&Idle| {
        tokens = tokens.saturating_add(idle.used.session.max_length());
        tokens <= most
    };
    let n_kept = idle.iter().rev().take_while(fits).count();
    idle.len().saturating_sub(n_kept.max(1))
}

/// How many tokens a session is to have room for that needs so many at first: to go on it may become longer, but not than
/// the `context` of the model, of which it gets all if that is not much more. Who goes beyond that at once may go on there.
fn room(needed: usize, context: Option<usize>) -> usize {
    let more = needed.saturating_mul(ROOM);
    match context {
        Some(context) if needed <= context && context < more.saturating_mul(2) => context,
        _ => more,
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_gets_room_to_grow_within_the_context() {
        for (needed, context, expected) in [
            (100, Some(512), 200),
            (150, Some(512), 512),
            (512, Some(512), 512),
            (600, Some(512), 1200),
            (100, None, 200),
            (usize::MAX, Some(512), usize::MAX),
        ] {
            assert_eq!(room(needed, context), expected, "{needed} of {context:?}");
        }
    }
}
