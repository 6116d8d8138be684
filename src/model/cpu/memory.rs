//! Memory for weights and scratch: zeroed, aligned to cache lines, in large pages where the system has them.

use std::io;

use bytemuck::Pod;
use memmap2::MmapMut;

/// From this size on large pages are asked for. Smaller memory would waste most of one.
const LARGE: usize = 4 << 20;

/// Bytes that begin at a page.
#[derive(Debug)]
pub(crate) struct Memory(MmapMut);

impl Memory {
    /// `bytes` zeros.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub(crate) fn zeroed(bytes: usize) -> io::Result<Self> {
        // No memory at all cannot be mapped.
        let map = MmapMut::map_anon(bytes.max(1))?;
        #[cfg(target_os = "linux")]
        if bytes >= LARGE {
            // Systems without large pages refuse, and are slower.
            drop(map.advise(memmap2::Advice::HugePage));
        }
        Ok(Self(map))
    }

    /// The first `len` numbers.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn numbers<T: Pod>(&self, len: usize) -> &[T] {
        bytemuck::cast_slice(&self.0[..len * size_of::<T>()])
    }

    /// As [`Memory::numbers`], to write to.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn numbers_mut<T: Pod>(&mut self, len: usize) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0[..len * size_of::<T>()])
    }
}
