//! The attention-cache budget: who may use how many bytes, and who waits. It counts memory, it does not hold any.
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

/// The budget of one server. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    max_bytes: u64,
    state: Mutex<State>,
    /// What is claimed by peers that may not have all of it.
    claims: Mutex<HashMap<PeerId, u64>>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
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
    bytes: u64,
    inner: Arc<Inner>,
}

/// Bytes that count for a peer, whether they are reserved already or waited for; dropping it takes them off.
#[derive(Debug)]
pub(crate) struct Claim {
    peer: PeerId,
    bytes: u64,
    inner: Arc<Inner>,
}

impl Memory {
    /// A budget of `max_bytes`, all of it free.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self {
            inner: Arc::new(Inner {
                max_bytes,
                state: Mutex::default(),
                claims: Mutex::default(),
            }),
        }
    }

    /// Whether nobody has reserved anything.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.inner.lock().used == 0
    }

    /// Bytes of the whole budget.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.inner.max_bytes
    }

    /// Bytes nobody has reserved.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.inner.max_bytes - self.inner.lock().used
    }

    /// Counts `bytes` for a peer that may have `max` in all.
    ///
    /// # Errors
    /// When it has too many.
    pub(crate) fn claim(&self, peer: PeerId, bytes: u64, max: u64) -> Result<Claim, RequestError> {
        let mut claims = self.inner.claims();
        let claimed = claims.get(&peer).copied().unwrap_or_default();
        let sum = claimed.checked_add(bytes).filter(|sum| *sum <= max);
        claims.insert(peer, sum.ok_or(RequestError::CacheQuota { bytes, max })?);
        Ok(Claim {
            peer,
            bytes,
            inner: self.inner.clone(),
        })
    }

    /// Reserves `bytes`, waiting up to `timeout` for others to give some back. Zero does not wait.
    ///
    /// # Errors
    /// The three refusals of Petals: full now, larger than the whole cache, still full after the wait.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue; nothing stays reserved.
    pub(crate) async fn lease(&self, bytes: u64, timeout: Duration) -> Result<Lease, RequestError> {
        let mut place = {
            let mut state = self.inner.lock();
            state.forget_those_that_left();
            let queued: u64 = state.waiting.iter().map(|waiter| waiter.bytes).sum();
            let fits = state.used.saturating_add(queued).saturating_add(bytes) <= self.inner.max_bytes;
            if fits && state.waiting.is_empty() {
                return Ok(self.inner.grant(&mut state, bytes));
            }
            if timeout.is_zero() {
                return Err(RequestError::CacheFull { bytes });
            }
            if bytes > self.inner.max_bytes {
                return Err(RequestError::CacheTooSmall {
                    bytes,
                    max: self.inner.max_bytes,
                });
            }
            let (granted, lease) = oneshot::channel();
            state.waiting.push_back(Waiter { bytes, granted });
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

impl State {
    fn forget_those_that_left(&mut self) {
        self.waiting.retain(|waiter| !waiter.granted.is_closed());
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<PeerId, u64>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(self: &Arc<Self>, state: &mut State, bytes: u64) -> Lease {
        state.used += bytes;
        Lease {
            bytes,
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
                    .is_some_and(|first| state.used + first.bytes <= self.max_bytes);
                if !fits {
                    return;
                }
                let Some(first) = state.waiting.pop_front() else { return };
                let lease = self.grant(&mut state, first.bytes);
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
            *claimed -= self.bytes;
            if *claimed == 0 {
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
        self.inner.lock().used -= self.bytes;
        self.inner.wake();
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
        let claim = memory.claim(peer, 30, 40).unwrap();
        let error = memory.claim(peer, 11, 40).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Could not allocate 11 bytes: quota of this peer, 40 bytes of the cache, is used up"
        );
        assert!(memory.claim(peer, u64::MAX, 40).is_err());
        let _others = memory.claim(other, 40, 40).unwrap();
        drop(claim);
        drop(memory.claim(peer, 40, 40).unwrap());
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
}
