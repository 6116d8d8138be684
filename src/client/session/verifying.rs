//! Steps computed once more on other servers, and what follows when the answers differ. Which steps is decided by chance
//! after the answer has come, so that no server knows when it is looked at.
//!
//! ```text
//! hop answers ─▶ (share of the steps) ─▶ a witness with the same blocks, brought to the same state, answers too
//!     agree ──▶ go on                      differ ─▶ more witnesses, until most agree
//!     who is alone is left out for long; from its hop on everything is computed anew, by others, from the inputs it had
//! ```
//!
//! Who may be a witness, and how one is asked, is in `witness`.

use std::{collections::HashSet, ops::Range, sync::atomic::Ordering, time::Instant};

use rand::Rng;
use tracing::warn;

use super::{HopState, Session};
use crate::{
    client::{
        attempts::Attempts,
        error::{ClientError, RemoteError},
        verify::{Opinion, Verdict, judge},
    },
    model::Hidden,
    p2p::PeerId,
    swarm::route::Hop,
};

/// Witnesses that may fail to answer before a step is taken unverified.
const MAX_FAILURES: usize = 2;
/// Witnesses asked about one step.
const MAX_WITNESSES: usize = 8;
/// How a session is verified, and what came of it.
#[derive(Debug)]
pub(crate) struct Verifier {
    /// Of the steps, from 0 to 1.
    pub(crate) share: f64,
    /// Whether the model has experts.
    pub(crate) has_experts: bool,
    wrong: Vec<WrongAnswer>,
}

/// A server that was found to answer wrongly, and is left out since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongAnswer {
    /// Which server.
    pub peer: PeerId,
    /// First block that it was asked for, and the one after the last.
    pub blocks: Range<u32>,
    /// Tokens that had gone through the session when it was noticed.
    pub position: usize,
}

impl Verifier {
    pub(crate) fn new(share: f64, has_experts: bool) -> Self {
        Self {
            share,
            has_experts,
            wrong: Vec::new(),
        }
    }

    /// Whether an answer that has just come is looked at.
    pub(super) fn draws(&self) -> bool {
        self.share > 0.0 && rand::rng().random_bool(self.share.min(1.0))
    }

    pub(super) fn wrong(&self) -> &[WrongAnswer] {
        &self.wrong
    }

    /// Notes servers whose receipts were found to be false after `position` tokens.
    pub(super) fn gave_false_receipts(&mut self, hops: Vec<Hop>, position: usize) {
        self.wrong.extend(hops.into_iter().map(|hop| WrongAnswer {
            peer: hop.peer,
            blocks: hop.blocks,
            position,
        }));
    }
}

/// What came of looking at one hop's answer.
enum Finding {
    /// Nothing speaks against it.
    Fine,
    /// Nobody else has the blocks.
    Alone,
    /// These are wrong; whether the hop's own server is among them.
    Wrong(Vec<PeerId>, bool),
    /// These differ, and there is nobody else to ask.
    Disputed(Vec<PeerId>),
}

impl Session {
    /// Looks at the answers to the last `tokens` tokens that were drawn. `output` is what came out of the last hop; returned
    /// is what should have.
    ///
    /// # Errors
    /// When servers differ and there is nobody to decide, or nobody is left to take the place of one that is wrong.
    pub(super) async fn verify(&mut self, mut output: Hidden) -> Result<Hidden, ClientError> {
        while self.hops.iter().any(|state| state.drawn.is_some()) {
            let mut hops = std::mem::take(&mut self.hops);
            let drawn = hops.iter_mut().filter(|state| state.drawn.is_some());
            let findings = futures::future::join_all(drawn.map(|state| async {
                let finding = self.look_at(state).await;
                (state.hop.clone(), finding)
            }))
            .await;
            self.hops = hops;
            let mut first_wrong = None;
            for (hop, finding) in findings {
                if self.note(&hop, finding)? {
                    first_wrong = first_wrong.or(Some(hop));
                }
            }
            if let Some(hop) = first_wrong {
                output = self.compute_anew(&hop, output.tokens).await?;
            }
        }
        Ok(output)
    }

    /// Whether the answer of the server of `hop` itself is wrong.
    fn note(&mut self, hop: &Hop, finding: Finding) -> Result<bool, ClientError> {
        let blocks = format!("{}:{}", hop.blocks.start, hop.blocks.end);
        match finding {
            Finding::Fine => Ok(false),
            Finding::Alone => {
                if !self.shared.said_alone.swap(true, Ordering::Relaxed) {
                    let peer = hop.peer;
                    warn!(%peer, "nobody else has blocks {blocks}: what is computed there cannot be verified");
                }
                Ok(false)
            }
            Finding::Wrong(peers, own) => {
                for peer in peers {
                    let reason = RemoteError::Wrong.reason();
                    warn!(%peer, "left out for long, blocks {blocks}: {reason}");
                    self.shared.lock_bans().lied(peer, &reason, Instant::now());
                    self.verifier.wrong.push(WrongAnswer {
                        peer,
                        blocks: hop.blocks.clone(),
                        position: self.position,
                    });
                }
                Ok(own)
            }
            Finding::Disputed(peers) => Err(ClientError::Disputed {
                start: hop.blocks.start,
                end: hop.blocks.end,
                peers,
            }),
        }
    }

    /// Asks others what they make of the last step of a hop.
    async fn look_at(&self, state: &mut HopState) -> Finding {
        let Some(answer) = state.drawn.take() else {
            return Finding::Fine;
        };
        let tokens = answer.tokens;
        let mut opinions = vec![self.opinion(vec![state.hop.peer], answer)];
        let (mut asked, mut failures) = (HashSet::from([state.hop.peer]), 0);
        while opinions.len() <= MAX_WITNESSES && failures <= MAX_FAILURES {
            let Some(mut witness) = self.witness(state, &asked).await else {
                break;
            };
            asked.extend(witness.peers());
            match self.testimony(&state.history, &mut witness, tokens).await {
                Ok(answer) => {
                    opinions.push(self.opinion(witness.peers().collect(), answer));
                    state.witness = Some(witness);
                }
                Err((peer, error)) => {
                    failures += 1;
                    warn!(%peer, error = &error as &dyn std::error::Error, "cannot verify with this server");
                    if !error.is_passing() {
                        self.shared.ban(peer, &error.reason());
                    }
                }
            }
            if let Some(finding) = self.conclude(state, &opinions) {
                return finding;
            }
        }
        match opinions.len() {
            1 if failures == 0 => Finding::Alone,
            1 => Finding::Fine,
            _ => Finding::Disputed(opinions.into_iter().flat_map(|opinion| opinion.peers).collect()),
        }
    }

    /// What follows from the opinions so far, if it is enough; a witness that is wrong is not asked again.
    fn conclude(&self, state: &mut HopState, opinions: &[Opinion]) -> Option<Finding> {
        let n_blocks = state.hop.blocks.end - state.hop.blocks.start;
        let (wrong, own) = match judge(opinions, n_blocks, self.verifier.has_experts) {
            Verdict::Open => return None,
            Verdict::Right(wrong) => (wrong, false),
            Verdict::Wrong(wrong) => (wrong, true),
        };
        state.verified += u32::from(!own);
        // The last opinion is that of the witness at hand.
        let witness = state.witness.take();
        state.witness = witness.filter(|_| !wrong.contains(&(opinions.len() - 1)));
        let mut liars = Vec::new();
        for opinion in wrong.into_iter().map(|i| &opinions[i]) {
            match opinion.peers[..] {
                [peer] => liars.push(peer),
                _ => warn!(peers = ?opinion.peers, "one of these servers computes wrong activations"),
            }
        }
        match liars.is_empty() {
            true => Some(Finding::Fine),
            false => Some(Finding::Wrong(liars, own)),
        }
    }

    fn opinion(&self, peers: Vec<PeerId>, answer: Hidden) -> Opinion {
        let format = self.format(&peers);
        Opinion { peers, format, answer }
    }

    /// Puts others in the place of a hop whose server is wrong, and of all after it, which were sent its answers. Returns
    /// what comes out of the last one for the last `tokens` tokens.
    async fn compute_anew(&mut self, wrong: &Hop, tokens: usize) -> Result<Hidden, ClientError> {
        let Some(index) = self.hops.iter().position(|state| state.hop == *wrong) else {
            return Err(ClientError::Interrupted);
        };
        let mut rest = self.hops.split_off(index);
        let end = rest.last().map_or(wrong.blocks.end, |state| state.hop.blocks.end);
        let lost = rest.swap_remove(0);
        drop(rest);
        let blocks = wrong.blocks.start..end;
        let peer = wrong.peer;
        let mut attempts = Attempts::default();
        attempts.failed(&self.shared, wrong, RemoteError::Wrong)?;
        let lost_hops = Hop { peer, blocks };
        let (fresh, output) = self
            .replace_all(&lost_hops, (&lost.history, tokens), &mut attempts)
            .await?;
        self.hops.extend(fresh);
        Ok(output)
    }
}
