//! From one span to another without an outage. It decides nothing about where to go (`swarm::placement`) and answers no
//! requests.
//!
//! ```text
//! look ─▶ wait a little, look again ─▶ announce JOINING there ─▶ load beside ─▶ look a last time
//!                                                                                │        └─ others were quicker:
//!      sessions end, old blocks are freed ◀─ linger ◀─ announce the switch ◀─ switch         take it back, stay
//! ```
//!
//! Blocks that both spans have are shared. Open sessions go on where they are; clients that have not heard of the move are
//! served for a while.
//!
//! Where both spans together do not fit into memory, there is an outage, as Petals always has it, but one that is no longer
//! than loading takes, and after which something is served in any case:
//!
//! ```text
//! look, and look again ─▶ download ─▶ look a last time ─▶ OFFLINE ─▶ sessions end, old blocks are freed ─▶ JOINING, load, ONLINE
//!                           └─ that fails, or others were quicker: stay                                    └─ that fails: load the
//!                                                                                                             old blocks again
//! ```

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;
use sepal_protocol::record::ServerState;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::{
    BlockChoice,
    lifecycle::{Lifecycle, StartError},
    serving::Serving,
};
use crate::{
    model::Need,
    swarm::placement::{self, Habit, Place},
};

/// How long the old blocks are still there for new sessions. Petals' clients read the records once a minute
/// (`client/config.py`, update_period), ours more often.
pub(super) const LINGER: Duration = Duration::from_secs(90);

/// How long it may take until nobody holds blocks any more that are not served: requests are answered, and the compute
/// thread ends after the block that it is at.
const RELEASE: Duration = Duration::from_secs(30);
/// Pause between two looks whether that is so.
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// Share of the mean time between two looks that a server waits before its second one, so that of several that saw the
/// same gap one is first and the others see it go; and because one look is a guess at what others will do, which is
/// sometimes a lucky one.
const JITTER: f64 = 0.5;

/// What became of a move.
enum Outcome {
    Moved,
    /// Others were quicker, or the swarm could not be told; nothing has changed.
    GivenUp,
    /// The new blocks could not be fetched or loaded; nothing has changed.
    Unavailable,
    /// The new blocks could not be loaded, and the old ones had to be loaded again.
    Back,
}

impl Outcome {
    /// What is kept in mind of a move from one span to another, by a server that looks every `period` seconds on average.
    fn note(&self, habit: &mut Habit, (from, to): (Range<u32>, Range<u32>), (now, period): (f64, f64)) {
        match self {
            Self::Moved => habit.moved(from, now, period),
            Self::GivenUp => habit.abandoned(now, period),
            Self::Unavailable | Self::Back => habit.failed(to, now, period),
        }
    }
}

impl Lifecycle {
    /// Looks from time to time whether the swarm would be better off with us elsewhere, and moves.
    pub(super) fn watch_balance(self: &Arc<Self>) {
        let fixed = matches!(self.config.blocks, BlockChoice::Fixed(_));
        if fixed || self.config.balance_quality <= 0.0 {
            return;
        }
        let this = self.clone();
        self.moving.spawn_until_stopped("balance", async move {
            let (began, period) = (Instant::now(), this.config.mean_balance_check_period.as_secs_f64());
            let now = || began.elapsed().as_secs_f64();
            let mut habit = Habit::default();
            loop {
                random_wait(2.0 * period).await;
                let Some((from, place)) = this.where_to(&habit, now()).await else {
                    continue;
                };
                // What is urgent is so for everybody: then the wait is what lets one be first, too.
                random_wait(JITTER * period).await;
                let outcome = {
                    // Two models must not count on the same free memory. Until it is this one's turn, much may have changed.
                    let _turn = this.current().turn().await;
                    if this.where_to(&habit, now()).await != Some((from.clone(), place.clone())) {
                        continue;
                    }
                    this.go(&place.blocks).await
                };
                match &outcome {
                    Ok(outcome) => outcome.note(&mut habit, (from, place.blocks.clone()), (now(), period)),
                    Err(error) => error!(error = error as &dyn std::error::Error, "the move failed"),
                }
                if !matches!(outcome, Ok(Outcome::Moved) | Err(_)) {
                    continue;
                }
                let failed = outcome.is_err();
                let report = outcome.map(|_| place.blocks);
                if this.report.send(report).await.is_err() || failed {
                    return;
                }
            }
        });
    }

    /// Where we are, and a better place if there is one that we may go to.
    async fn where_to(&self, habit: &Habit, now: f64) -> Option<(Range<u32>, Place)> {
        // Whoever paused it wants it to do nothing; and a model that is still to come up was promised what is free.
        if self.current().is_paused() || !self.current().is_settled() {
            return None;
        }
        let from = self.hosted.now()?.span.clone();
        let snapshot = self.directory.refresh().await;
        let (me, quality) = (self.p2p.peer_id(), self.config.balance_quality);
        let place = placement::better_place(&snapshot, me, quality, &mut rand::rng())?;
        // Records that a run before this one left are read as one span with ours.
        let is_as_long = place.blocks.len() == from.len();
        (is_as_long && place.blocks != from && habit.allows(&place, now)).then_some((from, place))
    }

    async fn go(&self, to: &Range<u32>) -> Result<Outcome, StartError> {
        let Some(old) = self.hosted.now() else {
            return Err(StartError::Interrupted);
        };
        let added = added(&old.span, to);
        // What blocks really take is known of those that are here.
        let block_bytes = self.block_bytes().min(old.blocks.block_bytes() + self.adapter_bytes());
        let need = Need {
            block: block_bytes,
            // The old span has a compute thread as long as it has sessions, and so has the new one.
            once: self.holding().scratch(),
        };
        let free = self.free();
        if added.len() as u64 <= need.fit(&free) {
            info!(from = ?old.span, ?to, "moving to blocks that the swarm needs more; sessions go on");
            let shares = need.spread(&free, added.len());
            return self.go_beside(&old, to, (added, shares)).await;
        }
        warn!(
            from = ?old.span,
            ?to,
            needed_bytes = need.bytes(added.len()),
            free_bytes = ?free,
            "moving to blocks that the swarm needs more; both spans do not fit into memory, so open sessions end"
        );
        let from = old.span.clone();
        drop(old);
        self.go_instead(&from, to).await
    }

    /// Serves `to` instead of `from`, with nothing in between.
    async fn go_instead(&self, from: &Range<u32>, to: &Range<u32>) -> Result<Outcome, StartError> {
        let files = match self.fetch(to.clone()).await {
            Ok(files) => files,
            Err(error) => {
                error!(error = &error as &dyn std::error::Error, blocks = ?from, "staying at these blocks");
                return Ok(Outcome::Unavailable);
            }
        };
        if !self.is_still_better(from, to).await {
            info!(blocks = ?from, "others were quicker: staying at these blocks");
            return Ok(Outcome::GivenUp);
        }
        release(self.take_down().await).await;
        let outcome = self.bring_up_at(to.clone()).await;
        drop(files);
        let Err(error) = outcome else {
            return Ok(Outcome::Moved);
        };
        error!(error = &error as &dyn std::error::Error, blocks = ?from, "going back to these blocks");
        self.bring_up_at(from.clone()).await?;
        Ok(Outcome::Back)
    }

    /// What a server that looks once a minute keeps in mind of a move at 0.
    #[cfg(test)]
    pub(super) async fn try_move(&self, to: Range<u32>) -> Result<Habit, StartError> {
        let (mut habit, from) = (Habit::default(), self.hosted.now().map(|serving| serving.span.clone()));
        let outcome = self.go(&to).await?;
        outcome.note(&mut habit, (from.unwrap_or_default(), to), (0.0, 60.0));
        Ok(habit)
    }

    /// Loads what is missing, and changes over. Whatever goes wrong before the switch, the old span stays.
    async fn go_beside(
        &self,
        old: &Arc<Serving>,
        to: &Range<u32>,
        added: (Range<u32>, Vec<usize>),
    ) -> Result<Outcome, StartError> {
        let announcer = self.spawn_announcer(to);
        let from = old.span.clone();
        let announce = async {
            let joining = announcer.set_state_except(ServerState::Joining, from.clone());
            joining.await.map_err(StartError::Announce)
        };
        let loaded = tokio::try_join!(announce, self.load_beside(old, to, added));
        let next = match loaded {
            Ok(((), next)) if self.is_still_better(&from, to).await => next,
            Ok(_) => {
                info!(blocks = ?from, "others were quicker: staying at these blocks");
                self.withdraw(to, &from).await;
                return Ok(Outcome::GivenUp);
            }
            Err(error) => {
                error!(error = &error as &dyn std::error::Error, blocks = ?from, "staying at these blocks");
                self.withdraw(to, &from).await;
                return Ok(match error {
                    StartError::Announce(_) => Outcome::GivenUp,
                    _ => Outcome::Unavailable,
                });
            }
        };
        self.hosted.switch(Arc::new(next));
        self.change_over(to).await?;
        let (hosted, old, linger) = (self.hosted.clone(), Arc::downgrade(old), self.config.linger);
        self.tasks.spawn_until_stopped("linger", async move {
            sleep(linger).await;
            hosted.retire(&old);
        });
        Ok(Outcome::Moved)
    }

    async fn load_beside(
        &self,
        old: &Serving,
        to: &Range<u32>,
        (added, shares): (Range<u32>, Vec<usize>),
    ) -> Result<Serving, StartError> {
        let added = self.load_blocks(added, shares, None).await?;
        let blocks = old.blocks.moved(&added, to.clone());
        let blocks = blocks.map_err(|source| StartError::Load {
            start: to.start,
            end: to.end,
            source,
        })?;
        self.serving(Arc::new(blocks), Some(old))
    }

    async fn is_still_better(&self, from: &Range<u32>, to: &Range<u32>) -> bool {
        let snapshot = self.directory.refresh().await;
        placement::still_better(&snapshot, self.p2p.peer_id(), from, to)
    }
}

/// The blocks of `to` that are not in `from`. Both have the same length, so they are contiguous.
fn added(from: &Range<u32>, to: &Range<u32>) -> Range<u32> {
    if to.start >= from.start {
        to.start.max(from.end)..to.end
    } else {
        to.start..to.end.min(from.start)
    }
}

/// Waits until nobody else has anything of `spans`, and frees their memory.
async fn release(spans: Vec<Arc<Serving>>) {
    let is_held = |serving: &Arc<Serving>| Arc::strong_count(serving) > 1 || Arc::strong_count(&serving.blocks) > 1;
    let released = async {
        while spans.iter().any(is_held) {
            sleep(RELEASE_PAUSE).await;
        }
    };
    if timeout(RELEASE, released).await.is_err() {
        warn!(
            waited_s = RELEASE.as_secs(),
            "a request still holds the old blocks: the new ones are loaded beside them"
        );
    }
    // Much memory is not freed in a moment. It fails when the process ends.
    let _ = tokio::task::spawn_blocking(move || drop(spans)).await;
}

/// Between nothing and `most` seconds.
async fn random_wait(most: f64) {
    let wait = rand::rng().random_range(0.0..=most);
    sleep(Duration::from_secs_f64(wait)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_blocks_that_are_missing_are_loaded() {
        assert_eq!(added(&(4..8), &(6..10)), 8..10);
        assert_eq!(added(&(4..8), &(2..6)), 2..4);
        assert_eq!(added(&(4..8), &(8..12)), 8..12);
        assert_eq!(added(&(4..8), &(0..4)), 0..4);
    }
}
