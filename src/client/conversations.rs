//! Which open session has seen the beginning of this prompt? Sessions of finished generations stay open for a while, so
//! that a conversation that goes on sends its new tokens only. It knows tokens, not messages.

use std::{
    sync::{Arc, Mutex, PoisonError},
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

/// How often sessions that waited too long are looked for at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// What is kept open.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most sessions that wait for their conversation to go on. Each holds memory on every server of its route.
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
    idle: Arc<Mutex<Vec<Idle>>>,
}

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
            idle: Arc::default(),
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

    /// Starts to continue `prompt`, in the session that has seen most of it if there is one. Give it back with
    /// [`Conversations::end`], whether it came to its end or not.
    ///
    /// # Errors
    /// As [`Client::begin`].
    pub fn begin(&self, codec: Option<&TextCodec>, prompt: &[u32], params: &Params) -> Result<Run, ClientError> {
        let needed = prompt.len().saturating_add(params.max_new_tokens);
        let known = self.take(prompt, needed);
        let (session, speculator) = known.unwrap_or_else(|| {
            let session = self.client.session(needed.saturating_mul(ROOM));
            let speculator = self.client.speculator(&session);
            (session, speculator)
        });
        let start = Start {
            prompt,
            session,
            speculator,
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
            self.lock().push(Idle { used, since });
            self.close_idle(self.limits.max_idle).await;
        }
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
        let mut run = self.begin(codec, prompt, params)?;
        let outcome = run.drive(on_token).await;
        let generation = self.end(run).await;
        outcome?;
        generation
    }

    /// Closes all sessions that wait.
    pub async fn close(&self) {
        self.close_idle(0).await;
    }

    /// Whose sessions they are.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How many sessions wait.
    pub fn n_idle(&self) -> usize {
        self.lock().len()
    }

    /// The session that has seen the longest beginning of `prompt`, taken back to where they part. What was another
    /// conversation, of which most would be lost, is left alone.
    fn take(&self, prompt: &[u32], needed: usize) -> Option<(Session, Speculator)> {
        let mut idle = self.lock();
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

    /// Closes the sessions that waited too long, and the oldest until `most` are left.
    async fn close_idle(&self, most: usize) {
        let closing: Vec<Session> = {
            let mut idle = self.lock();
            let surplus = idle.len().saturating_sub(most);
            let mut at = 0;
            let closed = idle.extract_if(.., |idle| {
                at += 1;
                at <= surplus || idle.since.elapsed() > self.limits.max_idle_time
            });
            closed.map(|idle| idle.used.session).collect()
        };
        futures::future::join_all(closing.into_iter().map(Session::close)).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
