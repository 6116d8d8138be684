//! What went wrong while one step tried to get through, and what follows: another server, a pause, or giving up. It opens
//! nothing and sends nothing.
//!
//! | fault | the server is | in the end |
//! |---|---|---|
//! | theirs: gone, silent, broken | banned | the blocks are served by nobody |
//! | not now: full, moving, or pushed what was not asked for | left out of this step | all are full, or the last refusal |
//! | ours: too long, too large | left out of this step; only one other is asked | the refusal |

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    Backoff, Shared,
    error::{ClientError, Fault, RemoteError},
};
use crate::{
    p2p::PeerId,
    swarm::route::{Hop, MissingBlocks},
};

/// Failures in one step of the session before it ends with an error, whatever else could be tried. A swarm of which
/// half has just gone down is survived; one that is made of nothing but faulty servers ends some time.
const MAX_FAILURES: usize = 32;
/// Servers that may blame the client before it believes them.
const MAX_REFUSALS: usize = 2;

/// The failures since the last success.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// Not to be used until the next pause.
    pub(crate) excluded: HashSet<PeerId>,
    failures: usize,
    refusals: usize,
    pauses: u32,
    /// Somebody else may still answer: no pauses.
    racing: bool,
    last: Option<Failure>,
    /// Those whose receipts were false, and what they were asked for.
    liars: Vec<Hop>,
    /// Whether a server computed what was not sent to it, and may have been pushed to it.
    other_steps: bool,
}

#[derive(Debug)]
struct Failure {
    hop: Hop,
    error: RemoteError,
}

impl Attempts {
    /// For a step that may still be answered by somebody among the `excluded`.
    pub(crate) fn racing(excluded: HashSet<PeerId>) -> Self {
        Self {
            excluded,
            racing: true,
            ..Self::default()
        }
    }

    /// Notes a failed server: out of the route at once, and if it is to blame also for other sessions of this client.
    ///
    /// # Errors
    /// When there is no point in trying another one.
    pub(crate) fn failed(&mut self, shared: &Shared, hop: &Hop, error: RemoteError) -> Result<(), ClientError> {
        warn!(
            peer = %hop.peer,
            blocks = ?hop.blocks,
            error = &error as &dyn std::error::Error,
            "server {}, looking for another",
            if error.is_full() { "is full" } else { "failed" }
        );
        self.failures += 1;
        self.excluded.insert(hop.peer);
        match error.fault() {
            Fault::Theirs if matches!(error, RemoteError::FalseReceipt(_)) => {
                shared.lock_bans().lied(hop.peer, &error.reason(), Instant::now());
                self.liars.push(hop.clone());
            }
            Fault::Theirs => shared.ban(hop.peer, &error.reason()),
            Fault::NotNow => self.other_steps |= matches!(error, RemoteError::OtherStep(_)),
            Fault::Ours => self.refusals += 1,
        }
        self.last = Some(Failure {
            hop: hop.clone(),
            error,
        });
        if self.failures < MAX_FAILURES && self.refusals < MAX_REFUSALS {
            Ok(())
        } else {
            Err(self.give_up(None))
        }
    }

    /// Those whose receipts were found to be false since the last time this was asked.
    pub(crate) fn take_liars(&mut self) -> Vec<Hop> {
        std::mem::take(&mut self.liars)
    }

    /// Whether what servers push to each other may be something else than what they answer.
    pub(crate) fn doubt_pushes(&self) -> bool {
        self.other_steps
    }

    /// No chain is left. Returns how long to wait before looking again; then those that failed get another chance.
    ///
    /// # Errors
    /// When waiting does not help, or was tried often enough.
    pub(crate) fn pause(&mut self, backoff: &Backoff, missing: MissingBlocks) -> Result<Duration, ClientError> {
        if self.racing || self.refusals > 0 || self.pauses as usize >= backoff.max_retries {
            return Err(self.give_up(Some(missing)));
        }
        let pause = backoff.min.saturating_mul(1 << self.pauses.min(10)).min(backoff.max);
        match &self.last {
            // Its blocks are served, only not to this session.
            Some(last) if last.error.is_full() => {
                warn!(blocks = ?last.hop.blocks, "all servers are full, looking again in {pause:?}");
            }
            _ => warn!(%missing, "looking again in {pause:?}"),
        }
        self.pauses += 1;
        self.excluded.clear();
        Ok(pause)
    }

    /// Whether the last server that failed only has no room.
    pub(crate) fn lack_room(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.error.lacks_room())
    }

    /// The error that this ends with; `missing` if no chain is left.
    pub(crate) fn give_up(&mut self, missing: Option<MissingBlocks>) -> ClientError {
        let attempts = self.failures;
        match (self.last.take(), missing) {
            (Some(Failure { hop, error }), _) if error.fault() == Fault::Ours => ClientError::Refused {
                peer: hop.peer,
                source: Box::new(error),
            },
            (Some(Failure { error, .. }), Some(missing)) if error.fault() == Fault::Theirs => {
                ClientError::MissingBlocks {
                    missing,
                    last: Some(Box::new(error)),
                }
            }
            (Some(Failure { hop, error }), Some(_)) if error.is_full() => ClientError::Full {
                peer: hop.peer,
                start: hop.blocks.start,
                end: hop.blocks.end,
                source: Box::new(error),
            },
            (Some(Failure { hop, error }), _) => {
                let (start, end) = (hop.blocks.start, hop.blocks.end);
                ClientError::RetriesExhausted {
                    attempts,
                    peer: hop.peer,
                    start,
                    end,
                    source: Box::new(error),
                }
            }
            (None, Some(missing)) => ClientError::MissingBlocks { missing, last: None },
            (None, None) => ClientError::Interrupted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p2p::StreamError;

    fn nobody() -> MissingBlocks {
        MissingBlocks {
            prefix: "P".into(),
            missing: std::iter::once(0..4).collect(),
            known: Vec::new(),
            adapter: None,
        }
    }

    #[test]
    fn servers_without_room_are_told_from_those_that_fail() {
        let hop = Hop {
            peer: PeerId::random(),
            blocks: 0..4,
        };
        let told = |text: &str| {
            let text = text.to_owned();
            let error = RemoteError::Stream(StreamError::Remote { text });
            let last = Some(Failure {
                hop: hop.clone(),
                error,
            });
            let mut attempts = Attempts {
                last,
                ..Attempts::default()
            };
            attempts.give_up(Some(nobody())).to_string()
        };
        assert_eq!(
            told("Could not allocate 1048576 within 10.0 seconds"),
            format!(
                "blocks 0:4: the caches of all servers are full, that of {} too; try again later",
                hop.peer
            )
        );
        // Waiting does not help.
        for text in [
            "Could not allocate 11 bytes: quota of this peer, 40 bytes of the cache, is used up",
            "Could not allocate 101 bytes, max cache size = 100 bytes",
        ] {
            assert!(told(text).starts_with("gave up after"), "{text}");
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_the_missing_blocks() {
        let backoff = Backoff {
            max_retries: 4,
            min: Duration::from_secs(1),
            max: Duration::from_secs(5),
        };
        let mut attempts = Attempts::default();
        let pauses = [(); 4].map(|()| attempts.pause(&backoff, nobody()).unwrap().as_secs());
        assert_eq!(pauses, [1, 2, 4, 5]);
        let error = attempts.pause(&backoff, nobody()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "blocks 0:4 of P are served by nobody; known servers: none"
        );
    }
}
