//! Who computes the blocks of a hop once more: one other server, or several in a row where nobody else has all the blocks.
//! What follows from the answers is decided elsewhere (`verifying`).
//!
//! A witness has sessions of its own that are fed the recorded inputs of the hop, those since the last time it was asked; so
//! all of them together cost what one server more in the place of the hop would.

use std::{collections::HashSet, ops::Range, time::Instant};

use rand::seq::IndexedRandom;
use tokio::time::timeout;
use tracing::debug;

use super::{HopState, Session};
use crate::{
    client::{
        activations::{Encoding, Passing},
        error::RemoteError,
        history::{History, concat},
        pace::{Pace, Size},
        remote::Remote,
        verify::{self, Format},
    },
    model::Hidden,
    p2p::PeerId,
    swarm::route::{Hop, random_walk},
};

/// Among witnesses whose bounds are within this factor of the least one the choice is by chance.
const LIKE: f64 = 2.0;

/// Sessions on other servers that have the blocks of a hop, one after the other.
#[derive(Debug)]
pub(super) struct Witness {
    legs: Vec<Leg>,
}

#[derive(Debug)]
struct Leg {
    remote: Remote,
    peer: PeerId,
    pace: Pace,
}

impl Witness {
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.legs.iter().map(|leg| leg.peer)
    }

    /// As one that has seen `position` tokens, if it has seen as many or can go back.
    pub(super) fn taken_back(mut self, position: usize, can_rewind: impl Fn(PeerId) -> bool) -> Option<Self> {
        for leg in &mut self.legs {
            if leg.remote.position() > position {
                if !can_rewind(leg.peer) {
                    return None;
                }
                leg.remote.rewind(position);
            }
        }
        Some(self)
    }

    fn position(&self) -> usize {
        self.legs.first().map_or(0, |leg| leg.remote.position())
    }
}

impl Session {
    /// Somebody with the blocks of the hop who was not asked yet: the witness of the last time, or a new one.
    pub(super) async fn witness(&self, state: &mut HopState, asked: &HashSet<PeerId>) -> Option<Witness> {
        if let Some(witness) = state.witness.take()
            && witness.peers().all(|peer| !asked.contains(&peer))
        {
            return Some(witness);
        }
        let mut unusable = self.shared.lock_bans().active(Instant::now());
        unusable.extend(asked);
        loop {
            let one = self.candidate(&state.hop, &unusable).map(|hop| vec![hop]);
            let hops = one.or_else(|| self.candidates(&state.hop, &unusable))?;
            let opened = futures::future::join_all(hops.iter().map(|hop| self.leg(hop))).await;
            unusable.extend(opened.iter().filter_map(|leg| leg.as_ref().err()));
            if let Ok(legs) = opened.into_iter().collect::<Result<_, _>>() {
                return Some(Witness { legs });
            }
        }
    }

    /// # Errors
    /// The server, if no session can be opened there.
    async fn leg(&self, hop: &Hop) -> Result<Leg, PeerId> {
        let (peer, pace) = (hop.peer, self.shared.pace(hop));
        match self.open(hop).await {
            Ok(remote) => Ok(Leg { remote, peer, pace }),
            Err(error) => {
                debug!(%peer, error = &error as &dyn std::error::Error, "no witness");
                if !error.is_passing() {
                    self.shared.ban(peer, &error.reason());
                }
                Err(peer)
            }
        }
    }

    /// By chance one of those that have all blocks of the hop and whose numbers can be compared best.
    fn candidate(&self, hop: &Hop, unusable: &HashSet<PeerId>) -> Option<Hop> {
        let snapshot = self.shared.directory.snapshot();
        let own = self.format(&[hop.peer]);
        let n_blocks = hop.blocks.end - hop.blocks.start;
        let holds = |blocks: &Range<u32>| blocks.start <= hop.blocks.start && hop.blocks.end <= blocks.end;
        let candidates: Vec<(PeerId, f64)> = snapshot
            .spans
            .iter()
            .filter(|span| holds(&span.blocks) && !unusable.contains(&span.peer))
            .map(|span| {
                let format = Format::of(Some(&span.info));
                (
                    span.peer,
                    verify::bound(&own, &format, n_blocks, self.verifier.has_experts),
                )
            })
            .collect();
        let least = candidates.iter().map(|(_, bound)| *bound).fold(f64::INFINITY, f64::min);
        let best: Vec<PeerId> = candidates
            .into_iter()
            .filter(|(_, bound)| *bound <= LIKE * least)
            .map(|(peer, _)| peer)
            .collect();
        let peer = *best.choose(&mut rand::rng())?;
        Some(Hop {
            peer,
            blocks: hop.blocks.clone(),
        })
    }

    /// By chance several that have the blocks of the hop together.
    fn candidates(&self, hop: &Hop, unusable: &HashSet<PeerId>) -> Option<Vec<Hop>> {
        let (snapshot, rtts) = (self.shared.directory.snapshot(), self.shared.known().rtts);
        random_walk(&snapshot, hop.blocks.clone(), &rtts, unusable, &mut rand::rng()).ok()
    }

    /// What a witness makes of the last `tokens` tokens of a hop; it is sent all that it has not seen.
    ///
    /// # Errors
    /// Who of it failed, and how.
    pub(super) async fn testimony(
        &self,
        history: &History,
        witness: &mut Witness,
        tokens: usize,
    ) -> Result<Hidden, (PeerId, RemoteError)> {
        let mut answers = Vec::new();
        for input in history.replay(witness.position(), tokens) {
            let first = witness.legs[0].peer;
            let mut passing = Passing::from(input.map_err(|error| (first, error.into()))?);
            for leg in &mut witness.legs {
                let answer = self.ask(leg, &passing).await;
                passing = answer.map_err(|error| (leg.peer, error))?;
            }
            if witness.position() > history.tokens() - tokens {
                answers.push(passing.x);
            }
        }
        Ok(concat(answers))
    }

    async fn ask(&self, leg: &mut Leg, passing: &Passing) -> Result<Passing, RemoteError> {
        let sent = leg.remote.outgoing(passing, Encoding::Exact)?;
        let size = Size {
            tokens: passing.x.batch * passing.x.tokens,
            bytes: sent.message.buffer.len(),
            first: leg.remote.position() == 0,
        };
        let patience = leg.pace.patience(size).min(self.shared.request_timeout);
        let id = uuid::Uuid::new_v4().to_string();
        let answer = timeout(patience, leg.remote.step(&sent, &id, Vec::new())).await;
        answer.map_err(|_| RemoteError::Silent(patience))?
    }

    /// The roughest of the formats in which these servers compute.
    pub(super) fn format(&self, peers: &[PeerId]) -> Format {
        let snapshot = self.shared.directory.snapshot();
        let formats = peers.iter().map(|peer| {
            let span = snapshot.spans.iter().find(|span| span.peer == *peer);
            Format::of(span.map(|span| &span.info))
        });
        Format::roughest(formats)
    }
}
