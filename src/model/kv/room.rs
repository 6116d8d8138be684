//! Memory beside the pages, which no session reserves: what it takes to follow what sessions were made of, and the known outputs
//! where pages are on cards. Who finds it used up shares nothing with others, and gets what it would get otherwise.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::model::free_memory;

/// One byte beside so many of pages, and beside pages on cards one of so many that are free: less than plans leave of the
/// memory that is free (`model/free.rs`), however much of that the pages take.
const PART: usize = 16;

/// However few pages there are, in bytes: some dozens of rows of a wide model.
pub(super) const LEAST: usize = 16 << 20;

/// What is left of it, in bytes.
#[derive(Debug)]
pub(super) struct Room(Arc<AtomicUsize>);

/// Bytes of a [`Room`]; dropping it gives them back.
#[derive(Debug)]
pub(super) struct Taken {
    bytes: usize,
    left: Arc<AtomicUsize>,
}

impl Room {
    /// Beside pages, or known outputs where those are on cards, of so many bytes on the host.
    pub(super) fn beside(bytes: usize) -> Self {
        let bytes = LEAST.max(bytes / PART);
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// `bytes` of it, if there are as many left.
    pub(super) fn take(&self, bytes: usize) -> Option<Taken> {
        let less = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        Some(Taken {
            bytes,
            left: self.0.clone(),
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// What known outputs take where the arena has no memory of the host.
#[derive(Debug)]
pub(super) struct Heap {
    /// Bytes they may take.
    pub(super) most: usize,
    /// Bytes they take.
    pub(super) taken: usize,
}

impl Heap {
    /// Beside pages of so many bytes on cards: as many, but not more than a part of what the host has free now, most of which
    /// is for others.
    pub(super) fn beside_cards(page_bytes: usize) -> Self {
        let free = free_memory().and_then(|bytes| usize::try_from(bytes).ok());
        Self {
            most: page_bytes.min(free.unwrap_or(usize::MAX) / PART),
            taken: 0,
        }
    }
}
