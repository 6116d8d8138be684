//! One step through one hop, whatever happens to its server: it answers, or others are brought to where it was.
//!
//! ```text
//! answers ─────────────────────────────────▶ its output
//! fails ───▶ left out; others ─▶ replay ───▶ they go on
//! is silent ┬▶ it answers after all ───────▶ its output, and more patience with it
//!           └▶ others ─▶ replay ───────────▶ they go on, it is left out        (nobody else: wait for it)
//! has become slow ──▶ others ─▶ replay ────▶ they go on, it is left out        (only if they promise much more)
//! ```

use std::{
    collections::HashSet,
    pin::pin,
    time::{Duration, Instant},
};

use sepal_protocol::metadata::NextServer;
use tokio::time::timeout;
use tracing::info;

use super::{HopState, Session};
use crate::{
    client::{
        activations::{Encoding, Passing},
        attempts::Attempts,
        error::{ClientError, RemoteError},
        history::{History, concat},
        pace::is_worth_leaving,
    },
    model::Hidden,
    p2p::PeerId,
    swarm::route::Hop,
};

/// How often a session leaves servers for being slow. Each time costs a replay, and who is slow may be the line of the
/// client itself, which no other server makes quicker.
const MAX_SWITCHES: u32 = 3;
/// How long a step may be held up by leaving a slow server. If others are not ready by then, it stays.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(10);

/// A step on its way through the hops.
#[derive(Clone, Debug)]
pub(super) struct Step<'a> {
    /// `[batch, tokens, hidden]`.
    pub(super) passing: &'a Passing,
    pub(super) encoding: Encoding,
    pub(super) id: &'a str,
    /// Where the answer is pushed.
    pub(super) next: Vec<NextServer>,
}

/// What came of a step on one hop.
#[derive(Debug)]
pub(super) enum Passed {
    /// Its output, `[batch, tokens, hidden]`.
    Through(Box<HopState>, Passing),
    /// These hops are where that one was before the step.
    Instead(Vec<HopState>),
}

/// How a race between a server and those that could take its place ended.
#[derive(Debug)]
pub(super) enum Raced {
    Answered(Passing),
    /// Others are ready; what the server did.
    Overtaken(Vec<HopState>, RemoteError),
    Failed(RemoteError),
}

impl Session {
    /// Takes a step through one hop, or finds others for its blocks.
    ///
    /// # Errors
    /// When the blocks are served by nobody, or too much failed.
    pub(super) async fn pass(
        &mut self,
        state: Box<HopState>,
        step: Step<'_>,
        attempts: &mut Attempts,
    ) -> Result<Passed, ClientError> {
        let outcome = self.pass_or_replace(state, step, attempts).await;
        self.note_receipts(attempts);
        outcome
    }

    async fn pass_or_replace(
        &mut self,
        mut state: Box<HopState>,
        step: Step<'_>,
        attempts: &mut Attempts,
    ) -> Result<Passed, ClientError> {
        if let Some(fresh) = self.leave_if_slow(&mut state, attempts).await {
            return Ok(Passed::Instead(fresh));
        }
        match self.race(&mut state, step, attempts).await {
            Raced::Answered(output) => Ok(Passed::Through(state, output)),
            Raced::Overtaken(fresh, error) => {
                attempts.failed(&self.shared, &state.hop, error)?;
                Ok(Passed::Instead(fresh))
            }
            Raced::Failed(error) => {
                attempts.failed(&self.shared, &state.hop, error)?;
                let fresh = self.replace(&state.hop, &state.history, attempts).await?;
                Ok(Passed::Instead(fresh))
            }
        }
    }

    /// Sends a step and waits for its answer; when that takes too long, others are brought to where the server is, while it
    /// may still answer.
    pub(super) async fn race(&self, state: &mut HopState, step: Step<'_>, attempts: &Attempts) -> Raced {
        let started = Instant::now();
        let (sent, size) = match state.prepare(step.passing, step.encoding) {
            Ok(prepared) => prepared,
            Err(error) => return Raced::Failed(error),
        };
        let outcome = {
            let mut answer = pin!(state.remote.step(&sent, step.id, step.next));
            let mut patience = state.pace.patience(size);
            loop {
                if let Ok(outcome) = timeout(patience, &mut answer).await {
                    break outcome;
                }
                info!(peer = %state.hop.peer, blocks = ?state.hop.blocks, "no answer within {patience:?}, asking others");
                let mut others = pin!(self.others(&state.hop, &state.history, attempts));
                tokio::select! {
                    biased;
                    outcome = &mut answer => match outcome {
                        Ok(output) => {
                            state.pace.doubted_wrongly();
                            break Ok(output);
                        }
                        // Those who were asked are on their way.
                        Err(error) => match others.await {
                            Some(fresh) => return Raced::Overtaken(fresh, error),
                            None => break Err(error),
                        },
                    },
                    fresh = &mut others => if let Some(fresh) = fresh {
                        return Raced::Overtaken(fresh, RemoteError::Silent(started.elapsed()));
                    },
                }
                // Nobody else has the blocks: a server that is slow is better than none.
                patience = patience.saturating_mul(2);
            }
        };
        match outcome.and_then(|output| state.take(&sent.seen, size, output, started.elapsed())) {
            Ok(output) => Raced::Answered(output),
            Err(error) => Raced::Failed(error),
        }
    }

    /// Servers that could take the place of one that may still answer, brought to where it is. `None` if there are none,
    /// or all of them fail.
    async fn others(&self, hop: &Hop, history: &History, attempts: &Attempts) -> Option<Vec<HopState>> {
        let excluded = self.unwanted(hop, attempts);
        let blocks = hop.blocks.clone();
        if self.shared.alternative(blocks, self.max_length, &excluded).is_none() {
            self.shared.refresh().await;
        }
        let mut attempts = Attempts::racing(excluded);
        self.replace(hop, history, &mut attempts).await.ok()
    }

    /// Whom nobody should be replaced by while there is a choice.
    fn unwanted(&self, hop: &Hop, attempts: &Attempts) -> HashSet<PeerId> {
        let mut unwanted = self.shared.lock_bans().active(Instant::now());
        unwanted.extend(&attempts.excluded);
        unwanted.insert(hop.peer);
        unwanted
    }

    /// Others in the place of a server that became slow, if they promise to be much quicker and are ready soon.
    async fn leave_if_slow(&mut self, state: &mut HopState, attempts: &Attempts) -> Option<Vec<HopState>> {
        let now = state.pace.slowed()?;
        state.pace.stay();
        let unwanted = self.unwanted(&state.hop, attempts);
        let blocks = state.hop.blocks.clone();
        let there = self.shared.alternative(blocks, self.max_length, &unwanted)?.seconds;
        if self.n_switches >= MAX_SWITCHES || !is_worth_leaving(now, there) {
            return None;
        }
        self.n_switches += 1;
        let others = self.others(&state.hop, &state.history, attempts);
        let fresh = timeout(SWITCH_TIMEOUT, others).await.ok()??;
        let [now, there] = [now, there].map(Duration::from_secs_f64);
        let reason = RemoteError::Slow { now, there }.reason();
        info!(peer = %state.hop.peer, blocks = ?state.hop.blocks, "left for others: {reason}");
        self.shared.ban(state.hop.peer, &reason);
        Some(fresh)
    }

    /// Finds servers for the blocks of `lost` and brings them to where it was.
    ///
    /// # Errors
    /// When the blocks are served by nobody, or too much failed.
    pub(super) async fn replace(
        &self,
        lost: &Hop,
        history: &History,
        attempts: &mut Attempts,
    ) -> Result<Vec<HopState>, ClientError> {
        let (fresh, _) = self.replace_all(lost, (history, 0), attempts).await?;
        Ok(fresh)
    }

    /// The same for hops of which `lost` has all the blocks; returns also what comes out of the last `tail` tokens.
    ///
    /// # Errors
    /// When the blocks are served by nobody, or too much failed.
    pub(super) async fn replace_all(
        &self,
        lost: &Hop,
        (history, tail): (&History, usize),
        attempts: &mut Attempts,
    ) -> Result<(Vec<HopState>, Hidden), ClientError> {
        loop {
            let mut fresh = self.connect(lost.blocks.clone(), attempts).await?;
            match self.replay((history, tail), &mut fresh, attempts).await {
                Ok(output) => {
                    let tokens = history.tokens();
                    info!(blocks = ?lost.blocks, tokens, "history replayed on {} server(s)", fresh.len());
                    return Ok((fresh, output));
                }
                Err((hop, error)) => attempts.failed(&self.shared, &hop, error)?,
            }
        }
    }

    /// Sends a history through `hops`, message by message, and returns what comes out of its last `tail` tokens. Who is
    /// silent while there are others is given up.
    ///
    /// # Errors
    /// The hop that failed, and how.
    async fn replay(
        &self,
        (history, tail): (&History, usize),
        hops: &mut [HopState],
        attempts: &Attempts,
    ) -> Result<Hidden, (Hop, RemoteError)> {
        let mut outputs = Vec::new();
        let Some(first) = hops.first().map(|state| state.hop.clone()) else {
            return Ok(concat(outputs));
        };
        let mut position = 0;
        for input in history.replay(0, tail) {
            let x = input.map_err(|error| (first.clone(), error.into()))?;
            position += x.tokens;
            let mut passing = Passing::from(x);
            let in_tail = position + tail > history.tokens();
            let id = uuid::Uuid::new_v4().to_string();
            for state in &mut *hops {
                let outcome = self.replay_step(state, &passing, &id, attempts).await;
                passing = outcome.map_err(|error| (state.hop.clone(), error))?;
                state.drawn = (in_tail && self.verifier.draws()).then(|| passing.x.clone());
            }
            if in_tail {
                outputs.push(passing.x);
            }
        }
        for state in hops {
            state.forget_times();
        }
        Ok(concat(outputs))
    }

    async fn replay_step(
        &self,
        state: &mut HopState,
        passing: &Passing,
        id: &str,
        attempts: &Attempts,
    ) -> Result<Passing, RemoteError> {
        let started = Instant::now();
        let (sent, size) = state.prepare(passing, Encoding::Exact)?;
        let unwanted = self.unwanted(&state.hop, attempts);
        let others = self
            .shared
            .alternative(state.hop.blocks.clone(), self.max_length, &unwanted);
        let patience = match others {
            Some(_) => state.pace.patience(size),
            None => Duration::MAX,
        };
        let answer = timeout(patience, state.remote.step(&sent, id, Vec::new())).await;
        let output = answer.map_err(|_| RemoteError::Silent(started.elapsed()))??;
        state.take(&sent.seen, size, output, started.elapsed())
    }
}
