//! Budgets, that of the attention cache and those of passes: who may use how many bytes, and who waits. It counts memory,
//! it does not hold any.
//!
//! The rules are those of Petals' `server/memory_cache.py`: a session reserves its whole length up front; without a
//! timeout it is refused as soon as it, and those that wait already, do not fit; with one it queues first come, first
//! served.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::error::RequestError;
use crate::p2p::PeerId;

/// An amount of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// As Petals counts it, which is what others are told.
    pub(crate) counted: u64,
    /// What is really taken: sequences take whole pages.
    pub(crate) taken: u64,
}

/// The budget of one server. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    max: Amount,
    state: Mutex<State>,
    /// What is claimed by peers that may not have all of it.
    claims: Mutex<HashMap<PeerId, Amount>>,
}

#[derive(Debug, Default)]
struct State {
    used: Amount,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    amount: Amount,
    /// Whether it goes before those of others.
    own: bool,
    granted: oneshot::Sender<Lease>,
}

/// A place in the queue; dropping it gives the place up and lets those behind it through.
#[derive(Debug)]
struct Place {
    lease: oneshot::Receiver<Lease>,
    inner: Arc<Inner>,
}

/// Reserved cache bytes; dropping it gives them back and wakes whoever waits.
#[derive(Debug)]
pub(crate) struct Lease {
    amount: Mutex<Amount>,
    inner: Arc<Inner>,
}

/// Bytes that count for a peer, whether they are reserved already or waited for; dropping it takes them off.
#[derive(Debug)]
pub(crate) struct Claim {
    peer: PeerId,
    amount: Amount,
    inner: Arc<Inner>,
}

impl From<u64> for Amount {
    /// Of memory that is taken as it is counted.
    fn from(bytes: u64) -> Self {
        Self {
            counted: bytes,
            taken: bytes,
        }
    }
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self {
            counted: self.counted.saturating_add(other.counted),
            taken: self.taken.saturating_add(other.taken),
        }
    }

    /// Less `other`, which was added before.
    fn minus(self, other: Self) -> Self {
        Self {
            counted: self.counted - other.counted,
            taken: self.taken - other.taken,
        }
    }

    pub(crate) fn fits(self, max: Self) -> bool {
        self.counted <= max.counted && self.taken <= max.taken
    }

    /// As much of it as fits.
    fn at_most(self, max: Self) -> Self {
        Self {
            counted: self.counted.min(max.counted),
            taken: self.taken.min(max.taken),
        }
    }
}

impl Memory {
    /// A budget of `max`, all of it free.
    pub(crate) fn new(max: impl Into<Amount>) -> Self {
        Self {
            inner: Arc::new(Inner {
                max: max.into(),
                state: Mutex::default(),
                claims: Mutex::default(),
            }),
        }
    }

    /// Whether nobody has reserved anything.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.inner.lock().used == Amount::default()
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn n_waiting(&self) -> usize {
        self.inner.lock().waiting.len()
    }

    /// Whether it is more than a clone that nobody else has, and of which nothing is reserved or waited for.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.inner) > 1
    }

    /// The whole budget.
    pub(crate) fn max(&self) -> Amount {
        self.inner.max
    }

    /// Bytes nobody has reserved, as Petals counts.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.inner.max.counted - self.inner.lock().used.counted
    }

    /// Counts `amount` for a peer that may have `max` in all.
    ///
    /// # Errors
    /// When it has too much.
    pub(crate) fn claim(&self, peer: PeerId, amount: Amount, max: Amount) -> Result<Claim, RequestError> {
        let mut claims = self.inner.claims();
        let claimed = claims.get(&peer).copied().unwrap_or_default();
        let sum = claimed.plus(amount);
        if !sum.fits(max) {
            return Err(RequestError::CacheQuota {
                bytes: amount.counted,
                max: max.counted,
            });
        }
        claims.insert(peer, sum);
        Ok(Claim {
            peer,
            amount,
            inner: self.inner.clone(),
        })
    }

    /// Reserves `amount`, waiting up to `timeout` for others to give some back. Zero does not wait.
    ///
    /// # Errors
    /// The three refusals of Petals: full now, larger than the whole cache, still full after the wait.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue; nothing stays reserved.
    pub(crate) async fn lease(&self, amount: impl Into<Amount>, timeout: Duration) -> Result<Lease, RequestError> {
        self.lease_in_turn(amount, (timeout, false)).await
    }

    /// The same in two lines: whoever is not `own` waits for all that are.
    ///
    /// # Errors
    /// As [`Memory::lease`].
    ///
    /// # Cancel safety
    /// As [`Memory::lease`].
    pub(crate) async fn lease_in_turn(
        &self,
        amount: impl Into<Amount>,
        (timeout, own): (Duration, bool),
    ) -> Result<Lease, RequestError> {
        let (amount, max): (Amount, Amount) = (amount.into(), self.inner.max);
        let bytes = amount.counted;
        let mut place = {
            let mut state = self.inner.lock();
            state.forget_those_that_left();
            let place = state.place(own);
            if place == 0 && state.used.plus(amount).fits(max) {
                return Ok(self.inner.grant(&mut state, amount));
            }
            if timeout.is_zero() {
                return Err(RequestError::CacheFull { bytes });
            }
            if !amount.fits(max) {
                let (bytes, max) = match bytes > max.counted {
                    true => (bytes, max.counted),
                    false => (amount.taken, max.taken),
                };
                return Err(RequestError::CacheTooSmall { bytes, max });
            }
            let (granted, lease) = oneshot::channel();
            state.waiting.insert(place, Waiter { amount, own, granted });
            Place {
                lease,
                inner: self.inner.clone(),
            }
        };
        match tokio::time::timeout(timeout, &mut place.lease).await {
            Ok(Ok(lease)) => Ok(lease),
            _ => Err(RequestError::CacheWaitTimeout {
                bytes,
                seconds: timeout.as_secs_f64(),
            }),
        }
    }
}

impl Lease {
    /// Gives back all but `amount`.
    pub(crate) fn keep(&self, amount: impl Into<Amount>) {
        {
            let mut state = self.inner.lock();
            let mut mine = self.amount.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = amount.into().at_most(*mine);
            state.used = state.used.minus(mine.minus(kept));
            *mine = kept;
        }
        self.inner.wake();
    }
}

impl State {
    /// How many go before the next one that comes.
    fn place(&self, own: bool) -> usize {
        self.waiting.iter().filter(|waiter| waiter.own || !own).count()
    }

    fn forget_those_that_left(&mut self) {
        self.waiting.retain(|waiter| !waiter.granted.is_closed());
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<PeerId, Amount>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(self: &Arc<Self>, state: &mut State, amount: Amount) -> Lease {
        state.used = state.used.plus(amount);
        Lease {
            amount: Mutex::new(amount),
            inner: self.clone(),
        }
    }

    /// Hands free bytes to those who wait, in order, until the first one that does not fit.
    fn wake(self: &Arc<Self>) {
        loop {
            let refused = {
                let mut state = self.lock();
                state.forget_those_that_left();
                let fits = state
                    .waiting
                    .front()
                    .is_some_and(|first| state.used.plus(first.amount).fits(self.max));
                if !fits {
                    return;
                }
                let Some(first) = state.waiting.pop_front() else { return };
                let lease = self.grant(&mut state, first.amount);
                first.granted.send(lease)
            };
            // A waiter that left in between: its lease comes back and wakes the next one as it is dropped.
            drop(refused);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.inner.claims();
        if let Some(claimed) = claims.get_mut(&self.peer) {
            *claimed = claimed.minus(self.amount);
            if *claimed == Amount::default() {
                claims.remove(&self.peer);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lease.close();
        // It may have been the first in line and the only one that did not fit.
        self.inner.wake();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_full_cache_refuses_at_once_without_a_timeout() {
        let memory = Memory::new(100);
        let lease = memory.lease(60, Duration::ZERO).await.unwrap();
        let error = memory.lease(41, Duration::ZERO).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Could not allocate 41 bytes immediately: out of memory"
        );
        drop(lease);
        assert_eq!(memory.free_bytes(), 100);
    }

    #[test]
    fn a_peer_may_have_its_part_and_others_theirs() {
        let (memory, [peer, other]) = (Memory::new(100), [PeerId::random(), PeerId::random()]);
        let claim = memory.claim(peer, 30.into(), 40.into()).unwrap();
        let error = memory.claim(peer, 11.into(), 40.into()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Could not allocate 11 bytes: quota of this peer, 40 bytes of the cache, is used up"
        );
        assert!(memory.claim(peer, u64::MAX.into(), 40.into()).is_err());
        let _others = memory.claim(other, 40.into(), 40.into()).unwrap();
        drop(claim);
        drop(memory.claim(peer, 40.into(), 40.into()).unwrap());
        assert_eq!(memory.inner.claims().len(), 1);
    }

    #[tokio::test]
    async fn more_than_the_whole_cache_is_refused_without_waiting() {
        let memory = Memory::new(100);
        let error = memory.lease(101, WAIT).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Could not allocate 101 bytes, max cache size = 100 bytes"
        );
    }

    #[tokio::test]
    async fn waiting_in_vain_ends_with_the_time_waited() {
        let memory = Memory::new(100);
        let _held = memory.lease(100, Duration::ZERO).await.unwrap();
        let error = memory.lease(1, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.to_string(), "Could not allocate 1 within 0.02 seconds");
    }

    #[tokio::test]
    async fn those_who_wait_are_served_in_order() {
        let memory = Memory::new(100);
        let held = memory.lease(100, Duration::ZERO).await.unwrap();
        let (first, second) = (memory.clone(), memory.clone());
        let mut first = Box::pin(async move { first.lease(80, WAIT).await });
        let mut second = Box::pin(async move { second.lease(30, WAIT).await });
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        drop(held);
        let first = first.await.unwrap();
        assert!(futures::poll!(&mut second).is_pending(), "30 do not fit beside 80");
        assert!(
            memory.lease(10, Duration::ZERO).await.is_err(),
            "nobody may overtake those who wait"
        );
        drop(first);
        let second = second.await.unwrap();
        assert_eq!(memory.free_bytes(), 70);
        drop(second);
        assert_eq!(memory.free_bytes(), 100);
    }

    #[tokio::test]
    async fn giving_up_the_wait_lets_the_next_one_through() {
        let memory = Memory::new(100);
        let held = memory.lease(50, Duration::ZERO).await.unwrap();
        let (large, small) = (memory.clone(), memory.clone());
        let mut large = Box::pin(async move { large.lease(90, Duration::from_millis(20)).await });
        assert!(futures::poll!(&mut large).is_pending());
        let mut small = Box::pin(async move { small.lease(40, WAIT).await });
        assert!(futures::poll!(&mut small).is_pending());
        assert!(large.await.is_err());
        small.await.unwrap();
        drop(held);
        assert_eq!(memory.free_bytes(), 100);
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_blocks_nobody() {
        let memory = Memory::new(100);
        let _held = memory.lease(50, Duration::ZERO).await.unwrap();
        let (large, small) = (memory.clone(), memory.clone());
        let mut large = Box::pin(async move { large.lease(90, WAIT).await });
        assert!(futures::poll!(&mut large).is_pending());
        let mut small = Box::pin(async move { small.lease(30, WAIT).await });
        assert!(futures::poll!(&mut small).is_pending());
        drop(large);
        let std::task::Poll::Ready(Ok(_small)) = futures::poll!(&mut small) else {
            panic!("what fits waits behind a request that is gone");
        };
        let _new = memory.lease(20, Duration::ZERO).await.unwrap();
        assert_eq!(memory.free_bytes(), 0);
    }

    #[tokio::test]
    async fn what_was_granted_to_a_wait_that_is_dropped_comes_back() {
        let memory = Memory::new(100);
        let held = memory.lease(100, Duration::ZERO).await.unwrap();
        let waiting = memory.clone();
        let mut waiting = Box::pin(async move { waiting.lease(60, WAIT).await });
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(held);
        assert_eq!(memory.free_bytes(), 40);
        drop(waiting);
        assert_eq!(memory.free_bytes(), 100);
    }

    #[tokio::test]
    async fn what_is_taken_must_fit_as_well_as_what_is_counted() {
        let pages = |tokens| Amount {
            counted: tokens,
            taken: 16 * tokens,
        };
        let memory = Memory::new(Amount::from(100));
        let lease = memory.lease(pages(6), Duration::ZERO).await.unwrap();
        assert_eq!(memory.free_bytes(), 94, "others are told what Petals would tell them");
        let error = memory.lease(pages(1), Duration::ZERO).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Could not allocate 1 bytes immediately: out of memory"
        );
        drop(lease);
        let error = memory.lease(pages(7), WAIT).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Could not allocate 112 bytes, max cache size = 100 bytes"
        );
        assert!(memory.is_free());
    }

    #[tokio::test]
    async fn what_is_not_kept_goes_to_who_waits() {
        let memory = Memory::new(100);
        let held = memory.lease(100, Duration::ZERO).await.unwrap();
        let mut waiting = Box::pin(memory.lease(60, WAIT));
        assert!(futures::poll!(&mut waiting).is_pending());
        held.keep(50);
        assert!(futures::poll!(&mut waiting).is_pending());
        held.keep(40);
        let waited = waiting.await.unwrap();
        held.keep(70);
        assert_eq!(memory.free_bytes(), 0, "nobody gets more than it has");
        drop(held);
        assert_eq!(memory.free_bytes(), 40);
        drop(waited);
        assert!(memory.is_free());
        assert!(!memory.is_shared());
    }

    #[tokio::test]
    async fn own_requests_wait_only_for_own_ones() {
        let memory = Memory::new(100);
        let held = memory.lease(100, Duration::ZERO).await.unwrap();
        let ask = |own| {
            let memory = memory.clone();
            Box::pin(async move { memory.lease_in_turn(60, (WAIT, own)).await })
        };
        let mut waiting = [false, true, true].map(ask);
        for lease in &mut waiting {
            assert!(futures::poll!(lease).is_pending());
        }
        drop(held);
        let [stranger, first, second] = waiting;
        drop(first.await.unwrap());
        drop(second.await.unwrap());
        drop(stranger.await.unwrap());
        assert!(memory.is_free());
    }
}
