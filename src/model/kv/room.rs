//! Memory beside the pages, which no session reserves: what it takes to follow what a session was made of. Who finds it used
//! up shares nothing with others, and gets what it would get otherwise.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// One byte beside so many of pages: less than plans leave of the memory that is free (`model/free.rs`), however much of that
/// the pages take.
const PAGE_BYTES_PER_BYTE: usize = 16;

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
    /// Beside pages of so many bytes.
    pub(super) fn beside(page_bytes: usize) -> Self {
        let bytes = LEAST.max(page_bytes / PAGE_BYTES_PER_BYTE);
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
