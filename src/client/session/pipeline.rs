//! A prompt in pieces, on all hops at once: while one server computes a piece, the one before it has the next.
//!
//! ```text
//! pieces ─▶ lane of hop 0 ─▶ lane of hop 1 ─▶ … ─▶ outputs      each waits for one answer at a time
//! ```
//!
//! When a server fails, the lanes before it finish what they have begun, all go back to what came out of the last one, the
//! server is replaced as for any other step, and what is left of the prompt starts anew from there.

use std::collections::VecDeque;

use sepal_protocol::metadata::NextServer;
use tokio::sync::mpsc;

use super::{
    HopState, Session,
    cut::piece_tokens,
    rescue::{Raced, Step},
};
use crate::{
    client::{
        activations::{Encoding, Passing},
        attempts::Attempts,
        error::{ClientError, RemoteError},
    },
    model::Hidden,
    swarm::route::Hop,
};

/// A piece on its way.
struct Piece {
    id: String,
    encoding: Encoding,
}

/// How a lane ended.
enum End {
    /// It took all that came, or nobody took more from it.
    Fine(Box<HopState>),
    /// Its server failed.
    Lost(Box<HopState>, RemoteError),
    /// Its server was silent, and others are where it was.
    Overtaken(Vec<HopState>, Hop, RemoteError),
}

impl Session {
    /// Most tokens of a piece, so that hops that work at once have something to do.
    pub(super) fn piece_tokens(&self, x: &Hidden) -> usize {
        let hops: Option<Vec<_>> = self.hops.iter().map(|state| state.pace.long_step()).collect();
        match hops.filter(|_| self.works_at_once()) {
            Some(hops) => piece_tokens(x.batch, x.tokens, &hops),
            None => usize::MAX,
        }
    }

    /// Whether pieces may be on several hops at once. Blocks of one's own are not, and answers that are looked at belong to
    /// the last step of each hop.
    pub(super) fn works_at_once(&self) -> bool {
        self.hops.len() > 1 && self.own.is_none() && self.verifier.share <= 0.0
    }

    /// Sends pieces of a prompt through all hops, and returns what comes out for each.
    ///
    /// # Errors
    /// When blocks are served by nobody, or too much failed.
    pub(super) async fn step_at_once(&mut self, pieces: Vec<Hidden>) -> Result<Vec<Hidden>, ClientError> {
        let mut left = VecDeque::from(pieces);
        let (mut outputs, mut attempts) = (Vec::new(), Attempts::default());
        while !left.is_empty() {
            let (came, ends) = self.run(&left, &attempts).await;
            if !came.is_empty() {
                attempts = Attempts::default();
            }
            for output in came {
                self.position += output.tokens;
                left.pop_front();
                outputs.push(output);
            }
            let hops = self.settle(ends, &mut attempts).await;
            self.verifier.gave_false_receipts(attempts.take_liars(), self.position);
            self.hops = hops?;
        }
        Ok(outputs)
    }

    /// All hops at work until everything is through or one has failed.
    async fn run(&mut self, left: &VecDeque<Hidden>, attempts: &Attempts) -> (Vec<Hidden>, Vec<End>) {
        let piece = |x: &Hidden| Piece {
            id: uuid::Uuid::new_v4().to_string(),
            encoding: self.encoding(x.data.len()),
        };
        let pieces: Vec<Piece> = left.iter().map(piece).collect();
        let next: Vec<_> = (0..self.hops.len()).map(|index| self.next_in_order(index)).collect();
        let hops = std::mem::take(&mut self.hops);
        let (first, mut from) = mpsc::channel(1);
        let mut lanes = Vec::with_capacity(hops.len());
        for (state, next) in hops.into_iter().zip(next) {
            let (to, behind) = mpsc::channel(1);
            let ways = (std::mem::replace(&mut from, behind), to);
            lanes.push(self.lane(Box::new(state), (&pieces, next), ways, attempts));
        }
        let feed = async move {
            for x in left {
                if first.send(Passing::from(x.clone())).await.is_err() {
                    break;
                }
            }
        };
        let collect = async move {
            let mut outputs = Vec::new();
            while let Some(output) = from.recv().await {
                outputs.push(output.x);
            }
            outputs
        };
        let ((), ends, outputs) = tokio::join!(feed, futures::future::join_all(lanes), collect);
        (outputs, ends)
    }

    /// One hop: takes what comes, piece after piece, and hands on what its server answers.
    async fn lane(
        &self,
        mut state: Box<HopState>,
        (pieces, next): (&[Piece], Vec<NextServer>),
        (mut from, to): (mpsc::Receiver<Passing>, mpsc::Sender<Passing>),
        attempts: &Attempts,
    ) -> End {
        for piece in pieces {
            let Some(passing) = from.recv().await else { break };
            let step = Step {
                passing: &passing,
                encoding: piece.encoding,
                id: &piece.id,
                next: next.clone(),
            };
            match self.race(&mut state, step, attempts).await {
                Raced::Answered(output) => {
                    self.answered(&state, passing.x.tokens);
                    if to.send(output).await.is_err() {
                        break;
                    }
                }
                Raced::Failed(error) => return End::Lost(state, error),
                Raced::Overtaken(fresh, error) => return End::Overtaken(fresh, state.hop, error),
            }
        }
        End::Fine(state)
    }

    /// The hops behind hop number `index` that may be pushed to while several pieces are under way, of which a later one may
    /// be quicker: Sepal's servers leave a piece alone that does not follow what they have, Petals' take it, or end the
    /// session.
    fn next_in_order(&self, index: usize) -> Vec<NextServer> {
        let next = self.next_servers(index);
        let behind = self.hops[index + 1..].iter();
        let in_order = behind.take_while(|state| self.shared.is_sepal(state.hop.peer)).count();
        next.into_iter().take(in_order).collect()
    }

    /// Brings all hops to where this session is, others in the place of those that failed.
    async fn settle(&self, ends: Vec<End>, attempts: &mut Attempts) -> Result<Vec<HopState>, ClientError> {
        let mut hops = Vec::new();
        for end in ends {
            match end {
                End::Fine(state) => hops.extend(self.taken_back(*state, attempts).await?),
                End::Lost(mut state, error) => {
                    attempts.failed(&self.shared, &state.hop, error)?;
                    state.history.truncate(self.position);
                    hops.extend(self.replace(&state.hop, &state.history, attempts).await?);
                }
                End::Overtaken(fresh, hop, error) => {
                    attempts.failed(&self.shared, &hop, error)?;
                    for state in fresh {
                        hops.extend(self.taken_back(state, attempts).await?);
                    }
                }
            }
        }
        Ok(hops)
    }

    /// A hop that may have come further than this session, at its position. A server that takes nothing back gets a new
    /// session, or another server does.
    async fn taken_back(&self, mut state: HopState, attempts: &mut Attempts) -> Result<Vec<HopState>, ClientError> {
        if state.remote.position() == self.position {
            return Ok(vec![state]);
        }
        state.history.truncate(self.position);
        // At 0 a server would take the next step for the first one.
        if self.position > 0 && self.shared.can_rewind(state.hop.peer) {
            state.remote.rewind(self.position);
            state.last = None;
            return Ok(vec![state]);
        }
        state.remote.close().await;
        self.replace(&state.hop, &state.history, attempts).await
    }
}
