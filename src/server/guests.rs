//! Who uses a node now and how much of it, peer by peer: applies the rules of `politeness.rs`. It computes nothing, and
//! knows no network: from where a peer is connected is an argument, as time is.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{duty::Duty, error::RequestError, memory::Amount, politeness::Politeness};
use crate::p2p::PeerId;

/// What tokens are counted over.
const MINUTE: Duration = Duration::from_secs(60);

/// Peers that are remembered although they have nothing open; with more, those whose tokens are all there again are
/// forgotten.
const REMEMBERED: usize = 1024;

/// The peers that use a node.
#[derive(Debug)]
pub(crate) struct Guests {
    rules: Politeness,
    used: Mutex<HashMap<PeerId, Used>>,
}

/// For whom something is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) peer: PeerId,
    /// Whether that is the person who runs the node.
    pub(crate) own: bool,
}

#[derive(Debug)]
struct Used {
    sessions: usize,
    /// Tokens that may still be computed; below zero after a long prompt.
    left: f64,
    /// When that was so.
    at: Instant,
}

/// A session that is open; dropping it makes room for the next one of the same peer.
#[derive(Debug)]
pub(crate) struct Stay {
    guests: Arc<Guests>,
    peer: PeerId,
}

impl Guests {
    pub(crate) fn new(rules: Politeness) -> Self {
        Self {
            rules,
            used: Mutex::default(),
        }
    }

    pub(crate) fn duty(&self) -> &Duty {
        &self.rules.duty
    }

    /// Who asks, if anything is computed for them.
    ///
    /// # Errors
    /// When the person who runs the node does not want that.
    pub(crate) fn admit(&self, peer: PeerId, addrs: &[IpAddr]) -> Result<Origin, RequestError> {
        if !self.rules.admits(&peer, addrs) {
            return Err(RequestError::Denied);
        }
        let own = self.rules.own.contains(&peer);
        Ok(Origin { peer, own })
    }

    /// Whether steps that a peer passes on for others are taken.
    ///
    /// # Errors
    /// When the person who runs the node does not want anything of it.
    pub(crate) fn hear(&self, peer: &PeerId, addrs: &[IpAddr]) -> Result<(), RequestError> {
        match self.rules.denies(peer, addrs) {
            true => Err(RequestError::Denied),
            false => Ok(()),
        }
    }

    /// A session begins. Own ones are not counted.
    ///
    /// # Errors
    /// When the peer has too many.
    pub(crate) fn enter(self: &Arc<Self>, origin: Origin, now: Instant) -> Result<Option<Stay>, RequestError> {
        let Some(max) = self.rules.quotas.sessions.filter(|_| !origin.own) else {
            return Ok(None);
        };
        let mut used = self.lock();
        let used = self.of(&mut used, origin.peer, now);
        if used.sessions >= max {
            return Err(RequestError::TooManySessions { max });
        }
        used.sessions += 1;
        Ok(Some(Stay {
            guests: self.clone(),
            peer: origin.peer,
        }))
    }

    /// So many tokens are to be computed. As long as a peer has any left it may go below zero: whoever sends a prompt that
    /// is longer than what it has waits the longer afterwards.
    ///
    /// # Errors
    /// When the peer has none left.
    pub(crate) fn spend(&self, origin: Origin, tokens: usize, now: Instant) -> Result<(), RequestError> {
        let Some(max) = self.rules.quotas.tokens_per_minute.filter(|_| !origin.own) else {
            return Ok(());
        };
        let mut used = self.lock();
        let used = self.of(&mut used, origin.peer, now);
        if used.left <= 0.0 {
            let per_second = f64::from(max) / MINUTE.as_secs_f64();
            let seconds = (-used.left / per_second).ceil().max(1.0) as u64;
            return Err(RequestError::TooManyTokensAMinute { max, seconds });
        }
        used.left -= tokens as f64;
        Ok(())
    }

    /// How much of a cache of `total` a peer may have reserved; `None` if that is not limited.
    pub(crate) fn cache(&self, origin: Origin, total: Amount) -> Option<Amount> {
        let share = self.rules.quotas.cache.filter(|_| !origin.own)?;
        let part = |total: u64| (total as f64 * share) as u64;
        Some(Amount {
            counted: part(total.counted),
            taken: part(total.taken),
        })
    }

    /// What a peer used, with the tokens that came back since.
    fn of<'a>(&self, used: &'a mut HashMap<PeerId, Used>, peer: PeerId, now: Instant) -> &'a mut Used {
        let full = f64::from(self.rules.quotas.tokens_per_minute.unwrap_or_default());
        let refill = |used: &mut Used| {
            let passed = now.saturating_duration_since(used.at).as_secs_f64();
            used.left = (used.left + full * passed / MINUTE.as_secs_f64()).min(full);
            used.at = used.at.max(now);
        };
        if used.len() > REMEMBERED && !used.contains_key(&peer) {
            used.retain(|_, used| {
                refill(used);
                used.sessions > 0 || used.left < full
            });
        }
        let entry = used.entry(peer).or_insert(Used {
            sessions: 0,
            left: full,
            at: now,
        });
        refill(entry);
        entry
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Used>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if let Some(used) = self.guests.lock().get_mut(&self.peer) {
            used.sessions = used.sessions.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::politeness::Quotas;

    fn guests(quotas: Quotas) -> (Arc<Guests>, Origin, Origin) {
        let [own, stranger] = std::array::from_fn(|_| PeerId::random());
        let rules = Politeness {
            own: [own].into(),
            quotas,
            ..Politeness::default()
        };
        let guests = Arc::new(Guests::new(rules));
        let [own, stranger] = [own, stranger].map(|peer| guests.admit(peer, &[]).unwrap());
        assert!(own.own && !stranger.own);
        (guests, own, stranger)
    }

    #[test]
    fn a_peer_has_so_many_sessions_and_another_one_when_one_ends() {
        let quotas = Quotas {
            sessions: Some(2),
            ..Quotas::default()
        };
        let ((guests, own, stranger), now) = (guests(quotas), Instant::now());
        let first = guests.enter(stranger, now).unwrap();
        let _second = guests.enter(stranger, now).unwrap();
        let error = guests.enter(stranger, now).unwrap_err();
        assert_eq!(
            error.to_string(),
            "quota of this peer is used up: it has 2 sessions open, the most that it may have"
        );
        assert!((0..9).all(|_| guests.enter(own, now).unwrap().is_none()));
        let other = guests.admit(PeerId::random(), &[]).unwrap();
        assert!(guests.enter(other, now).is_ok(), "others have theirs");
        drop(first);
        assert!(guests.enter(stranger, now).is_ok());
    }

    #[test]
    fn tokens_come_back_over_a_minute_and_a_long_prompt_is_paid_for_afterwards() {
        let quotas = Quotas {
            tokens_per_minute: Some(60),
            ..Quotas::default()
        };
        let ((guests, own, stranger), start) = (guests(quotas), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        guests.spend(stranger, 50, at(0)).unwrap();
        guests.spend(stranger, 40, at(0)).unwrap();
        let error = guests.spend(stranger, 1, at(0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "quota of this peer is used up: 60 tokens a minute; there are some again in 30 s"
        );
        assert!(guests.spend(stranger, 1, at(29)).is_err());
        guests.spend(stranger, 1, at(31)).unwrap();
        assert!(guests.spend(stranger, 1, at(31)).is_err());
        guests.spend(own, 1_000_000, at(31)).unwrap();
        guests.spend(own, 1, at(31)).unwrap();
        guests.spend(stranger, 60, at(10_000)).unwrap();
        assert!(
            guests.spend(stranger, 1, at(10_000)).is_err(),
            "no more than a minute's worth is saved up"
        );
    }

    #[test]
    fn peers_that_left_long_ago_are_forgotten() {
        let quotas = Quotas {
            tokens_per_minute: Some(60),
            ..Quotas::default()
        };
        let ((guests, _, stranger), start) = (guests(quotas), Instant::now());
        for i in 0..5 * REMEMBERED as u64 {
            let origin = Origin {
                peer: PeerId::random(),
                own: false,
            };
            guests.spend(origin, 1, start + Duration::from_secs(i)).unwrap();
        }
        assert!(guests.lock().len() <= REMEMBERED + 1);
        guests.spend(stranger, 1, start).unwrap();
    }
}
