//! A prompt in pieces, on all hops at once: while one server computes a piece, the one before it has the next.
//!
//! ```text
//! pieces ─▶ lane of hop 0 ─▶ lane of hop 1 ─▶ … ─▶ outputs      each waits for one answer at a time
//! ```
//!
//! When a server fails, the lanes before it finish what they have begun, all go back to what came out of the last one, the
//! server is replaced as for any other step, and what is left of the prompt starts anew from there. Those that others may
//! have pushed to begin a new session for that: on the stream of the old one there may be answers to pieces that were not
//! asked for there yet, and nothing in an answer says which piece it is to.

use std::collections::VecDeque;

use sepal_protocol::metadata::NextServer;
use tokio::sync::mpsc;
use tracing::{Instrument, debug_span};

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
    p2p::PeerId,
    swarm::route::Hop,
    task::TRACE,
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

impl End {
    /// The server that failed, if one did.
    fn failed(&self) -> Option<PeerId> {
        match self {
            Self::Fine(_) => None,
            Self::Lost(state, _) => Some(state.hop.peer),
            Self::Overtaken(_, hop, _) => Some(hop.peer),
        }
    }
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
            let next: Vec<_> = (0..self.hops.len()).map(|index| self.next_in_order(index)).collect();
            let pushed = pushed_to(next.iter().map(Vec::len));
            let (came, ends) = self.run(&left, next, &attempts).await;
            if !came.is_empty() {
                attempts = Attempts::default();
            }
            for output in came {
                self.position += output.tokens;
                left.pop_front();
                outputs.push(output);
            }
            // When all is through every answer was read.
            let unread = pushed.into_iter().map(|pushed| pushed && !left.is_empty());
            let hops = self.settle(ends.into_iter().zip(unread).collect(), &mut attempts).await;
            self.note_receipts(&mut attempts);
            self.hops = hops?;
        }
        Ok(outputs)
    }

    /// All hops at work until everything is through or one has failed. `next` is where each may push to.
    async fn run(
        &mut self,
        left: &VecDeque<Hidden>,
        next: Vec<Vec<NextServer>>,
        attempts: &Attempts,
    ) -> (Vec<Hidden>, Vec<End>) {
        let piece = |x: &Hidden| Piece {
            id: uuid::Uuid::new_v4().to_string(),
            encoding: self.encoding(x.data.len()),
        };
        let pieces: Vec<Piece> = left.iter().map(piece).collect();
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
            let blocks = &state.hop.blocks;
            let span = debug_span!(target: TRACE, "hop", peer = %state.hop.peer, ?blocks);
            match self.race(&mut state, step, attempts).instrument(span).await {
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
    fn next_in_order(&mut self, index: usize) -> Vec<NextServer> {
        let next = self.next_servers(index);
        let behind = self.hops[index + 1..].iter();
        let in_order = behind.take_while(|state| self.shared.is_sepal(state.hop.peer)).count();
        next.into_iter().take(in_order).collect()
    }

    /// Brings all hops to where this session is, others in the place of those that failed; `true` stands beside those on
    /// whose streams there may be answers that were not read.
    async fn settle(&self, ends: Vec<(End, bool)>, attempts: &mut Attempts) -> Result<Vec<HopState>, ClientError> {
        // Who failed is not to take the place of another hop either, whichever is looked at first.
        let failed = ends.iter().filter_map(|(end, _)| end.failed());
        attempts.excluded.extend(failed);
        let mut hops = Vec::new();
        for (end, unread) in ends {
            match end {
                End::Fine(state) if unread => hops.extend(self.begun_anew(*state, attempts).await?),
                End::Fine(state) => hops.extend(self.taken_back(*state, attempts).await?),
                End::Lost(mut state, error) => {
                    attempts.failed(&self.shared, &state.hop, error)?;
                    state.history.truncate(self.position);
                    hops.extend(self.replace(&state.hop, &state.history, attempts).await?);
                }
                End::Overtaken(fresh, hop, error) => {
                    attempts.failed(&self.shared, &hop, error)?;
                    // Nobody has heard of these yet, so that nobody has pushed to them.
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
        // At 0 a server would take the next step for the first one.
        if self.position > 0 && self.shared.can_rewind(state.hop.peer) {
            state.history.truncate(self.position);
            state.remote.rewind(self.position);
            state.last = None;
            return Ok(vec![state]);
        }
        self.begun_anew(state, attempts).await
    }

    /// The blocks of a hop in a new session at the position of this one. Pushes for the old session name that, and reach
    /// nobody any more.
    async fn begun_anew(&self, mut state: HopState, attempts: &mut Attempts) -> Result<Vec<HopState>, ClientError> {
        state.history.truncate(self.position);
        state.remote.close().await;
        self.replace(&state.hop, &state.history, attempts).await
    }
}

/// Which hops are pushed to, when each has its answers pushed through so many behind it.
fn pushed_to(reaches: impl Iterator<Item = usize>) -> Vec<bool> {
    let mut end = 0;
    let pushed = reaches.enumerate().map(|(index, reach)| {
        let pushed = index < end;
        end = end.max(index + 1 + reach);
        pushed
    });
    pushed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_is_pushed_to_when_one_before_it_reaches_so_far() {
        let pushed = |reaches: [usize; 4]| pushed_to(reaches.into_iter());
        assert_eq!(pushed([3, 2, 1, 0]), [false, true, true, true]);
        assert_eq!(pushed([0, 0, 1, 0]), [false, false, false, true]);
        assert_eq!(pushed([2, 0, 0, 0]), [false, true, true, false]);
        assert_eq!(pushed([0; 4]), [false; 4]);
    }
}
