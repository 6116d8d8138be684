//! A chain of remote spans that looks like one model: steps go through it, and when a server is lost another one takes
//! over from the recorded history. It knows no tokens and no text.
//!
//! ```text
//! x ─▶ hop 0 ─▶ hop 1 ─▶ … ─▶ output        each hop: a Remote and the inputs it has seen, [batch, position, hidden]
//!          │ fails
//!          ▼
//!      exclude the peer, route its blocks anew (perhaps over several servers), replay the inputs, go on
//! ```

use std::{
    collections::HashSet,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use sepal_protocol::metadata::NextServer;
use tracing::{debug, info, warn};

use super::{
    Shared,
    error::{ClientError, RemoteError},
    remote::{Remote, Target},
};
use crate::{model::Hidden, p2p::PeerId, swarm::route::Hop};

/// Most tokens (rows × tokens) in one message. Below every server's default `max_batch_size`, so that a long prompt or a
/// long history never fails for its size alone.
const MESSAGE_TOKENS: usize = 1024;
/// Most bytes of activations in one message, as float32: well below what a stream takes.
const MESSAGE_BYTES: usize = 8 << 20;
/// Waits between looking for missing blocks again double up to this.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
const MIN_BACKOFF: Duration = Duration::from_secs(1);

/// An open session through the whole model.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    max_length: usize,
    position: usize,
    hops: Vec<HopState>,
}

/// How long one hop took.
#[derive(Clone, Debug)]
pub struct HopReport {
    /// The server.
    pub peer: PeerId,
    /// The blocks it ran.
    pub blocks: Range<u32>,
    /// Mean time of a step there and back, over the steps after the first.
    pub per_step: Option<Duration>,
}

#[derive(Debug)]
struct HopState {
    hop: Hop,
    remote: Remote,
    /// Inputs seen so far, as they were sent: replayed when the server is lost.
    history: Vec<Hidden>,
    busy: Duration,
    steps: u32,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, max_length: usize) -> Self {
        Self {
            shared,
            max_length,
            position: 0,
            hops: Vec::new(),
        }
    }

    /// Tokens that went through.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Servers in use, in order, with their times.
    pub fn report(&self) -> Vec<HopReport> {
        let report = |state: &HopState| HopReport {
            peer: state.hop.peer,
            blocks: state.hop.blocks.clone(),
            per_step: (state.steps > 0).then(|| state.busy / state.steps),
        };
        self.hops.iter().map(report).collect()
    }

    /// Sends `x` (`[batch, tokens, hidden]`) through all blocks and returns the last block's output, same shape.
    ///
    /// # Errors
    /// When the session is full, blocks are served by nobody, or too many servers failed in a row.
    pub async fn step(&mut self, x: Hidden) -> Result<Hidden, ClientError> {
        let wanted = self.position + x.tokens;
        if wanted > self.max_length {
            return Err(ClientError::SessionFull {
                max_length: self.max_length,
                wanted,
            });
        }
        if self.hops.is_empty() {
            let blocks = 0..self.shared.n_blocks;
            self.hops = self.connect(blocks, &mut Attempts::default()).await?;
        }
        let mut outputs = Vec::new();
        for piece in pieces(x) {
            let tokens = piece.tokens;
            outputs.push(self.step_piece(piece).await?);
            self.position += tokens;
        }
        Ok(concat(outputs))
    }

    /// Ends the session on all servers at once.
    pub async fn close(self) {
        futures::future::join_all(self.hops.into_iter().map(|state| state.remote.close())).await;
    }

    async fn step_piece(&mut self, mut x: Hidden) -> Result<Hidden, ClientError> {
        let step_id = uuid::Uuid::new_v4().to_string();
        let mut attempts = Attempts::default();
        let mut index = 0;
        while index < self.hops.len() {
            let next = self.next_servers(index + 1);
            let state = &mut self.hops[index];
            match state.step(&x, &step_id, next).await {
                Ok(output) => {
                    if state.history.is_empty() {
                        self.shared.works(state.hop.peer);
                    }
                    state.history.push(std::mem::replace(&mut x, output));
                    index += 1;
                    attempts = Attempts::default();
                }
                Err(error) => {
                    let lost = self.hops.remove(index);
                    attempts.failed(&self.shared, &lost.hop, error)?;
                    let replacement = self.replay(lost, &mut attempts).await?;
                    self.hops.splice(index..index, replacement);
                }
            }
        }
        Ok(x)
    }

    /// The hops that a push may go on to: only those that have seen a step, because a server drops pushes for sessions
    /// it does not know yet.
    fn next_servers(&self, from: usize) -> Vec<NextServer> {
        let rest = &self.hops[from..];
        if !self.shared.push || rest.iter().any(|state| state.remote.position() == 0) {
            return Vec::new();
        }
        rest.iter().map(|state| state.remote.as_next_server()).collect()
    }

    /// Finds servers for the lost hop's blocks and brings them to where it was.
    async fn replay(&self, lost: HopState, attempts: &mut Attempts) -> Result<Vec<HopState>, ClientError> {
        let history = lost.history;
        'attempt: loop {
            let mut fresh = self.connect(lost.hop.blocks.clone(), attempts).await?;
            let mut inputs = history.clone();
            for state in &mut fresh {
                let mut outputs = Vec::with_capacity(inputs.len());
                for input in inputs {
                    let step_id = uuid::Uuid::new_v4().to_string();
                    match state.step(&input, &step_id, Vec::new()).await {
                        Ok(output) => outputs.push(output),
                        Err(error) => {
                            attempts.failed(&self.shared, &state.hop, error)?;
                            continue 'attempt;
                        }
                    }
                    state.history.push(input);
                }
                state.forget_times();
                inputs = outputs;
            }
            info!(blocks = ?lost.hop.blocks, tokens = self.position, "history replayed on {} server(s)", fresh.len());
            return Ok(fresh);
        }
    }

    /// Chooses servers for `blocks` and opens a stream to each, all at once.
    async fn connect(&self, blocks: Range<u32>, attempts: &mut Attempts) -> Result<Vec<HopState>, ClientError> {
        loop {
            let hops = self.route(blocks.clone(), attempts).await?;
            let opened = futures::future::join_all(hops.iter().map(|hop| self.open(hop))).await;
            let mut states = Vec::with_capacity(hops.len());
            let mut all_open = true;
            for (hop, remote) in hops.into_iter().zip(opened) {
                match remote {
                    Ok(remote) => {
                        states.push(HopState {
                            hop,
                            remote,
                            history: Vec::new(),
                            busy: Duration::ZERO,
                            steps: 0,
                        });
                    }
                    Err(error) => {
                        attempts.failed(&self.shared, &hop, error)?;
                        all_open = false;
                    }
                }
            }
            if all_open {
                return Ok(states);
            }
            futures::future::join_all(states.into_iter().map(|state| state.remote.close())).await;
        }
    }

    async fn open(&self, hop: &Hop) -> Result<Remote, RemoteError> {
        let target = Target {
            peer: hop.peer,
            blocks: hop.blocks.clone(),
            prefix: self.shared.prefix.clone(),
            max_length: self.max_length,
            timeout: self.shared.request_timeout,
            dtype: self.shared.wire_dtype(hop.peer),
        };
        Remote::open(&self.shared.p2p, target).await
    }

    /// The best chain over `blocks` without the servers that failed. While blocks are missing it looks again, with
    /// growing pauses; then those that failed get another chance, because a ban may be all that is in the way.
    async fn route(&self, blocks: Range<u32>, attempts: &mut Attempts) -> Result<Vec<Hop>, ClientError> {
        loop {
            match self
                .shared
                .route(blocks.clone(), self.max_length, &attempts.excluded)
                .await
            {
                Ok(hops) => {
                    debug!(?hops, "route");
                    return Ok(hops);
                }
                Err(missing) => {
                    let Some(pause) = attempts.pause(self.shared.max_retries) else {
                        return Err(ClientError::MissingBlocks { missing });
                    };
                    warn!(%missing, "looking again in {pause:?}");
                    tokio::time::sleep(pause).await;
                    attempts.excluded.clear();
                    self.shared.refresh().await;
                }
            }
        }
    }
}

impl HopState {
    async fn step(&mut self, x: &Hidden, step_id: &str, next: Vec<NextServer>) -> Result<Hidden, RemoteError> {
        let start = Instant::now();
        // The first step of a session also reserves memory and reads the whole prompt: not what a step usually takes.
        let first = self.remote.position() == 0;
        let output = self.remote.step(x, step_id, next).await?;
        if !first {
            self.busy += start.elapsed();
            self.steps += 1;
        }
        Ok(output)
    }

    /// A replay says nothing about how long steps take.
    fn forget_times(&mut self) {
        self.busy = Duration::ZERO;
        self.steps = 0;
    }
}

/// What went wrong while one piece tried to get through.
#[derive(Debug, Default)]
struct Attempts {
    excluded: HashSet<PeerId>,
    failures: usize,
    pauses: u32,
}

impl Attempts {
    /// Notes a failed server: out of the route at once, here and for later sessions of this client.
    fn failed(&mut self, shared: &Shared, hop: &Hop, error: RemoteError) -> Result<(), ClientError> {
        self.failures += 1;
        self.excluded.insert(hop.peer);
        shared.ban(hop.peer);
        warn!(
            peer = %hop.peer,
            blocks = ?hop.blocks,
            error = &error as &dyn std::error::Error,
            "server failed, looking for another"
        );
        if self.failures > shared.max_retries {
            return Err(ClientError::RetriesExhausted {
                attempts: self.failures,
                peer: hop.peer,
                start: hop.blocks.start,
                end: hop.blocks.end,
                source: Box::new(error),
            });
        }
        Ok(())
    }

    fn pause(&mut self, max_retries: usize) -> Option<Duration> {
        if self.pauses as usize >= max_retries {
            return None;
        }
        let pause = MIN_BACKOFF.saturating_mul(1 << self.pauses.min(10)).min(MAX_BACKOFF);
        self.pauses += 1;
        Some(pause)
    }
}

/// Cuts activations along the tokens into messages of bounded size.
fn pieces(x: Hidden) -> Vec<Hidden> {
    let bytes_per_token = size_of::<f32>() * x.width * x.batch;
    let per_message = (MESSAGE_TOKENS / x.batch.max(1))
        .min(MESSAGE_BYTES / bytes_per_token.max(1))
        .max(1);
    if x.tokens <= per_message {
        return vec![x];
    }
    let starts = (0..x.tokens).step_by(per_message);
    starts
        .map(|start| narrow(&x, start..(start + per_message).min(x.tokens)))
        .collect()
}

/// The activations of some of the tokens.
fn narrow(x: &Hidden, tokens: Range<usize>) -> Hidden {
    let rows = (0..x.batch).map(|row| {
        let first = (row * x.tokens + tokens.start) * x.width;
        &x.data[first..first + tokens.len() * x.width]
    });
    Hidden {
        data: rows.collect::<Vec<_>>().concat(),
        batch: x.batch,
        tokens: tokens.len(),
        width: x.width,
    }
}

/// Joins pieces along the tokens.
fn concat(mut parts: Vec<Hidden>) -> Hidden {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let (batch, width) = parts.first().map_or((0, 0), |part| (part.batch, part.width));
    let tokens = parts.iter().map(|part| part.tokens).sum();
    let rows = (0..batch).flat_map(|row| {
        parts.iter().map(move |part| {
            let len = part.tokens * part.width;
            &part.data[row * len..][..len]
        })
    });
    Hidden {
        data: rows.collect::<Vec<_>>().concat(),
        batch,
        tokens,
        width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(batch: usize, tokens: usize, width: usize) -> Hidden {
        Hidden {
            data: (0..batch * tokens * width).map(|i| i as f32).collect(),
            batch,
            tokens,
            width,
        }
    }

    #[test]
    fn long_activations_are_cut_along_the_tokens_and_joined_again() {
        let x = numbered(3, 1000, 2);
        let parts = pieces(x.clone());
        let tokens: Vec<usize> = parts.iter().map(|part| part.tokens).collect();
        assert_eq!(tokens, [341, 341, 318]);
        assert_eq!(parts[1].data[0], 682.0);
        assert_eq!(concat(parts).data, x.data);
    }

    #[test]
    fn a_short_step_is_one_message() {
        assert_eq!(pieces(numbered(1, MESSAGE_TOKENS, 1)).len(), 1);
        assert_eq!(pieces(numbered(1, 4, MESSAGE_BYTES / 8)).len(), 2);
        assert_eq!(pieces(numbered(MESSAGE_TOKENS + 5, 2, 1)).len(), 2);
    }

    #[test]
    fn pauses_double_and_end() {
        let mut attempts = Attempts::default();
        let pauses: Vec<u64> = std::iter::from_fn(|| attempts.pause(3))
            .map(|pause| pause.as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4]);
    }
}
