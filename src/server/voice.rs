//! Tells a further swarm what is served, as the home swarm is told it, and follows whatever changes: blocks that are loaded,
//! moves, pauses. Nothing waits for it: a swarm that cannot be reached does not hold up the others.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    announcing::{Announcers, follow_access, lock, say_offline},
    current::Said,
    lifecycle::Lifecycle,
    membership::Membership,
};
use crate::{
    swarm::{
        announce::{AnnounceError, Announcer},
        standing::Access,
    },
    task::Tasks,
};

/// What a swarm was told of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// These blocks are served.
    pub blocks: Range<u32>,
    /// Whether the swarm took it the last time; `None` before the first time.
    pub outcome: Option<Result<(), AnnounceError>>,
}

impl Announced {
    pub(super) fn last(announcers: &Announcers) -> Option<Self> {
        let (blocks, announcer) = announcers.last()?;
        Some(Self {
            blocks: blocks.clone(),
            outcome: announcer.outcome(),
        })
    }
}

/// What one model says in one further swarm. Dropping it does not silence it; see [`Voice::fall_silent`].
#[derive(Debug)]
pub struct Voice {
    announcers: Arc<Mutex<Announcers>>,
    leave: CancellationToken,
    silent: watch::Receiver<()>,
}

struct Speaker {
    lifecycle: Arc<Lifecycle>,
    membership: Arc<Membership>,
    announcers: Arc<Mutex<Announcers>>,
    leave: CancellationToken,
    tasks: Tasks,
    /// Dropped when the last word is said.
    _silent: watch::Sender<()>,
}

impl Voice {
    pub(super) fn raise(lifecycle: Arc<Lifecycle>, membership: &Arc<Membership>, tasks: &Tasks) -> Self {
        let (announcers, leave) = (Arc::<Mutex<Announcers>>::default(), CancellationToken::new());
        let (silent_out, silent) = watch::channel(());
        let speaker = Speaker {
            lifecycle,
            membership: membership.clone(),
            announcers: announcers.clone(),
            leave: leave.clone(),
            tasks: tasks.clone(),
            _silent: silent_out,
        };
        tasks.spawn_until_stopped("voice", speaker.run());
        Self {
            announcers,
            leave,
            silent,
        }
    }

    /// What the swarm was told last.
    pub fn announced(&self) -> Option<Announced> {
        Announced::last(&lock(&self.announcers))
    }

    /// Announces OFFLINE there, and returns when that is stored or was tried a few times. Nothing is said afterwards.
    pub async fn fall_silent(&self) {
        self.leave.cancel();
        let mut silent = self.silent.clone();
        while silent.changed().await.is_ok() {}
    }
}

impl Speaker {
    async fn run(self) {
        let mut access = self.membership.access();
        // A record that says "dial me" must not be read by anyone while we do not know whether that is true.
        let known = access.wait_for(|access| *access != Access::Unknown);
        if self.leave.run_until_cancelled(known).await.is_none() {
            return;
        }
        let mut said = self.lifecycle.hosted.said();
        loop {
            let next = said.borrow_and_update().clone();
            tokio::select! {
                // The latter has no end.
                ((), ()) = async { tokio::join!(self.say(next), self.watch_access()) } => {}
                changed = said.changed() => if changed.is_err() { break },
                () = self.leave.cancelled() => break,
            }
        }
        self.say(None).await;
    }

    /// `next` and nothing else, in the order that leaves no reader with two spans. It may be broken off at any point and
    /// begun again with something else to say.
    async fn say(&self, next: Option<Said>) {
        let home = next.as_ref().map_or(0..0, |said| said.blocks.clone());
        let before = lock(&self.announcers).clone();
        for (_, old) in before.iter().filter(|(announced, _)| *announced != home) {
            say_offline(old, &home).await;
        }
        lock(&self.announcers).retain(|(announced, _)| *announced == home);
        let Some(Said { blocks, state }) = next else {
            return;
        };
        loop {
            let announcer = self.announcer_of(&blocks);
            match announcer.set_state(state).await {
                // It had been told to say its last word.
                Err(AnnounceError::Stopped) => {
                    lock(&self.announcers).retain(|(_, stopped)| !Arc::ptr_eq(stopped, &announcer));
                }
                _ => break,
            }
        }
        info!(
            swarm = self.membership.number(),
            ?blocks,
            ?state,
            "another swarm was told"
        );
    }

    fn announcer_of(&self, blocks: &Range<u32>) -> Arc<Announcer> {
        let mut announcers = lock(&self.announcers);
        if let Some((_, announcer)) = announcers.iter().find(|(announced, _)| announced == blocks) {
            return announcer.clone();
        }
        let announcer = self.lifecycle.announcer_in(&self.membership, blocks, &self.tasks);
        announcers.push((blocks.clone(), announcer.clone()));
        announcer
    }

    /// Tells the swarm at once when others get to us there in another way than before.
    async fn watch_access(&self) {
        follow_access(self.membership.access(), &self.announcers).await;
        std::future::pending().await
    }
}
